"""The head as something that a method can call."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit import plugin
from camkit.chunks import in_chunks
from camkit.contracts import Head, Make, Mask
from camkit.cut import frozen, lock, replay
from camkit.errors import CamkitError, CamkitWarning
from camkit.head import NoHead, head_graph
from camkit.precision import single
from camkit.quantities import Pass

Run = Callable[[Tensor], Any]

# What the copies of one image's activations may take at a time in a graph, and how often a graph may hold the head.
TRACED_MEMORY = 64 * 2**20
MOST_CHUNKS = 64


class _Head:
    def __init__(self, this: Pass) -> None:
        self.this = this
        self.original = this.scored.forward.captured[this.layer.path].detach()
        self._graph_run: Run | None = None

    def __call__(self, activations: Tensor) -> Tensor:
        with lock(self.this.module), frozen(self.this.module), sdpa_kernel(SDPBackend.MATH):
            # fused attention has no second derivative; and one call does not pay for a graph
            return self._scores(activations, self._graph_run or self._full_run, 1)

    def masked(self, mask: Mask, n: int) -> Tensor:
        if not self.this.checks:
            return self._unrolled(mask, n)
        activations = self.this.layout.to_maps(self.original)
        masks = mask(torch.arange(n, device=activations.device))
        alive = activations.ne(0).any(dim=0, keepdim=True)
        for dimension in (1, 2, 3):
            if masks.shape[dimension] == 1:
                alive = alive.any(dim=dimension, keepdim=True)
        changed = ((masks != 1) & alive).flatten(1).any(dim=1)
        # one of those that change nothing stands for all of them
        places = [*changed.nonzero()[:, 0].tolist(), *(~changed).nonzero()[:1, 0].tolist()]
        found = self.map(lambda i: activations * masks[places[i]].to(activations.dtype), len(places))
        scores = found[:, -1:].repeat(1, n)
        scores[:, changed] = found[:, : int(changed.sum())]
        return scores

    def map(self, make: Make, n: int) -> Tensor:
        if not self.this.checks:
            raise CamkitError("A method that calls head.map(make, n) cannot be exported; head.masked(mask, n) can.")
        run = self._full_run if self.this.plain else self._prepared()

        def evaluate(activations: Tensor) -> Tensor:
            return self._scores(activations, run, len(activations) // len(self.original))

        with torch.inference_mode(False), torch.no_grad(), lock(self.this.module):
            return in_chunks(make, n, evaluate, memory=self.this.memory, description="Running the head")

    def _unrolled(self, mask: Mask, n: int) -> Tensor:
        """`masked` in a graph: a chunk after the other, each with operators of its own."""
        path = self.this.layer.path
        activations = self.this.layout.to_maps(self.original)
        size = max(1, TRACED_MEMORY // (4 * activations[0].numel()))
        if n > size * MOST_CHUNKS:
            raise CamkitError(
                f"The head behind '{path}' would be run in {-(-n // size)} chunks, of which a graph holds at most "
                f"{MOST_CHUNKS}; choose a layer with fewer activations."
            )
        try:
            graph = head_graph(self.this.module, self.this.layer, self.this.scored.forward)
        except NoHead as reason:
            raise CamkitError(f"The head behind '{path}' cannot be exported, because {reason}.") from reason
        prepared = graph.prepare(self.this.scored.forward.images)
        scores = []
        for start in range(0, n, size):
            count = min(size, n - start)
            masks = mask(torch.arange(start, start + count)).to(activations.dtype)
            copies = (activations * masks[:, None]).flatten(0, 1)
            found = self._scores(copies, partial(graph.run, prepared=prepared, times=count), count)
            scores.append(found.unflatten(0, (count, -1)))
        return torch.cat(scores).T

    def _scores(self, activations: Tensor, run: Run, times: int) -> Tensor:
        forward = self.this.scored.forward
        output = run(self.this.layout.from_maps(activations.to(self.original.dtype), self.original))
        found = forward.with_output(output, activations.shape[0])
        return single(self.this.scored.question.repeated(times).scores(found))

    def _full_run(self, output: Tensor) -> Any:
        images = self.this.scored.forward.images
        times = output.shape[0] // images.shape[0]
        return replay(self.this.module, images.repeat(times, 1, 1, 1), self.this.layer, output)

    def _prepared(self) -> Run:
        """The head as a graph, checked against the pass itself; full forward passes where there is none."""
        if self._graph_run is not None:
            return self._graph_run
        this, images = self.this, self.this.scored.forward.images
        try:
            graph = head_graph(this.module, this.layer, this.scored.forward)
            prepared = graph.prepare(images)

            def run(output: Tensor) -> Any:
                return graph.run(output, prepared, len(output) // len(self.original))

            found = self._scores(this.layout.to_maps(self.original), run, 1)
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


@plugin.quantity("head", traceable=True, reruns=True)
def head(this: Pass) -> Head:
    """The part of the model behind the target layer: activations [B, K, h, w] to scores [B], one by one or many."""
    return _Head(this)
