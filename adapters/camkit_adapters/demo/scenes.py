"""Digit scenes: images of one to three handwritten digits on clutter, each digit with its box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

Split = Literal["train", "test"]
Box = tuple[int, int, int, int]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
SIDE = 96
DIGITS_PATH = Path(__file__).with_name("digits.npz")

# Lengths in pixels of the scene; the size of a digit is the longer side of its ink.
SMALLEST_DIGIT, LARGEST_DIGIT = 22, 44
SMALLEST_FRAGMENT, LARGEST_FRAGMENT = 12, 22
GAP_BETWEEN_DIGITS = 4
HALO = 7
PLACEMENT_ATTEMPTS = 24

# A field is a digit's ink upsampled from 8x8 to 60x60, with a margin in which it can be turned.
FIELD_SCALE, FIELD_MARGIN = 5, 2
FIELD_SIDE = FIELD_SCALE * (8 + 2 * FIELD_MARGIN)
INK_THRESHOLD = 0.45
FRAGMENT_COUNT = 4096


@dataclass(frozen=True)
class Digit:
    """One digit of a scene.

    Attributes:
        label: The class, 0 to 9.
        box: (left, top, right, bottom) in pixels, tight around the ink; right and bottom exclusive.
    """

    label: int
    box: Box


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and the digits it shows, every digit of another class.

    Attributes:
        image: RGB, uint8 [96, 96, 3].
        digits: One to three digits; their boxes do not overlap.
    """

    image: Bytes
    digits: tuple[Digit, ...]


