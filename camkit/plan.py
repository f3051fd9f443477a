"""One pass as it was planned: adapter, layers, methods, options. Explaining, tracing and the oracle all follow it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camkit.adapter import Adapter
from camkit.cut import Cut, Forward, Layer
from camkit.errors import CamkitError
from camkit.methods import Method, Result
from camkit.quantities import MEMORY, Observer, Pass, Quantity, Scored
from camkit.targets import Question, TargetFunction, resolve_top


@dataclass(frozen=True)
class Plan:
    """One pass as it was planned; the same steps serve eager explanation, tracing, and the oracle.

    Attributes:
        module: the model.
        adapter: its adapter.
        methods: the methods, with the `names` they were asked for by and their `options`.
        names: see methods.
        layers: the target layers.
        options: see methods.
        eigen_smooth: whether a method's channels are joined by their first principal component, not their sum.
        memory: bytes that perturbed copies of the batch may take at a time.
    """

    module: nn.Module
    adapter: Adapter
    methods: Sequence[Method]
    names: Sequence[str]
    layers: Sequence[Layer]
    options: Sequence[Mapping[str, Any]]
    eigen_smooth: bool = False
    memory: int = MEMORY

    @property
    def quantities(self) -> list[Quantity]:
        """What all the methods ask for, each once."""
        return list({quantity.name: quantity for method in self.methods for quantity in method.quantities}.values())

    @property
    def needs_graph(self) -> bool:
        """Whether any method differentiates."""
        return any(quantity.graph for quantity in self.quantities)

    def observers(self) -> list[AbstractContextManager[Any]]:
        """What has to watch the forward pass, each class once."""
        recording: dict[Observer, bool] = {}
        for quantity in self.quantities:
            if quantity.observer:
                recording[quantity.observer] = recording.get(quantity.observer, False) or quantity.graph
        return [observer(graph) for observer, graph in recording.items()]

    def forward(self, images: Tensor) -> Forward:
        """The forward pass, with the head recorded if any method differentiates."""
        unique = {layer.path: layer for layer in self.layers}
        cut = Cut(self.module, list(unique.values()), self.adapter.reader(self.module))
        return cut.forward(images, graph=self.needs_graph, observers=self.observers())

    def score(self, forward: Forward, question: Question, *, last: bool) -> Scored:
        """The scores of one target, ready to be differentiated; `last` lets go of the graph after the gradient."""
        differentiating = [quantity for quantity in self.quantities if quantity.graph]
        with torch.inference_mode(False), torch.set_grad_enabled(self.needs_graph):
            scores = question.scores(forward)
        return Scored(forward, question, scores, retain_graph=not last or len(differentiating) > 1)

    def passes(
        self, forward: Forward, scored: Scored, *, checks: bool = True, plain: bool = False
    ) -> Iterator[tuple[int, Pass]]:
        """(layer, what quantities are computed from) for every layer, for one target."""
        height, width = forward.images.shape[2:]
        for n, layer in enumerate(self.layers):
            shape = forward.captured[layer.path].shape
            layout = self.adapter.layout_of(self.module, layer, shape, (height, width))
            yield n, Pass(self.module, self.adapter, scored, layer, layout, checks, plain, self.memory)

    def results(
        self, forward: Forward, scored: Scored, *, checks: bool = True, plain: bool = False
    ) -> Iterator[tuple[tuple[int, int], Result]]:
        """((method, layer), result) for every method at every layer, for one target.

        A method that has no layer gives one result, at the first.
        """
        with torch.inference_mode(False), torch.no_grad():
            for n, this in self.passes(forward, scored, checks=checks, plain=plain):
                for m, method in enumerate(self.methods):
                    if n == 0 or method.has_layer:
                        yield (m, n), method.compute(this, self.options[m], eigen_smooth=self.eigen_smooth)


def traceable(
    plan: Plan,
    target: TargetFunction,
    options: Mapping[str, Any],
    probability: str,
    top_k: int | None = None,
    inputs: Sequence[str] = (),
) -> Callable[..., tuple[Tensor, ...]]:
    """The plan as a pure function: ``(images, class_index, *inputs) -> (logits, map, …, explained_class)``.

    There is one map [B, h, w] for each result of the plan, in its order. With `top_k` there is no `class_index`: maps
    are [B, k, h, w] and explained classes [B, k], of the k highest logits, highest first. Of a model without classes
    the logits are its embedding. `inputs` are the names of the target's own inputs, [B, ...] each.
    """
    refuse_untraceable(plan)

    def maps(forward: Forward, classes: Tensor, given: Sequence[Tensor], *, last: bool) -> list[Tensor]:
        own = dict(zip(inputs, given, strict=True))
        scored = plan.score(forward, Question(target, classes, own, options, probability), last=last)
        return [result.maps.detach() for _, result in plan.results(forward, scored, checks=False)]

    def explain(images: Tensor, class_index: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        forward = plan.forward(images)
        explained = resolve_top(class_index, forward.features)
        return (forward.features.detach(), *maps(forward, explained, given, last=True), explained)

    def explain_top(images: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        forward = plan.forward(images)
        logits = forward.features.detach()
        explained = logits.topk(top_k or 1, dim=1).indices
        ranks = [maps(forward, classes, given, last=False) for classes in explained.unbind(dim=1)]
        return (logits, *(torch.stack(one, dim=1) for one in zip(*ranks, strict=True)), explained)

    return explain if top_k is None else explain_top


def refuse_untraceable(plan: Plan) -> None:
    """Raises a CamkitError that names the method which cannot be traced, and what of it, if there is one."""
    for method in plan.methods:
        if not method.traceable:
            blocking = [quantity.name for quantity in method.quantities if not quantity.traceable]
            what = ", ".join(blocking) or "its own computation"
            raise CamkitError(f"The method '{method.name}' cannot be exported, because {what} cannot be traced.")
