"""A picture of every method: what it shows on a scene of two digits, asked for one and for the other.

Usage: python examples/digit_scenes/gallery.py [--models demo:vit ...] [--write docs/gallery.md]
The pictures are written beside the page, to images/gallery-*.jpg.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# sets OMP_WAIT_POLICY, which has to come before torch is imported
from compare_methods import KINDS, MODELS, command, explainer, kind_of

# isort: split
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from camkit import progress as inner_progress
from camkit.errors import CamkitError, CamkitWarning
from camkit.images import read_image
from camkit.methods import Method
from camkit.registry import registry
from camkit.visualize import draw_boxes, upscale
from camkit_adapters import demo

SCENE = Path(demo.__file__).with_name("images") / "scene-05.png"
ENLARGED = 2
CELL_INCHES, DOTS_PER_INCH, JPEG_QUALITY = 1.0, 140, 85

# an earlier layer, whose map a fusion joins with that of the usual one
EARLIER = {"demo:resnet": "layer2", "demo:vgg": "features.-6", "demo:vit": "blocks.-2.norm1"}

HEADINGS = {
    **{kind: f"Maps: {kind}" for kind in KINDS},
    "pixels": "Pixels",
    "concepts": "Concepts",
    "fusions": "Fusions of Grad-CAM's maps of two layers",
    "smoothing": "Grad-CAM, smoothed",
}

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Entry:
    """One row of a picture, and its line on the page.

    Attributes:
        name: as users write it.
        section: one of `HEADINGS`.
        line: what the page says about it.
        method: name of the method.
        asked: further arguments of the explainer.
        options: the options that differ from the defaults.
        two_layers: whether an earlier layer is taken, too.
    """

    name: str
    section: str
    line: str
    method: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    two_layers: bool = False


@dataclass(frozen=True)
class Cell:
    """One method's picture on one model for one digit; without a picture the model was refused."""

    picture: Image | None
    remark: str = ""


def entries(rise_masks: int, sscam_samples: int) -> list[Entry]:
    """Every method, every fusion of Grad-CAM, and both ways to smooth it."""
    options = {"rise": {"masks": rise_masks}, "sscam": {"samples": sscam_samples}}
    found = []
    for name in registry().names("method"):
        method: Method = registry().get("method", name)
        section = kind_of(method) if method.kind == "map" else method.kind
        # the constant in a logit is noise to RISE, whose paper takes probabilities
        asked = {"function": "probability"} if name == "rise" else {}
        changed = {**options.get(name, {}), **({"target": "probability"} if asked else {})}
        line = described(name, method.paper, method.function, changed)
        found.append(Entry(name, section, line, name, asked, options.get(name, {})))
    for name in registry().names("fusion"):
        fusion = registry().get("fusion", name)
        line = described(name, fusion.paper, fusion.function)
        found.append(Entry(name, "fusions", line, "gradcam", {"fuse": name}, two_layers=True))
    plain = "`plain`: Grad-CAM as it is, for comparison."
    eigen = "`eigen_smooth`: the channels joined by their first principal component in place of their sum."
    augmented = "`aug_smooth`: the mean over mirrored, darker and brighter versions of the image."
    found.append(Entry("plain", "smoothing", plain, "gradcam"))
    found.append(Entry("eigen_smooth", "smoothing", eigen, "gradcam", {"eigen_smooth": True}))
    found.append(Entry("aug_smooth", "smoothing", augmented, "gradcam", {"aug_smooth": True}))
    order = list(HEADINGS)
    return sorted(found, key=lambda entry: order.index(entry.section))


def described(name: str, paper: str, function: Callable[..., Any], options: Mapping[str, Any] | None = None) -> str:
    """Name, paper and the first line of the docstring."""
    given = " and ".join(f"{option}={value}" for option, value in (options or {}).items())
    changed = f"; here with {given}" if given else ""
    first = (function.__doc__ or "").strip().split("\n")[0]
    return f"`{name}` ({linked(paper)}{changed}): {first}"


def linked(paper: str) -> str:
    """The paper, with a link where it has an address."""
    patterns = {r"arXiv:(\d+\.\d+)": "https://arxiv.org/abs/", r"doi:(\S+)": "https://doi.org/"}
    patterns[r"(github\.com/\S+)"] = "https://"
    for pattern, base in patterns.items():
        paper = re.sub(pattern, lambda match, base=base: f"[{match[0]}]({base}{match[1]})", paper)
    return "no paper" if paper == "none" else paper


