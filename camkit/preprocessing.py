"""Preprocessing as data: how a picture becomes the tensor that a model was trained on, and back."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from camkit.errors import CamkitError

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Side = Annotated[int, Field(gt=0)]
Size = tuple[Side, Side]
Level = Annotated[int, Field(ge=0, le=255)]

# A picture so long and thin that resizing its short side makes more pixels than this is refused.
MOST_PIXELS = 100_000_000


class Preprocessing(BaseModel):
    """Resize, centre crop (or pad), scale to [0, 1], normalise. Every value can be written as JSON and read again.

    Attributes:
        size: (height, width) in pixels of the network's input.
        resize: what the picture is resized to before the crop: an integer gives the shorter side and keeps the aspect
            ratio; (height, width) is read as `resize_mode` says; None leaves the picture as large as it is.
        resize_mode: for (height, width): ``exact`` stretches to it, ``cover`` keeps the aspect ratio and covers it,
            ``contain`` keeps the aspect ratio and fits into it.
        interpolation: Pillow's filter; pictures that shrink are always filtered against aliasing.
        mean, std: per channel, of pixel values in [0, 1].
        channels: 3 (RGB) or 1 (grey).
        fill: the colour around a picture that is smaller than `size`, 0 to 255 per channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Size
    resize: Side | Size | None = None
    resize_mode: Literal["exact", "cover", "contain"] = "exact"
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: Literal[1, 3] = 3
    fill: tuple[Level, ...] = (0, 0, 0)

    @model_validator(mode="before")
    @classmethod
    def _fill_every_channel(cls, values: Any) -> Any:
        if isinstance(values, dict) and "fill" not in values:
            return {**values, "fill": (0,) * values.get("channels", 3)}
        return values

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std), ("fill", self.fill)):
            if len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ValueError("mean and std must be finite, std must be positive")
        return self

    def __call__(self, image: Image.Image) -> Tensor:
        """The network's input [C, H, W] for a picture: float32, normalised, on the CPU."""
        values = torch.from_numpy(np.array(self._picture(image), dtype=np.uint8))
        planes = values.unsqueeze(0) if self.channels == 1 else values.permute(2, 0, 1)
        return self.normalise(planes.contiguous().to(torch.float32) / 255)

    def view(self, image: Image.Image) -> Image.Image:
        """What the model sees of a picture, before normalisation: RGB, as large as `size`."""
        return self._picture(image).convert("RGB")

    def pixels(self, images: Tensor) -> Tensor:
        """Pixel values in [0, 1] of normalised images [..., C, H, W]: the inverse of `normalise`."""
        return (images * self._channelwise(self.std, images) + self._channelwise(self.mean, images)).clamp(0, 1)

    def normalise(self, pixels: Tensor) -> Tensor:
        """The network's input for pixel values [..., C, H, W] in [0, 1]."""
        return (pixels - self._channelwise(self.mean, pixels)) / self._channelwise(self.std, pixels)

    def with_overrides(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | Sequence[int] | None = None,
    ) -> "Preprocessing":
        """The same with another mean, std or size; `resize` grows with the size, so that the crop keeps its share.

        Args:
            mean: of pixel values in [0, 1], one per channel or one for all.
            std: likewise.
            size: (height, width) in pixels, or one side of a square.

        Raises:
            CamkitError: a value is out of range, or there are too many or too few of them.
        """
        changed: dict[str, Any] = {}
        if mean is not None:
            changed["mean"] = self._given("mean", mean)
            if not all(0 <= value <= 1 for value in changed["mean"]):
                raise CamkitError("The mean must be given for pixel values in [0, 1], such as 0.485, 0.456, 0.406.")
        if std is not None:
            changed["std"] = self._given("std", std)
            if not all(0 < value <= 1 for value in changed["std"]):
                raise CamkitError("The std must be given for pixel values in [0, 1], such as 0.229, 0.224, 0.225.")
        if size is not None:
            changed.update(self._resized(size))
        return self.model_copy(update=changed)

    def _given(self, name: str, values: Sequence[float]) -> tuple[float, ...]:
        given = tuple(float(value) for value in values)
        if len(given) not in (1, self.channels):
            raise CamkitError(f"The {name} has {len(given)} values, the model takes {self.channels} channels.")
        return given * self.channels if len(given) == 1 else given

    def _resized(self, size: int | Sequence[int]) -> dict[str, Any]:
        given = (size, size) if isinstance(size, int) else tuple(size)
        if len(given) != 2 or any(not isinstance(side, int) or side < 1 for side in given):
            raise CamkitError("The size must be one side or height and width, in pixels.")
        if self.resize is None:
            return {"size": given}
        resize = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        before = (min(self.size), min(self.size)) if isinstance(self.resize, int) else self.size
        scaled = tuple(round(s * r / b) for s, r, b in zip(given, resize, before, strict=True))
        if isinstance(self.resize, int) and given[0] == given[1]:
            return {"size": given, "resize": scaled[0]}
        mode = "cover" if isinstance(self.resize, int) else self.resize_mode
        return {"size": given, "resize": scaled, "resize_mode": mode}

    def _picture(self, image: Image.Image) -> Image.Image:
        resized = self._resize(image.convert("RGB" if self.channels == 3 else "L"))
        return self._crop(self._pad(resized))

    def _resize(self, image: Image.Image) -> Image.Image:
        height, width = self.resized_to(image.height, image.width)
        if height * width > MOST_PIXELS:
            raise CamkitError(f"An image of {image.width}x{image.height} pixels is too long and thin to be resized.")
        if (width, height) == image.size:
            return image
        return image.resize((width, height), Image.Resampling[self.interpolation.upper()])

    def resized_to(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture of that height and width is resized to, before crop or padding."""
        if self.resize is None:
            return height, width
        # The roundings below are those of torchvision (int) and timm (round): one pixel would move the whole crop.
        if isinstance(self.resize, int):
            if height < width:
                return self.resize, int(self.resize * width / height)
            return int(self.resize * height / width), self.resize
        if self.resize_mode == "exact":
            return self.resize
        ratios = (height / self.resize[0], width / self.resize[1])
        ratio = min(ratios) if self.resize_mode == "cover" else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _pad(self, image: Image.Image) -> Image.Image:
        missing_rows = max(0, self.size[0] - image.height)
        missing_columns = max(0, self.size[1] - image.width)
        if not missing_rows and not missing_columns:
            return image
        left, top = missing_columns // 2, missing_rows // 2
        border = (left, top, missing_columns - left, missing_rows - top)
        return ImageOps.expand(image, border, fill=self.fill if self.channels == 3 else self.fill[0])

    def _crop(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        top = round((image.height - height) / 2)
        left = round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def _channelwise(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
