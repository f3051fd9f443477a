"""What came of a comparison: one kind of images, one map of a file, and each reference that there is."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from camkit.check import Check
from camkit_export.agreement import Case, Doubles, Tolerances, agreement
from camkit_export.session import Result
from camkit_export.similarity import rank_correlation, top_area_overlap

# Images that the name of a check leaves unsaid.
_USUAL = ("random", "stored")


@dataclass(frozen=True)
class Likeness:
    """A similarity of results and references: the lowest and the mean over so many images; NaN over none."""

    lowest: float
    mean: float
    images: int


@dataclass(frozen=True)
class Comparison:
    """What came out for images of one kind and one map of a file.

    Attributes:
        kind: of images: ``stored``, ``random`` …
        title: which map, of a file of several; empty where there is one.
        images: how many there were.
        checks: by the name of the reference, one check for each output.
        left_out: how many images were not compared (of a tie or a jump only the logits were), by the reason.
        flat: how many heatmaps were not compared since the reference is flat.
        ranks: Spearman's correlation of the maps.
        top_area: intersection over union of the areas in which the heatmaps are highest; of no image in a raw file.
    """

    kind: str
    title: str
    images: int
    checks: Mapping[str, tuple[Check, ...]]
    left_out: Mapping[str, int]
    flat: int
    ranks: Likeness
    top_area: Likeness

    @property
    def passed(self) -> bool:
        """Whether nothing differs; also where nothing could be compared."""
        return all(check.passed for checks in self.checks.values() for check in checks)

    @property
    def proves(self) -> bool:
        """Whether the map of any image was compared."""
        return any(check.images for checks in self.checks.values() for check in checks if check.name == "map")

    def named_checks(self) -> tuple[Check, ...]:
        """Every check, with its map, its images and its reference in its name."""
        of, on = f"{self.title}, " if self.title else "", "" if self.kind in _USUAL else f" on {self.kind} images"
        return tuple(
            replace(check, name=f"{of}{check.name}{on} against the {reference}")
            for reference, checks in self.checks.items()
            for check in checks
        )


def judged(
    kind: str,
    title: str,
    cases: Sequence[Case],
    results: Sequence[Result],
    tolerances: Tolerances,
    relu: bool,
    reference: str = "oracle",
) -> Comparison:
    """A session's results beside the reference that the cases hold."""
    heat = [case.clear & case.curved(relu) for case in cases]
    has_heatmaps = any(case.heatmaps.size for case in cases)
    return Comparison(
        kind=kind,
        title=title,
        images=sum(len(case.images) for case in cases),
        checks={reference: agreement(cases, results, tolerances, relu)},
        left_out=Counter(str(why) for case in cases for why in case.left_out if why),
        flat=sum(int((case.clear & ~kept).sum()) for case, kept in zip(cases, heat, strict=True))
        if has_heatmaps
        else 0,
        ranks=_likeness(
            rank_correlation,
            [(result.maps, case.maps, case.clear) for case, result in zip(cases, results, strict=True)],
        ),
        top_area=_likeness(
            top_area_overlap,
            [
                (result.heatmaps[:, :: case.step, :: case.step], case.heatmaps, kept)
                for case, result, kept in zip(cases, results, heat, strict=True)
                if has_heatmaps and result.heatmaps.ndim == 3
            ],
        ),
    )


def _likeness(measure: Callable[..., Doubles], triples: Sequence[tuple[Any, Any, Any]]) -> Likeness:
    """Of (found, reference, which images) triples; a result of another shape is like nothing."""
    found = [measure(one[kept], other[kept]) for one, other, kept in triples if one.shape == other.shape and kept.any()]
    values = np.concatenate([np.zeros(0), *found])
    values = values[~np.isnan(values)]
    if not values.size:
        return Likeness(np.nan, np.nan, 0)
    return Likeness(float(values.min()), float(values.mean()), values.size)
