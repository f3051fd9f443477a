"""Activations and gradients of other images."""

from collections.abc import Iterator

import torch
from torch import Tensor

from camkit import plugin, progress
from camkit.contracts import Make, Samples
from camkit.quantities import Pass, activations, gradients


@plugin.quantity("samples", traceable=True, reruns=True)
def samples(this: Pass) -> Samples:
    """Activations and gradients [B, K, h, w] of n images ``make(i)``, one after the other: noise, or a path."""
    dtype = this.scored.forward.images.dtype

    def run(make: Make, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        if not this.checks:
            # one after the other the graph would hold the model n times
            again = this.again(torch.cat([make(index) for index in range(n)]), copies=n, graph=True)
            of_copies = (tensor.unflatten(0, (n, -1)) for tensor in (activations(again), gradients(again)))
            yield from zip(*of_copies, strict=True)
            return
        with progress.task("Sampling", n) as advance:
            for index in range(n):
                again = this.again(make(index).to(dtype), graph=True)
                yield activations(again), gradients(again)
                advance(1)

    return run
