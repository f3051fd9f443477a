"""Layouts: how the activations of a layer are read as maps [B, K, h, w], whatever order the model keeps them in."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camkit.errors import CamkitError


class Layout(ABC):
    """A reversible reading of a layer's output as [B, K, h, w]."""

    @abstractmethod
    def to_maps(self, output: Tensor) -> Tensor:
        """The layer's output, or its gradient, as [B, K, h, w]."""

    @abstractmethod
    def from_maps(self, maps: Tensor, original: Tensor) -> Tensor:
        """Maps [n * B, K, h, w] in the order of the layer's output; prefix tokens are those of `original` [B, ...]."""


@dataclass(frozen=True)
class NCHW(Layout):
    """Channels first, as convolutional networks keep them."""

    def to_maps(self, output: Tensor) -> Tensor:
        """The output itself."""
        return output

    def from_maps(self, maps: Tensor, original: Tensor) -> Tensor:
        """The maps themselves."""
        return maps

    def __str__(self) -> str:
        return "NCHW"


@dataclass(frozen=True)
class NHWC(Layout):
    """Channels last, as Swin keeps them."""

    def to_maps(self, output: Tensor) -> Tensor:
        """[B, h, w, K] as [B, K, h, w]."""
        return output.permute(0, 3, 1, 2)

    def from_maps(self, maps: Tensor, original: Tensor) -> Tensor:
        """[B, K, h, w] as [B, h, w, K]."""
        return maps.permute(0, 2, 3, 1)

    def __str__(self) -> str:
        return "NHWC"


@dataclass(frozen=True)
class Tokens(Layout):
    """A sequence [B, prefix + h * w, K]: class and register tokens first, then the patches row by row."""

    prefix: int
    grid: tuple[int, int]

    def to_maps(self, output: Tensor) -> Tensor:
        """The patch tokens as [B, K, h, w]."""
        patches = output[:, self.prefix :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *self.grid)

    def from_maps(self, maps: Tensor, original: Tensor) -> Tensor:
        """The maps as patch tokens behind the prefix tokens of `original`."""
        before = original[:, : self.prefix].repeat(maps.shape[0] // original.shape[0], 1, 1)
        return torch.cat([before, maps.flatten(2).transpose(1, 2)], dim=1)

    def __str__(self) -> str:
        return f"tokens(prefix {self.prefix}, grid {self.grid[0]}x{self.grid[1]})"


def resolve_layout(
    kind: str,
    shape: tuple[int, ...],
    image_size: tuple[int, int],
    *,
    prefix: int | None = None,
    grid: tuple[int, int] | None = None,
    patch: tuple[int, int] | None = None,
    stride: int | None = None,
    channels: int | None = None,
) -> Layout:
    """The layout of a layer whose output was measured to have `shape` for images of `image_size` (height, width).

    `kind` is ``NCHW``, ``NHWC``, ``tokens`` or ``auto``. `prefix`, `grid`, `patch` (height and width in pixels),
    `stride` (pixels between positions) and `channels` are what the adapter says; a statement about tokens is checked
    against the measured count, and only what is consistent with it is used. The patch comes before the grid, which a
    model may keep from the size it was trained at.

    Raises:
        CamkitError: the output has no spatial positions, or the token count fits no grid.
    """
    if len(shape) == 3 and kind in ("auto", "tokens"):
        by_patch = (image_size[0] // patch[0], image_size[1] // patch[1]) if patch else None
        by_stride = (-(-image_size[0] // stride), -(-image_size[1] // stride)) if stride else None
        return _tokens(shape[1], prefix, [by_patch, grid, by_stride], image_size)
    if len(shape) != 4 or kind == "tokens":
        raise CamkitError(
            f"The output of the target layer has shape {list(shape)}, which is not a map in the layout {kind}; "
            f"choose a layer that still has spatial positions (camkit doctor shows them)."
        )
    layout: Layout = (
        NHWC() if kind == "NHWC" or (kind == "auto" and channels_last(shape, image_size, channels)) else NCHW()
    )
    height, width = shape[1:3] if isinstance(layout, NHWC) else shape[2:4]
    if height * width == 1:
        raise CamkitError("The target layer gives 1x1 maps, which show no place; choose a layer before the pooling.")
    return layout


def readings(layout: Layout, shape: Sequence[int]) -> list[Layout]:
    """The layout and all others by which an output of this shape could be read: other grids, or the other channels."""
    if not isinstance(layout, Tokens):
        return [layout, *({NCHW(), NHWC()} - {layout})]
    patches = shape[1] - layout.prefix
    grids = [(height, patches // height) for height in range(2, patches // 2 + 1) if patches % height == 0]
    return [layout, *(Tokens(layout.prefix, grid) for grid in grids if grid != layout.grid)]


def channels_last(shape: tuple[int, ...], image_size: tuple[int, int], channels: int | None = None) -> bool:
    """Whether a tensor of four dimensions is [B, h, w, K], by its channels or the proportions of the image."""
    if channels is not None and (shape[1] == channels) != (shape[3] == channels):
        return shape[3] == channels
    ratio = image_size[0] / image_size[1]
    first, last = shape[2] / shape[3], shape[1] / shape[2]
    return abs(math.log(last / ratio)) < abs(math.log(first / ratio))


def _tokens(
    count: int, prefix: int | None, grids: Sequence[tuple[int, int] | None], image_size: tuple[int, int]
) -> Tokens:
    # a layer may hold the patches alone although the model has a class token (CaiT), so the count decides
    for tokens_before in (prefix, 0) if prefix else (0,):
        for grid in (*grids, _grid_like(count - tokens_before, image_size)):
            if grid is not None and tokens_before + grid[0] * grid[1] == count:
                return Tokens(tokens_before, grid)
    stated = [f"a grid of {grid[0]}x{grid[1]}" for grid in dict.fromkeys(grids) if grid]
    said = " and ".join([f"{prefix or 0} prefix tokens", *stated[:1]])
    raise CamkitError(
        f"The target layer gives {count} tokens, which {said} cannot explain for images of "
        f"{image_size[0]}x{image_size[1]}; state prefix and grid in the adapter."
    )


def _grid_like(patches: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    height = round(math.sqrt(patches * image_size[0] / image_size[1])) if patches > 0 else 0
    return (height, patches // height) if height and patches % height == 0 else None
