"""When the answers of an exported file are right: errors and tolerances for each image, in numpy alone.

Two results are equal when ``max |found - reference| <= tolerance * max |reference|`` for each image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkit.check import Check
from camkit_export.session import Floats, Integers, Pixels, Result

Doubles = NDArray[np.float64]
Mask = NDArray[np.bool_]

LOOSEST = 1e-3
HEATMAP_TOLERANCE = 1e-3
# Of a graph whose weights are kept in float16.
HALF_TOLERANCE = 2e-2

# Why an image is left out; test vectors do not tell a tie from a jump.
TIE = "two classes tie"
JUMP = "the map jumps within rounding"
EITHER = "two classes tie, or the map jumps within rounding"
BEYOND = "float32 is not enough"
UNDEFINED = "the reference is not finite"

# A positive part below this share of the map is flat: scaled to [0, 1] it would show rounding errors.
_FLAT = 0.02


@dataclass(frozen=True)
class Tolerances:
    """How far logits, maps (relative to the largest value of an image) and heatmaps (absolute) may be off."""

    logits: float
    map: float
    heatmap: float = HEATMAP_TOLERANCE


@dataclass(frozen=True)
class Case:
    """Images and classes to ask for, and what is right.

    Attributes:
        images: float32 [B, C, H, W], or pictures, uint8 [B, H, W, 3].
        classes: what is asked for, int64 [B]; negative: the top class.
        logits, maps: the reference in float64, [B, classes] and [B, h, w].
        heatmaps: the reference at every `step`-th pixel; empty where there are none to compare.
        further: by name, what else the target needs, [B, ...] each.
        left_out: [B], why an image is left out, such as `TIE`; of those with an answer, an empty text.
    """

    images: Floats | Pixels
    classes: Integers
    logits: Doubles
    maps: Doubles
    heatmaps: Doubles
    left_out: NDArray[np.str_]
    step: int = 1
    further: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def clear(self) -> Mask:
        """Which images [B] have one answer."""
        return np.asarray(self.left_out == "")

    @property
    def answered(self) -> Mask:
        """Which images [B] have logits to compare: with two right maps the logits are still the same."""
        return np.isin(self.left_out, ("", TIE, JUMP, EITHER))

    def without(self, images: Mask, why: str) -> "Case":
        """The case without some of its images [B], for a reason; those that are left out already keep theirs."""
        return replace(self, left_out=np.where(images & self.clear, why, self.left_out))

    @property
    def explained(self) -> Integers:
        """The class that must be explained, [B]."""
        return np.where(self.classes < 0, self.logits.argmax(axis=1), self.classes)

    def only(self, images: Mask) -> "Case":
        """The case of some of its images [B]."""
        return Case(
            self.images[images],
            self.classes[images],
            self.logits[images],
            self.maps[images],
            self.heatmaps[images],
            self.left_out[images],
            self.step,
            {name: values[images] for name, values in self.further.items()},
        )

    def curved(self, relu: bool) -> Mask:
        """Which images have a heatmap that is not flat, [B]."""
        kept = self.maps.clip(min=0) if relu else self.maps
        with np.errstate(invalid="ignore"):
            span = kept.max(axis=(1, 2)) - kept.min(axis=(1, 2))
        return np.asarray(span > _FLAT * np.abs(self.maps).max(axis=(1, 2)))


def untied(logits: Doubles, classes: Integers) -> Mask:
    """Which images [B] have their class named, or two top classes that no tolerance could swap."""
    return np.asarray((classes >= 0) | alone(logits, 0))


def alone(logits: Doubles, rank: int, apart: float = 2 * LOOSEST) -> Mask:
    """For which images [B] no tolerance could swap the class of that rank, counted from 0, with its neighbours'."""
    ordered = -np.sort(-logits, axis=1)
    gaps = ordered[:, :-1] - ordered[:, 1:] > apart * np.abs(logits).max(axis=1, keepdims=True)
    return np.asarray(gaps[:, max(0, rank - 1) : rank + 1].all(axis=1))


def relative_errors(found: NDArray[Any], reference: Doubles) -> Doubles:
    """Max |found - reference| / max |reference| of each image, [B]; infinite where it is not a number."""
    if found.shape != reference.shape:
        return np.full(len(reference), np.inf)
    axes = tuple(range(1, reference.ndim))
    with np.errstate(invalid="ignore"):
        difference = np.abs(found - reference).max(axis=axes)
        scale = np.abs(reference).max(axis=axes)
        error = np.divide(difference, scale, out=np.where(difference == 0, 0.0, np.inf), where=scale > 0)
    return np.where(np.isfinite(error), error, np.inf)


def heatmap_errors(found: NDArray[Any], case: Case) -> Doubles:
    """Max |found - reference| of each image's heatmap, [B]: a heatmap's largest value is 1. Zeros without heatmaps."""
    if case.heatmaps.size == 0:
        return np.zeros(len(case.maps))
    sampled = found[:, :: case.step, :: case.step]
    if sampled.shape != case.heatmaps.shape:
        return np.full(len(found), np.inf)
    error = np.abs(sampled - case.heatmaps).max(axis=(1, 2))
    return np.where(np.isfinite(error), error, np.inf)


def worst(errors: Iterable[Doubles]) -> float:
    """The largest error of all; 0 where there is none."""
    return float(max((error.max() for error in errors if error.size), default=0.0))


def agreement(
    cases: Sequence[Case], results: Sequence[Result], tolerances: Tolerances, relu: bool
) -> tuple[Check, ...]:
    """How far logits, maps, heatmaps (if there are any) and explained classes of the results are from the cases'."""
    pairs = list(zip(cases, results, strict=True))

    def check(name: str, errors: list[Doubles], tolerance: float, left_out: int) -> Check:
        return Check(name, worst(errors), tolerance, sum(error.size for error in errors), left_out)

    unclear = sum(int((~case.clear).sum()) for case in cases)
    unanswered = sum(int((~case.answered).sum()) for case in cases)
    logits = [relative_errors(result.logits, case.logits)[case.answered] for case, result in pairs]
    maps = [relative_errors(result.maps, case.maps)[case.clear] for case, result in pairs]
    heat = [heatmap_errors(result.heatmaps, case)[case.clear & case.curved(relu)] for case, result in pairs]
    wrong = [(result.classes != case.explained)[case.clear].astype(np.float64) for case, result in pairs]
    has_heatmaps = any(case.heatmaps.size for case in cases)
    return (
        check("logits", logits, tolerances.logits, unanswered),
        check("map", maps, tolerances.map, unclear),
        *([check("heatmap", heat, tolerances.heatmap, unclear)] if has_heatmaps else []),
        check("explained class", wrong, 0.0, unclear),
    )
