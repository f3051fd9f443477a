"""What a study found, as a table: one row for each model, method, metric, explained class and kind of prediction."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

from camkit.atomic import write_bytes
from camkit.errors import CamkitError
from camkit.evaluate import Row
from camkit.journal import Line
from camkit.study import Studied, Study, evaluation

Prediction = Literal["all", "right", "wrong"]
PREDICTIONS: tuple[Prediction, ...] = ("all", "right", "wrong")


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        target: which class was explained: ``true``, ``top`` or ``last``.
        prediction: over which pictures: ``all``, or those whose top class they are known to show, or not to show.
        value, low, high: the metric and its 95 % bootstrap interval; NaN where nothing could be judged.
        n: how many samples could be judged.
    """

    model: str
    method: str
    metric: str
    target: str
    prediction: str
    value: float
    low: float
    high: float
    n: int
    unit: str
    higher_is_better: bool


def lines_of(study: Study, studied: Studied, lines: Iterable[Line]) -> list[Line]:
    """The lines of one model that belong to the study, which may have been larger, in the order of its pictures."""
    methods = {name: place for place, name in enumerate(studied.methods)}
    own = [line for line in lines if line["model"] == studied.spec and line["method"] in methods]
    # workers may have been done in any order
    return sorted(own, key=lambda line: (line["place"], methods[line["method"]]))


def table(study: Study, studied: Studied, lines: Sequence[Line]) -> list[Entry]:
    """The rows of one model. What is predicted, or least likely, of a picture counts once, however much it shows."""
    measure = evaluation(study, studied.explainer, studied.methods)
    entries = []
    for target in study.targets:
        rows = _rows(lines, target, studied.methods)
        for prediction in PREDICTIONS:
            wanted = {"all": (True, False, None), "right": (True,), "wrong": (False,)}[prediction]
            chosen = [row for right, row in rows if right in wanted]
            if not chosen:
                continue
            for found in measure.reduce(chosen):
                entries.append(
                    Entry(
                        studied.spec,
                        found.method,
                        found.metric,
                        target,
                        prediction,
                        found.value,
                        found.low,
                        found.high,
                        found.count,
                        found.unit,
                        found.higher_is_better,
                    )
                )
    return entries


def pivot(
    entries: Sequence[Entry], metric: str, target: str, prediction: Prediction = "all"
) -> tuple[list[str], list[tuple[str, list[Entry | None]]]]:
    """Models as columns and methods as rows, of one metric, one explained class and one kind of prediction."""
    chosen = [one for one in entries if (one.metric, one.target, one.prediction) == (metric, target, prediction)]
    models = list(dict.fromkeys(one.model for one in chosen))
    methods = list(dict.fromkeys(one.method for one in chosen))
    at = {(one.method, one.model): one for one in chosen}
    return models, [(method, [at.get((method, model)) for model in models]) for method in methods]


def in_words(entry: Entry | None) -> str:
    """A value with its interval; a dash where there is none."""
    if entry is None or entry.n == 0:
        return "\N{EN DASH}"
    return f"{entry.value:.3f} [{entry.low:.3f}, {entry.high:.3f}]"


def write_csv(path: Path, entries: Sequence[Entry]) -> Path:
    """Writes the table as CSV; a value that there is none of is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [one.name for one in fields(Entry)], lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        writer.writerow({key: "" if value != value else value for key, value in asdict(entry).items()})
    return write_bytes(path, text.getvalue().encode())


def write_parquet(path: Path, entries: Sequence[Entry]) -> Path:
    """Writes the table as Parquet.

    Raises:
        CamkitError: pyarrow is not installed, or the file cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise CamkitError("Parquet needs pyarrow, which is not installed: pip install 'camkit[parquet]'.") from None
    columns = {one.name: [getattr(entry, one.name) for entry in entries] for one in fields(Entry)}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    return write_bytes(path, buffer.getvalue())


def _rows(lines: Sequence[Line], target: str, methods: Sequence[str]) -> list[tuple[bool | None, Row]]:
    """For each sample whether its picture's prediction is right, and the values of all methods, in their order."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    rights: dict[tuple[str, int], bool | None] = {}
    first: dict[str, int] = {}
    # sorted, so that an interrupted study is resampled as one that was not
    for line in sorted(lines, key=lambda line: (line["image"], line["label"])):
        # what is predicted does not depend on which of a picture's classes was asked for
        if target != "true" and first.setdefault(line["image"], line["label"]) != line["label"]:
            continue
        key = line["image"], line["label"]
        found.setdefault(key, {})[line["method"]] = line["targets"][target]["values"]
        rights[key] = line["right"]
    # a method that was shown fewer pictures has no values for the others
    shapes: Mapping[str, Any] = next((values for row in found.values() for values in row.values()), {})
    blank = {metric: _blank(value) for metric, value in shapes.items()}
    return [
        (rights[key], cast(Row, {"name": key[0], "values": {name: row.get(name, blank) for name in methods}}))
        for key, row in found.items()
    ]


def _blank(value: Any) -> Any:
    return [_blank(one) for one in value] if isinstance(value, list) else None
