"""Why a map would be blank: what each layer of one walk lacks for an explanation, in plain sentences."""

import math
from collections.abc import Iterable, Mapping
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
    "runs often",
    "no tensor",
    "not finite",
    "no positions",
    "one position",
    "all zero",
    "no gradient",
    "prefix only",
    "sparse",
]

# below this share of positions, a map has more holes than map
_FEW_POSITIONS = 0.5


@dataclass(frozen=True)
class Finding:
    """What to know before a map is taken at a layer; `path` is empty where it is about the model as a whole.

    `blank` says whether a map there would be blank or impossible; other findings are worth knowing only.
    """

    path: str
    problem: Problem
    sentence: str
    blank: bool


def diagnose(walk: Walk) -> list[Finding]:
    """What speaks against a map: about the whole model first and then layer by layer in the order of the walk.

    A layer has one finding at most; one without any is fit for a map. Gradients are judged only if the walk took them.
    """
    findings = _of_model(walk)
    for record in walk.layers:
        reason = _reason(record, walk) if record.path else None
        if reason:
            findings.append(reason)
    return findings


def render_doctor(walk: Walk, chosen: str | None = None) -> RenderableType:
    """The layers, what was found, and the verdict on the `chosen` layer (a path of the walk), to be printed by rich.

    Raises `CamkitError` where there is no such layer.
    """
    findings = diagnose(walk)
    of_layers = {finding.path: finding for finding in findings if finding.path}
    below: list[RenderableType] = [_reasons(of_layers.values())]
    below += [Text(finding.sentence, style="red") for finding in findings if not finding.path]
    if chosen is not None:
        below.append(_verdict(walk.layer(chosen), of_layers.get(chosen)))
    return Group(_layers(walk, of_layers, chosen), *below)


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


def _reason(record: LayerRecord, walk: Walk) -> Finding | None:
    """The first reason for a blank map or none at all; those that would come after it only follow from it."""

    def found(problem: Problem, sentence: str, *, blank: bool = True) -> Finding:
        return Finding(record.path, problem, sentence, blank)

    positions = _positions(record)
    peaks = (record.peak_activation or 0.0, record.peak_gradient or 0.0)
    if record.calls == 0:
        return found("never runs", _never_runs(record, walk))
    if record.calls > 1:
        times = "twice" if record.calls == 2 else f"{record.calls} times"
        return found("runs often", f"Runs {times}, so its activations are ambiguous; its last run is shown.")
    if record.shape is None:
        return found("no tensor", f"Gives no tensor but {record.output}.")
    if not all(map(math.isfinite, peaks)):
        return found("not finite", "Its output or its gradient is not finite.")
    if positions == 0:
        return found("no positions", "Its output has no positions.")
    if positions == 1:
        return found("one position", "Its output has one position: a flat map.")
    if record.peak_activation == 0:
        return found("all zero", "Its output is zero everywhere.")
    if record.gradient_share is None or record.gradient_share >= _FEW_POSITIONS:
        return None
    if record.peak_gradient == 0:
        return found("no gradient", "Its gradient is zero everywhere.")
    if record.gradient_share == 0:
        return found("prefix only", _only_prefix(record, walk))
    few = f"Only {_percent(record.gradient_share)} of its positions have a gradient."
    return found("sparse", few, blank=False)


def _never_runs(record: LayerRecord, walk: Walk) -> str:
    inside = [part.path for part in walk.layers if part.calls and part.path.startswith(record.path + ".")]
    if inside:
        parts = [path for path in inside if path.count(".") == record.path.count(".") + 1]
        return f"Never runs itself, only its parts do, such as '{(parts or inside)[-1]}'."
    if record.parameters:
        return "Never runs by itself; whatever holds it may read its parameters."
    return "Never runs."


def _only_prefix(record: LayerRecord, walk: Walk) -> str:
    """After the last attention a class token is all that is read; the last layer before it is what to choose."""
    fit = [other.path for other in walk.layers if other.path and other.shape == record.shape and other.gradient_share]
    which = "the first token has" if record.prefix == 1 else f"the first {record.prefix} tokens have"
    advice = f"; choose '{fit[-1]}'" if fit else ""
    return f"Only {which} a gradient, none of the image's{advice}."


def _positions(record: LayerRecord) -> int:
    return record.grid[0] * record.grid[1] if record.grid else 0


def _percent(share: float) -> str:
    return "< 1 %" if 0 < share < 0.01 else f"{math.floor(100 * share)} %"


def _layers(walk: Walk, findings: Mapping[str, Finding], chosen: str | None) -> Table:
    """One line per layer, with the name of its problem."""
    # narrow enough for the 80 columns of a pipe: only paths and shapes may need a second line
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("Layer", overflow="fold")
    table.add_column("Output", overflow="fold")
    table.add_column("Layout", no_wrap=True)
    if walk.gradients:
        table.add_column("Gradient", justify="right", no_wrap=True)
    table.add_column("A map here", no_wrap=True)
    for record in walk.layers:
        if not record.path:
            continue
        marked = record.path == chosen
        cells = [Text(("> " if marked else "") + record.path), Text(record.output), Text(_layout(record))]
        if record.gradient_share is not None:
            cells.append(Text(_percent(record.gradient_share) if record.calls else "-"))
        finding = findings.get(record.path)
        cells.append(Text(finding.problem, style=_style(finding)) if finding else Text("fit", style="green"))
        table.add_row(*cells, style="bold" if marked else "")
    return table


def _reasons(findings: Iterable[Finding]) -> Table:
    """What each problem means, by the first layer that has it, and how many more there are."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    by_problem: dict[Problem, list[Finding]] = {}
    for finding in findings:
        by_problem.setdefault(finding.problem, []).append(finding)
    for problem, alike in by_problem.items():
        more = f" (and {len(alike) - 1} more)" if len(alike) > 1 else ""
        sentence = Text(f"{alike[0].path}: {alike[0].sentence}").append(more, style="dim")
        table.add_row(Text(problem, style=_style(alike[0])), sentence)
    return table


def _verdict(record: LayerRecord, finding: Finding | None) -> Text:
    text = Text(f"\n'{record.path}' ({record.class_name}, {record.output}, {_layout(record)}): ", style="bold")
    if finding:
        text.append(finding.sentence, style=_style(finding))
    else:
        text.append("Fit for a map.", style="green")
    if record.grid and record.gradient_share:
        where = f"{_percent(record.gradient_share)} of its positions"
        text.append(f" It has a gradient on {where}, at most {record.peak_gradient:.1e}.")
    return text


def _layout(record: LayerRecord) -> str:
    if record.grid is None:
        return "-"
    prefix = f"{record.prefix}+" if record.prefix else ""
    return f"{record.layout} {prefix}{record.grid[0]}x{record.grid[1]}"


def _style(finding: Finding) -> str:
    return "red" if finding.blank else "yellow"
