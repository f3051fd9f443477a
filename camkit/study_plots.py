"""Plots of a study: values with their intervals, and one class against another, image by image."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from camkit.journal import Line
from camkit.study_table import Entry, pivot
from camkit.visualize import figure_png

_INK, _SOFT, _LINE = "#222222", "#666666", "#dddddd"
_MARKERS = "osD^vP"


def intervals(entries: Sequence[Entry], metric: str, target: str, title: str) -> bytes:
    """A PNG of one metric of one explained class: a point and its interval for each method, a colour for each model."""
    models, rows = pivot(entries, metric, target)
    rows = sorted(rows, key=lambda row: _middle(row[1]))
    figure = Figure(figsize=(7.5, 1.1 + 0.28 * len(rows)), facecolor="white", layout="constrained")
    axes = figure.subplots()
    colours = [colormaps["tab10"](place) for place in range(10)]
    for place, model in enumerate(models):
        offset = (place - (len(models) - 1) / 2) * 0.2
        shown = [(row, cells[place]) for row, (_, cells) in enumerate(rows)]
        points = [(row - offset, one) for row, one in shown if one is not None and one.n]
        if not points:
            continue
        values = np.array([one.value for _, one in points])
        # a statistic may lie outside the middle of what comes out when it is resampled
        below = np.clip(values - [one.low for _, one in points], 0, None)
        above = np.clip([one.high for _, one in points] - values, 0, None)
        axes.errorbar(
            values,
            [height for height, _ in points],
            xerr=np.stack([below, above]),
            fmt=_MARKERS[place % len(_MARKERS)],
            color=colours[place % len(colours)],
            markersize=4,
            elinewidth=1.2,
            label=model,
        )
    axes.set_yticks(range(len(rows)), [method for method, _ in rows], parse_math=False)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(metric, color=_SOFT, parse_math=False)
    axes.set_title(title, loc="left", fontsize=11, color=_INK, parse_math=False)
    axes.grid(axis="x", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if len(models) > 1:
        figure.legend(loc="outside lower left", ncols=min(len(models), 4), frameon=False, fontsize=9)
    return figure_png(figure)


def scatter(lines: Sequence[Line], metric: str, across: str, up: str, title: str) -> bytes | None:
    """A PNG with a panel for each method, in which each image is a point: the metric of one class against another's.

    The dashed lines are the means. Images that have no value for both, such as those of a blank map, are counted above
    the panel. None where the metric gives no single numbers, or no image has one for both classes.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    missing: Counter[str] = Counter()
    for line in lines:
        own = points.setdefault(line["method"], [])
        pair = [line["targets"][which]["values"][metric] for which in (across, up)]
        if all(isinstance(value, (int, float)) for value in pair):
            own.append((pair[0], pair[1]))
        else:
            missing[line["method"]] += 1
    points = {method: pairs for method, pairs in points.items() if pairs}
    if not points:
        return None
    every = np.array([pair for one in points.values() for pair in one])
    low, high = min(0.0, float(every.min())), max(1.0, float(every.max()))
    edge = 0.03 * (high - low)
    columns = min(6, len(points))
    count = math.ceil(len(points) / columns)
    figure = Figure(
        figsize=(max(5.5, 1.75 * columns + 0.4), 2.0 * count + 0.7), facecolor="white", layout="constrained"
    )
    panels = figure.subplots(count, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (method, pairs) in zip(panels, points.items(), strict=False):
        x, y = np.array(pairs).T
        axes.plot([low, high], [low, high], color=_LINE, linewidth=0.8, zorder=0)
        axes.scatter(x, y, s=7, alpha=0.35, color="#1f5fae", linewidths=0)
        axes.axvline(x.mean(), color="#c0392b", linewidth=0.9, linestyle="--")
        axes.axhline(y.mean(), color="#c0392b", linewidth=0.9, linestyle="--")
        axes.set_title(_heading(method, missing[method]), fontsize=8, color=_INK, parse_math=False)
        axes.set(xlim=(low - edge, high + edge), ylim=(low - edge, high + edge), aspect="equal")
        axes.tick_params(labelsize=7, colors=_SOFT)
    for axes in panels[len(points) :]:
        axes.set_visible(False)
    figure.supxlabel(f"{metric} of the {_CLASSES[across]} class", fontsize=9, color=_SOFT, parse_math=False)
    figure.supylabel(f"{metric} of the {_CLASSES[up]} class", fontsize=9, color=_SOFT, parse_math=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=_INK, parse_math=False)
    return figure_png(figure)


_CLASSES = {"true": "true", "top": "predicted", "last": "least likely"}


def _heading(method: str, missing: int) -> str:
    return f"{method}\n{missing} without a value" if missing else method


def _middle(cells: Sequence[Entry | None]) -> float:
    values = [one.value for one in cells if one is not None and one.n]
    return float(np.mean(values)) if values else -math.inf
