"""Why a map would be blank: what each layer of one walk lacks for an explanation, in plain sentences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from camkit.walk import LayerRecord, Walk

Problem = Literal[
    "training mode",
    "never runs",
    "runs more than once",
    "no tensor",
    "not finite",
    "no positions",
    "one position",
    "all zero",
    "no gradient",
    "no gradient on positions",
    "gradient on few positions",
]


@dataclass(frozen=True)
class Finding:
    """One thing to know before a map is taken at a layer; `path` is empty where it is about the model as a whole.

    `blank` says whether a map there would be blank or impossible; other findings are worth knowing only.
    """

    path: str
    problem: Problem
    sentence: str
    blank: bool


def diagnose(walk: Walk) -> list[Finding]:
    """What speaks against a map, about the whole model first and then layer by layer in the order of the walk.

    A layer without a finding is fit for a map. Gradients are judged only if the walk took them.
    """
    findings = _of_model(walk)
    for record in walk.layers:
        if record.path:
            findings += _of_layer(record, walk)
    return findings


def render_doctor(walk: Walk, chosen: str | None = None) -> RenderableType:
    """The layers, what was found, and the verdict on the `chosen` layer (a path of the walk), to be printed by rich.

    Raises `CamkitError` where there is no such layer.
    """
    findings = diagnose(walk)
    by_path: dict[str, list[Finding]] = {}
    for finding in findings:
        by_path.setdefault(finding.path, []).append(finding)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Layer", overflow="fold", ratio=4)
    table.add_column("Output", overflow="fold", ratio=3)
    table.add_column("Layout", no_wrap=True)
    if walk.gradients:
        table.add_column("Gradient", justify="right", no_wrap=True)
        table.add_column("Largest", justify="right", no_wrap=True)
    table.add_column("A map here", overflow="fold", ratio=5)
    for record in walk.layers:
        if record.path:
            marked = record.path == chosen
            table.add_row(*_cells(record, by_path.get(record.path, []), marked), style="bold" if marked else "")
    below: list[RenderableType] = [Text("! " + finding.sentence, style="yellow") for finding in by_path.get("", [])]
    if chosen is not None:
        below.append(_verdict(walk.layer(chosen), by_path.get(chosen, [])))
    return Group(table, *below)


def _of_model(walk: Walk) -> list[Finding]:
    findings = []
    if walk.training:
        sentence = "The model is in training mode, in which it is not explained; call model.eval() first."
        findings.append(Finding("", "training mode", sentence, blank=True))
    spatial = [record for record in walk.layers if record.path and _positions(record) > 1]
    if not spatial:
        sentence = "No layer gives an output with positions, so this model has no place for a map."
        findings.append(Finding("", "no positions", sentence, blank=True))
    elif walk.gradients and not any(record.peak_gradient for record in spatial):
        # the first layer with a gradient is where it was lost, seen from the score
        last = next((record for record in walk.layers if record.path and record.is_leaf and record.peak_gradient), None)
        where = f"it ends at '{last.path}' ({last.class_name})" if last else "it does not even reach the last layer"
        sentence = (
            f"The gradient of the class score is zero at every layer with positions: {where}; "
            "weights that are all zero, as in an untrained head, or a detach() or no_grad() in the model do this."
        )
        findings.append(Finding("", "no gradient", sentence, blank=True))
    return findings


def _of_layer(record: LayerRecord, walk: Walk) -> list[Finding]:
    """The first reason for a blank map, since those that come after it only follow from it, and what is worth knowing."""

    def found(problem: Problem, sentence: str, *, blank: bool = True) -> Finding:
        return Finding(record.path, problem, sentence, blank)

    if record.calls == 0:
        return [found("never runs", _never_runs(record, walk))]
    findings = []
    if record.calls > 1:
        times = "twice" if record.calls == 2 else f"{record.calls} times"
        findings.append(found("runs more than once", f"Runs {times}; what is shown is its last run.", blank=False))
    positions = _positions(record)
    if record.shape is None:
        findings.append(found("no tensor", f"Gives no tensor but {record.output}."))
    elif record.peak_activation is not None and not math.isfinite(record.peak_activation):
        findings.append(found("not finite", "Its output has values that are not finite, so the map would have them too."))
    elif positions == 0:
        findings.append(found("no positions", f"Its output {record.output} has no positions to lay a map on."))
    elif positions == 1:
        findings.append(found("one position", "Its output has one position only, so the map would be flat."))
    elif record.peak_activation == 0:
        findings.append(found("all zero", "Its output is zero everywhere, and so would the map be."))
    elif walk.gradients:
        findings += _of_gradient(record, found)
    return findings


def _of_gradient(record: LayerRecord, found) -> Sequence[Finding]:  # type: ignore[no-untyped-def]
    return []
