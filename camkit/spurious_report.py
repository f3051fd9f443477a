"""What an examination for spurious features leaves behind: numbers as JSON, a grid of pictures and a page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image as PilImage

from camkit.atomic import write_bytes
from camkit.explain import Explainer
from camkit.pictures import as_region
from camkit.report import Picture, Pictures, Section, Table, Text, write_report
from camkit.spurious import VERSIONS, Findings, Versions, explain
from camkit.statistics import Interval, bootstrap, words
from camkit.targets import class_label
from camkit.visualize import Image, comparison_grid, draw_boxes, enlarged

_SHOWN = 4
_TITLES = {
    "both": "object and mark",
    "object_only": "mark removed",
    "mark_only": "object removed",
    "neither": "neither",
}
_WITH_OBJECT = ("both", "object_only")
_WITH_MARK = ("both", "mark_only")

# the attributes of `Energy`, and what they are called in print
ENERGIES = {
    "object": "in object's box",
    "mark": "in mark's box",
    "elsewhere": "elsewhere",
    "object_density": "density in object's box",
    "mark_density": "density in mark's box",
}


def tests(findings: Findings) -> dict[str, Interval]:
    """The removal and counterfactual tests, and the effects, by what they ask."""
    return {
        "mark removed: class still predicted": findings.kept_without_mark,
        "object removed: class still predicted": findings.kept_without_object,
        "mark put in: class appears": findings.appears_with_mark,
        "object put in: class appears": findings.appears_with_object,
        "effect of the mark on the probability": findings.mark_effect,
        "effect of the object on the probability": findings.object_effect,
    }


def probabilities(findings: Findings) -> dict[str, tuple[Interval, Interval]]:
    """For each version the class's mean probability, and the share of scenes in which it is predicted."""
    return {
        name: (bootstrap(findings.probability[name]), bootstrap(findings.predicted[name].astype(np.float64)))
        for name in VERSIONS
    }


def energies(findings: Findings) -> dict[str, dict[str, Interval]]:
    """For each method the share of its energy in each place, and how dense it is there; see `ENERGIES`."""
    return {
        method: {name: bootstrap(getattr(energy, name)) for name in ENERGIES}
        for method, energy in findings.energy.items()
    }


