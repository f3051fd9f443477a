"""A random map, the baseline that every method must beat."""

import numpy as np
import torch
from torch import Tensor

from camkit import plugin


@plugin.method("random", paper="none; a baseline", class_specific=False, traceable=False)
def random_map(activations: Tensor, *, seed: int = 0) -> Tensor:
    """Random: uniform within [0, 1) at each position of the target layer, the same draws for every image."""
    # NumPy's generator: PyTorch's own would be drawn from anew in an exported graph, and differs between devices
    draws = np.random.default_rng(seed).random(activations.shape[2:])
    return torch.tensor(draws, dtype=activations.dtype, device=activations.device).expand(activations.shape[0], -1, -1)