def generate(
    count: int, split: Split, seed: int, digit_counts: Sequence[int] = (1, 2, 3), *, absent: int | None = None
) -> list[Scene]:
    """Make `count` scenes of one split; equal arguments give equal scenes.

    Args:
        count: How many scenes.
        split: Which handwriting is used, for digits and clutter alike; the splits share none.
        seed: 0 to 2**32 - 1. The first scenes of a longer list are those of a shorter one.
        digit_counts: How many digits a scene may have, each 1 to 3; each is equally likely.
        absent: A class whose digits are left out of the scenes; all else is drawn as it is with them.

    Raises:
        ValueError: An argument is out of its range.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    if not digit_counts or not set(digit_counts) <= {1, 2, 3}:
        raise ValueError(f"digit_counts must name some of 1, 2 and 3, got {digit_counts!r}")
    handwriting = _handwriting(split)
    # RandomState's stream is frozen, Generator's is not: the scenes outlive versions of NumPy.
    random = RandomState([seed, split == "test"])
    return [_scene(handwriting, int(random.choice(digit_counts)), random, absent) for _ in range(count)]


def targets(scenes: Sequence[Scene]) -> Floats:
    """Which classes each scene shows: 0 or 1, float32 [B, 10]."""
    present = np.zeros((len(scenes), len(CLASS_NAMES)), dtype=np.float32)
    for row, scene in zip(present, scenes, strict=True):
        row[[digit.label for digit in scene.digits]] = 1
    return present


def inputs(scenes: Sequence[Scene]) -> Floats:
    """The scenes' images as the models take them: normalised, float32 [B, 3, 96, 96]."""
    images = np.array([scene.image for scene in scenes], np.float32).reshape(-1, SIDE, SIDE, 3) / 255
    normalised = (images - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


class _Handwriting(NamedTuple):
    """All that the scenes of one split are drawn from.

    Attributes:
        by_label: For each class the fields of its digits, uint8 [n, 60, 60].
        fragments: Opacities of pieces of digits for the clutter, float32 [F, 22, 22], 0 to 1.
        grain: Noise in grey levels, float32 [192, 192, 3].
        bright, dark, any_colour: Colours to draw from, float32 [n, 3], 0 to 255.
    """

    by_label: tuple[Bytes, ...]
    fragments: Floats
    grain: Floats
    bright: Floats
    dark: Floats
    any_colour: Floats


@cache
def _handwriting(split: Split) -> _Handwriting:
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    with np.load(DIGITS_PATH, allow_pickle=False) as stored:
        chosen = stored["is_test"] == (split == "test")
        images, labels = stored["images"][chosen], stored["labels"][chosen]
    fields = np.stack([_field(image) for image in images])
    random = RandomState(0)
    colours = random.uniform(0, 255, (4096, 3)).astype(np.float32)
    luminance = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    return _Handwriting(
        by_label=tuple(fields[labels == label] for label in range(len(CLASS_NAMES))),
        fragments=np.stack([_fragment(fields, random) for _ in range(FRAGMENT_COUNT)]),
        grain=random.normal(0, 4, (2 * SIDE, 2 * SIDE, 3)).astype(np.float32),
        bright=colours[luminance > 170],
        dark=colours[luminance < 70],
        any_colour=colours,
    )


def _field(image: Bytes) -> Bytes:
    """Upsample an 8x8 digit (0 to 16) to a smooth field, uint8 [60, 60]."""
    ink = np.pad(image.astype(np.float32) / 16, FIELD_MARGIN)
    smooth = cv2.resize(ink, (FIELD_SIDE, FIELD_SIDE), interpolation=cv2.INTER_CUBIC)
    smooth = cv2.GaussianBlur(smooth, (0, 0), 0.8)
    return np.asarray(255 * smooth.clip(0, 1), np.uint8)


def _opacity(field: Bytes, transform: NDArray[np.float64], side: int) -> Floats:
    """Warp a field to [side, side] pixels by a 2x3 affine map; opacity, 0 to 1, with sharp edges."""
    warped = cv2.warpAffine(field, transform, (side, side)).astype(np.float32)
    enlargement = np.sqrt(abs(np.linalg.det(transform[:, :2])))
    # The threshold comes after the warp, so that an edge is about a pixel wide at every size.
    steepness = max(1.5, 1.4 * FIELD_SCALE * enlargement)
    return np.asarray(((warped / 255 - INK_THRESHOLD) * steepness + 0.5).clip(0, 1))


def _fragment(fields: Bytes, random: RandomState) -> Floats:
    """A turned piece of a digit, too little of it to be read; opacity [22, 22], fading outwards."""
    field = fields[random.randint(len(fields))]
    rows, columns = np.nonzero(field > 255 * INK_THRESHOLD)
    at = random.randint(len(rows))
    side = random.uniform(SMALLEST_FRAGMENT, LARGEST_FRAGMENT)
    taken = FIELD_SCALE * random.uniform(2.8, 3.8)
    transform = cv2.getRotationMatrix2D((float(columns[at]), float(rows[at])), random.uniform(0, 360), side / taken)
    transform[:, 2] += LARGEST_FRAGMENT / 2 - np.array([columns[at], rows[at]])
    from_centre = np.arange(LARGEST_FRAGMENT) - (LARGEST_FRAGMENT - 1) / 2
    distance = np.hypot(from_centre, from_centre[:, None])
    fading = ((side / 2 - distance) / 2).clip(0, 1).astype(np.float32)
    return np.asarray(fading * _opacity(field, transform, LARGEST_FRAGMENT))


def _scene(handwriting: _Handwriting, digit_count: int, random: RandomState, absent: int | None) -> Scene:
    labels = random.permutation(len(CLASS_NAMES))[:digit_count]
    glyphs, boxes = _placed_glyphs([handwriting.by_label[label] for label in labels], random)
    grounds, inks = handwriting.dark, handwriting.bright
    if random.random_sample() > 0.6:
        grounds, inks = inks, grounds
    ground = _background(grounds, random)
    canvas = _cluttered(ground, handwriting, random)
    for label, glyph, (left, top, right, bottom) in zip(labels, glyphs, boxes, strict=True):
        # Drawn at random also for a digit that is left out, so that what follows stays the same.
        colour = inks[random.randint(len(inks))]
        if label == absent:
            continue
        # Ground shines through the clutter around a digit, which keeps the digit readable.
        region = np.s_[top : bottom + 2 * HALO, left : right + 2 * HALO]
        halo = (1.8 * cv2.GaussianBlur(glyph, (0, 0), 2.5)).clip(0, 0.9)[..., None]
        canvas[region] += halo * (ground[region] - canvas[region])
        canvas[region] += glyph[..., None] * (colour - canvas[region])
    image = canvas[HALO : HALO + SIDE, HALO : HALO + SIDE]
    row, column = random.randint(SIDE, size=2)
    image = image + handwriting.grain[row : row + SIDE, column : column + SIDE]
    return Scene(
        image=image.clip(0, 255).astype(np.uint8),
        digits=tuple(Digit(int(label), box) for label, box in zip(labels, boxes, strict=True) if label != absent),
    )


def _placed_glyphs(fields: Sequence[Bytes], random: RandomState) -> tuple[list[Floats], list[Box]]:
    """A digit out of each stack of fields, and a free place for it.

    Returns:
        Opacities, each [h + 2 * HALO, w + 2 * HALO] for a digit of h times w pixels, and the boxes.
    """
    while True:
        glyphs = [_glyph(choice[random.randint(len(choice))], random) for choice in fields]
        boxes: list[Box] = []
        for glyph in glyphs:
            height, width = (length - 2 * HALO for length in glyph.shape)
            for across, down in random.random_sample((PLACEMENT_ATTEMPTS, 2)).tolist():
                left = int(across * (SIDE - width + 1))
                top = int(down * (SIDE - height + 1))
                box = (left, top, left + width, top + height)
                if not any(_too_close(box, other) for other in boxes):
                    boxes.append(box)
                    break
        if len(boxes) == len(glyphs):
            return glyphs, boxes


def _too_close(one: Box, other: Box) -> bool:
    return (
        one[0] < other[2] + GAP_BETWEEN_DIGITS
        and other[0] < one[2] + GAP_BETWEEN_DIGITS
        and one[1] < other[3] + GAP_BETWEEN_DIGITS
        and other[1] < one[3] + GAP_BETWEEN_DIGITS
    )


def _glyph(field: Bytes, random: RandomState) -> Floats:
    """Draw a digit, slightly turned and slanted: opacity with HALO empty pixels on each side."""
    size = random.uniform(SMALLEST_DIGIT, LARGEST_DIGIT)
    angle, slant, stretch = random.uniform((-0.2, -0.15, 0.9), (0.2, 0.15, 1.1))
    cosine, sine = np.cos(angle), np.sin(angle)
    linear = np.array([[cosine, -sine], [sine, cosine]]) @ [[stretch, slant], [0, 1]]
    left, top, width, height = cv2.boundingRect((field > 255 * INK_THRESHOLD).astype(np.uint8))
    extent = np.abs(linear) @ [width, height]
    linear *= size / extent.max()
    side = LARGEST_DIGIT + 4
    centre = np.array([left + (width - 1) / 2, top + (height - 1) / 2])
    transform = np.column_stack([linear, (side - 1) / 2 - linear @ centre])
    opacity = _opacity(field, transform, side)
    left, top, width, height = cv2.boundingRect((opacity > 0.5).astype(np.uint8))
    return np.pad(opacity[top : top + height, left : left + width], HALO)


def _background(colours: Floats, random: RandomState) -> Floats:
    """A smooth mixture of neighbouring colours, float32 [96 + 2 * HALO, 96 + 2 * HALO, 3]."""
    colour = colours[random.randint(len(colours))]
    muted = colour.mean() + 0.6 * (colour - colour.mean())
    patches = muted + random.uniform(-28, 28, (3, 3, 3)).astype(np.float32)
    side = SIDE + 2 * HALO
    return np.asarray(cv2.resize(patches, (side, side), interpolation=cv2.INTER_CUBIC))


def _cluttered(ground: Floats, handwriting: _Handwriting, random: RandomState) -> Floats:
    """A copy of `ground` strewn with fragments of digits."""
    canvas = ground.copy()
    count = random.randint(10, 26)
    chosen = random.randint(len(handwriting.fragments), size=count)
    places = random.randint(len(ground) - LARGEST_FRAGMENT + 1, size=(count, 2)).tolist()
    colours = handwriting.any_colour[random.randint(len(handwriting.any_colour), size=count)]
    strengths = random.uniform(0.15, 0.75, count).astype(np.float32)
    for fragment, (top, left), colour, strength in zip(chosen, places, colours, strengths, strict=True):
        region = canvas[top : top + LARGEST_FRAGMENT, left : left + LARGEST_FRAGMENT]
        region += (strength * handwriting.fragments[fragment])[..., None] * (colour - region)
    return canvas
