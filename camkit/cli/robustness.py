"""``camkit robustness``: what attacks do to the maps of several methods, and whether a model goes by a shortcut."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camkit.cli import printing
from camkit.cli.attack import parse_budget
from camkit.cli.options import ModelOptions, comma_separated, parse_options, with_model
from camkit.cli.recording import INTERRUPTED, show, showing

if TYPE_CHECKING:
    from camkit.explain import Explainer
    from camkit.samples import Sample


@with_model()
def robustness(
    options: ModelOptions,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA|FOLDER",
            help="A data set, or a folder of images; repeatable.  [default: digit_scenes, or marked_scenes]",
        ),
    ] = None,
    attacks: Annotated[str, typer.Option(metavar="A,B", help="The attacks.")] = "noise,fgsm,pgd",
    methods: Annotated[
        str, typer.Option("--methods", metavar="M,N", help="The methods whose maps are compared.")
    ] = "gradcam,gradcam++,layercam",
    eps: Annotated[
        str, typer.Option(metavar="E,F", help="The budgets, in the unit of each attack's threat model.")
    ] = "1/255,2/255,4/255,8/255",
    norm: Annotated[
        str | None, typer.Option(metavar="NAME", help="The threat model, where attacks work in several: linf, l2.")
    ] = None,
    layer: Annotated[str | None, typer.Option(metavar="LAYER", help="The target layer of the maps.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="A.name=value", help="An option of an attack, a method or a data set; repeatable."),
    ] = None,
    noise: Annotated[
        str, typer.Option(metavar="S", help="The standard deviation of the noise by which attacks are detected.")
    ] = "4/255",
    images: Annotated[int, typer.Option(min=1, help="How many images are looked at.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data, attacks and noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images attacked at once.")] = 16,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for lines, table, curves and report.html.")
    ] = Path("camkit-robustness"),
    spurious: Annotated[
        bool,
        typer.Option("--spurious", help="Ask instead whether the model goes by a mark beside the object; no attacks."),
    ] = False,
) -> None:
    """Attack a data set, and measure what becomes of the maps.

    Every image is attacked once for each attack and budget, and explained by all methods before and after: which maps
    stay, and does their drift under a little noise give the attack away? With --spurious a model is shown scenes with
    and without a mark that goes with a class, and with and without the object itself.
    """
    from camkit import output as files

    names, chosen = comma_separated(attacks), comma_separated(methods)
    sets = data or ["marked_scenes" if spurious else "digit_scenes"]
    others = [spec.partition(":")[0].replace("-", "_") for spec in sets]
    given = parse_options(option or [], chosen, [*names, *others])
    explainer, loaded = options.explainer(comma_separated(layer) or None)
    if spurious:
        from camkit.cli.spurious import run

        samples = _samples(sets, given, explainer, images, seed)
        return run(explainer, loaded.spec, samples, images, chosen, given, layer, batch_size, output)

    from camkit import robustness as study
    from camkit.robustness_report import Findings, headings, row

    budgets = [found for text in comma_separated(eps) if (found := parse_budget(text)) is not None]
    deviation = parse_budget(noise) or 0.0
    design = study.Design(names, chosen, budgets, norm, layer, given, noise=deviation, seed=seed)
    design.check()
    asked = study.one_per_picture(_samples(sets, given, explainer, images, seed), images)
    folder = files.directory(output)
    findings = Findings(design, loaded.spec, explainer.class_names)
    interrupted = False
    with showing("Attacking", -(-len(asked) // batch_size) * design.steps) as advance:
        try:
            for step in study.study(explainer, asked, design, batch_size=batch_size):
                findings.add(step)
                advance()
        except KeyboardInterrupt:
            interrupted = True
    if not findings.rows:
        raise typer.Exit(INTERRUPTED)
    findings.write(folder, interrupted=interrupted)
    table = printing.table(*headings(findings.measures))
    cells = findings.cells
    for cell in cells:
        table.add_row(*(_narrow(str(text)) for text in row(cell, findings.measures)))
    show(table)
    for sentence in [
        *findings.remarks,
        study.verdict_on_stability(findings.ranked),
        study.verdict_on_detection(cells),
    ]:
        printing.line(sentence)
    if interrupted:
        printing.line("Interrupted: what was done until then is kept.", stderr=True)
    printing.line(f"report.html, robustness.csv, drift.jsonl and the curves are in {folder}")
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    return None


def _narrow(text: str) -> str:
    """``0.5 [0.4, 0.6]`` with the interval below the value and nothing to break, so that a screen holds all columns."""
    return text.replace(" [", "\n").replace(", ", "…").rstrip("]")


def _samples(
    sets: Sequence[str], given: dict[str, Any], explainer: "Explainer", images: int, seed: int
) -> "Iterator[Sample]":
    """The samples of data sets and folders, one after the other; what could not be read is said when that is known.

    Raises:
        CamkitError: something is neither a data set nor a path, or there is no image.
    """
    sources = [_samples_of(spec, given, explainer, images, seed) for spec in sets]

    def found() -> "Iterator[Sample]":
        for source in sources:
            yield from source
            for problem in getattr(source, "problems", ()):
                printing.line(problem, label="Note", style="bold yellow", stderr=True)

    return found()


def _samples_of(spec: str, given: dict[str, Any], explainer: "Explainer", images: int, seed: int) -> "Iterable[Sample]":
    from camkit.datasets import find, is_data_set
    from camkit.errors import unknown
    from camkit.images import find_images, read_image
    from camkit.registry import registry
    from camkit.samples import Sample

    if is_data_set(spec):
        found, own = find(spec, {}, {"count": images, "seed": seed, "class_names": explainer.class_names})
        named = {key.rpartition(".")[2]: value for key, value in given.items() if key.rpartition(".")[0] == found.name}
        return found.samples({**own, **named})
    if not Path(spec).exists():
        raise unknown("data set or folder", spec, registry().names("dataset"))
    return (Sample(read_image(path), -1, name=str(path)) for path in find_images([spec]))
