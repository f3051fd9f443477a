"""What is right: the answers of the float64 oracle and of eager PyTorch, and which images have one.

An image is left out, and counted, where there are two right answers: two classes tie for the top, or the map jumps
within rounding. Of images that no model was made for, those are left out as well of which the reference is not finite,
or of which eager PyTorch shows that float32 is not enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camkit.errors import CamkitError
from camkit_export.agreement import (
    BEYOND,
    HALF_TOLERANCE,
    JUMP,
    LOOSEST,
    TIE,
    UNDEFINED,
    Case,
    Doubles,
    Mask,
    Tolerances,
    alone,
    heatmap_errors,
    relative_errors,
    untied,
    worst,
)
from camkit_export.inputs import SEED, Sample, digest, random_classes, random_further
from camkit_export.session import Floats, Integers, Pixels, Result

if TYPE_CHECKING:
    from camkit.exports import ExportRequest

# How far float32 rounding may move a hidden value, as a shift of the input (which has a deviation of 1): in a deep
# model's map it is worth six times as much as a shift of 1e-6.
SHIFT = 1e-5
_DIRECTIONS = 4
# The same of weights that are rounded to float16, in shifts.
_HALF = 100
# The deviation of pictures, in levels.
_LEVELS = 64
# How often other classes are drawn where maps do not change with image or class.
_DRAWS = 4
# Of random images, how many may have a map that jumps.
_JUMPING = 0.25


@dataclass(frozen=True)
class Answer:
    """Logits [B, classes] and maps [B, h, w] in float64."""

    logits: Doubles
    maps: Doubles

    @property
    def finite(self) -> Mask:
        """Which images [B] have numbers only."""
        return np.asarray(np.isfinite(self.logits).all(axis=1) & np.isfinite(self.maps).all(axis=(1, 2)))


@dataclass(frozen=True)
class Truth:
    """Cases of one kind of images: the oracle's answers, eager's, and the tolerances that follow from both."""

    request: "ExportRequest"
    sample: Sample
    cases: list[Case]
    eager: list[Answer]
    tolerances: Tolerances

    def without_jumps(self, results: Sequence[Result]) -> list[Case]:
        """The cases without images whose map jumps, sought among those that the results are off at.

        Of random images so many may not jump; where they do, all are compared.
        """
        found = [
            _without_jumps(self.request, self.sample.size, case, answers, self.tolerances)
            for case, *answers in zip(self.cases, results, self.eager, strict=True)
        ]
        left_out = sum(int((~case.clear).sum()) for case in found)
        if self.sample.strict and left_out > _JUMPING * sum(len(case.images) for case in found):
            return [_only_ties(self.request, case) for case in self.cases]
        return found


def truth(request: "ExportRequest", sample: Sample) -> Truth:
    """What is right for images of one kind; worked out once for all files of a request."""
    return request.once((sample.kind, digest(*sample.batches)), partial(_truth, request, sample))


def _truth(request: "ExportRequest", sample: Sample) -> Truth:
    *batches, largest = sample.batches
    cases = [_case(request, batch, SEED + len(batch)) for batch in batches]
    largest_case = _case_with_twins if sample.strict else _case
    return _compared_with_eager(request, sample, [*cases, largest_case(request, largest, SEED + len(largest))])


def clear_case(request: "ExportRequest", sample: Sample, seed: int) -> tuple[Case, Tolerances]:
    """One batch, of which every image that is kept has one answer whatever the engine."""
    (batch,) = sample.batches
    found = _compared_with_eager(request, sample, [_case(request, batch, seed)])
    (case,) = found.cases
    everywhere = np.ones(len(batch), dtype=bool)
    jumps = _jumps(request, case, everywhere, found.tolerances, SHIFT / 10)
    return case.without(jumps, JUMP), found.tolerances


def takes(request: "ExportRequest", sample: Sample) -> bool:
    """Whether the model runs on images of a sample's size."""
    images = sample.batches[0]
    further = random_further(SEED, len(images), further_inputs(request), request.classes)
    try:
        _eager(request, images, np.zeros(len(images), np.int64), further)
    except Exception:  # whatever a model says to a size that it does not take
        return False
    return True


