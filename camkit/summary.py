"""The summary table of a model: layers, output shapes, parameters and memory, as a view of one walk."""

from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from camkit.walk import LayerRecord, Walk

_MEBIBYTE = 1024**2


@dataclass(frozen=True)
class SummaryRow:
    """One layer of the table; `running_total` counts the parameters up to here, each shared one once."""

    path: str
    class_name: str
    depth: int
    output: str
    calls: int
    parameters: int
    running_total: int


@dataclass(frozen=True)
class SummaryTotals:
    """The lines below the table: parameters by number, sizes in MB of 1024 x 1024 bytes.

    `passes_mb` is what the outputs of the innermost layers take, twice: for the forward and for the backward pass.
    """

    parameters: int
    trainable: int
    non_trainable: int
    input_mb: float
    passes_mb: float
    parameters_mb: float
    total_mb: float


def summary_rows(walk: Walk) -> list[SummaryRow]:
    """One row for each layer, in the order of the walk."""
    rows = []
    total = 0
    for record in walk.layers:
        total += record.parameters
        rows.append(
            SummaryRow(
                path=record.path,
                class_name=record.class_name,
                depth=record.depth,
                output=record.output,
                calls=record.calls,
                parameters=record.parameters,
                running_total=total,
            )
        )
    return rows


def summary_totals(walk: Walk) -> SummaryTotals:
    """The totals over all layers, for the batch of the walk."""
    parameters = sum(record.parameters for record in walk.layers)
    trainable = sum(record.trainable for record in walk.layers)
    outputs = sum(record.output_bytes for record in walk.layers if record.is_leaf)
    sizes = (walk.input_bytes, 2 * outputs, sum(record.parameter_bytes for record in walk.layers))
    input_mb, passes_mb, parameters_mb = (size / _MEBIBYTE for size in sizes)
    return SummaryTotals(
        parameters=parameters,
        trainable=trainable,
        non_trainable=parameters - trainable,
        input_mb=input_mb,
        passes_mb=passes_mb,
        parameters_mb=parameters_mb,
        total_mb=input_mb + passes_mb + parameters_mb,
    )


def render_summary(walk: Walk) -> Group:
    """The table and its totals, to be printed by rich."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Layer (type: depth)", overflow="fold")
    table.add_column("Output shape", overflow="fold")
    table.add_column("Parameters", justify="right", no_wrap=True)
    table.add_column("Running total", justify="right", no_wrap=True)
    for record, row in zip(walk.layers, summary_rows(walk), strict=True):
        own = f"{row.parameters:,}" if row.parameters else "-"
        table.add_row(_layer(record), Text(row.output), own, f"{row.running_total:,}")
    return Group(table, _totals(summary_totals(walk), walk.input_shape))


def _layer(record: LayerRecord) -> Text:
    """The last part of the path, indented by depth, so that the table reads as a tree."""
    name = record.path.rpartition(".")[2] or "(model)"
    text = Text("  " * record.depth + name).append(f" ({record.class_name}: {record.depth})", style="dim")
    if record.calls == 0:
        text.append(" never runs", style="dim italic")
    elif record.calls > 1:
        text.append(f" x{record.calls}", style="dim")
    return text


def _totals(totals: SummaryTotals, input_shape: tuple[int, ...]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    lines = (
        ("Total parameters", f"{totals.parameters:,}"),
        ("Trainable parameters", f"{totals.trainable:,}"),
        ("Non-trainable parameters", f"{totals.non_trainable:,}"),
        ("", ""),
        (f"Input size (MB), {' x '.join(map(str, input_shape))}", f"{totals.input_mb:,.2f}"),
        ("Forward/backward pass size (MB)", f"{totals.passes_mb:,.2f}"),
        ("Parameters size (MB)", f"{totals.parameters_mb:,.2f}"),
        ("Estimated total size (MB)", f"{totals.total_mb:,.2f}"),
    )
    for name, figure in lines:
        table.add_row(name, figure)
    return table
