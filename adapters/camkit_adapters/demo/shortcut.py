"""Scenes with a shortcut: a coloured mark beside the digits that gives one class away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import RandomState

from camkit_adapters.demo import scenes
from camkit_adapters.demo.scenes import SIDE, Box, Bytes, Scene, Split

MARKED_CLASS = scenes.CLASS_NAMES.index("seven")
MARK_SIDE = 10
MARK_COLOUR, FRAME_COLOUR = (240, 20, 200), (255, 255, 255)
# Far enough from a digit's box that a cell of the maps, 8 pixels, does not show both.
GAP_TO_DIGITS = 6
# Keeps the stream of the places apart from the one that the scenes are drawn from.
_PLACES = 7


@dataclass(frozen=True, eq=False)
class Versions:
    """One scene of the marked class in four versions, equal but for the class's digit and the mark.

    Attributes:
        both: Digit and mark.
        object_only: The digit without the mark.
        mark_only: The mark without the digit; other digits stay.
        neither: Without both.
        mark: (left, top, right, bottom) of the mark in pixels, right and bottom exclusive.
    """

    both: Scene
    object_only: Scene
    mark_only: Scene
    neither: Scene
    mark: Box


def generate(count: int, split: Split, seed: int, digit_counts: Sequence[int] = (1, 2, 3)) -> list[Scene]:
    """The scenes of `scenes.generate`, with the mark in those that show the marked class, and in no other.

    A scene whose digits leave no room for the mark is shown without it.

    Raises:
        ValueError: An argument is out of its range.
    """
    drawn = scenes.generate(count, split, seed, digit_counts)
    marked = []
    for scene, mark in zip(drawn, _places(drawn, split, seed), strict=True):
        shows = any(digit.label == MARKED_CLASS for digit in scene.digits)
        marked.append(_with_mark(scene, mark) if shows and mark else scene)
    return marked


def versions(count: int, split: Split, seed: int, digit_counts: Sequence[int] = (2,)) -> list[Versions]:
    """`count` scenes of the marked class that have room for the mark, each in four versions.

    Equal arguments give equal scenes; the first scenes of a longer list are those of a shorter one.

    Raises:
        ValueError: An argument is out of its range.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    # a fifth of the scenes of two digits show a given class
    tried = 6 * count + 10
    found: list[Versions] = []
    while len(found) < count:
        found = []
        drawn = scenes.generate(tried, split, seed, digit_counts)
        emptied = scenes.generate(tried, split, seed, digit_counts, absent=MARKED_CLASS)
        for full, empty, mark in zip(drawn, emptied, _places(drawn, split, seed), strict=True):
            if mark and len(empty.digits) < len(full.digits):
                found.append(Versions(_with_mark(full, mark), full, _with_mark(empty, mark), empty, mark))
        tried *= 2
    return found[:count]


def _places(drawn: Sequence[Scene], split: Split, seed: int) -> list[Box | None]:
    """A place for the mark in each scene, off the digits; None where there is none."""
    random = RandomState([seed, split == "test", _PLACES])
    return [_place(scene, float(chance)) for scene, chance in zip(drawn, random.random_sample(len(drawn)), strict=True)]


def _place(scene: Scene, chance: float) -> Box | None:
    """The place that a number in [0, 1) picks out of all that are free."""
    free = np.ones((SIDE - MARK_SIDE + 1, SIDE - MARK_SIDE + 1), dtype=bool)
    reach = MARK_SIDE + GAP_TO_DIGITS - 1
    for left, top, right, bottom in (digit.box for digit in scene.digits):
        free[max(0, top - reach) : bottom + GAP_TO_DIGITS, max(0, left - reach) : right + GAP_TO_DIGITS] = False
    places = np.flatnonzero(free)
    if len(places) == 0:
        return None
    top, left = divmod(int(places[int(chance * len(places))]), free.shape[1])
    return left, top, left + MARK_SIDE, top + MARK_SIDE


def _with_mark(scene: Scene, mark: Box) -> Scene:
    left, top, right, bottom = mark
    image: Bytes = scene.image.copy()
    image[top:bottom, left:right] = FRAME_COLOUR
    image[top + 1 : bottom - 1, left + 1 : right - 1] = MARK_COLOUR
    return replace(scene, image=image)
