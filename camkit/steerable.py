"""Explanations that can be differentiated with respect to the image: what an attack on the explanation climbs along."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from camkit.cut import Cut, Forward, frozen, lock
from camkit.errors import CamkitError, CamkitWarning
from camkit.explain import AnyMethod, Explainer
from camkit.explanation import Explanation
from camkit.loss import Loss, to_model
from camkit.methods import as_method
from camkit.precision import single
from camkit.targets import Target
from camkit.threats import chosen

MapObjective = Callable[[Tensor, Tensor], Tensor]
# Quantities of which a graph back to the image can be had by differentiating a forward pass.
DIFFERENTIABLE = ("activations", "gradients", "image_gradients", "images", "logits", "scores", "note")


class Explain:
    """One method's maps of the attacked labels, as a function of the image.

    Args:
        explainer: the model, with its preprocessing.
        labels: the class that is explained, [B].
        method: a method of kind ``map`` that asks for nothing but activations, gradients, logits, scores and images.
        layer: the target layer, as for an Explainer.
        options: the method's options.

    Raises:
        CamkitError: the method cannot be differentiated with respect to the image.
    """

    def __init__(
        self,
        explainer: Explainer,
        labels: Tensor,
        method: AnyMethod = "gradcam",
        layer: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.explainer, self.labels = explainer, labels
        self.method, self.options = as_method(method), options
        self.layer = layer if layer is not None else _first(explainer.layer)
        strange = [name for name in self.method.signature.asks if name not in DIFFERENTIABLE]
        if strange or self.method.kind != "map":
            what = f"it asks for {strange[0]}" if strange else f"it gives {self.method.kind}"
            raise CamkitError(
                f"Maps by '{self.method.name}' cannot be steered by the image, because {what}; attack another method, "
                f"such as gradcam, and look at what this one makes of the result."
            )

    def __call__(self, pixels: Tensor) -> Tensor:
        """The signed maps [B, h, w] of pixels [B, C, H, W], as an Explainer gives them."""
        shown = to_model(self.explainer, pixels.detach()).to(self.explainer.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CamkitWarning)
            found: Explanation = self.explainer(
                shown, self.method.function, self.labels, self.layer, options=self.options, relu=False
            )
        return found.maps

    def gradient(self, pixels: Tensor, of: MapObjective, *, softplus: float | None = None) -> Tensor:
        """The gradient of each image's objective with respect to its pixels, [B, C, H, W].

        Args:
            pixels: [B, C, H, W].
            of: the objective [B], a function of the maps [B, h, w] and the logits [B, classes].
            softplus: replaces each ReLU by log(1 + exp(beta x)) / beta with this beta: a ReLU has no second derivative
                to follow where a map is made of gradients (Dombrowski et al. 2019, section 4). None leaves it as it is.

        Raises:
            CamkitError: the map does not depend on the image by any path that can be differentiated.
        """
        explainer, leaf = self.explainer, pixels.detach().clone().requires_grad_()
        module = explainer.module
        with ExitStack() as stack:
            for context in (lock(module), torch.inference_mode(False), frozen(module), torch.enable_grad()):
                stack.enter_context(context)
            shown = to_model(explainer, leaf).to(explainer.dtype)
            with _Twice(softplus):
                maps, forward = self._maps(shown)
                values = of(maps, single(forward.logits))
                found = (
                    torch.autograd.grad(values.sum(), forward.images, allow_unused=True)[0]
                    if values.requires_grad
                    else None
                )
            if found is None:
                raise CamkitError(
                    f"The map by '{self.method.name}' does not depend on the image in a way that can be "
                    f"differentiated, so that it cannot be steered."
                )
            # the pass made a leaf of its own of what it was shown
            return torch.autograd.grad(shown, leaf, grad_outputs=found)[0]

    def _maps(self, shown: Tensor) -> tuple[Tensor, Forward]:
        """The maps [B, h, w] with their graph back to the images of the forward pass."""
        module, adapter = self.explainer.module, self.explainer.resolve(shown).adapter
        layer = adapter.layer(module, self.layer, shown)
        forward = Cut(module, [layer], adapter.reader(module)).forward(shown, graph=True, from_images=True)
        captured = forward.captured[layer.path]
        layout = adapter.layout_of(module, layer, captured.shape, (shown.shape[2], shown.shape[3]))
        scores = Target(class_index=self.labels).question(forward, {}, self.explainer.probability).scores(forward)

        def gradient(of: Tensor) -> Tensor:
            return torch.autograd.grad(scores.sum(), of, create_graph=True)[0]

        makers: dict[str, Callable[[], Any]] = {
            "activations": lambda: single(layout.to_maps(captured)),
            "gradients": lambda: single(layout.to_maps(gradient(captured))),
            "image_gradients": lambda: single(gradient(forward.images)),
            "images": lambda: single(forward.images),
            "logits": lambda: single(forward.logits),
            "scores": lambda: single(scores),
            # what a method says of its map is said when the map is shown
            "note": lambda: lambda affected, sentence: None,
        }
        given = [makers[name]() for name in self.method.signature.asks]
        maps = self.method.function(*given, **self.method.signature.options(self.options))
        return maps.sum(dim=1) if maps.ndim == 4 else maps, forward


def steer(
    explain: Explain,
    loss: Loss,
    maps: Tensor,
    objective: MapObjective,
    reached: Callable[[Tensor], Tensor],
    *,
    steps: int,
    step_size: float | None,
    softplus: float | None,
) -> Tensor:
    """Signed steps up an objective of the map, each projected into the threat model, [B, C, H, W].

    For each image the one is returned at which `reached` was highest while the prediction stayed.

    Args:
        explain: the maps.
        loss: whose images are moved.
        maps: those of the images as they are, [B, h, w].
        objective: as for `Explain.gradient`.
        reached: how far maps [B, h, w] are where the attack wants them, [B].
        steps: how many.
        step_size: how far one goes; by default they reach 2.5 times as far as the budget.
        softplus: as for `Explain.gradient`.
    """
    threat = loss.threat
    size = threat.step_size(step_size, steps, reach=2.5)
    moved = best = threat.original
    most = reached(maps)
    for _ in loss.steps(steps):
        gradient = explain.gradient(moved, objective, softplus=softplus)
        moved = threat.project(moved + size * gradient.sign())
        now = reached(explain(moved))
        better = (now > most) & ~loss.ask(moved, gradient=False).fooled
        best, most = chosen(better, moved, best), torch.where(better, now, most)
    return best


def overlap(before: Tensor, after: Tensor, share: float = 0.2) -> Tensor:
    """The share of the strongest positions of maps [B, h, w] that are still among the strongest, [B] in [0, 1].

    Strongest are `share` of all positions: the top-k intersection of Ghorbani et al. 2019 (section 2).
    """
    first, second = strongest(before, share), strongest(after, share)
    return (first & second).flatten(1).sum(dim=1) / first.flatten(1).sum(dim=1)


def strongest(maps: Tensor, share: float) -> Tensor:
    """Where the strongest positions of each map are, bool [B, h, w]."""
    flat = maps.flatten(1)
    count = max(1, round(share * flat.shape[1]))
    places = flat.topk(count, dim=1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, places, True).reshape(maps.shape)


class _Twice(TorchFunctionMode):
    """Makes a model differentiable twice, without a module being touched: attention in plain steps, ReLUs as softplus.

    PyTorch's fused attention has no second derivative; a ReLU has one that is zero.
    """

    def __init__(self, beta: float | None) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            mixed, _ = torch._scaled_dot_product_attention_math(*args, **(kwargs or {}))
            return mixed
        if func in _RELUS and self.beta is not None:
            return F.softplus(args[0], beta=self.beta)
        return func(*args, **(kwargs or {}))


_RELUS = frozenset((F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_))


def _first(layer: Any) -> str | None:
    return layer if layer is None or isinstance(layer, str) else str(layer[0])
