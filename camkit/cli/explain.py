"""``camkit explain``: overlays, a comparison grid and a line of facts for every image."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from camkit.cli.options import ModelOptions, comma_separated, parse_options, with_model
from camkit.errors import unknown

if TYPE_CHECKING:
    from camkit.explain import Explainer
    from camkit.explanation import Explanation
    from camkit.models import LoadedModel

VARIANTS = ("relu", "signed", "counterfactual")
SHORTEST_SIDE = 224


@with_model()
def explain(
    options: ModelOptions,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", show_default=False)],
    method: Annotated[str, typer.Option(metavar="A,B", help="Methods; camkit plugins lists them.")] = "gradcam",
    option: Annotated[
        list[str] | None, typer.Option(metavar="A.name=value", help="An option of a method; repeatable.")
    ] = None,
    layer: Annotated[str | None, typer.Option(metavar="L1,L2", help="Target layers; by default the adapter's.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="T", help="top, top-3, last, a class index or name; repeatable.")
    ] = None,
    variant: Annotated[str, typer.Option(metavar="V,V", help="relu, signed, counterfactual.")] = "relu",
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for pictures and explanations.jsonl.")] = Path(
        "camkit-output"
    ),
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one pass.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of random weights and of methods that draw noise.")] = 0,
    colormap: Annotated[str | None, typer.Option(help="Any matplotlib colormap.")] = None,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Opacity of the heatmap where it is strongest.")] = 0.6,
) -> None:
    """Explain images: one overlay per image, method, layer and target, a grid, and a JSON line each."""
    import torch

    from camkit import output as files
    from camkit.images import find_images, read_image
    from camkit.visualize import check_colormap

    methods = comma_separated(method)
    variants = comma_separated(variant)
    for one in variants:
        if one not in VARIANTS:
            raise unknown("variant", one, VARIANTS)
    chosen = parse_options(option or [], methods)
    check_colormap(colormap)
    paths = find_images(images)
    for path in paths:
        read_image(path)
    torch.manual_seed(seed)
    explainer, loaded = options.explainer(comma_separated(layer) or None)
    ask = Question(methods, variants, list(target or ["top"]), chosen)
    ask.check(explainer)
    folder = files.directory(output)

    console = Console()
    table = Table("image", "prediction", "probability", "explained", "method", "layer", "peak x, y")
    stems = _unique_stems(paths)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("Explaining", total=len(paths))
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            cells = ask.answer(explainer, loaded, batch)
            for index, path in enumerate(batch):
                picture = _picture(cells, index)
                lines = []
                for cell in cells:
                    name = files.file_name(stems[path], *cell.name_parts(index))
                    cell.save(folder / f"{name}.png", picture, index, colormap=colormap, alpha=alpha)
                    record = cell.explanation.record(index)
                    lines.append({"image": str(path), "picture": f"{name}.png", "variant": cell.variant, **record})
                    _add_row(table, path, cell, record)
                files.append_lines(folder / "explanations.jsonl", lines)
                _save_grid(
                    folder / f"{files.file_name(stems[path])}-grid.png",
                    path.name,
                    picture,
                    cells,
                    index,
                    colormap,
                    alpha,
                )
                progress.advance(task)
    if len(table.rows) <= 60:
        console.print(table)
    console.print(f"Explained {len(paths)} image{'s' if len(paths) > 1 else ''} into", str(folder), soft_wrap=True)


@dataclass(frozen=True)
class Cell:
    """One explanation of a batch, under one variant, with the pictures that the model saw."""

    variant: str
    explanation: "Explanation"
    views: Sequence[Any]

    def name_parts(self, index: int) -> tuple[str, ...]:
        """What tells this cell's file from the others."""
        asked = self.explanation.target.label.removeprefix("counterfactual ")
        suffix = () if self.variant == "relu" else (self.variant,)
        return (self.explanation.method, self.explanation.layer or "", asked, *suffix)

    def draw(self, picture: Any, index: int, *, colormap: str | None, alpha: float) -> Any:
        """The overlay on an enlarged picture, uint8 [H, W, 3]."""
        from camkit.visualize import overlay, upscale

        heat = self.explanation.heatmaps[index].cpu().numpy()
        signed = not self.explanation.relu
        own = None if signed else colormap
        return overlay(
            picture, upscale(heat, picture.shape[0] // heat.shape[0]), signed=signed, colormap=own, alpha=alpha
        )

    def save(self, path: Path, picture: Any, index: int, *, colormap: str | None, alpha: float) -> None:
        """Writes the overlay."""
        from camkit.visualize import save_png

        save_png(path, self.draw(picture, index, colormap=colormap, alpha=alpha))


@dataclass(frozen=True)
class Question:
    """What is asked about every image."""

    methods: Sequence[str]
    variants: Sequence[str]
    targets: Sequence[str]
    options: dict[str, Any]

    def check(self, explainer: "Explainer") -> None:
        """Refuses unknown methods, options and classes before anything is computed or written."""
        from camkit.registry import registry
        from camkit.targets import parse_targets

        for name in self.methods:
            own = {
                key.rpartition(".")[2]: value for key, value in self.options.items() if key.rpartition(".")[0] == name
            }
            registry().get("method", name).signature.options(own)
        parse_targets(list(self.targets), explainer.class_names, registry().names("target"))

    def answer(self, explainer: "Explainer", loaded: "LoadedModel", paths: Iterable[Path]) -> list[Cell]:
        """All explanations of one batch, computed in one pass."""
        tensors, views = loaded.read(list(paths))
        asked: list[str] = []
        if {"relu", "signed"} & set(self.variants):
            asked += self.targets
        if "counterfactual" in self.variants:
            asked += [f"counterfactual:{target}" for target in self.targets]
        found = explainer(tensors, list(self.methods), target=asked, options=self.options)
        cells = []
        for variant in self.variants:
            for explanation in found:
                if (explanation.target.function == "counterfactual") == (variant == "counterfactual"):
                    shown = replace(explanation, relu=variant != "signed")
                    cells.append(Cell(variant, shown, views))
        return cells


def _unique_stems(paths: Sequence[Path]) -> dict[Path, str]:
    stems: dict[Path, str] = {}
    for path in paths:
        stem, number = path.stem, 2
        while stem in stems.values():
            stem, number = f"{path.stem}-{number}", number + 1
        stems[path] = stem
    return stems


def _picture(cells: Sequence[Cell], index: int) -> Any:
    import numpy as np

    from camkit.visualize import upscale

    view = np.asarray(cells[0].views[index])
    return upscale(view, max(1, -(-SHORTEST_SIDE // min(view.shape[:2]))))


def _add_row(table: Table, path: Path, cell: Cell, record: dict[str, Any]) -> None:
    peak = record["map"]["peak"]
    shown = "" if cell.variant == "relu" else f" ({cell.variant})"
    table.add_row(
        path.name,
        record["prediction"]["name"],
        f"{record['prediction']['probability']:.3f}",
        record["target"]["name"] + shown,
        record["method"],
        record["layer"],
        f"{peak['x']}, {peak['y']}",
    )


def _save_grid(
    path: Path, title: str, picture: Any, cells: Sequence[Cell], index: int, colormap: str | None, alpha: float
) -> None:
    from camkit.visualize import comparison_grid

    rows: dict[tuple[str, str], dict[tuple[str, str], Any]] = {}
    columns: dict[tuple[str, str], None] = {}
    labels = {"relu": "ReLU", "signed": "no ReLU", "counterfactual": "counterfactual"}
    for cell in cells:
        explanation = cell.explanation
        name = explanation.class_name(int(explanation.targets[index]))
        row, column = (name, explanation.layer or ""), (explanation.method, labels[cell.variant])
        columns[column] = None
        rows.setdefault(row, {})[column] = cell.draw(picture, index, colormap=colormap, alpha=alpha)
    comparison_grid(
        [[picture, *(drawn.get(column) for column in columns)] for drawn in rows.values()],
        rows=[f"{name}\n{layer}" for name, layer in rows],
        columns=["image", *(f"{method}, {shown}" for method, shown in columns)],
        title=title,
        path=path,
    )
