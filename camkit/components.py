"""Principal components of every image of a batch at once, in operators that a graph can hold.

Nothing here decides by a value, and nothing calls a factorisation, which exported graphs do not know: a power of the
matrix, reached by repeated squaring, is all that is left of its leading eigenvector.
"""

import torch
from torch import Tensor

from camkit.channels import divide

# Power iterations: first by squaring the matrix so often, then with what that gives, at little cost. In 2^7 * 64 of an
# eigenvalue two per mille smaller nothing is left in float32; the second one need not be known as well, in 2^3 * 64.
_SQUARINGS, _SECOND_SQUARINGS = 7, 3
_ITERATIONS = 64


def principal_component(maps: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """The first principal component of the channel vectors [K] at all positions, and how far it stands out.

    With the matrix X [h * w, K] of one image, its map is X v1 = s1 u1, where s1 is the largest singular value. The sign
    is such that the map's value of largest magnitude is positive.

    Args:
        maps: [B, K, h, w].
        centred: whether each channel's mean over the positions is subtracted first.

    Returns:
        The map [B, h, w], and the gap (s1 - s2) / s1 [B] within [0, 1]: near 0 the first two components are as good as
        exchangeable, and so is the map. For zeros the map is zero and the gap 1.
    """
    positions = maps.flatten(2).transpose(1, 2)
    if centred:
        positions = positions - positions.mean(dim=1, keepdim=True)
    # squares of small gradients would underflow
    scale = positions.abs().amax(dim=(1, 2), keepdim=True)
    scaled = divide(positions, scale.expand_as(positions))
    wide = scaled.shape[1] < scaled.shape[2]
    gram = scaled @ scaled.transpose(1, 2) if wide else scaled.transpose(1, 2) @ scaled
    vector, first, second = leading_eigenvector(gram)
    if not wide:
        vector = scaled @ vector
    direction = scaled.transpose(1, 2) @ vector
    component = scale * (scaled @ _scaled(direction))
    gap = 1 - divide(second, first).clamp(0, 1).sqrt()
    return positive_peak(component[:, :, 0]).view_as(maps[:, 0]), gap


def leading_eigenvector(matrix: Tensor, *, definite: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """The unit eigenvector [B, n, 1] of the largest eigenvalue of symmetric matrices [B, n, n], and the two largest.

    Where the two largest are equal, one vector of the plane that belongs to them. `definite` says that no eigenvalue is
    negative; otherwise all are raised above zero first, and the second is taken as zero where it is negative.
    """
    shift = torch.zeros_like(matrix[:, :1, :1]) if definite else _length(matrix)
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    vector = _dominant(matrix + shift * identity, _SQUARINGS)
    first = _rayleigh(matrix, vector)
    deflated = matrix - first * vector @ vector.transpose(1, 2)
    second = _rayleigh(deflated, _dominant(deflated + shift * identity, _SECOND_SQUARINGS))
    return vector, first[:, 0, 0], second[:, 0, 0].clamp(min=0)


def positive_peak(maps: Tensor) -> Tensor:
    """Maps [B, ...], each with the sign that makes its value of largest magnitude positive.

    Of values within a per mille of each other the first counts: a map can be as high as it is deep by construction, and
    rounding must not choose.
    """
    flat = maps.flatten(1)
    handicap = torch.linspace(1, 1 - 1e-3, flat.shape[1], dtype=maps.dtype, device=maps.device)
    peak = flat.gather(1, (flat.abs() * handicap).argmax(dim=1, keepdim=True))
    return torch.where(peak < 0, -flat, flat).view_as(maps)


def _dominant(matrix: Tensor, squarings: int) -> Tensor:
    power = _scaled(matrix)
    for _ in range(squarings):
        power = _scaled(power @ power)
    # each column tends to the eigenvector times its own component in it; the largest is the least rounded
    column = power.diagonal(dim1=1, dim2=2).argmax(dim=1)
    vector = _scaled(power.gather(2, column[:, None, None].expand(-1, power.shape[1], 1)))
    # scaled now and then, before the numbers leave the range of float32
    for _ in range(_ITERATIONS // 8):
        for _ in range(8):
            vector = power @ vector
        vector = _scaled(vector)
    return _scaled(matrix @ vector)


def _rayleigh(matrix: Tensor, vector: Tensor) -> Tensor:
    return vector.transpose(1, 2) @ matrix @ vector


def _length(values: Tensor) -> Tensor:
    return values.square().sum(dim=(1, 2), keepdim=True).sqrt()


def _scaled(values: Tensor) -> Tensor:
    """Matrices or vectors with the length 1; zero stays zero."""
    return divide(values, _length(values).expand_as(values))
