"""When the answers of an exported file are right: errors and tolerances for each image, in numpy alone.

Two results are equal when ``max |found - reference| <= tolerance * max |reference|`` for each image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
        clear: bool [B], which images have one answer; of others only the logits are compared.
    """

    images: Floats | Pixels
    classes: Integers
    logits: Doubles
    maps: Doubles
    heatmaps: Doubles
    clear: Mask
    step: int = 1

    @property
    def explained(self) -> Integers:
        """The class that must be explained, [B]."""
        return np.where(self.classes < 0, self.logits.argmax(axis=1), self.classes)

    def curved(self, relu: bool) -> Mask:
        """Which images have a heatmap that is not flat, [B]."""
        kept = self.maps.clip(min=0) if relu else self.maps
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
    cases: Sequence[Case], results: Sequence[Result], tolerances: Tolerances, relu: bool, reference: str
) -> tuple[Check, ...]:
    """Logits, maps, heatmaps and explained classes of the results against the cases' reference, named `reference`."""
    pairs = list(zip(cases, results, strict=True))
    left_out = sum(int((~case.clear).sum()) for case in cases)

    def check(name: str, errors: list[Doubles], tolerance: float, left_out: int = left_out) -> Check:
        images = sum(error.size for error in errors)
        return Check(f"{name} against the {reference}", worst(errors), tolerance, images, left_out)

    wrong = [(result.classes != case.explained)[case.clear].astype(np.float64) for case, result in pairs]
    checks = (
        check("logits", [relative_errors(result.logits, case.logits) for case, result in pairs], tolerances.logits, 0),
        check("map", [relative_errors(result.maps, case.maps)[case.clear] for case, result in pairs], tolerances.map),
        check(
            "heatmap",
            [heatmap_errors(result.heatmaps, case)[case.clear & case.curved(relu)] for case, result in pairs],
            tolerances.heatmap,
        ),
        check("explained class", wrong, 0.0),
    )
    return checks if any(case.heatmaps.size for case in cases) else (*checks[:2], checks[3])
