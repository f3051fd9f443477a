"""``camkit explain``: overlays, a comparison grid and a line of facts for every image."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camkit.cli import printing
from camkit.cli.options import ModelOptions, comma_separated, parse_options, with_model
from camkit.cli.recording import Images, recording, show
from camkit.errors import CamkitError, CamkitWarning, MapWarning, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from camkit.explain import Explainer
    from camkit.explanation import Explanation
    from camkit.targets import Target

VARIANTS = {"relu": "ReLU", "signed": "no ReLU", "counterfactual": "counterfactual"}


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
) -> None:
    """Write overlays, a grid and a JSON line for each image.

    One command takes several methods, layers, targets and variants: each combination becomes an overlay and a JSON
    line, and a cell of the image's grid, whose rows are targets and layers, and whose columns methods and variants.
    """
    import numpy as np
    import torch

    from camkit import output as files
    from camkit.images import find_images, read_image
    from camkit.visualize import check_colormap, enlarged

    methods, variants = comma_separated(method), comma_separated(variant)
    for one in variants:
        if one not in VARIANTS:
            raise unknown("variant", one, VARIANTS)
    if not methods or not variants:
        raise CamkitError("At least one method and one variant are needed.")
    asked = [text.strip() for text in target or ["top"]]
    given = parse_options(option or [], methods, _others(asked, fuse))
    check_colormap(colormap)
    paths = list(dict.fromkeys(find_images(images)))
    for path in paths:
        read_image(path)
    torch.manual_seed(seed)
    explainer, loaded = options.explainer(comma_separated(layer) or None)
    smoothing = Smoothing(fuse, eigen_smooth, aug_smooth)
    question = Question.checked(explainer, methods, variants, asked, given, smoothing)
    folder = files.directory(output)

    stems = files.distinct(files.file_name(path.stem) or "image" for path in paths)
    table = printing.table("image", "prediction", "explained", "variant", "method", "layer", "peak x, y")
    lines: list[dict[str, Any]] = []
    with recording("Explaining", len(paths), lines, folder / "explanations.jsonl") as advance:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            tensors, views = loaded.read(batch)
            cells = list(question.cells(explainer, tensors))
            for index, (path, stem) in enumerate(zip(batch, stems[start:], strict=False)):
                drawing = Drawing(enlarged(np.asarray(views[index])), index, colormap, alpha)
                made = drawing.save(cells, folder, stem, title=path.name)
                for cell, name in zip(cells, made, strict=True):
                    record = cell.explanation.record(index)
                    lines.append({"image": str(path), "picture": name, "variant": cell.variant, **record})
                _report(table, path, cells, lines[-len(cells) :])
                advance()
    show(table)
    printing.line(f"Overlays ({len(lines)}), grids ({len(paths)}) and explanations.jsonl are in {folder}")


@dataclass(frozen=True)
class Cell:
    """One explanation of a batch under one variant; `target` is what was asked for, by its place in the command."""

    variant: str
    target: tuple[int, "Target"]
    explanation: "Explanation"

    def row(self, index: int) -> str:
        """What tells the cell's row in an image's grid: the class, how it was asked for, and the layer."""
        asked, name = self.target[1], self.explanation.class_name(int(self.explanation.targets[index]))
        known = asked.label if asked.label.endswith(name) else f"{asked.label}: {name}"
        return f"{known}\n{self.explanation.layer or ''}".rstrip()

    @property
    def column(self) -> str:
        """What tells the cell's column."""
        return f"{self.explanation.method}, {VARIANTS[self.variant]}"

    def file_parts(self) -> tuple[str, ...]:
        """What tells the cell's file from the others of an image."""
        suffix = () if self.variant == "relu" else (self.variant,)
        return (self.explanation.method, self.explanation.layer or "", self.target[1].label, *suffix)


@dataclass(frozen=True)
class Smoothing:
    """What becomes of the maps that the methods give."""

    fuse: str | None
    eigen_smooth: bool
    aug_smooth: bool


