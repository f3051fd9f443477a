"""Many perturbed copies of a batch, evaluated in chunks that fit a memory budget."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from camkit import progress
from camkit.contracts import Make

# Beside an operator's own result its inputs and the workspace of its kernel are alive.
ALIVE = 4


def in_chunks(make: Make, n: int, evaluate: Callable[[Tensor], Tensor], *, memory: int, description: str) -> Tensor:
    """Scores [B, n] of n tensors ``make(i)`` [B, ...], of which `evaluate` takes several one after the other.

    Where `evaluate` gives several values for each, they are [B, n, ...].

    The first one is evaluated alone, and how large its intermediate results are tells how many fit `memory` bytes.
    """
    footprint = _Footprint()
    with progress.task(description, n) as advance:
        first = make(0)
        with footprint:
            scores = [evaluate(first)]
        advance(1)
        cost = first.numel() * first.element_size() + ALIVE * footprint.largest
        size = max(1, min(n - 1, memory // max(cost, 1)))
        batch = len(first)
        # one buffer for all chunks: `torch.cat` would hold every copy twice
        buffer = first.new_empty((size * batch, *first.shape[1:]))
        for start in range(1, n, size):
            count = min(size, n - start)
            for place in range(count):
                buffer[place * batch : (place + 1) * batch] = make(start + place)
            scores.append(evaluate(buffer[: count * batch]))
            advance(count)
    every = torch.cat(scores)
    return every.reshape(n, batch, *every.shape[1:]).transpose(0, 1)


class _Footprint(TorchDispatchMode):
    """Notes the largest result of any operator, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # a view takes no memory, and that of a linear layer's weight may be larger than all activations
        if not func.is_view:
            made = sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            self.largest = max(self.largest, made)
        return result
