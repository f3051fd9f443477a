"""Pictures of a study: where each method is best and worst, right and wrong predictions, predicted and true classes."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from camkit import visualize
from camkit.errors import CamkitWarning
from camkit.evaluate import Sample
from camkit.journal import Line
from camkit.metrics import as_metric
from camkit.pictures import as_images, as_region
from camkit.report import Picture
from camkit.study import Studied, Study, boxes_of, options_of
from camkit.targets import class_label

Grid = tuple[list[list[visualize.Image]], list[str], list[str]]

EXTREMES = 2
SHOWN = 6


@dataclass
class Gallery:
    """One model's pictures: chosen first, drawn together.

    Attributes:
        lines: those of the model.
        drawn: the overlay of each method, image and class, uint8 [H, W, 3].
        samples: the data set's sample of each image that is drawn.
    """

    study: Study
    studied: Studied
    lines: Sequence[Line]
    drawn: dict[tuple[str, str, int], visualize.Image] = field(default_factory=dict)
    samples: dict[str, Sample] = field(default_factory=dict)

    def __post_init__(self) -> None:
        target, metric = self.study.targets[0], self.study.metrics[0]
        self.judged_by = f"{metric} of the {'true' if target == 'true' else target} class"
        self.best: dict[str, list[Line]] = {}
        self.worst: dict[str, list[Line]] = {}
        higher = as_metric(metric).higher_is_better
        for method in self.studied.methods:
            valued = [(self._value(line), line) for line in self.lines if line["method"] == method]
            judged = [(value, line) for value, line in valued if value is not None]
            # names settle what is equal, so that two runs show the same
            judged.sort(key=lambda pair: (-pair[0] if higher else pair[0], pair[1]["image"]))
            ranked = [line for _, line in judged]
            self.best[method] = ranked[:EXTREMES]
            self.worst[method] = ranked[EXTREMES:][-EXTREMES:][::-1]
        unique = list({line["image"]: line for line in self.lines}.values())
        self.right = [line for line in unique if line["right"]][:SHOWN]
        self.wrong = [line for line in unique if line["right"] is False][:SHOWN]
        self._draw()

    def extremes(self) -> list[tuple[str, list[Picture | None]]]:
        """For each method the overlays of its best and worst images, each with its value."""
        rows = []
        for method in self.studied.methods:
            cells: list[Picture | None] = []
            for chosen in (self.best[method], self.worst[method]):
                cells += [self._picture(line, self._explained(line)) for line in chosen]
                cells += [None] * (EXTREMES - len(chosen))
            rows.append((method, cells))
        return rows

    def grid(
        self, lines: Sequence[Line], *, both: bool = False
    ) -> tuple[list[list[visualize.Image]], list[str], list[str]]:
        """Cells, rows and columns for `visualize.comparison_grid`: images as columns, methods as rows.

        With `both` each image has two columns: what speaks for the predicted class, and for the true one.
        """
        questions = [(line, index) for line in lines for index in self._classes(line, both=both)]
        cells = [[self._boxed(line["image"], index, self._view(line["image"])) for line, index in questions]]
        for method in self.studied.methods:
            cells.append([self.drawn[method, line["image"], index] for line, index in questions])
        columns = [self._heading(line, index, both) for line, index in questions]
        return cells, ["image", *self.studied.methods], columns

    def _classes(self, line: Line, *, both: bool) -> list[int]:
        return [line["predicted"], line["label"]] if both else [line["predicted"]]

    def _heading(self, line: Line, index: int, both: bool) -> str:
        if both:
            return f"{line['image']}\n{'predicted' if index == line['predicted'] else 'true'}: {self.name(index)}"
        truth = "" if line["right"] else f", is {self.name(line['label'])}"
        return f"{line['image']}\nsaid {self.name(index)}{truth}"

    def name(self, index: int) -> str:
        """A class in words."""
        return class_label(index, self.studied.explainer.class_names) if index >= 0 else "no label"

    def _explained(self, line: Line) -> int:
        return int(line["targets"][self.study.targets[0]]["class"])

    def _value(self, line: Line) -> float | None:
        value = line["targets"][self.study.targets[0]]["values"][self.study.metrics[0]]
        if isinstance(value, list):
            flat = np.array(value, dtype=np.float64)
            return float(np.nanmean(flat)) if np.isfinite(flat).any() else None
        return None if value is None else float(value)

    def _picture(self, line: Line, index: int) -> Picture:
        caption = f"{line['image']}, {self.name(index)}: {self._value(line):.3f}"
        return Picture(self.drawn[line["method"], line["image"], index], caption)

    def _draw(self) -> None:
        wanted: dict[str, dict[tuple[str, int], None]] = {}
        for method in self.studied.methods:
            asked = {(line["image"], self._explained(line)): None for line in (*self.best[method], *self.worst[method])}
            for line in (*self.right, *self.wrong):
                asked |= {(line["image"], index): None for index in self._classes(line, both=line["right"] is False)}
            wanted[method] = asked
        images = {image for asked in wanted.values() for image, _ in asked}
        for place in sorted({line["place"] for line in self.lines if line["image"] in images}):
            for _, sample in self.studied.pictures.read(place, place + 1).samples:
                self.samples.setdefault(sample.name, sample)
        for method, asked in wanted.items():
            self._explain(method, list(asked))

    def _explain(self, method: str, asked: Sequence[tuple[str, int]]) -> None:
        explainer, size = self.studied.explainer, self.study.batch_size
        options = options_of(self.study, [method])
        for start in range(0, len(asked), size):
            part = asked[start : start + size]
            tensors = as_images(explainer, [self.samples[name].picture for name, _ in part])
            classes = torch.tensor([index for _, index in part], device=tensors.device)
            with warnings.catch_warnings():
                # a blank map is seen
                warnings.simplefilter("ignore", CamkitWarning)
                explanation = explainer(tensors, method, classes, self.study.layer, options)
            for place, (name, index) in enumerate(part):
                self.drawn[method, name, index] = self._boxed(name, index, explanation.draw(place, self._view(name)))

    def _view(self, name: str) -> visualize.Image:
        """An image as the model sees it, enlarged."""
        preprocessing = self.studied.explainer.preprocessing
        assert preprocessing is not None  # noqa: S101  # an Evaluation was made with it
        return visualize.enlarged(np.asarray(preprocessing.view(self.samples[name].picture)))

    def _boxed(self, name: str, index: int, picture: visualize.Image) -> visualize.Image:
        """The picture with the class's boxes as the model's view has them."""
        sample = self.samples[name]
        boxes = [self._in_view(sample, box, len(picture)) for box in boxes_of(sample, index)]
        return visualize.draw_boxes(picture, [box for box in boxes if box is not None])

    def _in_view(self, sample: Sample, box: visualize.Box, height: int) -> visualize.Box | None:
        region = as_region(self.studied.explainer, sample.picture.size, [box]).numpy()
        if not region.any():
            return None
        factor = height // len(region)
        rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
        return tuple(int(factor * edge) for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))  # type: ignore[return-value]