@dataclass(frozen=True)
class Question:
    """What is asked about every image."""

    methods: Sequence[str]
    variants: Sequence[str]
    targets: Sequence["Target"]
    options: dict[str, Any]
    smoothing: Smoothing

    @classmethod
    def checked(
        cls,
        explainer: "Explainer",
        methods: Sequence[str],
        variants: Sequence[str],
        targets: Sequence[str],
        options: dict[str, Any],
        smoothing: Smoothing,
    ) -> "Question":
        """Refuses unknown methods, options and classes before anything is computed or written."""
        from camkit.injection import own_options
        from camkit.registry import registry
        from camkit.targets import parse_targets

        functions = registry().names("target", qualified=True)
        asked, _ = parse_targets(list(targets), explainer.class_names, functions)
        owners = [("method", name) for name in methods] + [("target", target.name) for target in asked]
        owners += [("fusion", smoothing.fuse)] if smoothing.fuse else []
        for kind, name in owners:
            own = own_options(options, name, methods, [owner for _, owner in owners])
            registry().get(kind, name).signature.options(own)
        for target in asked:
            if "counterfactual" in variants and target.function != "class":
                raise CamkitError(f"The variant 'counterfactual' is of a class, which '{target.label}' is not.")
        return cls(methods, variants, asked, options, smoothing)

    def cells(self, explainer: "Explainer", images: "Tensor") -> "Iterator[Cell]":
        """All explanations of one batch, computed in one pass."""
        positive = list(self.targets) if {"relu", "signed"} & set(self.variants) else []
        negative = [replace(target, function="counterfactual") for target in self.targets]
        asked = [*positive, *(negative if "counterfactual" in self.variants else [])]
        with warnings.catch_warnings():
            # an image is named by its file, not by its place in a batch; the record of each holds its note
            warnings.simplefilter("ignore", MapWarning)
            found = {True: self._run(explainer, images, asked, relu=True)}
            # what a fusion makes of several maps hangs on their negative values
            apart = self.smoothing.fuse is not None and "signed" in self.variants
            found[False] = self._run(explainer, images, asked, relu=False) if apart else found[True]
        for variant in self.variants:
            for number, explanation in enumerate(found[variant != "signed"]):
                place = number % len(asked)
                if (place >= len(positive)) == (variant == "counterfactual"):
                    target = place % len(self.targets), self.targets[place % len(self.targets)]
                    yield Cell(variant, target, replace(explanation, relu=variant != "signed"))

    def _run(
        self, explainer: "Explainer", images: "Tensor", asked: "Sequence[Target]", *, relu: bool
    ) -> "Sequence[Explanation]":
        found: Sequence[Explanation] = explainer(
            images, list(self.methods), list(asked), options=self.options, relu=relu, **vars(self.smoothing)
        )
        return found


@dataclass(frozen=True)
class Drawing:
    """How one image of a batch is drawn; `picture` is the image as the model saw it, enlarged."""

    picture: Any
    index: int
    colormap: str | None
    alpha: float

    def overlay(self, explanation: "Explanation") -> Any:
        """The explanation drawn on the picture, uint8 [H, W, 3]."""
        colormap = self.colormap if explanation.relu else None
        return explanation.draw(self.index, self.picture, colormap=colormap, alpha=self.alpha)

    def save(self, cells: Sequence[Cell], folder: Path, stem: str, *, title: str) -> list[str]:
        """Writes the overlays and the grid; the names of the overlays' files."""
        from camkit.output import distinct, file_name
        from camkit.visualize import comparison_grid, save_png

        overlays = [self.overlay(cell.explanation) for cell in cells]
        names = [f"{name}.png" for name in distinct(f"{stem}-{file_name(*cell.file_parts())}" for cell in cells)]
        for name, picture in zip(names, overlays, strict=True):
            save_png(folder / name, picture)
        # what has no layer stands beside the first layer of its class, not in a row of its own
        ranked = sorted(cells, key=lambda cell: cell.explanation.layer is None)
        first: dict[int, str] = {}
        for cell in ranked:
            first.setdefault(cell.target[0], cell.row(self.index))
        at = [cell.row(self.index) if cell.explanation.layer else first[cell.target[0]] for cell in cells]
        places = [((cell.target[0], row), cell.column) for cell, row in zip(cells, at, strict=True)]
        drawn = dict(zip(places, overlays, strict=True))
        # layers of one class lie below each other; within a class they keep the order of the command
        rows = sorted(dict.fromkeys(row for row, _ in places), key=lambda row: row[0])
        columns = list(dict.fromkeys(column for _, column in places))
        comparison_grid(
            [[self.picture, *(drawn.get((row, column)) for column in columns)] for row in rows],
            rows=[label for _, label in rows],
            columns=["image", *columns],
            title=title,
            path=folder / f"{stem}-grid.png",
        )
        return names


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


def _report(table: Any, path: Path, cells: Sequence[Cell], records: Sequence[dict[str, Any]]) -> None:
    """Adds an image's rows to the table, and says which of its maps are blank and why."""
    blank: dict[str, list[str]] = {}
    for place, (cell, record) in enumerate(zip(cells, records, strict=True)):
        prediction, peak, name = record["prediction"], record["map"]["peak"], record["target"]["name"]
        predicted = _predicted(prediction)
        shown = (path.name, predicted) if place == 0 else ("", "")
        facts = (name, cell.variant, record["method"], record["layer"] or "")
        table.add_row(*shown, *facts, f"{peak['x']}, {peak['y']}")
        if record["note"]:
            blank.setdefault(record["note"], []).append(", ".join(filter(None, facts)))
    for note, affected in blank.items():
        more = f" and {len(affected) - 1} more" if len(affected) > 1 else ""
        warnings.warn(f"{path.name} ({affected[0]}{more}): {note}", CamkitWarning, stacklevel=2)