def refuse_constant(found: Truth) -> None:
    """A reference that is constant would agree with a graph in which the map was frozen.

    Raises:
        CamkitError: the map is the same everywhere, for every image, or for every class.
    """
    how = _constancy(found.request, found.cases[-1], found.tolerances.map)
    if how:
        which = f"the map '{found.request.name}'" if found.request.name else "the map"
        raise CamkitError(f"The export cannot be verified: by the float64 oracle {which} {how}.")


def _constancy(request: "ExportRequest", case: Case, tolerance: float) -> str | None:
    """How the map of a case with twins is constant, if it is."""
    flat = case.maps.reshape(len(case.maps), -1)
    constant = flat.max(axis=1) - flat.min(axis=1) <= tolerance * np.abs(flat).max(axis=1)

    def same(one: int, other: int) -> bool:
        return bool(relative_errors(flat[one][None], flat[other][None])[0] <= tolerance)

    if constant.all():
        return "is constant over every test image: it has one cell, or the layer does not reach the score"
    if same(-3, -2):
        return "does not change with the image"
    asked = request.rank is None and request.classes > 1
    if asked and request.provenance.get("class_specific", True) and same(-2, -1):
        return "does not change with the class"
    return None


def _case(request: "ExportRequest", images: Floats | Pixels, seed: int, *, twins: bool = False) -> Case:
    """Images, classes, and what the oracle says of them; of `twins` the last two images are the same."""
    classes = random_classes(seed, len(images), request.classes)
    further = random_further(seed, len(images), further_inputs(request), request.classes)
    if twins:  # the last three: one class for two images, then the same image for another class
        classes[-3] = classes[-2]
        for values in further.values():
            values[-3:] = values[-3]
    if request.rank is not None:
        answer, _ = _oracle(request, images, classes, further)
        classes = np.argsort(-answer.logits, axis=1, kind="stable")[:, request.rank]
    answer, heat = _oracle(request, images, classes, further)
    return Case(images, classes, answer.logits, answer.maps, heat, np.full(len(images), ""), further=further)


def _case_with_twins(request: "ExportRequest", images: Floats | Pixels, seed: int) -> Case:
    """The case of classes by which a frozen map can be told; there are maps that are all zero for some."""
    tolerance = HALF_TOLERANCE if request.half else LOOSEST
    draws = range(seed, seed + (_DRAWS if request.rank is None else 1))
    cases = (_case(request, images, draw, twins=True) for draw in draws)
    first = next(cases)
    # where none can, what is allowed may still be narrower than what is taken for constant here
    return next((case for case in chain([first], cases) if _constancy(request, case, tolerance) is None), first)


def _only_ties(request: "ExportRequest", case: Case) -> Case:
    """The case with every image but those that have two classes to be explained, whatever rounding does."""
    return _without_ties(request, replace(case, left_out=np.zeros_like(case.left_out)))


def _without_ties(request: "ExportRequest", case: Case) -> Case:
    if request.rank is None:
        return case.without(~untied(case.logits, case.classes), TIE)
    apart = 2 * (HALF_TOLERANCE if request.half else LOOSEST)
    return case.without(~alone(case.logits, request.rank, apart), TIE)


def _compared_with_eager(request: "ExportRequest", sample: Sample, cases: list[Case]) -> Truth:
    """The cases without images whose map jumps in eager, and ten times eager's error as tolerance."""
    from camkit.testing import tolerance

    eager = [_eager(request, case.images, case.classes, case.further) for case in cases]
    kept = [_with_one_answer(request, sample, case, answer) for case, answer in zip(cases, eager, strict=True)]
    if request.half:
        return Truth(request, sample, kept, eager, Tolerances(HALF_TOLERANCE, HALF_TOLERANCE, HALF_TOLERANCE))
    pairs = list(zip(kept, eager, strict=True))
    logits = worst(relative_errors(answer.logits, case.logits)[case.answered] for case, answer in pairs)
    maps = worst(relative_errors(answer.maps, case.maps)[case.clear] for case, answer in pairs)
    return Truth(request, sample, kept, eager, Tolerances(tolerance(logits), tolerance(maps)))


