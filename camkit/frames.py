"""Frames: whole pictures as a model's input, resized, cropped and normalised in tensors, so that a graph can hold it.

The resize is two matrix products whose matrices are Pillow's filters; Pillow itself rounds to whole levels in between.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from camkit.errors import CamkitError
from camkit.preprocessing import Preprocessing, Size

_FILTERS = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}
# What Pillow makes grey of red, green and blue.
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Frames:
    """Pictures of one size, and what a model's preprocessing makes of them.

    Attributes:
        preprocessing: of the model.
        size: (height, width) of the pictures in pixels.
    """

    preprocessing: Preprocessing
    size: Size
    _matrices: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.preprocessing.interpolation not in _FILTERS:
            raise CamkitError(
                f"Preprocessing with the filter '{self.preprocessing.interpolation}' cannot be written into a graph; "
                f"{', '.join(_FILTERS)} can."
            )
        top, left, height, width = self.region
        if top >= self.size[0] or left >= self.size[1] or top + height <= 0 or left + width <= 0:
            raise CamkitError(f"Of pictures of {self.size[0]}x{self.size[1]} pixels the model would see nothing.")
        # made now: in a graph they are to be constants, not a resize
        object.__setattr__(self, "_matrices", (self._matrix(0), self._matrix(1)))

    @property
    def region(self) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels of what the model sees of a picture; it may reach beyond the border."""
        axes = [self._axis(axis) for axis in (0, 1)]
        (top, height), (left, width) = (
            (round(-before * scale), round(self.preprocessing.size[axis] * scale))
            for axis, (_, before, scale) in enumerate(axes)
        )
        return top, left, height, width

    def images(self, frames: Tensor, dtype: torch.dtype) -> Tensor:
        """The network's input [B, C, h, w], normalised, of pictures [B, H, W, 3] with levels from 0 to 255."""
        rows, columns = self._matrices
        seen = torch.outer(rows.sum(dim=1), columns.sum(dim=1))
        levels = frames.to(dtype).permute(0, 3, 1, 2)
        if self.preprocessing.channels == 1:
            levels = (levels * _constant(_GREY, dtype)).sum(dim=1, keepdim=True)
        resized = torch.matmul(torch.matmul(rows.to(dtype), levels), columns.to(dtype).T)
        # a bicubic filter overshoots, and a picture has no levels beyond black and white
        resized = resized.clamp(0, 255) + ((1 - seen).to(dtype) * _constant(self.preprocessing.fill, dtype))
        return self.preprocessing.normalise(resized / 255)

    def place(self, heatmaps: Tensor) -> Tensor:
        """Heatmaps [B, height, width] of the region as ones of the whole picture [B, H, W]: 0 where nobody looked."""
        top, left, height, width = self.region
        below, right = self.size[0] - top - height, self.size[1] - left - width
        kept = heatmaps[:, max(0, -top) : height + min(0, below), max(0, -left) : width + min(0, right)]
        return F.pad(kept, [max(0, left), max(0, right), max(0, top), max(0, below)])

    def _axis(self, axis: int) -> tuple[int, int, float]:
        """Of one axis: the resized length, the pixels of padding before it (negative: cropped), the scale back."""
        resized = self.preprocessing.resized_to(*self.size)[axis]
        wanted, missing = self.preprocessing.size[axis], max(0, self.preprocessing.size[axis] - resized)
        before = missing // 2 if missing else -round((resized - wanted) / 2)
        return resized, before, self.size[axis] / resized

    def _matrix(self, axis: int) -> Tensor:
        """[length of the network's input, length of the picture] in float64: resize, then crop or padding."""
        resized, before, _ = self._axis(axis)
        wanted, given = self.preprocessing.size[axis], self.size[axis]
        every_pixel = torch.eye(given, dtype=torch.float64)
        mode = _FILTERS[self.preprocessing.interpolation]
        if resized != given:
            smooth = {"align_corners": False, "antialias": True} if mode.startswith("bi") else {}
            every_pixel = F.interpolate(every_pixel[None, None], size=(resized, given), mode=mode, **smooth)[0, 0]
        if before < 0:
            return every_pixel[-before : wanted - before]
        return F.pad(every_pixel, [0, 0, before, wanted - resized - before])


def _constant(values: tuple[float, ...] | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype).view(-1, 1, 1)