def write(
    folder: Path,
    findings: Findings,
    scenes: Sequence[Versions],
    explainer: Explainer,
    model: str,
    *,
    layer: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes ``spurious.json``, ``spurious.png`` and ``report.html``; the maps of the first method are shown."""
    method = next(iter(findings.energy))
    own = {key: value for key, value in (options or {}).items() if key.rpartition(".")[0] == method}
    rows = _pictures(findings, scenes[:_SHOWN], explainer, method, layer, own)
    grid = comparison_grid(
        [[cell.image for cell in cells] for _, cells in rows],
        rows=[label for label, _ in rows],
        columns=[_TITLES[name] for name in VERSIONS],
        title=f"{model}: {findings.verdict.partition(':')[0]}",
        path=folder / "spurious.png",
    )
    lines = write_bytes(folder / "spurious.json", (json.dumps(record(findings, model), indent=1) + "\n").encode())
    page = write_report(
        folder / "report.html",
        title=f"Does {model} go by a mark?",
        introduction=f"{findings.verdict}\n\n{len(findings.names)} scenes, each in four versions that differ in "
        "nothing but the object and the mark; every number is a mean over scenes with its 95 % bootstrap interval.",
        sections=_sections(findings, rows, method),
    )
    return [lines, grid, page]


def record(findings: Findings, model: str) -> dict[str, Any]:
    """All numbers as JSON knows them: what they come to, and those of each scene."""
    return {
        "model": model,
        "verdict": findings.verdict,
        "scenes": len(findings.names),
        "tests": {name: _plain(one) for name, one in tests(findings).items()},
        "versions": {
            name: {"probability": _plain(chance), "predicted": _plain(predicted)}
            for name, (chance, predicted) in probabilities(findings).items()
        },
        "energy": {
            method: {where: _plain(one) for where, one in found.items()} for method, found in energies(findings).items()
        },
        "each": [
            {
                "name": name,
                "class": findings.classes[index],
                "probability": {version: float(findings.probability[version][index]) for version in VERSIONS},
                "predicted": {version: bool(findings.predicted[version][index]) for version in VERSIONS},
                "energy": {
                    method: {"object": _number(energy.object[index]), "mark": _number(energy.mark[index])}
                    for method, energy in findings.energy.items()
                },
            }
            for index, name in enumerate(findings.names)
        ],
    }


def _sections(findings: Findings, rows: Sequence[tuple[str, Sequence[Picture]]], method: str) -> list[Section]:
    return [
        Table(
            "Removed and put in",
            ("test", "share or change", "n"),
            [(name, words(one), one.count) for name, one in tests(findings).items()],
            note="The removal tests count scenes in which the class is predicted when both are there; the "
            "counterfactual tests scenes in which it is not when both are missing. An effect is the mean change of the "
            "class's probability, over scenes with and without the other of the two. A share of 0 or 1 has an interval "
            "without width, which does not make it certain.",
        ),
        Table(
            "What the model says of each version",
            ("version", "probability of the class", "class predicted", "n"),
            [
                (_TITLES[name], words(chance), words(predicted), chance.count)
                for name, (chance, predicted) in probabilities(findings).items()
            ],
        ),
        Table(
            "Where the maps' energy lies when both are there",
            ("method", *ENERGIES.values(), "n"),
            [
                (name, *(words(found[where]) for where in ENERGIES), found["object"].count)
                for name, found in energies(findings).items()
            ],
            note="Shares of the heatmap's energy; density is the share over the box's share of the image: 1 is what a "
            "flat map would have, and it can be compared between boxes of different sizes. A map's cells are coarser "
            "than a small mark, so that part of what points at the mark lies around it.",
        ),
        Pictures(
            f"Scenes, and {method} of the class",
            [_TITLES[name] for name in VERSIONS],
            rows,
            note="Boxes: the object's and the mark's.",
        ),
        Text(
            "How to read this",
            "A model that goes by the object keeps the class when the mark is removed, loses it when the object is, "
            "and does not see it where only the mark is put in. A model that cheats does the opposite, and its maps "
            "lie on the mark.",
        ),
    ]


def _pictures(
    findings: Findings,
    scenes: Sequence[Versions],
    explainer: Explainer,
    method: str,
    layer: str | None,
    options: Mapping[str, Any],
) -> list[tuple[str, list[Picture]]]:
    """Two rows for each scene, the picture and its map, over the four versions."""
    classes = torch.tensor([scene.class_index for scene in scenes], device=explainer.device)
    maps = {
        name: explain(explainer, [scene.version(name) for scene in scenes], classes, [method], layer, options)[method]
        for name in VERSIONS
    }
    rows = []
    for index, scene in enumerate(scenes):
        label = class_label(scene.class_index, explainer.class_names)
        chances = {name: f"{label} {findings.probability[name][index]:.0%}" for name in VERSIONS}
        pictures = {name: _view(explainer, scene.version(name)) for name in VERSIONS}
        rows.append(
            (f"scene {index + 1}", [Picture(_boxed(explainer, scene, name, pictures[name])) for name in VERSIONS])
        )
        drawn = [Picture(maps[name].draw(index, pictures[name]), chances[name]) for name in VERSIONS]
        said = " / ".join(chance.rpartition(" ")[2] for chance in chances.values())
        rows.append((f"{method} of {label}, probability {said}", drawn))
    return rows


def _view(explainer: Explainer, picture: PilImage) -> Image:
    """A picture as the model sees it, enlarged where it is small."""
    preprocessing = explainer.preprocessing
    seen = preprocessing.view(picture) if preprocessing else picture
    return enlarged(np.asarray(seen.convert("RGB")))


def _boxed(explainer: Explainer, scene: Versions, name: str, picture: Image) -> Image:
    """The version's picture with the boxes of what it shows, as far as the model sees them."""
    shown = [*(scene.boxes if name in _WITH_OBJECT else ()), *([scene.mark] if name in _WITH_MARK else [])]
    seen = []
    for box in shown:
        region = as_region(explainer, scene.picture.size, [box])
        down, across = region.nonzero().unbind(dim=1)
        if len(down):
            factor = picture.shape[0] / region.shape[0]
            corners = (across.min(), down.min(), across.max() + 1, down.max() + 1)
            left, top, right, bottom = (factor * float(corner) for corner in corners)
            seen.append((left, top, right, bottom))
    return draw_boxes(picture, seen) if seen else picture


def _plain(interval: Interval) -> dict[str, Any]:
    return {key: _number(value) for key, value in asdict(interval).items()}


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
