"""One pass as it was planned: adapter, layers, methods, options. Explaining, tracing and the oracle all follow it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camkit.adapter import Adapter
from camkit.cut import Cut, Forward, Layer
from camkit.errors import CamkitError
from camkit.methods import Method
from camkit.quantities import Pass, Scored
from camkit.targets import TargetFunction, resolve_top


@dataclass(frozen=True)
class Plan:
    """One pass as it was planned; the same steps serve eager explanation, tracing, and the oracle."""

    module: nn.Module
    adapter: Adapter
    methods: Sequence[Method]
    layers: Sequence[Layer]
    options: Sequence[Mapping[str, Any]]

    @property
    def cut(self) -> Cut:
        """The model cut at the layers, each path once."""
        unique = {layer.path: layer for layer in self.layers}
        return Cut(self.module, list(unique.values()), self.adapter.output)

    @property
    def needs_graph(self) -> bool:
        """Whether any method differentiates."""
        return any(method.needs_graph for method in self.methods)

    def score(
        self,
        forward: Forward,
        function: TargetFunction,
        class_index: Tensor,
        inputs: Mapping[str, Tensor],
        *,
        last: bool,
    ) -> Scored:
        """The scores of one target, ready to be differentiated; `last` lets go of the graph after the gradient."""
        given = {**inputs, "class_index": class_index}

        def logit_gradient() -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                leaf = forward.logits.detach().requires_grad_()
                scores = function.scores(leaf, forward.output, given)
                return torch.autograd.grad(scores.sum(), leaf)[0]

        graph_quantities = {q.name for method in self.methods for q in method.quantities if q.graph}
        with torch.inference_mode(False), torch.set_grad_enabled(self.needs_graph):
            scores = function.scores(forward.logits, forward.output, given)
        return Scored(forward, scores, class_index, logit_gradient, retain_graph=not last or len(graph_quantities) > 1)

    def maps(self, forward: Forward, scored: Scored, *, checks: bool) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """((method, layer), result) for every method at every layer, for one target."""
        height, width = forward.images.shape[2:]
        classifier = self.adapter.find_classifier(self.module)
        with torch.inference_mode(False), torch.no_grad():
            for n, layer in enumerate(self.layers):
                shape = forward.captured[layer.path].shape
                layout = self.adapter.layout_of(self.module, layer, shape, (height, width))
                this = Pass(self.module, scored, layer, layout, classifier, checks)
                for m, method in enumerate(self.methods):
                    yield (m, n), method.compute(this, self.options[m])


def traceable(plan: Plan, target: TargetFunction) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """One method at one layer as a pure function: ``(images, class_index) -> (logits, maps, explained_class)``."""
    if not all(method.traceable for method in plan.methods):
        method = next(method for method in plan.methods if not method.traceable)
        blocking = ", ".join(quantity.name for quantity in method.quantities if not quantity.traceable)
        raise CamkitError(f"The method '{method.name}' cannot be exported, because {blocking} cannot be traced.")

    def explain(images: Tensor, class_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        forward = plan.cut.forward(images, graph=plan.needs_graph)
        explained = resolve_top(class_index, forward.logits)
        scored = plan.score(forward, target, explained, {}, last=True)
        ((_, maps),) = plan.maps(forward, scored, checks=False)
        return forward.logits.detach(), maps.detach(), explained

    return explain
