"""Noisy linear imputation without the noise (Rong et al. 2022, arXiv:2202.00449, appendix)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_NEIGHBOURS = {
    (down, right): 1 / 6 if down * right == 0 else 1 / 12
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
    if (down, right) != (0, 0)
}


def imputed(images: Tensor, gone: Tensor) -> Tensor:
    """Images [B, C, H, W] whose pixels `gone`, bool [B, H, W], are the weighted means of their neighbours.

    Direct neighbours weigh 1/6, diagonal ones 1/12, those outside the image nothing. The missing pixels depend on each
    other, so that all of an image are one sparse linear system. At least one pixel of each image must be left.
    """
    filled = images.clone()
    for place, missing in enumerate(gone.cpu().numpy()):
        values = images[place].double().cpu().numpy()
        solved = torch.from_numpy(_solve(values, missing)).to(images)
        filled[place, :, gone[place]] = solved.reshape(len(values), -1)
    return filled


def _solve(values: "NDArray[np.float64]", missing: "NDArray[np.bool_]") -> "NDArray[np.float64]":
    """The missing values [C, count] of an image [C, H, W], row by row."""
    height, width = missing.shape
    rows, columns = missing.nonzero()
    count = len(rows)
    number = np.full(missing.shape, -1)
    number[rows, columns] = np.arange(count)
    known = np.zeros((count, len(values)))
    weights = np.zeros(count)
    entries: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    for (down, right), weight in _NEIGHBOURS.items():
        y, x = rows + down, columns + right
        inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width)).nonzero()[0]
        y, x = y[inside], x[inside]
        weights[inside] += weight
        open_ = missing[y, x]
        entries.append((inside[open_], number[y[open_], x[open_]], np.full(int(open_.sum()), -weight)))
        known[inside[~open_]] += weight * values[:, y[~open_], x[~open_]].T
    entries.append((np.arange(count), np.arange(count), weights))
    row, column, entry = (np.concatenate(part) for part in zip(*entries, strict=True))
    from scipy.sparse import csc_matrix
    from scipy.sparse.linalg import spsolve

    system = csc_matrix((entry, (row, column)), shape=(count, count))
    return np.asarray(spsolve(system, known)).reshape(count, -1).T
