"""An exported file against its own test vectors, and against eager PyTorch and the float64 oracle.

The file runs in its own engine. Test vectors hold the oracle's answers, so that checking them needs no model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from camkit.check import Check
from camkit.errors import CamkitError
from camkit.serving import load
from camkit_export.agreement import agreement
from camkit_export.comparison import Comparison, judged
from camkit_export.inputs import Sample, random_sample, unusual_samples
from camkit_export.session import Session
from camkit_export.vectors import compare_stored
from camkit_export.views import View, views

if TYPE_CHECKING:
    from camkit.exports import ExportRequest


def verify_file(path: str | Path) -> tuple[Check, ...]:
    """Runs the test vectors of an exported file; needs no model, and no torch for ONNX.

    Raises:
        CamkitError: the file cannot be opened or its vectors are damaged. A disagreement is a failed check.
    """
    session: Session = load(path)
    return verify_vectors(session)


def verify_vectors(session: Session) -> tuple[Check, ...]:
    """As `verify_file`, for a session that is open."""
    return _checks(compare_stored(session))


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
    return _checks(compare_samples(session, request, _random(session, request)))


def compare_kinds(session: Session, request: "ExportRequest", real: Sample | None = None) -> tuple[Comparison, ...]:
    """As `compare`, on images of every kind: random, constant, tiny and huge ones, and real ones if there are any.

    Of images that are not random, those for which float32 is not enough are left out and counted.
    """
    unusual = unusual_samples(session.image_shape, pictures=session.takes_pictures)
    return compare_samples(session, request, [*_random(session, request), *([real] if real else []), *unusual])


def compare_samples(session: Session, request: "ExportRequest", samples: Iterable[Sample]) -> tuple[Comparison, ...]:
    """An open session beside its model on samples, one comparison for each of them and each map and rank.

    Raises:
        CamkitError: as for `compare`.
    """
    from camkit_export.reference import further_inputs

    parts, every = request.parts or (request,), views(session)
    for what, has, needs in (
        ("dynamic size", session.dynamic_size, request.dynamic_size),
        ("images", session.image_shape, tuple(request.image_shape)),
        ("classes", session.classes, request.classes),
        ("ReLU", session.relu, request.relu),
        ("further inputs", dict(session.further), further_inputs(request)),
        ("maps", [(view.name, view.rank) for view in every], [(part.name, part.rank) for part in parts]),
    ):
        if has != needs:
            raise CamkitError(
                f"The file {session.path} is of another model: its {what} are {has}, the model's {needs}."
            )
    return tuple(_compared(view, part, sample) for sample in samples for view, part in zip(every, parts, strict=True))


def demand(checks: Sequence[Check], what: str) -> None:
    """Raises a CamkitError with the figures unless every check passed."""
    failed = [check for check in checks if not check.passed]
    if failed:
        figures = "; ".join(f"{check.name}: {check.error:.2e}, allowed {check.tolerance:.0e}" for check in failed)
        raise CamkitError(f"{what} does not agree with its model ({figures}).")


def _compared(view: View, request: "ExportRequest", sample: Sample) -> Comparison:
    from camkit_export.reference import refuse_constant, truth

    right = truth(request, sample)
    if sample.strict:
        refuse_constant(right)
    results = [view(case.images, case.classes, case.further) for case in right.cases]
    cases = right.without_jumps(results)
    beside_eager = [
        replace(case, logits=one.logits, maps=one.maps) for case, one in zip(cases, right.eager, strict=True)
    ]
    eager = agreement(beside_eager, results, right.tolerances, request.relu)
    found = judged(sample.kind, view.title, cases, results, right.tolerances, request.relu)
    return replace(found, checks={**found.checks, "eager model": eager[:2]})


def _random(session: Session, request: "ExportRequest") -> list[Sample]:
    """Random images; where their size is open, of further sizes that the model takes, too."""
    from camkit_export.reference import takes

    found = [random_sample(session.image_shape, pictures=session.takes_pictures)]
    if session.dynamic_size:
        channels, height, width = session.image_shape
        # what a patch or a stride divides, it divides still
        for size in ((3 * height // 2, width // 2), (2 * height, width)):
            sample = random_sample((channels, *size), pictures=False)
            if takes(request, sample):
                found.append(replace(sample, kind=f"{size[0]}x{size[1]}"))
        if len(found) == 1:
            raise CamkitError("The model takes images of one size only; export it without --dynamic-size.")
    return found


def _checks(comparisons: Iterable[Comparison]) -> tuple[Check, ...]:
    return tuple(check for one in comparisons for check in one.named_checks())