def _with_one_answer(request: "ExportRequest", sample: Sample, case: Case, eager: Answer) -> Case:
    """The case without images that have no answer in float32, or two of them."""
    if not sample.strict:
        case = case.without(~Answer(case.logits, case.maps).finite, UNDEFINED)
        case = case.without(relative_errors(eager.logits, case.logits) > LOOSEST, BEYOND)
    case = _without_ties(request, case)
    off = relative_errors(eager.maps, case.maps) > LOOSEST
    case = case.without(
        _jumps(request, case, off & case.clear, Tolerances(LOOSEST, LOOSEST), SHIFT * sample.size), JUMP
    )
    return case if sample.strict else case.without(off, BEYOND)


def _without_jumps(
    request: "ExportRequest", size: float, case: Case, answers: Sequence[Any], tolerances: Tolerances
) -> Case:
    result, eager = answers
    off = relative_errors(result.maps, case.maps) > tolerances.map
    # each may be within the tolerance on its own side of the oracle
    off |= relative_errors(result.maps, eager.maps) > tolerances.map
    off |= (heatmap_errors(result.heatmaps, case) > tolerances.heatmap) & case.curved(request.relu)
    return case.without(_jumps(request, case, off & case.clear, tolerances, SHIFT * size), JUMP)


def _jumps(request: "ExportRequest", case: Case, suspects: Mask, tolerances: Tolerances, shift: float) -> Mask:
    """Which of the suspects [B] have a map that jumps when the image moves by as much as rounding does.

    A gradient is discontinuous where a ReLU's input is zero or two values tie for a maximum. With a hidden value that
    near, float32 may take either side, and so may each engine: like a tie of classes, it has two right answers.
    """
    found = np.zeros(len(case.images), dtype=bool)
    if suspects.any():
        images = case.images[suspects].astype(np.float64)
        size = shift * (_HALF if request.half else 1) * (_LEVELS if request.frames else 1)
        draws = np.random.RandomState(SEED)
        there = case.only(suspects)
        curved = there.curved(request.relu)
        # in a single direction a hidden value may happen not to move
        moves = [size * draws.standard_normal(images.shape) for _ in range(_DIRECTIONS)]
        for near in (images + sign * moved for moved in moves for sign in (1, -1)):
            answer, heat = _oracle(request, near, there.explained, there.further)
            found[suspects] |= relative_errors(answer.maps, there.maps) > tolerances.map / 2
            found[suspects] |= curved & (heatmap_errors(heat, there) > tolerances.heatmap / 2)
    return found


def further_inputs(request: "ExportRequest") -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """By name, shape of one image's and numpy type of what the target needs beside the class."""
    return {name: (tuple(one.shape[1:]), one.numpy().dtype) for name, one in request.inputs.items()}


def _oracle(
    request: "ExportRequest", images: NDArray[Any], classes: Integers, further: Mapping[str, NDArray[Any]]
) -> tuple[Answer, Doubles]:
    """The oracle's answer and its heatmaps, which of a raw graph are none."""
    import torch

    tensor = torch.from_numpy(images)
    logits, maps = request.oracle(
        tensor.double(),
        torch.from_numpy(classes),
        {name: torch.from_numpy(values) for name, values in further.items()},
    )
    maps = maps.double().cpu()
    heat = np.zeros((len(maps), 0, 0)) if request.raw else request.heatmaps(maps, tensor).numpy()
    return Answer(logits.double().cpu().numpy(), maps.numpy()), heat


def _eager(
    request: "ExportRequest", images: NDArray[Any], classes: Integers, further: Mapping[str, NDArray[Any]]
) -> Answer:
    import torch

    logits, maps, _ = request.explain(*map(torch.from_numpy, (images, classes, *further.values())))
    return Answer(logits.detach().double().cpu().numpy(), maps.detach().double().cpu().numpy())
