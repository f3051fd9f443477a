"""The head as something that a method can call."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit import plugin
from camkit.chunks import in_chunks
from camkit.contracts import Head, Make
from camkit.cut import frozen, lock, replay
from camkit.errors import CamkitWarning
from camkit.head import NoHead, head_graph
from camkit.precision import single
from camkit.quantities import Pass

Run = Callable[[Tensor], Any]


class _Head:
    def __init__(self, this: Pass) -> None:
        self.this = this
        self.original = this.scored.forward.captured[this.layer.path].detach()
        self.batch = len(self.original)
        self._graph_run: Run | None = None

    def __call__(self, activations: Tensor) -> Tensor:
        with lock(self.this.module), frozen(self.this.module), sdpa_kernel(SDPBackend.MATH):
            # fused attention has no second derivative; and one call does not pay for a graph
            return self._scores(activations, self._graph_run or self._full_run)

    def map(self, make: Make, n: int) -> Tensor:
        run = self._full_run if self.this.plain else self._prepared()

        def evaluate(activations: Tensor) -> Tensor:
            return self._scores(activations, run)

        with torch.inference_mode(False), torch.no_grad(), lock(self.this.module):
            return in_chunks(make, n, evaluate, memory=self.this.memory, description="Running the head")

    def _scores(self, activations: Tensor, run: Run) -> Tensor:
        forward = self.this.scored.forward
        times = len(activations) // self.batch
        output = run(self.this.layout.from_maps(activations.to(self.original.dtype), self.original))
        found = forward.with_output(output, len(activations))
        return single(self.this.scored.question.repeated(times).scores(found))

    def _full_run(self, output: Tensor) -> Any:
        images = self.this.scored.forward.images
        return replay(self.this.module, images.repeat(len(output) // self.batch, 1, 1, 1), self.this.layer, output)

    def _prepared(self) -> Run:
        """The head as a graph, checked against the pass itself; full forward passes where there is none."""
        if self._graph_run is not None:
            return self._graph_run
        this, images = self.this, self.this.scored.forward.images
        try:
            graph = head_graph(this.module, this.layer, this.scored.forward)
            prepared = graph.prepare(images)

            def run(output: Tensor) -> Any:
                return graph.run(output, prepared, self.batch)

            found = self._scores(this.layout.to_maps(self.original), run)
            scores = this.scored.scores.detach()
            if not bool((found - scores).abs().max() <= _tolerance(images) * scores.abs().max()):
                raise NoHead("its graph does not give the model's own scores")
            self._graph_run = run
        except NoHead as reason:
            if not reason.said:
                warnings.warn(
                    f"The part of the model behind '{this.layer.path}' is not run alone, because {reason}; the whole "
                    f"model runs for each perturbation, which is slower.",
                    CamkitWarning,
                    stacklevel=2,
                )
                reason.said = True
            self._graph_run = self._full_run
        return self._graph_run


def _tolerance(images: Tensor) -> float:
    return 1e-3 if images.dtype in (torch.float32, torch.float64) else 5e-2


@plugin.quantity("head", traceable=False, reruns=True)
def head(this: Pass) -> Head:
    """The part of the model behind the target layer: activations [B, K, h, w] to scores [B], one by one or many."""
    return _Head(this)
