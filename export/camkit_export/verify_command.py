"""``camkit verify``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from camkit.cli import printing
from camkit.cli.options import ModelOptions, with_model
from camkit.errors import CamkitError

if TYPE_CHECKING:
    from camkit.check import Check
    from camkit.explain import Explainer
    from camkit.exports import ExportRequest
    from camkit_export.comparison import Comparison, Likeness
    from camkit_export.session import Session
    from camkit_export.verify_report import Verification


@with_model(required=False)
def verify(
    options: ModelOptions,
    file: Annotated[Path, typer.Argument(help="An exported file.", show_default=False)],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Real images to compare on too; they need --model.")
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="How many of them, the first by name.")] = 64,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the report.  [default: the file's]")
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.")] = False,
    file_format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="The format; 'aotinductor' runs native code.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights, as given to camkit export.")] = 0,
) -> None:
    """Check an exported file against its own test vectors.

    With --model it is compared with PyTorch too: on random, constant, tiny and huge images, and with --images on real
    ones. A report, FILE.verify.md and FILE.verify.json, is written beside the file. The exit code is 1 if it differs.
    """
    import camkit
    from camkit.images import find_images
    from camkit.output import directory
    from camkit_export.vectors import compare_stored
    from camkit_export.verify_report import Verification, write_report

    if images is not None and not options.model:
        raise CamkitError("Real images are compared with the model's own answers; name the model with --model SPEC.")
    paths = find_images([images]) if images is not None else []
    if report is not None:
        directory(report)
    session: Session = camkit.load(file, format=file_format)
    found = Verification(session, compare_stored(session))
    console = printing.console()
    if options.model:
        with console.status("Comparing with the model …"):
            found = _with_model(found, options, seed, paths, max_images)
    for reason in found.real.skipped if found.real else ():
        printing.line(f"Skipped: {reason}", label="Note", style="bold yellow", stderr=True)
    console.print(_table(found))
    if not no_report:
        try:
            printing.line(f"Report: {write_report(found, file.parent if report is None else report)}")
        except CamkitError as error:  # the verdict counts, wherever the file stands
            printing.line(f"{error} Name another folder with --report.", label="Note", style="bold yellow", stderr=True)
    if not found.passed:
        printing.line(found.sentence(f"'{file}'"), label="Error", style="bold red", stderr=True)
        raise typer.Exit(1)
    printing.line(found.sentence(str(file)))


def _with_model(
    found: "Verification", options: ModelOptions, seed: int, paths: list[Path], max_images: int
) -> "Verification":
    """The verification with everything that a model is needed for."""
    from dataclasses import replace

    import torch

    from camkit_export.inputs import real_sample
    from camkit_export.real_images import read_images
    from camkit_export.verify import compare_kinds

    torch.manual_seed(seed)
    explainer, loaded = options.explainer()
    real = read_images(paths, found.session, loaded.preprocessing, max_images) if paths else None
    asked = _request(found.session, explainer)
    compared = compare_kinds(found.session, asked, real_sample(real.arrays) if real else None)
    return replace(found, comparisons=(*found.comparisons, *compared), model=options.model, real=real)


def _request(session: "Session", explainer: "Explainer") -> "ExportRequest":
    """What a file was exported for, of a model that may be its own."""
    import numpy as np
    import torch

    from camkit.exports import request
    from camkit.targets import Target

    facts, maps = session.provenance, session.map_facts
    owners = [(facts["target"], facts["target_options"]), *((one["method"], one["options"]) for one in maps)]
    return request(
        explainer,
        list(dict.fromkeys(one["method"] for one in maps)),
        layer=list(dict.fromkeys(one["layer"] for one in maps if one["layer"])) or None,
        target=Target(
            facts["target"],
            inputs={
                name: torch.from_numpy(np.ones((1, *shape), kind)) for name, (shape, kind) in session.further.items()
            },
        ),
        options={f"{owner}.{name}": value for owner, given in owners for name, value in given.items()},
        relu=session.relu,
        images=None if session.takes_pictures else torch.randn(1, *session.image_shape),
        top_k=session.top_k,
        frame_size=session.image_shape[:2] if session.takes_pictures else None,
        raw=session.raw,
        half=session.half,
        dynamic_size=session.dynamic_size,
    )


def _table(found: "Verification") -> Table:
    """One line for each kind of images and each map; each cell is the largest error and what is allowed."""
    outputs = ("logits", "map", *(() if found.session.raw else ("heatmap",)))
    several = any(one.title for one in found.comparisons)
    titles = ("of",) if several else ()
    table = printing.table("images", *titles, *outputs, "number", "left out", "ranks", "top area", "")
    for one in found.comparisons:
        table.add_row(
            one.kind,
            *((one.title,) if several else ()),
            *(_cell(one, output) for output in outputs),
            str(one.images),
            str(sum(one.left_out.values())),
            _lowest(one.ranks, 6),
            _lowest(one.top_area, 4),
            _verdict(one),
        )
    return table


def _cell(one: "Comparison", output: str) -> Text:
    checks = [check for checks in one.checks.values() for check in checks if check.name == output]
    worst: Check = max(checks, key=lambda check: (not check.passed, check.error))
    if not worst.images:
        return Text("-", style="dim")
    return Text(f"{worst.error:.1e} of {worst.tolerance:.0e}", style="" if worst.passed else "bold red")


def _verdict(one: "Comparison") -> Text:
    if not one.passed:
        return Text("differs", style="bold red")
    return Text("equal", style="green") if one.proves else Text("not compared", style="yellow")


def _lowest(likeness: "Likeness", digits: int) -> str:
    return f"{likeness.lowest:.{digits}f}" if likeness.images else "-"
