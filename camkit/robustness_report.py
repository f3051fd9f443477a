"""What a robustness study leaves behind: lines, a table, curves and a page."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from camkit.atomic import write_bytes
from camkit.curves import Panel, draw_curves
from camkit.report import Picture, Pictures, Plot, Section, Table, Text, write_report
from camkit.robustness import (
    MEASURES,
    Cell,
    Design,
    Row,
    Stability,
    Step,
    budget_words,
    ranking,
    summarise,
    verdict_on_detection,
    verdict_on_stability,
)
from camkit.statistics import words
from camkit.targets import class_label
from camkit.visualize import enlarged

_SHOWN = 3
_FEW = 20
# how many columns of measures with their intervals a page is wide
_COLUMNS = 4
_CHANCE = {"detection": 0.5}


class Findings:
    """A study as far as it went: its rows, some of its pictures, and what they come to.

    Attributes:
        rows: all of them, in the order in which they were found.
        pictures: sections of pictures, one for each attack.
    """

    def __init__(self, design: Design, model: str, class_names: Sequence[str] | None) -> None:
        self.design, self.model, self.class_names = design, model, class_names
        self.rows: list[Row] = []
        self.pictures: dict[str, Pictures] = {}

    def add(self, step: Step) -> None:
        """Takes in what an attack did to a batch; of the first batch, pictures at the largest budget are kept."""
        self.rows.extend(step.rows)
        name = step.result.attack
        largest = max(self.design.runs(name), key=lambda epsilon: epsilon or 0.0)
        if name not in self.pictures and step.rows[0].epsilon == largest:
            self.pictures[name] = self._shown(step)

    @property
    def images(self) -> int:
        """How many images were looked at."""
        return len({row.image for row in self.rows})

    @property
    def wrong(self) -> int:
        """How many of them the model got wrong as they were, so that they count nowhere."""
        return len({row.image for row in self.rows if row.already_wrong})

    @property
    def cells(self) -> list[Cell]:
        """See `summarise`."""
        return summarise(self.rows)

    @property
    def ranked(self) -> list[Stability]:
        """See `ranking`."""
        return ranking(self.rows)

    @property
    def measures(self) -> list[str]:
        """The measures that can be judged at all: without boxes there is no energy inside them."""
        judged = [row for row in self.rows if not row.already_wrong]
        boxes = any(np.isfinite(row.energy_before) for row in judged)
        return [name for name in MEASURES if boxes or not name.startswith("energy")]

    @property
    def remarks(self) -> list[str]:
        """What somebody who reads the numbers must know, one sentence each."""
        counted = self.images - self.wrong
        said = [f"{counted} of {self.images} images are attacked and counted: those that the model gets right."]
        if counted < _FEW:
            said.append(f"Intervals of fewer than {_FEW} images tend to be too narrow.")
        if "energy_before" not in self.measures:
            said.append("The data set has no boxes, so the energy inside them is left out.")
        moving = list(dict.fromkeys(row.attack for row in self.rows if row.moves == "explanation"))
        if moving:
            said.append(
                f"{' and '.join(moving)} moves the map of {self.design.methods[0]} and leaves the prediction; the "
                f"other methods are looked at on the same images. The ranking counts attacks on the prediction, where "
                f"there are any."
            )
        return said

    def write(self, folder: Path, *, interrupted: bool = False) -> list[Path]:
        """Writes ``drift.jsonl``, ``robustness.csv``, a PNG of curves for each measure and ``report.html``."""
        cells, ranked = self.cells, self.ranked
        lines = "".join(json.dumps(_plain(asdict(row)), ensure_ascii=False) + "\n" for row in self.rows)
        written = [
            write_bytes(folder / "drift.jsonl", lines.encode()),
            write_bytes(folder / "robustness.csv", as_csv(cells, self.measures).encode()),
        ]
        # what maps were like before is the same for every attack and budget
        drawn = [name for name in self.measures if name != "energy_before"]
        curves = {name: folder / f"curves-{name.replace('_', '-')}.png" for name in drawn}
        for name, path in curves.items():
            _draw(path, name, cells)
        page = self._page(folder / "report.html", cells, ranked, curves, interrupted)
        return [*written, *curves.values(), page]

    def _page(
        self,
        path: Path,
        cells: Sequence[Cell],
        ranked: Sequence[Stability],
        curves: Mapping[str, Path],
        interrupted: bool,
    ) -> Path:
        design = self.design
        verdicts = "\n\n".join([verdict_on_stability(ranked), verdict_on_detection(cells)])
        stability = Table(
            "Which method is the most stable",
            ("method", "IoU", "rank correlation", "SSIM", "shift of centre", "IoU ahead of the next", "n"),
            [
                (
                    one.method,
                    words(one.iou),
                    words(one.rank_correlation),
                    words(one.ssim),
                    words(one.centre_shift),
                    words(one.lead) if one.lead else None,
                    one.iou.count,
                )
                for one in ranked
            ],
            note="Each image's mean over attacks and budgets, then the mean over images with its 95 % bootstrap "
            "interval. 1 means that nothing moved (of the shift: 0). A stable map need not be a right one: a map that "
            "ignores the image would never move, so read this beside the energy inside the box, or another metric.",
        )
        first = self._table(
            "All numbers, first part",
            cells,
            self.measures[:_COLUMNS],
            "Means over the images with 95 % bootstrap intervals. A success of an attack on the prediction is a "
            "prediction that changed; maps before and after are of the class that was attacked. A share of 0 or 1 has "
            "an interval without width, which does not make it certain.",
        )
        second = self._table(
            "All numbers, second part",
            cells,
            self.measures[_COLUMNS:],
            f"Detection: the map of the predicted class is compared with its maps under {design.draws} draws of noise "
            f"of standard deviation {design.noise * 255:.3g}/255; the AUC says how well that tells attacked images "
            "from clean ones, 0.5 being a guess.",
        )
        plots = [
            Plot(
                MEASURES[name][0][0].upper() + MEASURES[name][0][1:],
                file.read_bytes(),
                f"{MEASURES[name][0]} against the budget; the numbers are in the tables below",
            )
            for name, file in curves.items()
        ]
        cut = " The study was interrupted; this is what had been done." if interrupted else ""
        sections: list[Section] = [
            Text("In short", verdicts),
            stability,
            *plots,
            *self.pictures.values(),
            first,
            second,
        ]
        return write_report(
            path,
            title=f"Robustness of the explanations of {self.model}",
            introduction=" ".join(self.remarks) + cut,
            sections=sections,
        )

    def _table(self, title: str, cells: Sequence[Cell], measures: Sequence[str], note: str) -> Table:
        return Table(title, headings(measures), [row(cell, measures) for cell in cells], note)

    def _shown(self, step: Step) -> Pictures:
        """Pictures and maps of the first images before and after, those that the attack fooled first."""
        result, methods = step.result, self.design.methods
        order = sorted(
            range(len(result.labels)), key=lambda at: (bool(result.already_wrong[at]), not result.success[at])
        )
        rows = []
        for index in order[:_SHOWN]:
            label = class_label(int(result.labels[index]), self.class_names)
            verdict = (
                "wrong already" if result.already_wrong[index] else "success" if result.success[index] else "no success"
            )
            for when, pixels, maps in (
                ("before", result.original, step.before),
                ("after", result.pixels, step.after),
            ):
                chances = result.confidence_before if when == "before" else result.confidence_after
                picture = enlarged(_picture(pixels[index]))
                caption = f"{label} {float(chances[index, int(result.labels[index])]):.0%}"
                cells = [Picture(maps[method].draw(index, picture)) for method in methods]
                said = f", {when}" if when == "before" else f", {when}: {verdict}"
                rows.append((step.rows[index].image + said, [Picture(picture, caption), *cells]))
        budget = budget_words(step.rows[0].epsilon, step.rows[0].norm)
        return Pictures(f"Maps under {result.attack}, {budget}", ["picture", *methods], rows)


def headings(measures: Sequence[str]) -> list[str]:
    """The columns of `row`."""
    return ["attack", "budget", "method", *(MEASURES[name][0] for name in measures), "n"]


def row(cell: Cell, measures: Sequence[str]) -> list[str | int]:
    """A cell as a line of a table, each value with its interval; n is that of the success rate."""
    return [
        cell.attack,
        budget_words(cell.epsilon, cell.norm),
        cell.method,
        *(words(cell.measures[name]) for name in measures),
        cell.measures["success"].count,
    ]


def as_csv(cells: Sequence[Cell], measures: Sequence[str]) -> str:
    """One line for each attack, budget and method; four columns for each measure: value, low, high and n."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    parts = ("", "_low", "_high", "_n")
    table.writerow(["attack", "norm", "epsilon", "method", *(name + part for name in measures for part in parts)])
    for cell in cells:
        numbers = [
            value
            for name in measures
            for one in [cell.measures[name]]
            for value in (*(_number(v) for v in (one.value, one.low, one.high)), one.count)
        ]
        table.writerow([cell.attack, cell.norm, _number(cell.epsilon), cell.method, *numbers])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.6g}"


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON knows it, which has no NaN."""
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in record.items()
    }


def _draw(path: Path, measure: str, cells: Sequence[Cell]) -> None:
    panels = []
    for attack in dict.fromkeys(cell.attack for cell in cells):
        own = [cell for cell in cells if cell.attack == attack]
        ticks = list(dict.fromkeys(budget_words(cell.epsilon, cell.norm) for cell in own))
        # an attack succeeds or not whatever method looks at it
        lines = ["all methods"] if measure == "success" else list(dict.fromkeys(cell.method for cell in own))
        found = {(budget_words(cell.epsilon, cell.norm), cell.method): cell.measures[measure] for cell in own}
        first = own[0].method
        panels.append(
            Panel(
                attack,
                ticks,
                {
                    line: [found.get((tick, first if measure == "success" else line)) for tick in ticks]
                    for line in lines
                },
            )
        )
    draw_curves(path, panels, across="budget", up=MEASURES[measure][0], level=_CHANCE.get(measure))


def _picture(pixels: Any) -> Any:
    """Pixels [C, H, W] in [0, 1] as a picture [H, W, 3]."""
    levels = (pixels.detach().cpu() * 255).round().byte().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.broadcast_to(levels, (*levels.shape[:2], 3)))
