"""The pictures: house numbers drawn from handwritten digits, or CIFAR-10 from the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10

from camkit_adapters.demo.scenes import DIGITS_PATH

Split = Literal["train", "test"]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating]

SIDE = 32
# room around the picture in which a neighbour may end
MARGIN = 24
FAINTEST_INK = 50


@dataclass(frozen=True)
class Pictures:
    """Pictures and their classes.

    Attributes:
        images: RGB, uint8 [N, 32, 32, 3].
        labels: int64 [N].
        boxes: (left, top, right, bottom) of what each picture shows, int64 [N, 4]; None where nobody knows.
    """

    images: Bytes
    labels: NDArray[np.int64]
    boxes: NDArray[np.int64] | None = None


def cifar10(folder: Path, split: Split) -> Pictures:
    """CIFAR-10 as torchvision reads it from `folder`, in which ``cifar-10-batches-py`` lies."""
    try:
        found = CIFAR10(folder, train=split == "train", download=False)
    except RuntimeError:
        # torchvision's own sentence proposes a download
        raise SystemExit(
            f"'{folder}' does not hold CIFAR-10 as torchvision keeps it, in cifar-10-batches-py/."
        ) from None
    return Pictures(found.data, np.array(found.targets))


def house_numbers(count: int, split: Split, seed: int) -> Pictures:
    """Digits of house numbers: the class is the digit in the middle, its neighbours are cut off by the edge.

    The splits share no handwriting. Equal arguments give equal pictures; the first of many are those of a few.
    """
    with np.load(DIGITS_PATH, allow_pickle=False) as stored:
        chosen = stored["is_test"] == (split == "test")
        ink, labels = stored["images"][chosen], stored["labels"][chosen]
    random = RandomState(seed)
    images, shown, boxes = [], [], []
    for _ in range(count):
        middle = random.randint(len(ink))
        image, box = _house_number(ink, middle, random)
        images.append(image)
        shown.append(labels[middle])
        boxes.append(box)
    return Pictures(np.stack(images), np.array(shown, np.int64), np.stack(boxes))


def _house_number(ink: Bytes, middle: int, random: RandomState) -> tuple[Bytes, NDArray[np.int64]]:
    ground, paint = _colours(random)
    # half of the house numbers are of one colour, so that colour does not tell whose stroke it is
    neighbour_paint = paint if random.random_sample() < 0.5 else _colour(random)
    canvas = cv2.resize(ground + random.uniform(-30, 30, (3, 3, 3)), (SIDE + 2 * MARGIN,) * 2)
    height = random.randint(19, 25)
    left, top = MARGIN + (SIDE - height) // 2 + random.randint(-2, 3, size=2)
    for at in (left - random.randint(10, 17), left + random.randint(10, 17)):
        if random.random_sample() < 0.7:
            other = _glyph(ink[random.randint(len(ink))], height)
            _paint(canvas, other, at, top + random.randint(-3, 4), neighbour_paint)
    glyph = _glyph(ink[middle], height)
    _paint(canvas, glyph, left, top, paint)
    rows, columns = np.nonzero(glyph > 0.5)
    corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
    box = (corners + np.array([left, top]) - MARGIN).reshape(4)
    image = canvas[MARGIN:-MARGIN, MARGIN:-MARGIN] + random.normal(0, 4, (SIDE, SIDE, 3))
    return image.clip(0, 255).astype(np.uint8), box.clip(0, SIDE)


def _colours(random: RandomState) -> tuple[Floats, Floats]:
    """Of ground and paint, unlike enough to be told apart."""
    while True:
        ground, paint = _colour(random), _colour(random)
        if abs((paint - ground) @ [0.299, 0.587, 0.114]) > FAINTEST_INK:
            return ground, paint


def _colour(random: RandomState) -> Floats:
    """Muted, so that a heatmap stands out."""
    colour = random.uniform(0, 255, 3)
    return np.asarray(colour.mean() + 0.4 * (colour - colour.mean()))


def _glyph(ink: Bytes, height: int) -> Floats:
    """A digit of 8 x 8 enlarged: opacity [height, height], 0 to 1."""
    smooth = cv2.resize(ink.astype(np.float32) / 16, (height, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray((1.6 * smooth - 0.3).clip(0, 1))


def _paint(canvas: Floats, glyph: Floats, left: int, top: int, colour: Floats) -> None:
    region = canvas[top : top + len(glyph), left : left + len(glyph)]
    region += glyph[..., None] * (colour - region)
