"""An exported file against its own test vectors, and against eager PyTorch and the float64 oracle.

The file runs in its own engine. Test vectors hold the oracle's answers, so that checking them needs no model; their
images regenerate from a seed.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camkit.check import Check
from camkit.errors import CamkitError
from camkit.serving import load
from camkit_export.agreement import (
    HALF_TOLERANCE,
    LOOSEST,
    Case,
    Doubles,
    Mask,
    Tolerances,
    agreement,
    alone,
    heatmap_errors,
    relative_errors,
    untied,
    worst,
)
from camkit_export.session import Floats, Integers, Pixels, Result, Session

if TYPE_CHECKING:
    from camkit.exports import ExportRequest

BATCHES = (1, 3, 8)
_VECTORS = 3
_SEED = 0
_SEEDS_TO_TRY = 4

# How far float32 rounding may move a hidden value, as a shift of the input (which has a deviation of 1): in a deep
# model's map it is worth six times as much as a shift of 1e-6.
_SHIFT = 1e-5
# The same of weights that are rounded to float16, in shifts.
_HALF = 100
# The deviation of pictures, in levels.
_LEVELS = 64
# Of the images, how many may have a map that jumps.
_JUMPING = 0.25
# Heatmaps in test vectors are kept at about this many points a side, which is enough to recognise the resize.
_POINTS = 16
# Of how many squares a side pictures to test with are made.
_SQUARES = 24


def verify_file(path: str | Path) -> tuple[Check, ...]:
    """Runs the test vectors of an exported file; needs no model, and no torch for ONNX.

    Raises:
        CamkitError: the file cannot be opened or its vectors are damaged. A disagreement is a failed check.
    """
    session: Session = load(path)
    return verify_vectors(session)


def verify_vectors(session: Session) -> tuple[Check, ...]:
    """As `verify_file`, for a session that is open."""
    views = _views(session)
    try:
        stored = [_decode(vectors, session) for vectors, _ in zip(session.vectors, views, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise CamkitError(f"The test vectors of {session.path} are damaged: {error!r}.") from error
    return tuple(
        replace(check, name=view.title + check.name)
        for view, (case, tolerances) in zip(views, stored, strict=True)
        for check in agreement([case], [view(case.images, case.classes)], tolerances, session.relu, "stored vectors")
    )


def compare(path: str | Path, request: "ExportRequest") -> tuple[Check, ...]:
    """An exported file against the float64 oracle and eager PyTorch, on fresh images in batches of 1, 3 and 8.

    Raises:
        CamkitError: the file cannot be opened or is of another model, or the comparison would prove nothing since the
            reference is constant. A disagreement is a failed check.
    """
    session: Session = load(path)
    return compare_session(session, request)


def compare_session(session: Session, request: "ExportRequest") -> tuple[Check, ...]:
    """As `compare`, for a session that is open."""
    parts, views = request.parts or (request,), _views(session)
    for what, has, needs in (
        ("images", session.image_shape, tuple(request.image_shape)),
        ("classes", session.classes, request.classes),
        ("ReLU", session.relu, request.relu),
        ("maps", [(view.name, view.rank) for view in views], [(part.name, part.rank) for part in parts]),
    ):
        if has != needs:
            raise CamkitError(
                f"The file {session.path} is of another model: its {what} are {has}, the model's {needs}."
            )
    return tuple(
        replace(check, name=view.title + check.name)
        for view, part in zip(views, parts, strict=True)
        for check in _compare(view, part)
    )


@dataclass(frozen=True)
class _View:
    """One map of a session, for one class of each image: what a graph of that map alone would answer."""

    session: Session
    name: str
    rank: int | None

    @property
    def title(self) -> str:
        """What stands before the names of its checks."""
        ranked = "" if self.rank is None else f"class {self.rank + 1} of {self.session.top_k}, "
        return f"{self.name}, {ranked}" if self.name else ranked

    def __call__(self, images: NDArray[Any], classes: Integers) -> Result:
        found = self.session.results(images, classes if self.rank is None else None)
        result = found[self.session.maps.index(self.name)]
        if self.rank is None:
            return result
        heat = result.heatmaps if self.session.raw else result.heatmaps[:, self.rank]
        return Result(result.logits, heat, result.maps[:, self.rank], result.classes[:, self.rank])


def _views(session: Session) -> list[_View]:
    ranks = [None] if session.top_k is None else range(session.top_k)
    return [_View(session, name, rank) for name in session.maps for rank in ranks]


def _compare(view: _View, request: "ExportRequest") -> tuple[Check, ...]:
    cases, eager, tolerances = _references(request, [_case(request, batch, seed=_SEED + batch) for batch in BATCHES])
    _refuse_constant(cases[-1], tolerances, request)
    results = [view(case.images, case.classes) for case in cases]
    cases = [
        _without_jumps(request, case, (result, one), tolerances)
        for case, result, one in zip(cases, results, eager, strict=True)
    ]
    if sum(int((~case.clear).sum()) for case in cases) > _JUMPING * sum(BATCHES):
        cases = [replace(case, clear=_clear(request, case.logits, case.classes)) for case in cases]
    against_eager = agreement(
        [replace(case, logits=one.logits, maps=one.maps) for case, one in zip(cases, eager, strict=True)],
        results,
        tolerances,
        request.relu,
        "eager model",
    )
    return (*agreement(cases, results, tolerances, request.relu, "oracle"), *against_eager[:2])


def demand(checks: Sequence[Check], what: str) -> None:
    """Raises a CamkitError with the figures unless every check passed."""
    failed = [check for check in checks if not check.passed]
    if failed:
        figures = "; ".join(f"{check.name}: {check.error:.2e}, allowed {check.tolerance:.0e}" for check in failed)
        raise CamkitError(f"{what} does not agree with its model ({figures}).")


def make_vectors(request: "ExportRequest") -> list[dict[str, Any]]:
    """Test vectors of every part as JSON values: a seed, classes, the oracle's answers and the tolerances."""
    return [_vectors_of(part) for part in request.parts or (request,)]


