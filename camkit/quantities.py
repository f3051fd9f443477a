"""Quantities: what a method's signature can ask for.

Each is a function of a `Pass`, contributed through the hook ``camkit_quantities``; the ones here are found through the
entry points like anybody's. A value is computed when the first method asks for it and kept until the pass ends.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camkit import plugin
from camkit.adapter import Adapter
from camkit.contracts import Note
from camkit.cut import Cut, Forward, Layer
from camkit.errors import CamkitError
from camkit.layout import Layout
from camkit.precision import single
from camkit.targets import Question

if TYPE_CHECKING:
    from camkit.registry import Registry

# What perturbed copies of a batch may take at a time beside the model and its own pass.
MEMORY = 200 * 2**20


Observer = Callable[[bool], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Quantity:
    """A registered quantity: its type, and what a pass must do so that it can be computed."""

    name: str
    function: Callable[["Pass"], Any]
    type: object
    traceable: bool
    graph: bool
    layer: bool = True
    reruns: bool = False
    observer: Observer | None = None

    @classmethod
    def parse(cls, function: Callable[["Pass"], Any], mark: plugin.Mark, registry: "Registry") -> "Quantity":
        """Reads a marked function; its return annotation is the quantity's type."""
        hints = get_type_hints(function)
        if "return" not in hints:
            raise CamkitError(
                f"The quantity '{mark.name}' has no return annotation, which is the type that methods write."
            )
        return cls(mark.name, function, hints["return"], **mark.facts)


@dataclass
class Scored:
    """One target of a forward pass: the scores [B], and the gradients at all layers, computed once.

    Attributes:
        forward: the forward pass.
        question: what was asked of it.
        scores: the target's value, [B].
        retain_graph: whether the recorded head is needed again after the gradient.
        notes: what methods said about images, (bool [B], sentence); the engine takes them after each method.
        values: quantities that belong to no layer, by name; all layers share them.
    """

    forward: Forward
    question: Question
    scores: Tensor
    retain_graph: bool
    notes: list[tuple[Tensor, str]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    _gradients: dict[str, Tensor] = field(default_factory=dict)

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of the scores at every target layer, by the layer's path."""
        if not self._gradients:
            self._gradients = self.forward.gradients(self.scores, retain_graph=self.retain_graph)
        return self._gradients


@dataclass
class Pass:
    """One layer and one target of a forward pass: what a quantity is computed from.

    Attributes:
        module: the model.
        adapter: the model's adapter.
        scored: the forward pass (images, output, logits, captured layers) with the scores of one target.
        layer: the target layer.
        layout: how that layer's output is read as [B, K, h, w].
        checks: False while a graph is traced, where no decision may hang on a value.
        plain: whether to compute in the plainest way, as the oracle does: no part of the model is taken as a graph.
        memory: bytes that perturbed copies of the batch may take at a time.
    """

    module: nn.Module
    adapter: Adapter
    scored: Scored
    layer: Layer
    layout: Layout
    checks: bool = True
    plain: bool = False
    memory: int = MEMORY
    _values: dict[str, Any] = field(default_factory=dict)

    def value(self, quantity: Quantity) -> Any:
        """The value of a quantity, computed when first asked for."""
        values = self._values if quantity.layer else self.scored.values
        if quantity.name not in values:
            values[quantity.name] = quantity.function(self)
        return values[quantity.name]

    def again(
        self,
        images: Tensor,
        *,
        copies: int | None = None,
        graph: bool = False,
        from_images: bool = False,
        observers: Sequence[AbstractContextManager[Any]] = (),
    ) -> "Pass":
        """The same question about other images [n * B, C, H, W]: n = `copies` of the batch, one after the other.

        `graph` records the head, `from_images` the whole model, so that gradients can be had.
        """
        cut = Cut(self.module, [self.layer], self.adapter.reader(self.module))
        forward = cut.forward(images, graph=graph, from_images=from_images, observers=observers)
        question = self.scored.question.repeated(copies or images.shape[0] // self.scored.scores.shape[0])
        with torch.set_grad_enabled(graph or from_images):
            scores = question.scores(forward)
        return replace(self, scored=Scored(forward, question, scores, retain_graph=False), _values={})


@plugin.quantity("images", traceable=True, layer=False)
def images(this: Pass) -> Tensor:
    """The images [B, C, H, W] as the model was given them."""
    return single(this.scored.forward.images)


@plugin.quantity("logits", traceable=True, layer=False)
def logits(this: Pass) -> Tensor:
    """The model's output before softmax or sigmoid, [B, classes]."""
    return single(this.scored.forward.logits.detach())


@plugin.quantity("scores", traceable=True, layer=False)
def scores(this: Pass) -> Tensor:
    """The target's value, [B]."""
    return single(this.scored.scores.detach())


@plugin.quantity("activations", traceable=True)
def activations(this: Pass) -> Tensor:
    """The target layer's output, [B, K, h, w]."""
    return single(this.layout.to_maps(this.scored.forward.captured[this.layer.path].detach()))


@plugin.quantity("gradients", traceable=True, graph=True)
def gradients(this: Pass) -> Tensor:
    """The gradient of the scores with respect to the activations, [B, K, h, w]."""
    return single(this.layout.to_maps(this.scored.gradients()[this.layer.path]))


@plugin.quantity("classifier_weights", traceable=True)
def classifier_weights(this: Pass) -> Tensor:
    """The weight of each channel in the target's score, [B, K], for a model that ends in pooling and one linear layer.

    For the target ``class`` these are the rows of the classifier's weight matrix; for any other function of the logits
    they are that function's gradient with respect to the logits times the matrix.

    Raises:
        CamkitError: the logits are not one linear layer applied to the spatial mean of the activations.
    """
    classifier, forward = this.adapter.find_classifier(this.module), this.scored.forward
    features = activations(this)
    if (
        not isinstance(classifier, nn.Linear)
        or classifier.in_features != features.shape[1]
        or (this.checks and not _is_pooled_linear(classifier, features, forward.logits))
    ):
        raise CamkitError(
            f"CAM needs a model whose logits are one linear layer on the global average of the target layer's "
            f"activations, which is not so at '{this.layer.path}'; use gradcam, which equals CAM where CAM is defined."
        )
    return single(this.scored.question.logit_gradient(forward).to(classifier.weight.dtype) @ classifier.weight.detach())


def _is_pooled_linear(classifier: nn.Linear, features: Tensor, logits: Tensor) -> bool:
    pooled = features.mean(dim=(2, 3)).to(classifier.weight.dtype)
    expected = F.linear(pooled, classifier.weight, classifier.bias).detach()
    tolerance = 1e-3 if logits.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((expected - logits).abs().max() <= tolerance * logits.abs().max())


@plugin.quantity("note", traceable=True, layer=False)
def note(this: Pass) -> Note:
    """Says something about some images of the batch; silent in an exported graph."""

    def say(affected: Tensor, sentence: str) -> None:
        if this.checks:
            this.scored.notes.append((affected, sentence))

    return say


@plugin.hookimpl
def camkit_quantities() -> list[Callable[[Pass], Any]]:
    """The quantities of this module."""
    return plugin.collect(__name__, "quantity")
