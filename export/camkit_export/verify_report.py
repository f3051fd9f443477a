"""The report of a verification: JSON for machines, Markdown for people, both beside the file that was verified."""

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camkit.atomic import write_bytes
from camkit.check import Check
from camkit.version import __version__
from camkit_export.comparison import Comparison, Likeness
from camkit_export.session import Session
from camkit_export.similarity import TOP_SHARE

if TYPE_CHECKING:
    from camkit_export.real_images import RealImages

FORMAT = 1

_EXPLANATION = f"""\
*Largest error* is that of the image that is furthest off: of logits and maps relative to the image's largest value, of
heatmaps absolute. *Allowed* of logits and maps is ten times the error that eager PyTorch has itself, but at least 1e-4
and at most 1e-3; of heatmaps 1e-3; of weights in float16 always 2e-2. *Rank correlation* is Spearman's, of the maps;
*top area* the overlap, intersection over union, of the highest {TOP_SHARE:.0%} of the heatmaps. Both are told
and not judged: the order of values that are equal but for rounding means nothing.
"""


@dataclass(frozen=True)
class Verification:
    """All that a verification found out.

    Attributes:
        session: the file.
        comparisons: what came of it, kind by kind.
        model: the SPEC of the model that it was compared with; empty where there was none.
        real: the images of a folder, if there was one.
    """

    session: Session
    comparisons: Sequence[Comparison]
    model: str = ""
    real: "RealImages | None" = None

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return all(one.passed for one in self.comparisons)

    @property
    def proved_nothing(self) -> list[str]:
        """The kinds of images of which no map could be compared."""
        kinds = dict.fromkeys(one.kind for one in self.comparisons)
        return [kind for kind in kinds if not any(one.proves for one in self.comparisons if one.kind == kind)]

    def sentence(self, name: str) -> str:
        """The verdict on the file, by the name that it is given."""
        if self.passed:
            idle = ", ".join(self.proved_nothing)
            return f"{name} gives what it should{f'; no map could be compared of: {idle}' if idle else ''}."
        failed = [(one, check) for one in self.comparisons for check in one.named_checks() if not check.passed]
        # that another class was explained is a wrong number, not a large one, and says least
        one, check = max(failed, key=lambda found: (found[1].tolerance > 0, found[1].error))
        return (
            f"{name} does not give what it should: of {one.kind} images, {check.name} differs by {check.error:.1e}, "
            f"{check.tolerance:.0e} is allowed."
        )


def write_report(found: Verification, folder: Path) -> Path:
    """Writes ``FILE.verify.json`` and ``FILE.verify.md`` into a folder, and returns the path of the second.

    Raises:
        CamkitError: the folder cannot be written.
    """
    name = found.session.path.name
    facts = _facts(found)
    write_bytes(folder / f"{name}.verify.json", (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    return write_bytes(folder / f"{name}.verify.md", ("\n".join(_page(found, facts)) + "\n").encode())


def _facts(found: Verification) -> dict[str, Any]:
    """The report as JSON values, in which null is what is infinite or not a number."""
    session = found.session
    content = session.path.read_bytes()
    return {
        "format": FORMAT,
        "passed": found.passed,
        "verdict": found.sentence(session.path.name),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "file": {"name": session.path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "runtime": session.runtime,
        "providers": list(session.providers),
        "versions": {
            "camkit": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", *(["torch"] if found.model else []))},
        },
        "exported": {name: value for name, value in session.provenance.items() if name != "class_names"},
        "model": found.model or None,
        "folder": None
        if found.real is None
        else {"files": found.real.files, "compared": len(found.real.arrays), "skipped": list(found.real.skipped)},
        "comparisons": [_comparison(one) for one in found.comparisons],
    }


def _comparison(one: Comparison) -> dict[str, Any]:
    return {
        "images_are": one.kind,
        "map": one.title or None,
        "images": one.images,
        "passed": one.passed,
        "left_out": dict(one.left_out),
        "flat_heatmaps": one.flat,
        "checks": [
            {
                "output": check.name,
                "reference": reference,
                "error": _number(check.error),
                "allowed": check.tolerance,
                "images": check.images,
                "passed": check.passed,
            }
            for reference, check in _rows(one)
        ],
        "rank_correlation": _likeness(one.ranks),
        "top_area_overlap": _likeness(one.top_area),
    }


def _likeness(likeness: Likeness) -> dict[str, Any]:
    return {"lowest": _number(likeness.lowest), "mean": _number(likeness.mean), "images": likeness.images}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _page(found: Verification, facts: Mapping[str, Any]) -> Iterator[str]:
    session = found.session
    yield f"# Verification of {session.path.name}"
    yield f"\n**{facts['verdict']}**\n"
    exported = "; ".join(
        f"{one['method']} at {one['layer']}" if one["layer"] else str(one["method"]) for one in session.map_facts
    )
    yield f"- Exported: {exported} of {session.provenance['model']}, camkit {facts['exported']['versions']['camkit']}"
    yield f"- Run by: {', '.join(part for part in (session.runtime, *session.providers) if part) or 'an engine'}"
    yield f"- Compared with: its stored vectors{f', eager {found.model} and its float64 oracle' if found.model else ''}"
    yield f"- Verified: {facts['time']}, camkit {__version__}"
    yield f"- SHA-256: {facts['file']['sha256']}"
    if found.real is not None:
        yield f"- Real images: {len(found.real.arrays)} of {found.real.files} files"
        yield from (f"- Skipped: {reason}" for reason in found.real.skipped)
    for one in found.comparisons:
        yield f"\n## {one.kind.capitalize()} images{f': {one.title}' if one.title else ''}\n"
        yield "| output | reference | largest error | allowed | images | |"
        yield "|---|---|---:|---:|---:|---|"
        for reference, check in _rows(one):
            yield (
                f"| {check.name} | {reference} | {check.error:.1e} | {check.tolerance:.0e} | {check.images} "
                f"| {verdict(check)} |"
            )
        yield f"\n{_remarks(one)}"
    yield f"\n---\n\n{_EXPLANATION}".rstrip()


def verdict(check: Check) -> str:
    """What came of a check, in a word or two."""
    if not check.passed:
        return "**differs**"
    return "equal" if check.images else "not compared"


def _rows(one: Comparison) -> Iterator[tuple[str, Check]]:
    for reference, checks in one.checks.items():
        yield from ((reference, check) for check in checks)


def _remarks(one: Comparison) -> str:
    parts = [f"{one.images} images."]
    parts += [f"Left out: {count}, {why}." for why, count in one.left_out.items()]
    if one.flat:
        parts.append(f"Flat heatmaps, which are not compared: {one.flat}.")
    if one.ranks.images:
        parts.append(f"Rank correlation: {one.ranks.lowest:.6f} at least.")
    if one.top_area.images:
        parts.append(f"Top area: {one.top_area.lowest:.4f} at least.")
    return " ".join(parts)
