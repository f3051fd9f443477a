"""Curves with their intervals, panel beside panel. It knows nothing of what the curves show."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from camkit.atomic import write_bytes
from camkit.statistics import Interval
from camkit.visualize import figure_png

_PANEL_INCHES = (3.4, 2.7)
_LONGEST_ROW = 4
_MARKERS = "osD^vPX*"
# how far curves stand beside each other, so that their intervals can be told apart, in distances of two ticks
_APART = 0.06


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: above it.
        ticks: what stands under each place, from left to right.
        curves: by name, one interval or None for each place.
    """

    title: str
    ticks: Sequence[str]
    curves: Mapping[str, Sequence[Interval | None]]


def draw_curves(
    path: str | os.PathLike[str], panels: Sequence[Panel], *, across: str, up: str, level: float | None = None
) -> Path:
    """Writes a PNG of panels with one scale and one legend; a curve of one name has one colour everywhere.

    `across` and `up` name the axes; `level` is a height at which a dashed line is drawn, such as that of chance.
    Returns the path. Raises `CamkitError` where the file cannot be written.
    """
    columns = min(len(panels), _LONGEST_ROW)
    rows = -(-len(panels) // columns)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(columns * width + 0.3, rows * height + 0.5), facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    for axis, panel in zip(axes.flat, panels, strict=False):
        for place, name in enumerate(names):
            if name in panel.curves:
                shift = _APART * (place - (len(names) - 1) / 2)
                _draw(axis, panel.curves[name], shift, name, place)
        if level is not None:
            axis.axhline(level, color="#888888", linewidth=0.9, linestyle="--", zorder=0)
        axis.set_title(panel.title, fontsize=10, parse_math=False)
        axis.set_xticks(range(len(panel.ticks)), panel.ticks)
        axis.set_xlim(-0.5, len(panel.ticks) - 0.5)
        axis.set_xlabel(across, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color="#e3e3e3", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel(up, fontsize=9)
    shown = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        [shown[name] for name in names],
        names,
        loc="outside lower center",
        ncols=min(len(names), 2 * columns),
        fontsize=9,
        frameon=False,
    )
    return write_bytes(path, figure_png(figure))


def _draw(axis: Axes, curve: Sequence[Interval | None], shift: float, name: str, place: int) -> None:
    colours = colormaps["tab10"]
    known = [(index + shift, one) for index, one in enumerate(curve) if one is not None and one.count]
    axis.errorbar(
        [across for across, _ in known],
        [one.value for _, one in known],
        # rounding may put the value a hair outside its interval
        yerr=[
            [max(0.0, one.value - one.low) for _, one in known],
            [max(0.0, one.high - one.value) for _, one in known],
        ],
        color=colours(place % 10),
        marker=_MARKERS[place % len(_MARKERS)],
        markersize=4,
        linewidth=1.3,
        elinewidth=0.9,
        capsize=2,
        label=name,
    )
