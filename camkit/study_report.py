"""What a study writes at its end: table, plots, grids of pictures, and a page that has them all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from camkit import output, report
from camkit.atomic import write_bytes
from camkit.errors import CamkitError
from camkit.journal import Line
from camkit.study import Studied, Study
from camkit.study_pictures import EXTREMES, Gallery
from camkit.study_plots import intervals, scatter
from camkit.study_table import Entry, in_words, lines_of, pivot, table, write_csv, write_parquet
from camkit.visualize import comparison_grid

_CLASSES = {"true": "true class", "top": "predicted class", "last": "least likely class"}


@dataclass
class Findings:
    """A study's results, model by model; each model is judged and drawn while it is in memory.

    Attributes:
        folder: where everything is written.
        entries: the table.
        refusals: by model, then method, why it is not there.
        problems: what of the data set could not be read.
        notes: what could not be written, and why.
    """

    study: Study
    folder: Path
    entries: list[Entry] = field(default_factory=list)
    refusals: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _sections: list[report.Section] = field(default_factory=list)

    def add(self, studied: Studied, lines: Sequence[Line]) -> None:
        """Takes the lines of a model that is done; writes its plots and grids."""
        own = lines_of(self.study, studied, lines)
        self.entries += table(self.study, studied, own)
        self.refusals[studied.spec] = studied.refused
        self.problems |= dict.fromkeys(studied.problems)
        self._scatter(studied.spec, own)
        self._pictures(Gallery(self.study, studied, own), studied.spec)

    def write(self, command: str) -> Path:
        """Writes the table, the plots and the page; the page's path."""
        write_csv(self.folder / "table.csv", self.entries)
        try:
            write_parquet(self.folder / "table.parquet", self.entries)
        except CamkitError as error:
            self.notes.append(f"table.parquet is not there. {error}")
        sections: list[report.Section] = []
        for target in self.study.targets:
            for metric in self.study.metrics:
                sections.append(self._table(metric, target))
        for target in self.study.targets:
            for metric in self.study.metrics:
                title = f"{metric}, {_CLASSES[target]}"
                png = intervals(self.entries, metric, target, title)
                write_bytes(self.folder / f"{output.file_name('intervals', metric, target)}.png", png)
                sections.append(report.Plot(f"Intervals: {title}", png, f"{title}: a point for each method and model."))
        sections += [self._split(), *self._sections]
        if self.problems:
            sections.append(report.Text("What could not be read", "\n\n".join(self.problems)))
        return report.write_report(
            self.folder / "report.html",
            title=f"{', '.join(self.study.models)} on {self.study.data}",
            introduction=self._introduction(command),
            sections=sections,
        )

    def _introduction(self, command: str) -> str:
        explained = ", ".join(_CLASSES[target] for target in self.study.targets)
        said = (
            f"Explained of each picture: {explained}. Brackets and whiskers hold 95 % of what comes out when samples "
            f"are drawn again (percentile bootstrap, seed {self.study.seed}).\n\nMade by: {command}"
        )
        refused = [f"{spec} refuses {', '.join(methods)}." for spec, methods in self.refusals.items() if methods]
        fewer = [f"{name} {count}" for name, count in self.study.fewer.items() if name in self.study.methods]
        shown = f"Shown the first pictures only: {', '.join(fewer)}." if fewer else ""
        return "\n\n".join(filter(None, [said, " ".join(refused), shown]))

    def _table(self, metric: str, target: str) -> report.Table:
        models, rows = pivot(self.entries, metric, target)
        better = next((one.higher_is_better for one in self.entries if one.metric == metric), True)
        counts = sorted({one.n for _, cells in rows for one in cells if one is not None})
        judged = f"{counts[0]}" if counts[:1] == counts[-1:] else f"{counts[0]} to {counts[-1]}" if counts else "0"
        return report.Table(
            f"{metric}, {_CLASSES[target]}",
            ("method", *models),
            [(method, *map(in_words, cells)) for method, cells in rows],
            note=f"{'Higher' if better else 'Lower'} is better. Judged samples: {judged}; table.csv has each count.",
        )

    def _split(self) -> report.Section:
        chosen = [one for one in self.entries if one.prediction != "all" and one.target == self.study.targets[0]]
        keys = list(dict.fromkeys((one.model, one.method, one.metric) for one in chosen))
        at = {(one.model, one.method, one.metric, one.prediction): one for one in chosen}
        rows = [(*key, *(in_words(at.get((*key, prediction))) for prediction in ("right", "wrong"))) for key in keys]
        return report.Table(
            f"Right and wrong predictions, {_CLASSES[self.study.targets[0]]}",
            ("model", "method", "metric", "right", "wrong"),
            rows,
            note="A prediction is right where the picture is known to show its top class.",
        )

    def _scatter(self, spec: str, lines: Sequence[Line]) -> None:
        if not {"top", "last"} <= set(self.study.targets):
            return
        metric, title = self.study.metrics[0], f"{spec}: each image's predicted and least likely class"
        png = scatter(lines, metric, "top", "last", title)
        if png is not None:
            write_bytes(self.folder / f"{output.file_name('scatter', metric, spec)}.png", png)
            self._sections.append(report.Plot(title, png, f"{title}, a panel for each method."))

    def _pictures(self, gallery: Gallery, spec: str) -> None:
        columns = [f"{word} {place + 1}" for word in ("best", "worst") for place in range(EXTREMES)]
        self._sections.append(
            report.Pictures(
                f"{spec}: best and worst",
                columns,
                gallery.extremes(),
                note=f"By {gallery.judged_by}. The box is that of the class, where it is known.",
            )
        )
        shown = (
            ("right", gallery.right, False, "right predictions, predicted class explained"),
            ("wrong", gallery.wrong, False, "wrong predictions, predicted class explained"),
            ("predicted-and-true", gallery.wrong, True, "wrong predictions, predicted and true class explained"),
        )
        for name, lines, both, words in shown:
            if not lines:
                continue
            cells, rows, headings = gallery.grid(lines, both=both)
            path = self.folder / f"{output.file_name('grid', spec, name)}.png"
            comparison_grid(cells, rows=rows, columns=headings, title=f"{spec}: {words}", path=path)
            if both:
                pictures = [(row, list(images)) for row, images in zip(rows, cells, strict=True)]
                heads = [heading.replace("\n", ", ") for heading in headings]
                self._sections.append(report.Pictures(f"{spec}: {words}", heads, pictures))
