"""The images that a file is compared with its model on, by kind: of numpy alone, and the same in every run."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkit_export.session import Floats, Integers, Pixels

BATCHES = (1, 3, 8)
SEED = 0

# Tiny is a picture divided by 255 once too often; huge is one of which the division was forgotten.
_TINY, _HUGE = 1e-3, 1e3
# Of how many squares a side pictures to test with are made.
_SQUARES = 24


@dataclass(frozen=True)
class Sample:
    """Images of one kind.

    Attributes:
        kind: what they are, in a word or two.
        batches: of 1, 3 and 8 images, and if there are more of 8 again: float32 [B, C, H, W], or pictures, uint8
            [B, H, W, 3].
        size: how large their values are beside those of random images, since rounding grows with them.
        strict: whether every image must have an answer in float32. Of others those without are left out and counted.
    """

    kind: str
    batches: tuple[Floats | Pixels, ...]
    size: float = 1.0
    strict: bool = False


def digest(*arrays: NDArray[Any]) -> bytes:
    """What tells arrays apart by their content."""
    found = hashlib.sha256()
    for values in arrays:
        found.update(f"{values.dtype} {values.shape} ".encode() + values.tobytes())
    return found.digest()


def random_sample(shape: Sequence[int], *, pictures: bool) -> Sample:
    """Random images of a shape, without the batch; the last two of the largest batch are the same."""
    batches = _batches(lambda seed, count: random_images(seed, (count, *shape), pictures=pictures))
    batches[-1][-1] = batches[-1][-2]
    return Sample("random", tuple(batches), strict=True)


def unusual_samples(shape: Sequence[int], *, pictures: bool) -> tuple[Sample, ...]:
    """Images of one colour each; images with next to no contrast; images far beyond what the model was made for.

    Of pictures the last are black and white, which is as far as they go.
    """
    height, width = shape[:2] if pictures else shape[1:]
    if pictures:
        return (
            Sample("constant", tuple(_batches(lambda seed, n: _colours(seed, n).repeat(height, 1).repeat(width, 2)))),
            Sample("low contrast", tuple(_batches(lambda seed, n: _squares(seed, (n, *shape), 127, 130)))),
            Sample("black and white", tuple(_batches(lambda seed, n: 255 * _squares(seed, (n, *shape), 0, 2)))),
        )

    def scaled(kind: str, factor: float) -> Sample:
        batches = _batches(lambda seed, n: np.float32(factor) * random_images(seed, (n, *shape), pictures=False))
        return Sample(kind, tuple(batches), size=max(1.0, factor))  # biases are as large for small images

    grey = _batches(lambda seed, n: _greys(seed, n, shape[0]).repeat(height, 2).repeat(width, 3))
    return Sample("constant", tuple(grey)), scaled("tiny", _TINY), scaled("huge", _HUGE)


def real_sample(images: Floats | Pixels) -> Sample:
    """Images [N, ...] that somebody gave, in batches of 1, 3 and 8, and as many more of 8 as there are."""
    return Sample("real", tuple(_cut(images)))


def random_images(seed: int, shape: Sequence[int], *, pictures: bool) -> Floats | Pixels:
    """Noise [B, C, H, W]; or pictures [B, H, W, 3] of squares, as a resize would leave nothing but grey of noise."""
    if pictures:
        return _squares(seed, shape, 0, 256)
    return np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)


def random_classes(seed: int, batch: int, classes: int) -> Integers:
    """Some top classes, then classes that differ from each other as far as there are enough of them."""
    chosen = np.random.RandomState(seed).permutation(classes)[np.arange(batch) % classes].astype(np.int64)
    chosen[: (batch + 1) // 4] = -1
    return chosen


def random_further(
    seed: int, count: int, further: Mapping[str, tuple[Sequence[int], np.dtype[Any]]], classes: int
) -> dict[str, NDArray[Any]]:
    """What targets need beside the class, for each of `count` images: numbers, flags, or classes where it is whole.

    `further` has by name the shape of one image's, and the type.
    """
    draws = np.random.RandomState(seed)
    makers: dict[str, Callable[[list[int]], NDArray[Any]]] = {
        "f": lambda shape: draws.standard_normal(shape),
        "b": lambda shape: draws.randint(0, 2, shape),
        "i": lambda shape: draws.randint(0, classes, shape),
        "u": lambda shape: draws.randint(0, 2, shape),
    }
    return {name: makers[kind.kind]([count, *shape]).astype(kind) for name, (shape, kind) in further.items()}


def _batches(make: Callable[[int, int], Floats | Pixels]) -> list[Floats | Pixels]:
    """Of each size what `make(seed, size)` gives."""
    return [make(SEED + count, count) for count in BATCHES]


def _cut(images: Floats | Pixels) -> Iterator[Floats | Pixels]:
    start = 0
    for size in chain(BATCHES, repeat(BATCHES[-1])):
        if start >= len(images):
            return
        yield images[start : start + size]
        start += size


def _squares(seed: int, shape: Sequence[int], low: int, high: int) -> Pixels:
    """Pictures [B, H, W, 3] of squares with levels from `low` to below `high`."""
    batch, height, width, channels = shape
    side = max(1, min(height, width) // _SQUARES)
    small = (batch, -(-height // side), -(-width // side), channels)
    coarse = np.random.RandomState(seed).randint(low, high, small, dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(side, axis=1).repeat(side, axis=2)[:, :height, :width])


def _colours(seed: int, count: int) -> Pixels:
    """Pictures [B, 1, 1, 3] of one pixel: black, white, grey, and then any colour."""
    found = np.random.RandomState(seed).randint(0, 256, (count, 1, 1, 3), dtype=np.uint8)
    for place, level in enumerate((0, 255, 128)[:count]):
        found[place] = level
    return found


def _greys(seed: int, count: int, channels: int) -> Floats:
    """Images [B, C, 1, 1] of one pixel: zeros, which is the mean of what models see, and then any colour."""
    found = np.random.RandomState(seed).standard_normal((count, channels, 1, 1)).astype(np.float32)
    found[0] = 0
    return found
