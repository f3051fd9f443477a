"""What ``camkit explain`` does with a batch of images, in this process or in another."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camkit.cli.options import ModelOptions
from camkit.engines import Light
from camkit.errors import CamkitError, MapWarning, unknown
from camkit.explain import Explainer
from camkit.explanation import Explanation
from camkit.injection import own_options
from camkit.models import LoadedModel
from camkit.output import distinct, file_name
from camkit.registry import registry
from camkit.targets import Target, parse_targets
from camkit.visualize import comparison_grid, enlarged, save_png

VARIANTS = {"relu": "ReLU", "signed": "no ReLU", "counterfactual": "counterfactual"}


@dataclass(frozen=True)
class Cell:
    """One explanation of a batch under one variant; `target` is what was asked for, by its place in the command."""

    variant: str
    target: tuple[int, Target]
    explanation: Explanation

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
    targets: Sequence[Target]
    options: dict[str, Any]
    smoothing: Smoothing

    @classmethod
    def checked(
        cls,
        explainer: Explainer,
        methods: Sequence[str],
        variants: Sequence[str],
        targets: Sequence[str],
        options: dict[str, Any],
        smoothing: Smoothing,
    ) -> "Question":
        """Refuses unknown methods, options and classes before anything is computed or written."""
        for one in variants:
            if one not in VARIANTS:
                raise unknown("variant", one, VARIANTS)
        if not methods or not variants:
            raise CamkitError("At least one method and one variant are needed.")
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

    def cells(self, explainer: Explainer, images: Tensor) -> Iterator[Cell]:
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
        self, explainer: Explainer, images: Tensor, asked: Sequence[Target], *, relu: bool
    ) -> Sequence[Explanation]:
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

    def overlay(self, explanation: Explanation) -> Any:
        """The explanation drawn on the picture, uint8 [H, W, 3]."""
        colormap = self.colormap if explanation.relu else None
        return explanation.draw(self.index, self.picture, colormap=colormap, alpha=self.alpha)

    def save(self, cells: Sequence[Cell], folder: Path, stem: str, *, title: str) -> list[str]:
        """Writes the overlays and the grid; the names of the overlays' files."""
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


@dataclass(frozen=True)
class Batch:
    """Image files that are explained together, and the stems of what is drawn of each."""

    paths: Sequence[Path]
    stems: Sequence[str]


@dataclass
class Model(Light):
    """A model as the command line describes it.

    Attributes:
        options: which one, and how it is built.
        layers: target layers; none leaves that to the adapter.
        seed: of random weights.
    """

    options: ModelOptions
    layers: Sequence[str]
    seed: int

    @cached_property
    def loaded(self) -> tuple[Explainer, LoadedModel]:
        """The model, and what reads images for it."""
        torch.manual_seed(self.seed)
        return self.options.explainer(list(self.layers) or None)


@dataclass(frozen=True)
class Explaining:
    """Explains batches and draws them.

    Attributes:
        folder: where pictures go; workers elsewhere must see it too.
        seed: of what is drawn at random for each batch.
    """

    model: Model
    question: Question
    folder: Path
    seed: int
    colormap: str | None
    alpha: float

    def __call__(self, batch: Batch) -> tuple[Batch, list[dict[str, Any]]]:
        """Writes the pictures of a batch; the lines of its images."""
        explainer, loaded = self.model.loaded
        tensors, views = loaded.read(batch.paths)
        torch.manual_seed(self.seed)
        cells = list(self.question.cells(explainer, tensors))
        lines: list[dict[str, Any]] = []
        for index, (path, stem) in enumerate(zip(batch.paths, batch.stems, strict=True)):
            drawing = Drawing(enlarged(np.asarray(views[index])), index, self.colormap, self.alpha)
            made = drawing.save(cells, self.folder, stem, title=path.name)
            for cell, name in zip(cells, made, strict=True):
                record = cell.explanation.record(index)
                lines.append({"image": str(path), "picture": name, "variant": cell.variant, **record})
        return batch, lines