def _vectors_of(request: "ExportRequest") -> dict[str, Any]:
    for seed in range(_SEED, _SEED + _SEEDS_TO_TRY):
        (case,), _, tolerances = _references(request, [_case(request, _VECTORS, seed)])
        everywhere = np.ones(_VECTORS, dtype=bool)
        case = replace(case, clear=case.clear & ~_jumps(request, case, everywhere, tolerances, shift=_SHIFT / 10))
        if case.clear.sum() >= 2:  # one could be all that agrees with a frozen map
            break
    else:
        raise CamkitError("The export cannot be verified: for most test images rounding alone changes the map.")
    step = max(1, min(case.heatmaps.shape[1:]) // _POINTS)
    return {
        "seed": seed,
        "shape": list(case.images.shape),
        "classes": case.classes.tolist(),
        "clear": case.clear.tolist(),
        "logits": _encode(case.logits),
        "maps": _encode(case.maps),
        "heatmaps": _encode(case.heatmaps[:, ::step, ::step]),
        "heatmap_step": step,
        "tolerances": asdict(tolerances),
    }


def _decode(vectors: Mapping[str, Any], session: Session) -> tuple[Case, Tolerances]:
    shape = [int(size) for size in vectors["shape"]]
    if tuple(shape[1:]) != session.image_shape or not 1 <= shape[0] <= 64:
        raise ValueError(f"images of shape {shape}")
    case = Case(
        images=_images(int(vectors["seed"]), shape, pictures=session.takes_pictures),
        classes=np.asarray(vectors["classes"], dtype=np.int64),
        logits=_array(vectors["logits"]),
        maps=_array(vectors["maps"]),
        heatmaps=_array(vectors["heatmaps"]),
        clear=np.asarray(vectors["clear"], dtype=bool),
        step=int(vectors["heatmap_step"]),
    )
    limits = vectors["tolerances"]
    return case, Tolerances(float(limits["logits"]), float(limits["map"]), float(limits["heatmap"]))


def _encode(values: Doubles) -> dict[str, Any]:
    data = base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")
    return {"shape": list(values.shape), "float32": data}


def _array(stored: Mapping[str, Any]) -> Doubles:
    flat = np.frombuffer(base64.b64decode(stored["float32"], validate=True), dtype="<f4")
    return flat.reshape(stored["shape"]).astype(np.float64)


def _images(seed: int, shape: Sequence[int], *, pictures: bool) -> Floats | Pixels:
    """Noise [B, C, H, W]; or pictures [B, H, W, 3] of squares, as a resize would leave nothing but grey of noise."""
    random = np.random.RandomState(seed)
    if not pictures:
        return random.standard_normal(tuple(shape)).astype(np.float32)
    batch, height, width, channels = shape
    side = max(1, min(height, width) // _SQUARES)
    coarse = random.randint(0, 256, (batch, -(-height // side), -(-width // side), channels), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(side, axis=1).repeat(side, axis=2)[:, :height, :width])


def _classes(seed: int, batch: int, classes: int) -> Integers:
    """Some top classes, then classes that differ from each other as far as there are enough of them."""
    chosen = np.random.RandomState(seed).permutation(classes)[np.arange(batch) % classes].astype(np.int64)
    chosen[: (batch + 1) // 4] = -1
    return chosen


@dataclass(frozen=True)
class _Answer:
    logits: Doubles
    maps: Doubles


def _oracle(request: "ExportRequest", images: NDArray[Any], classes: Integers) -> tuple[_Answer, Doubles]:
    """The oracle's answer and its heatmaps, which of a raw graph are none."""
    import torch

    logits, maps = request.oracle(torch.from_numpy(images).double(), torch.from_numpy(classes))
    maps = maps.double().cpu()
    heat = np.zeros((len(maps), 0, 0)) if request.raw else request.heatmaps(maps).numpy()
    return _Answer(logits.double().cpu().numpy(), maps.numpy()), heat


def _eager(request: "ExportRequest", case: Case) -> _Answer:
    import torch

    logits, maps, _ = request.explain(torch.from_numpy(case.images), torch.from_numpy(case.classes))
    return _Answer(logits.detach().double().cpu().numpy(), maps.detach().double().cpu().numpy())


def _case(request: "ExportRequest", batch: int, seed: int) -> Case:
    images = _images(seed, (batch, *request.image_shape), pictures=request.frames is not None)
    classes = _classes(seed, batch, request.classes)
    if batch >= 4:  # the last three: one class for two images, then the same image for another class
        classes[-3] = classes[-2]
        images[-1] = images[-2]
    if request.rank is not None:
        answer, _ = _oracle(request, images, classes)
        classes = np.argsort(-answer.logits, axis=1, kind="stable")[:, request.rank]
    answer, heat = _oracle(request, images, classes)
    return Case(images, classes, answer.logits, answer.maps, heat, _clear(request, answer.logits, classes))


def _clear(request: "ExportRequest", logits: Doubles, classes: Integers) -> Mask:
    """Which images [B] have one class that is explained, whatever rounding does."""
    if request.rank is None:
        return untied(logits, classes)
    return alone(logits, request.rank, 2 * (HALF_TOLERANCE if request.half else LOOSEST))


def _references(request: "ExportRequest", cases: list[Case]) -> tuple[list[Case], list[_Answer], Tolerances]:
    """The cases without images whose map jumps in eager, eager's answers, and ten times eager's error as tolerance."""
    from camkit.testing import tolerance

    eager = [_eager(request, case) for case in cases]
    loosest = Tolerances(LOOSEST, LOOSEST)
    kept = []
    for case, answer in zip(cases, eager, strict=True):
        off = relative_errors(answer.maps, case.maps) > LOOSEST
        kept.append(replace(case, clear=case.clear & ~_jumps(request, case, off & case.clear, loosest)))
    pairs = list(zip(kept, eager, strict=True))
    logits = worst(relative_errors(answer.logits, case.logits) for case, answer in pairs)
    maps = worst(relative_errors(answer.maps, case.maps)[case.clear] for case, answer in pairs)
    if request.half:
        return kept, eager, Tolerances(HALF_TOLERANCE, HALF_TOLERANCE, HALF_TOLERANCE)
    return kept, eager, Tolerances(tolerance(logits), tolerance(maps))


def _without_jumps(
    request: "ExportRequest", case: Case, answers: tuple[Result, _Answer], tolerances: Tolerances
) -> Case:
    result, eager = answers
    off = relative_errors(result.maps, case.maps) > tolerances.map
    # each may be within the tolerance on its own side of the oracle
    off |= relative_errors(result.maps, eager.maps) > tolerances.map
    off |= (heatmap_errors(result.heatmaps, case) > tolerances.heatmap) & case.curved(request.relu)
    return replace(case, clear=case.clear & ~_jumps(request, case, off & case.clear, tolerances))


def _jumps(request: "ExportRequest", case: Case, suspects: Mask, tolerances: Tolerances, shift: float = _SHIFT) -> Mask:
    """Which of the suspects [B] have a map that jumps when the image moves by as much as rounding does.

    A gradient is discontinuous where a ReLU's input is zero or two values tie for a maximum. With a hidden value that
    near, float32 may take either side, and so may each engine: like a tie of classes, it has two right answers.
    """
    found = np.zeros(len(case.images), dtype=bool)
    if suspects.any():
        images = case.images[suspects].astype(np.float64)
        size = shift * (_HALF if request.half else 1) * (_LEVELS if request.frames else 1)
        moved = size * np.random.RandomState(_SEED).standard_normal(images.shape)
        there = replace(case, heatmaps=case.heatmaps[suspects])
        curved = case.curved(request.relu)[suspects]
        for near in (images + moved, images - moved):
            answer, heat = _oracle(request, near, case.explained[suspects])
            found[suspects] |= relative_errors(answer.maps, case.maps[suspects]) > tolerances.map / 2
            found[suspects] |= curved & (heatmap_errors(heat, there) > tolerances.heatmap / 2)
    return found


def _refuse_constant(case: Case, tolerances: Tolerances, request: "ExportRequest") -> None:
    """A reference that is constant would agree with a graph in which the map was frozen."""
    flat = case.maps.reshape(len(case.maps), -1)
    constant = flat.max(axis=1) - flat.min(axis=1) <= tolerances.map * np.abs(flat).max(axis=1)

    def same(one: int, other: int) -> bool:
        return bool(relative_errors(flat[one][None], flat[other][None])[0] <= tolerances.map)

    if constant.all():
        _prove_nothing("is constant over every test image: it has one cell, or the layer does not reach the score")
    if same(-3, -2):
        _prove_nothing("does not change with the image")
    asked = request.rank is None and request.classes > 1
    if asked and request.provenance.get("class_specific", True) and same(-2, -1):
        _prove_nothing("does not change with the class")


def _prove_nothing(how: str) -> None:
    raise CamkitError(f"The export cannot be verified: by the float64 oracle the map {how}.")
