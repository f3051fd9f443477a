"""Deep Feature Factorization (Collins et al., ECCV 2018, arXiv:1806.10206)."""

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from camkit import plugin
from camkit.channels import divide


@plugin.method("dff", paper="arXiv:1806.10206", kind="concepts", class_specific=False)
def dff(activations: Tensor, *, concepts: PositiveInt = 4, iterations: PositiveInt = 400, seed: int = 0) -> Tensor:
    """Deep Feature Factorization: where each of a few concepts is, [B, k, h, w], none of it negative.

    The activations of all positions, a matrix [h * w, K], are factorised into maps [h * w, k] times channel vectors
    [k, K] by Lee and Seung's multiplicative updates. Each map is in the unit of the activations (its channel vector has
    length 1), and they come in the order of their energy. Negative activations count as zero; grad-cam subtracts
    each channel's minimum instead. Every image is factorised by itself, the paper's batches share their concepts.
    """
    matrix = activations.flatten(2).transpose(1, 2).clamp(min=0)
    scale = matrix.mean(dim=(1, 2), keepdim=True)
    matrix = divide(matrix, scale.expand_as(matrix))
    draws = np.random.default_rng(seed).uniform(0.1, 1, (matrix.shape[1] + matrix.shape[2], concepts))
    start = torch.tensor(draws, dtype=matrix.dtype, device=matrix.device).expand(matrix.shape[0], -1, -1)
    maps, vectors = start[:, : matrix.shape[1]], start[:, matrix.shape[1] :]
    for _ in range(iterations):
        maps = maps * divide(matrix @ vectors, maps @ (vectors.transpose(1, 2) @ vectors))
        vectors = vectors * divide(matrix.transpose(1, 2) @ maps, vectors @ (maps.transpose(1, 2) @ maps))
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    maps = (maps * lengths * scale).transpose(1, 2)
    order = torch.linalg.vector_norm(maps, dim=2).argsort(dim=1, descending=True)
    ordered: Tensor = maps.gather(1, order[:, :, None].expand_as(maps))
    return ordered.view(-1, concepts, *activations.shape[2:])
