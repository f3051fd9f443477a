"""``camkit evaluate``: methods on models over a data set, as a table with intervals, plots and pictures."""

import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camkit.cli import printing
from camkit.cli.options import ModelOptions, comma_separated, pairs, with_model
from camkit.cli.recording import INTERRUPTED, LONGEST_TABLE, EngineName, EngineOptions, showing
from camkit.errors import CamkitError

if TYPE_CHECKING:
    from camkit.explain import Explainer
    from camkit.study import Study
    from camkit.study_report import Findings


@with_model(required=False, several=True)
def evaluate(
    options: ModelOptions,
    methods: Annotated[
        str | None, typer.Option(metavar="M,N", help="Methods; all stands for every other one that gives a map.")
    ] = None,
    without: Annotated[str | None, typer.Option(metavar="M,N", help="Methods that all does not stand for.")] = None,
    metrics: Annotated[str | None, typer.Option(metavar="X,Y", help="Metrics; camkit plugins lists them.")] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME[:PATH]", help="A data set, and where it lies.")] = None,
    data_option: Annotated[
        list[str] | None, typer.Option(metavar="name=value", help="An option of the data set; repeatable.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="A.name=value", help="An option of a method or a metric; repeatable.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Settings from a preset; options given beside it win.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="How many pictures.  [default: all]")] = None,
    fewer: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD=N", help="Show a slow method the first N pictures only; repeatable."),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="T,U", help="Which classes are explained: true, top (predicted), last (least likely).  [true]"
        ),
    ] = None,
    layer: Annotated[str | None, typer.Option(metavar="LAYER", help="The target layer.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for lines, table, plots and report.html.")
    ] = Path("camkit-evaluation"),
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of data, metrics and intervals.  [0]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures in one pass.  [32]")] = None,
    engine: EngineName = "local",
    engine_option: EngineOptions = None,
) -> None:
    """Measure methods on models over a data set.

    Each image, model and method becomes a line in results.jsonl as soon as it is known. The same command goes on where
    it was interrupted. At the end there are a table with 95 % bootstrap intervals (CSV, Parquet), plots, pictures of
    the best and worst maps, of right and wrong predictions, and a page that has them all.
    """
    from camkit import study
    from camkit.engines import find_engine
    from camkit.output import directory
    from camkit.study_report import Findings
    from camkit.study_run import run

    given: dict[str, Any] = {
        "models": comma_separated(options.model),
        "methods": comma_separated(methods),
        "without": comma_separated(without),
        "metrics": comma_separated(metrics),
        "targets": comma_separated(targets),
        "data": data,
        "images": images,
        "layer": layer,
        "seed": seed,
        "batch_size": batch_size,
        "fewer": pairs("--fewer", fewer),
        "data_options": pairs("--data-option", data_option),
    }
    settings = {**(study.read_preset(preset) if preset else {}), **{key: one for key, one in given.items() if one}}
    settings["methods"] = study.expand(settings.get("methods", ()), settings.pop("without", ())) or None
    settings |= _owned(settings, pairs("--option", option))
    loading = {key: str(one) for key, one in asdict(options).items() if one is not None and key != "model"}
    planned = study.Study.of({**{key: one for key, one in settings.items() if one is not None}, "loading": loading})
    chosen = pairs("--engine-option", engine_option)
    find_engine(engine, chosen)
    folder = directory(output)
    journal = study.begin(planned, folder)
    if journal.lines:
        printing.line(f"Going on: {len(journal.lines)} lines are in {journal.path}")
    command = shlex.join(["camkit", *sys.argv[1:]])

    findings = Findings(planned, folder)
    try:
        with showing("Evaluating", len(planned.models) * study.pictures(planned)) as advance:
            found = run(planned, Load(options), journal, advance, engine=engine, engine_options=chosen)
            for studied in found:
                findings.add(studied, journal.lines)
        page = findings.write(command)
    except KeyboardInterrupt:
        printing.line(f"Interrupted: {len(journal.lines)} lines are kept in {journal.path}. Go on with:", stderr=True)
        printing.line(command, stderr=True)
        raise typer.Exit(INTERRUPTED) from None
    _print(planned, findings)
    printing.line(f"{len(journal.lines)} lines (results.jsonl), table.csv, plots and grids are in {folder}")
    printing.line(f"Open the report in a browser: {page}")


@dataclass(frozen=True)
class Load:
    """Builds an Explainer for a SPEC as the command line says; it can be sent to another process."""

    options: ModelOptions

    def __call__(self, spec: str) -> "Explainer":
        """Loads the model."""
        return replace(self.options, model=spec).explainer()[0]


def _owned(settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options of methods and those of metrics, each by its owner; those of a preset give way."""
    found = {key: dict(settings.get(key, {})) for key in ("options", "metric_options")}
    for key, value in given.items():
        owner, dot, _ = key.rpartition(".")
        kinds = {"options": settings.get("methods"), "metric_options": settings.get("metrics")}
        kind = next((kind for kind, names in kinds.items() if dot and owner in (names or ())), None)
        if kind is None:
            raise CamkitError(f"--option was '{key}'; write method.name=value or metric.name=value, of one asked for.")
        found[kind][key] = value
    return found


def _print(study: "Study", findings: "Findings") -> None:
    from camkit.study_table import in_words, pivot

    console = printing.console()
    entries = [one for one in findings.entries if one.prediction == "all"]
    if len(entries) <= LONGEST_TABLE:
        table = printing.table("model", "method", "metric", "explained", "value", "95 %", "n")
        for one in entries:
            bounds = in_words(one).partition(" ")[2]
            value = f"{one.value:.3f}" if one.n else "\N{EN DASH}"
            table.add_row(one.model, one.method, one.metric, one.target, value, bounds, str(one.n))
        console.print(table)
    else:
        for target in study.targets:
            for metric in study.metrics:
                models, rows = pivot(entries, metric, target)
                table = printing.table("method", *models, title=f"{metric}, {target} class")
                for method, cells in rows:
                    table.add_row(method, *map(in_words, cells))
                console.print(table)
    for spec, refused in findings.refusals.items():
        for method, reason in refused.items():
            printing.line(f"{spec} without {method}: {reason}", label="Note", style="bold yellow", stderr=True)
    for note in findings.notes:
        printing.line(note, label="Note", style="bold yellow", stderr=True)
    if findings.problems:
        count = len(findings.problems)
        kept = "listed in problems.jsonl, without which they are tried again"
        printing.line(f"{count} files could not be read, or not wholly ({kept}):", stderr=True)
        for problem in findings.problems:
            printing.line(f"  {problem}", stderr=True)
