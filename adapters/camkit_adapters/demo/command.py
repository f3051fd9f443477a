"""``camkit demo``: the whole of camkit on digit scenes, with ground truth: explain, measure, export, verify, report."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from camkit.cli import printing

if TYPE_CHECKING:
    from camkit.check import Check
    from camkit.evaluate import Measurement

MODELS = ("demo:resnet", "demo:vgg", "demo:vit")
EXPORTED = ("demo:resnet", "demo:vit")
SHOWN = ("scene-05.png", "scene-02.png", "scene-08.png", "scene-09.png")
# one screen's width of those that there are; docs/gallery.md shows them all
METHODS = ("cam", "gradcam", "gradcam++", "xgradcam", "layercam", "hirescam")
IMAGES = Path(__file__).with_name("images")
ENLARGED = 3


@dataclass
class Found:
    """What the demo collects for its report."""

    pointing: dict[str, list[tuple["Measurement", "Measurement"]]]
    rows: list[tuple[str, list[Any]]]
    columns: list[str]
    exports: dict[str, tuple[Path, "tuple[Check, ...]"]]


def demo(
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the report, the panel and the exported graphs.")
    ] = Path("camkit-demo"),
    scenes: Annotated[int, typer.Option(min=4, help="Scenes on which the pointing game is played.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
) -> None:
    """Run everything on digit scenes and write a report.

    Scenes are explained by two of their classes with each method on three models; the maps are measured against the
    digits' boxes, and Grad-CAM is exported to ONNX and verified.
    """
    from camkit import output as files

    started = time.perf_counter()
    console = printing.console()
    folder = files.directory(output)
    found = Found({}, [], [], {})
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        total = len(MODELS) * 3 + len(EXPORTED) + 1
        task = progress.add_task("Loading", total=total)
        _explain_and_measure(found, scenes, seed, progress, task)
        _export(found, folder, progress, task)
        progress.update(task, description="Writing the report")
        panel, report = _write(found, folder, scenes)
        progress.update(task, advance=1, description="Done")
    _print(console, found, scenes)
    console.print(f"{time.perf_counter() - started:.0f} seconds. Open the report in a browser:", highlight=False)
    for path in (report, panel, *(path for path, _ in found.exports.values())):
        console.print(f"  {path}", soft_wrap=True, highlight=False)


def _explain_and_measure(found: Found, scenes: int, seed: int, progress: Progress, task: Any) -> None:
    import camkit

    pictures = _ready_scenes()
    methods: dict[str, list[str]] = {}
    overlays: dict[tuple[str, str, int, int], Any] = {}
    for spec in MODELS:
        progress.update(task, description=f"{spec}: explaining")
        loaded = camkit.load_model(spec)
        explainer = camkit.Explainer(loaded)
        images, views = loaded.read([path for path, _ in pictures])
        possible = explainer.applicable(images[:1], single_pass=True)
        methods[spec] = [name for name in METHODS if name in possible]
        for asked in range(2):
            explanations = explainer(images, methods[spec], target=[camkit.Target(class_index=_asked(pictures, asked))])
            for explanation in explanations:
                for index, view in enumerate(views):
                    overlays[spec, explanation.method, index, asked] = _draw(explanation, index, view)
        progress.advance(task)
        measured = []
        for boxes in ("asked", "other"):
            progress.update(task, description=f"{spec}: pointing game, box of the {boxes} digit")
            data = {"count": scenes, "seed": seed, "boxes": boxes}
            measured.append(
                camkit.measure(explainer, "pointing_game", "digit_scenes", method=methods[spec], data_options=data)
            )
            progress.advance(task)
        found.pointing[spec] = list(zip(*measured, strict=True))
    found.columns = list(dict.fromkeys(name for spec in MODELS for name in methods[spec]))
    for index, (path, digits) in enumerate(pictures):
        for asked in range(2):
            scene = _picture(path, digits, asked)
            for spec in MODELS:
                cells = [overlays.get((spec, name, index, asked)) for name in found.columns]
                found.rows.append((f"{digits[asked]['label']}\n{spec}", [scene, *cells]))


def _export(found: Found, folder: Path, progress: Progress, task: Any) -> None:
    import camkit

    for spec in EXPORTED:
        progress.update(task, description=f"{spec}: exporting Grad-CAM to ONNX, verifying")
        path = folder / f"gradcam-{spec.partition(':')[2]}.onnx"
        report = camkit.export(camkit.Explainer(camkit.load_model(spec)), path, method="gradcam")
        found.exports[spec] = (path, report.checks)
        progress.advance(task)


def _write(found: Found, folder: Path, scenes: int) -> tuple[Path, Path]:
    from camkit import report
    from camkit.visualize import comparison_grid

    columns = ["scene", *found.columns]
    panel = comparison_grid(
        [cells for _, cells in found.rows[: 2 * len(MODELS)]],
        rows=[label for label, _ in found.rows[: 2 * len(MODELS)]],
        columns=columns,
        title="One scene, explained by two of its digits",
        path=folder / "panel.png",
    )
    pointing = report.Table(
        f"Where the peak falls, on {scenes} scenes of two digits",
        ("model", "method", "box of the asked digit", "box of the other digit"),
        [
            (spec, own.method, f"{own.value:.1%}", f"{other.value:.1%}")
            for spec, pairs in found.pointing.items()
            for own, other in pairs
        ],
        note="The pointing game: each of the two digits is asked for in turn, and the heatmap's peak is looked up. "
        "A map that ignored the question would point at both digits equally often.",
    )
    sections: list[report.Section] = [pointing]
    for start in range(0, len(found.rows), 2 * len(MODELS)):
        rows = found.rows[start : start + 2 * len(MODELS)]
        shown = [(label.replace("\n", " · "), cells) for label, cells in rows]
        sections.append(report.Pictures(f"Scene {start // (2 * len(MODELS)) + 1}", columns, shown))
    checks = [
        (spec, check.name, f"{check.error:.1e}", f"{check.tolerance:.0e}", check.images)
        for spec, (_, checks) in found.exports.items()
        for check in checks
    ]
    sections.append(
        report.Table(
            "Exported to ONNX and verified",
            ("model", "check", "largest error", "allowed", "images"),
            checks,
            note="The exported graph holds the forward pass, the gradient, Grad-CAM and the resize. It ran in ONNX "
            "Runtime and was compared with PyTorch and with a float64 oracle on images, batch sizes and classes other "
            "than those it was traced with.",
        )
    )
    page = report.write_report(
        folder / "report.html",
        title="camkit on digit scenes",
        introduction="Each scene holds handwritten digits of different classes on clutter made of digit fragments. A "
        "model says which digits are present; a map shows what it looked at for one of them. Since every digit has a "
        "box, a map can be checked: asked for the three, it should point at the three and not at the seven beside it.",
        sections=sections,
    )
    return panel, page


def _print(console: Console, found: Found, scenes: int) -> None:
    columns = ("model", "method", "asked digit's box", "other digit's box")
    table = printing.table(*columns, title=f"Peaks on {scenes} scenes")
    for spec, pairs in found.pointing.items():
        for own, other in pairs:
            table.add_row(spec, own.method, f"{own.value:.1%}", f"{other.value:.1%}")
        table.add_section()
    console.print(table)
    for spec, (path, checks) in found.exports.items():
        worst = max(check.error for check in checks)
        console.print(f"{spec}: {path.name} verified, largest error {worst:.1e}", highlight=False)


def _ready_scenes() -> list[tuple[Path, list[dict[str, Any]]]]:
    boxes = json.loads((IMAGES / "boxes.json").read_text(encoding="utf-8"))
    return [(IMAGES / name, boxes[name]) for name in SHOWN]


def _asked(pictures: list[tuple[Path, list[dict[str, Any]]]], place: int) -> Any:
    import torch

    return torch.tensor([digits[place]["class_index"] for _, digits in pictures])


def _draw(explanation: Any, index: int, view: Any) -> Any:
    import numpy as np

    from camkit.visualize import overlay, upscale

    heat = explanation.heatmaps[index].cpu().numpy()
    return overlay(upscale(np.asarray(view), ENLARGED), upscale(heat, ENLARGED))


def _picture(path: Path, digits: list[dict[str, Any]], asked: int) -> Any:
    import numpy as np

    from camkit.images import read_image
    from camkit.visualize import draw_boxes, upscale

    enlarged = upscale(np.asarray(read_image(path)), ENLARGED)
    left, top, right, bottom = (ENLARGED * edge for edge in digits[asked]["box"])
    return draw_boxes(enlarged, [(left, top, right, bottom)])
