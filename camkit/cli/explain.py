"""``camkit explain``: overlays, a comparison grid and a line of facts for every image."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camkit.cli import printing
from camkit.cli.options import ModelOptions, comma_separated, pairs, parse_options, with_model
from camkit.cli.recording import EngineName, EngineOptions, Images, recording, show
from camkit.errors import CamkitWarning

if TYPE_CHECKING:
    from rich.table import Table


@with_model()
def explain(
    options: ModelOptions,
    images: Images,
    method: Annotated[str, typer.Option(metavar="A,B", help="Methods; camkit plugins lists them.")] = "gradcam",
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A.name=value", help="An option of a method, a target function or the fusion; repeatable."
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(metavar="L1,L2", help="Target layers; camkit adapters --model names some.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="T", help="top, top-3, last, a class index or name, function:class; repeatable.  [default: top]"
        ),
    ] = None,
    variant: Annotated[
        str, typer.Option(metavar="V,V", help="relu, signed (no ReLU), counterfactual (the negative score).")
    ] = "relu",
    fuse: Annotated[
        str | None, typer.Option(metavar="NAME", help="One map of several layers: mean, max, tanh-max, product.")
    ] = None,
    eigen_smooth: Annotated[
        bool, typer.Option("--eigen-smooth", help="Join channels by their first principal component, not their sum.")
    ] = False,
    aug_smooth: Annotated[
        bool, typer.Option("--aug-smooth", help="Average the maps of six versions of each image, mirrored and scaled.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for pictures and explanations.jsonl.")
    ] = Path("camkit-output"),
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one pass.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of random weights and of methods that draw noise.")] = 0,
    colormap: Annotated[
        str | None, typer.Option(metavar="NAME", help="Any matplotlib colormap; signed maps keep their own.")
    ] = None,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Opacity of the heatmap where it is strongest.")] = 0.6,
    engine: EngineName = "local",
    engine_option: EngineOptions = None,
) -> None:
    """Write overlays, a grid and a JSON line for each image.

    One command takes several methods, layers, targets and variants: each combination becomes an overlay and a JSON
    line, and a cell of the image's grid, whose rows are targets and layers, and whose columns methods and variants.
    """
    from camkit import output as files
    from camkit.cli.explaining import Batch, Explaining, Model, Question, Smoothing
    from camkit.engines import find_engine
    from camkit.images import find_images, read_image
    from camkit.visualize import check_colormap

    methods, variants = comma_separated(method), comma_separated(variant)
    asked = [text.strip() for text in target or ["top"]]
    given = parse_options(option or [], methods, _others(asked, fuse))
    chosen = pairs("--engine-option", engine_option)
    share = find_engine(engine, chosen)
    check_colormap(colormap)
    paths = list(dict.fromkeys(find_images(images)))
    for path in paths:
        read_image(path)
    stems = files.distinct(files.file_name(path.stem) or "image" for path in paths)
    model = Model(options, comma_separated(layer), seed)
    smoothing = Smoothing(fuse, eigen_smooth, aug_smooth)
    question = Question.checked(model.loaded[0], methods, variants, asked, given, smoothing)
    folder = files.directory(output)
    work = Explaining(model, question, folder, seed, colormap, alpha)

    starts = range(0, len(paths), batch_size)
    batches = (Batch(paths[at : at + batch_size], stems[at : at + batch_size]) for at in starts)
    order = {str(path): place for place, path in enumerate(paths)}
    lines: list[dict[str, Any]] = []
    with recording("Explaining", len(paths), lines, folder / "explanations.jsonl") as advance:
        try:
            for batch, made in share(batches, work, chosen):
                lines += made
                advance(len(batch.paths))
        finally:
            # in the order of the images, whoever was quicker
            lines.sort(key=lambda line: order[line["image"]])
    table = printing.table("image", "prediction", "explained", "variant", "method", "layer", "peak x, y")
    for path, own in groupby(lines, key=lambda line: line["image"]):
        _report(table, Path(path), list(own))
    show(table)
    printing.line(f"Overlays ({len(lines)}), grids ({len(paths)}) and explanations.jsonl are in {folder}")


def _others(targets: Sequence[str], fuse: str | None) -> list[str]:
    """Who beside the methods may have options: the target functions asked for, and the fusion."""
    from camkit.registry import registry

    functions = registry().names("target", qualified=True)
    named = [name for name in functions if any(text.startswith(f"{name}:") for text in targets)]
    return [*named, *([fuse] if fuse else [])]


def _predicted(prediction: dict[str, Any] | None) -> str:
    if prediction is None:
        return "no classes"
    probability = prediction["probability"]
    return f"{prediction['name']} {'not finite' if probability is None else format(probability, '.3f')}"


def _report(table: "Table", path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Adds an image's rows to the table, and says which of its maps are blank and why."""
    blank: dict[str, list[str]] = {}
    for place, record in enumerate(records):
        prediction, peak, name = record["prediction"], record["map"]["peak"], record["target"]["name"]
        predicted = _predicted(prediction)
        shown = (path.name, predicted) if place == 0 else ("", "")
        facts = (name, record["variant"], record["method"], record["layer"] or "")
        table.add_row(*shown, *facts, f"{peak['x']}, {peak['y']}")
        if record["note"]:
            blank.setdefault(record["note"], []).append(", ".join(filter(None, facts)))
    for note, affected in blank.items():
        more = f" and {len(affected) - 1} more" if len(affected) > 1 else ""
        warnings.warn(f"{path.name} ({affected[0]}{more}): {note}", CamkitWarning, stacklevel=2)