def cells(entry: Entry, spec: str, path: Path, digits: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """One method on one model, asked for each digit."""
    import camkit

    this = explainer(spec)
    assert this.preprocessing is not None
    picture = read_image(path)
    images = torch.stack([this.preprocessing(picture)] * len(digits))
    asked = dict(entry.asked)
    labels = torch.tensor([digit["class_index"] for digit in digits])
    target = camkit.Target(asked.pop("function", "class"), labels)
    layer = [EARLIER[spec], "last"] if entry.two_layers else None
    try:
        explanation = this(images, entry.method, target, layer, dict(entry.options), **asked)
    except CamkitError:
        return [Cell(None, "refused")] * len(digits)
    shown = explanation.overlay(np.stack([upscale(np.asarray(picture), ENLARGED)] * len(digits)))
    blank = explanation.kind == "map"
    return [
        Cell(drawn, "blank" if blank and float(heat.max()) == float(heat.min()) else "")
        for drawn, heat in zip(shown, explanation.heatmaps, strict=True)
    ]


def grid(rows: Sequence[tuple[str, Sequence[Cell]]], columns: Sequence[str]) -> bytes:
    """Rows and columns of pictures under their names, as a JPEG file; cells are small so that the letters are large."""
    left, top, gap = 1.5, 0.45, 0.05
    step = CELL_INCHES + gap
    width, height = left + len(columns) * step, top + len(rows) * step
    figure = Figure(figsize=(width, height), facecolor="white")
    for column, name in enumerate(columns):
        middle = left + column * step + CELL_INCHES / 2
        figure.text(middle / width, 1 - top / 2 / height, name, ha="center", va="center", fontsize=10)
    for row, (name, own) in enumerate(rows):
        bottom = height - top - row * step - CELL_INCHES
        figure.text((left - 0.1) / width, (bottom + CELL_INCHES / 2) / height, name, ha="right", va="center")
        for column, cell in enumerate(own):
            place = (left + column * step, bottom, CELL_INCHES, CELL_INCHES)
            axes = figure.add_axes(tuple(np.divide(place, (width, height, width, height))))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if cell.picture is not None:
                axes.imshow(cell.picture, interpolation="bilinear")
            else:
                axes.set_facecolor("#f0f0f0")
            if cell.remark:
                ground = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 2}
                place = {"ha": "center", "va": "center", "transform": axes.transAxes}
                axes.text(0.5, 0.5, cell.remark, fontsize=9, color="#555555", bbox=ground, **place)
    content = io.BytesIO()
    figure.savefig(content, format="jpg", dpi=DOTS_PER_INCH, pil_kwargs={"quality": JPEG_QUALITY})
    return content.getvalue()


def wrapped(name: str) -> str:
    """A method's name in lines that fit beside the pictures."""
    return name if len(name) <= 15 else re.sub(r"[-_]", lambda match: match[0] + "\n", name, count=1)


def explain(
    shown: Sequence[Entry], specs: Sequence[str], digits: Sequence[Mapping[str, Any]]
) -> dict[str, list[tuple[str, list[Cell]]]]:
    """The rows of each section's picture."""
    rows: dict[str, list[tuple[str, list[Cell]]]] = {}
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        warnings.catch_warnings(),
        Progress(*columns, console=Console(stderr=True)) as progress,
        inner_progress.shown_in(progress),
    ):
        # a blank map is said in its cell
        warnings.simplefilter("ignore", CamkitWarning)
        bar = progress.add_task("Explaining", total=len(shown) * len(specs))
        for entry in shown:
            row: list[Cell] = []
            for spec in specs:
                progress.update(bar, description=f"{spec}: {entry.name}")
                row += cells(entry, spec, SCENE, digits)
                progress.advance(bar)
            rows.setdefault(entry.section, []).append((wrapped(entry.name), row))
    return rows


def document(shown: Sequence[Entry], specs: Sequence[str], digits: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown."""
    names = " and ".join(str(digit["label"]) for digit in digits)
    parts = [
        "# Gallery",
        f"Every method on one scene, which shows the digits {names}: for each model the first column asks for the "
        f"{digits[0]['label']}, the second for the {digits[1]['label']}, whose box the first row of each picture "
        "shows. A good map lights up on the asked digit and leaves the other dark. *refused* is a model that the "
        "method does not explain, *blank* a map without a positive value. How often each method points at the right "
        "digit, over many scenes: [Where the methods point](methods.md).",
        f"This page is written by\n\n```\n{command()}\n```",
    ]
    for section, heading in HEADINGS.items():
        own = [entry for entry in shown if entry.section == section]
        if own:
            said = {
                **KINDS,
                "fusions": "The layers are "
                + "; ".join(f"`{EARLIER[spec]}` and the usual one on {spec}" for spec in specs)
                + ".",
                "pixels": "Gradients at the image's own pixels; grey is zero.",
                "concepts": "Where each of a few concepts is, each in a colour of its own.",
                "smoothing": "Both are arguments of the explainer and fit other methods, too.",
            }[section]
            said = f"The method {said}." if section in KINDS else said
            parts += [
                f"## {heading}",
                said,
                f"![{heading}](images/gallery-{section}.jpg)",
                "\n".join(f"* {entry.line}" for entry in own),
            ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="A picture of every method.")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, help="which demo models (default all)")
    parser.add_argument("--rise-masks", type=int, default=2000, help="masks of RISE, 4000 in its paper (default 2000)")
    parser.add_argument("--sscam-samples", type=int, default=8, help="samples of SS-CAM, 35 in its paper (default 8)")
    parser.add_argument("--write", type=Path, default=Path("docs/gallery.md"), metavar="PAGE", help="Markdown file")
    arguments = parser.parse_args()
    digits = json.loads(SCENE.with_name("boxes.json").read_text(encoding="utf-8"))[SCENE.name]
    shown = entries(arguments.rise_masks, arguments.sscam_samples)
    rows = explain(shown, arguments.models, digits)
    enlarged = upscale(np.asarray(read_image(SCENE)), ENLARGED)
    asked = [Cell(draw_boxes(enlarged, [tuple(ENLARGED * edge for edge in digit["box"])])) for digit in digits] * len(
        arguments.models
    )
    columns = [f"{spec.partition(':')[2]}\n{digit['label']}" for spec in arguments.models for digit in digits]
    folder = arguments.write.parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for section, own in rows.items():
        (folder / f"gallery-{section}.jpg").write_bytes(grid([("asked", asked), *own], columns))
    arguments.write.write_text(document(shown, arguments.models, digits), encoding="utf-8")
    Console().print(f"Wrote {arguments.write} and {len(rows)} pictures to {folder}.", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
