"""Test vectors: the oracle's answers inside an exported file, so that checking it needs no model.

Their images regenerate from a seed.
"""

import base64
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from camkit.errors import CamkitError
from camkit_export.agreement import EITHER, Case, Doubles, Tolerances
from camkit_export.comparison import Comparison, judged
from camkit_export.inputs import SEED, Sample, random_further, random_images
from camkit_export.session import Session
from camkit_export.views import views

if TYPE_CHECKING:
    from camkit.exports import ExportRequest

STORED = "stored"
_IMAGES = 3
_SEEDS_TO_TRY = 4
# Heatmaps are kept at about this many points a side, which is enough to recognise the resize.
_POINTS = 16


def compare_stored(session: Session) -> tuple[Comparison, ...]:
    """A session's answers beside its test vectors, one comparison for each map and rank.

    Raises:
        CamkitError: the vectors are damaged.
    """
    every = views(session)
    try:
        stored = [_decode(vectors, session) for vectors, _ in zip(session.vectors, every, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise CamkitError(f"The test vectors of {session.path} are damaged: {error!r}.") from error
    return tuple(
        judged(
            STORED,
            view.title,
            [case],
            [view(case.images, case.classes, case.further)],
            tolerances,
            session.relu,
            "stored vectors",
        )
        for view, (case, tolerances) in zip(every, stored, strict=True)
    )


def make_vectors(request: "ExportRequest") -> list[dict[str, Any]]:
    """Test vectors of every part as JSON values: a seed, classes, the oracle's answers and the tolerances."""
    return [part.once("vectors", partial(_vectors_of, part)) for part in request.parts or (request,)]


def _vectors_of(request: "ExportRequest") -> dict[str, Any]:
    from camkit_export.reference import clear_case

    shape = (_IMAGES, *request.image_shape)
    for seed in range(SEED, SEED + _SEEDS_TO_TRY):
        images = random_images(seed, shape, pictures=request.frames is not None)
        case, tolerances = clear_case(request, Sample(STORED, (images,), strict=True), seed)
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
        images=random_images(int(vectors["seed"]), shape, pictures=session.takes_pictures),
        classes=np.asarray(vectors["classes"], dtype=np.int64),
        logits=_array(vectors["logits"]),
        maps=_array(vectors["maps"]),
        heatmaps=_array(vectors["heatmaps"]),
        left_out=np.where(np.asarray(vectors["clear"], dtype=bool), "", EITHER),
        step=int(vectors["heatmap_step"]),
        further=random_further(int(vectors["seed"]), shape[0], session.further, session.classes),
    )
    limits = vectors["tolerances"]
    return case, Tolerances(float(limits["logits"]), float(limits["map"]), float(limits["heatmap"]))


def _encode(values: Doubles) -> dict[str, Any]:
    data = base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")
    return {"shape": list(values.shape), "float32": data}


def _array(stored: Mapping[str, Any]) -> Doubles:
    flat = np.frombuffer(base64.b64decode(stored["float32"], validate=True), dtype="<f4")
    return flat.reshape(stored["shape"]).astype(np.float64)
