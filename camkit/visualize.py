"""Heatmaps as pictures: overlays, boxes, labelled grids and PNG files. Arrays in, arrays out; no torch."""

import base64
import io
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from camkit.atomic import write_bytes
from camkit.errors import CamkitError, unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image = NDArray[np.uint8]
Box = tuple[float, float, float, float]

SEQUENTIAL = "turbo"
DIVERGING = "bwr"
QUALITATIVE = "tab10"
SHORTEST_SIDE = 224


def overlay(
    image: Image,
    heatmap: NDArray[np.floating[Any]],
    *,
    signed: bool = False,
    colormap: str | None = None,
    alpha: float = 0.6,
) -> Image:
    """A heatmap drawn over its image, [H, W, 3] uint8.

    `image` is RGB [H, W, 3] uint8; `heatmap` is [H, W] in [0, 1], or in [-1, 1] when `signed`, and NaN counts as 0.
    `colormap` is any name that matplotlib knows; left out, it is `SEQUENTIAL`, or `DIVERGING` when signed.
    Both the colour and its opacity follow the heatmap: where it is 0 the image is untouched, where it is largest
    the colour covers it by `alpha`, in [0, 1]. Raises `CamkitError` for other shapes, ranges and names.
    """
    _check_image(image)
    values = np.nan_to_num(np.asarray(heatmap, dtype=np.float32), nan=0.0)
    if values.shape != image.shape[:2]:
        raise CamkitError(f"A heatmap {_size(values)} cannot be drawn on an image {_size(image)}; resize it first.")
    _check_opacity(alpha)
    lowest = -1 if signed else 0
    # interpolation in half precision oversteps the range by its rounding, which is no mistake of the caller
    if values.min() < lowest - 1e-2 or values.max() > 1 + 1e-2:
        found = f"[{values.min():.3g}, {values.max():.3g}]"
        raise CamkitError(f"A heatmap to draw lies in [{lowest}, 1], this one in {found}; scale the map first.")
    values = np.clip(values, lowest, 1)
    table = _colour_table(colormap or (DIVERGING if signed else SEQUENTIAL))
    position = (values + 1) / 2 if signed else values
    colours = table[np.rint(position * 255).astype(np.intp)]
    opacity = alpha * np.abs(values)[..., None]
    base = image.astype(np.float32)
    return np.rint(base + opacity * (colours - base)).astype(np.uint8)


def signed_pixels(values: NDArray[np.floating[Any]], *, percentile: float = 99.5) -> Image:
    """A signed value for each pixel and channel [C, H, W] as a picture [H, W, 3] uint8, in which zero is mid-grey.

    Values are scaled so that the `percentile` of their magnitudes is full white or black: a few pixels are often far
    stronger than all the others. Three channels are red, green and blue; another number is drawn as their mean. NaN
    counts as 0. Raises `CamkitError` for another shape.
    """
    if values.ndim != 3:
        raise CamkitError(f"Pixels to draw are [channels, height, width], these are {list(values.shape)}.")
    channels = values if len(values) == 3 else np.repeat(values.mean(axis=0, keepdims=True), 3, axis=0)
    # in double precision, where the magnitude of a tiny gradient is no subnormal number
    signed = np.nan_to_num(np.moveaxis(channels, 0, 2).astype(np.float64), nan=0.0)
    magnitudes = np.abs(signed)
    # where nearly all pixels are zero, the percentile is too
    strongest = np.percentile(magnitudes, percentile) or magnitudes.max() or 1.0
    return np.asarray(np.rint(127.5 + 127.5 * np.clip(signed / strongest, -1, 1)), dtype=np.uint8)


def concepts(
    image: Image, strengths: NDArray[np.floating[Any]], *, colormap: str | None = None, alpha: float = 0.6
) -> Image:
    """Where several concepts are, drawn over the image in grey: [H, W, 3] uint8.

    `image` is RGB [H, W, 3] uint8; `strengths` are [k, H, W], of which the negative count as 0. Each pixel gets the
    colour of its strongest concept, as opaque as that concept is strong there compared with the strongest of all, up to
    `alpha`. `colormap` is any name that matplotlib knows; left out, it is `QUALITATIVE`. Raises `CamkitError` for other
    shapes, ranges and names.
    """
    _check_image(image)
    _check_opacity(alpha)
    if strengths.ndim != 3 or strengths.shape[1:] != image.shape[:2]:
        found = list(strengths.shape)
        raise CamkitError(f"Concepts {found} cannot be drawn on an image {_size(image)}; resize them first.")
    values = np.nan_to_num(strengths.astype(np.float64), nan=0.0).clip(min=0)
    colours = _colours(colormap or QUALITATIVE, len(values))[values.argmax(axis=0)]
    opacity = alpha * (values.max(axis=0) / (values.max() or 1.0))[..., None]
    # on the colours of the image nobody could tell one concept's from another's
    base = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.float32)[..., None]
    return np.asarray(np.rint(base + opacity * (colours - base)), dtype=np.uint8)


def check_colormap(name: str | None) -> None:
    """Refuses a colormap that matplotlib does not know, before anything is computed for it."""
    if name is not None:
        _colour_table(name)


def draw_boxes(image: Image, boxes: Sequence[Box], names: Sequence[str] = (), *, highlight: str | None = None) -> Image:
    """A copy of the image with boxes (left, top, right, bottom), in pixels, each under its name.

    Boxes whose name is `highlight` are drawn strong, the others faint; without `highlight` all are strong.
    """
    _check_image(image)
    if names and len(names) != len(boxes):
        raise CamkitError(f"Each box has one name: {len(boxes)} boxes came with {len(names)} names.")
    drawn = image.copy()
    unit = max(1, round(min(image.shape[:2]) / 250))
    labelled = list(zip(boxes, names or [""] * len(boxes), strict=True))
    # what is highlighted is drawn last, on top
    for box, name in sorted(labelled, key=lambda item: item[1] == highlight):
        strong = highlight is None or name == highlight
        left, top, right, bottom = (round(float(edge)) for edge in box)
        # a dark line under a light one is seen on any ground
        cv2.rectangle(drawn, (left, top), (right, bottom), (0, 0, 0), unit * (5 if strong else 3))
        cv2.rectangle(drawn, (left, top), (right, bottom), _WHITE if strong else _GREY, unit * (3 if strong else 1))
        if name:
            _draw_name(drawn, name, (left, top, bottom), unit, _WHITE if strong else _GREY)
    return drawn


def upscale(image: NDArray[Any], factor: int) -> NDArray[Any]:
    """An image [H, W, 3] uint8, or a heatmap [H, W] float, enlarged `factor` times in both directions.

    Images are interpolated by cubics, heatmaps linearly, so that they stay in their range.
    """
    if factor < 1:
        raise CamkitError(f"A picture is enlarged by 1, 2, 3, …, not by {factor}.")
    if factor == 1:
        return image.copy()
    interpolation = cv2.INTER_CUBIC if image.dtype == np.uint8 else cv2.INTER_LINEAR
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return np.asarray(cv2.resize(image, size, interpolation=interpolation))


def enlarged(image: Image) -> Image:
    """An image [H, W, 3] uint8, enlarged as often as it takes for no side to be shorter than `SHORTEST_SIDE` pixels."""
    return np.asarray(upscale(image, -(-SHORTEST_SIDE // min(image.shape[:2]))))


def comparison_grid(
    cells: Sequence[Sequence[Image | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str | None = None,
    path: str | os.PathLike[str],
) -> Path:
    """Writes a PNG of images in rows and columns, each labelled; a cell that is None is marked by a dash.

    Returns the path. Raises `CamkitError` where labels and cells do not match, or the file cannot be written.
    """
    if not cells or not columns or len(cells) != len(rows) or any(len(row) != len(columns) for row in cells):
        shape = f"{len(cells)} rows of {sorted({len(row) for row in cells})} cells"
        raise CamkitError(f"A grid with {len(rows)} row and {len(columns)} column labels cannot hold {shape}.")
    for cell in (cell for row in cells for cell in row if cell is not None):
        _check_image(cell)
    figure = _grid(cells, rows, columns, title)
    width, height = figure.get_size_inches()
    # a file of many cells should open, and its labels be readable
    resolution = min(_DOTS_PER_INCH, max(_READABLE, (_MOST_PIXELS / (width * height)) ** 0.5))
    # the file formats of pictures, and Agg, end at 2^16 pixels a side
    resolution = min(resolution, 65_000 / max(width, height))
    return write_bytes(path, figure_png(figure, resolution))


def figure_png(figure: "Figure", dots_per_inch: float = 130) -> bytes:
    """A figure as a PNG file, in which the software that drew it is not named."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return content.getvalue()


def png_bytes(image: Image) -> bytes:
    """The image, RGB [H, W, 3] uint8, as a PNG file."""
    _check_image(image)
    return bytes(cv2.imencode(".png", image[..., ::-1])[1])


def save_png(path: str | os.PathLike[str], image: Image) -> Path:
    """Writes the image, RGB [H, W, 3] uint8, to a PNG file; `CamkitError` where that cannot be written."""
    return write_bytes(path, png_bytes(image))


def data_uri(image: Image) -> str:
    """The image as a ``data:`` address, for HTML that carries its pictures itself.

    It is a JPEG of high quality: overlays are photographs in kind, and as PNG a page of them is ten times as large.
    """
    _check_image(image)
    content = bytes(cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 90))[1])
    return "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii")


_WHITE = (255, 255, 255)
_GREY = (190, 190, 190)
_DOTS_PER_INCH = 160
_READABLE = 70
_MOST_PIXELS = 8_000_000
_FONT_POINTS = 9.0
# of a sans-serif letter on average, and of a line, at _FONT_POINTS
_LETTER_INCHES = 0.078
_LINE_INCHES = 0.165


@lru_cache(maxsize=32)
def _colour_table(name: str) -> NDArray[np.float32]:
    """256 colours [256, 3], each in [0, 255]."""
    if name not in colormaps:
        raise unknown("colormap", name, list(colormaps))
    table = colormaps[name](np.linspace(0, 1, 256))[:, :3]
    return np.asarray(table * 255, dtype=np.float32)


def _colours(name: str, count: int) -> NDArray[np.float32]:
    """Colours [count, 3] in [0, 255] that are told apart: a list's own in order, others evenly spaced."""
    table = _colour_table(name)
    listed = colormaps[name].N
    if listed < len(table):
        chosen = colormaps[name](np.arange(count) % listed)[:, :3]
        return np.asarray(chosen * 255, dtype=np.float32)
    return table[np.linspace(0, len(table) - 1, count).astype(np.intp)]


def _check_opacity(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise CamkitError(f"The opacity of an overlay lies between 0 and 1, not {alpha}.")


def _check_image(image: Image) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        found = f"{image.dtype} {list(image.shape)}"
        raise CamkitError(f"An image to draw on is RGB uint8 [height, width, 3], this one is {found}.")


def _size(array: NDArray[Any]) -> str:
    return f"of {array.shape[0]} x {array.shape[1]}" if array.ndim >= 2 else f"of shape {list(array.shape)}"


def _draw_name(drawn: Image, name: str, box: tuple[int, int, int], unit: int, colour: tuple[int, int, int]) -> None:
    """Writes `name` on a dark ground: above the box, or below its lower edge where there is no room above."""
    left, top, bottom = box
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, max(0.4, min(drawn.shape[:2]) / 400)
    (width, height), baseline = cv2.getTextSize(name, font, scale, unit)
    margin = 2 * unit
    tall = height + baseline + 2 * margin
    if top - tall < 0:
        top = min(bottom + tall, drawn.shape[0])
    left = max(0, min(left, drawn.shape[1] - width - 2 * margin))
    cv2.rectangle(drawn, (left, top - tall), (left + width + 2 * margin, top), (0, 0, 0), cv2.FILLED)
    origin = (left + margin, top - baseline - margin)
    cv2.putText(drawn, name, origin, font, scale, colour, unit, cv2.LINE_AA)


def _grid(
    cells: Sequence[Sequence[Image | None]], rows: Sequence[str], columns: Sequence[str], title: str | None
) -> "Figure":
    """The figure; everything is placed in inches, so that cells and letters keep their size whatever the grid."""
    from matplotlib.figure import Figure

    gap, edge = 0.08, 0.15
    cell_width = float(np.clip(16 / len(columns), 1.6, 2.6))
    row_labels = [_wrap(label, 18) for label in rows]
    column_labels = [_wrap(label, int(cell_width / _LETTER_INCHES)) for label in columns]
    longest = max((len(line) for label in row_labels for line in label.split("\n")), default=0)
    left = edge + (longest * _LETTER_INCHES + gap if longest else 0)
    width = left + len(columns) * (cell_width + gap) - gap + edge
    heading = _wrap(title, int((width - 2 * edge) / (1.25 * _LETTER_INCHES))) if title else ""
    heading_height = 0.08 + 1.25 * _LINE_INCHES * (heading.count("\n") + 1) if heading else 0.0
    labels_height = _LINE_INCHES * (1 + max(label.count("\n") for label in column_labels)) + gap
    heights = [
        max(
            max((cell.shape[0] / cell.shape[1] * cell_width for cell in row if cell is not None), default=cell_width),
            _LINE_INCHES * (label.count("\n") + 1),
        )
        for row, label in zip(cells, row_labels, strict=True)
    ]
    height = edge + heading_height + labels_height + sum(heights) + gap * (len(rows) - 1) + edge

    figure = Figure(figsize=(width, height), facecolor="white")
    # labels are names of layers and classes, in which a dollar sign is a dollar sign
    words: dict[str, Any] = {"fontsize": _FONT_POINTS, "parse_math": False, "color": "#222222", "linespacing": 1.2}
    if heading:
        bold = {**words, "fontsize": 1.25 * _FONT_POINTS, "weight": "bold"}
        figure.text(edge / width, 1 - edge / height, heading, ha="left", va="top", **bold)
    top = height - edge - heading_height - labels_height
    for column, label in enumerate(column_labels):
        middle = left + column * (cell_width + gap) + cell_width / 2
        # line by line from the bottom, so that letters with and without descenders stand on one line
        for above, line in enumerate(reversed(label.split("\n"))):
            base = top + gap + above * _LINE_INCHES
            figure.text(middle / width, base / height, line, ha="center", va="baseline", **words)
    for row, label, tall in zip(cells, row_labels, heights, strict=True):
        figure.text((left - gap) / width, (top - tall / 2) / height, label, ha="right", va="center", **words)
        for column, cell in enumerate(row):
            from_left = left + column * (cell_width + gap)
            axes = figure.add_axes((from_left / width, (top - tall) / height, cell_width / width, tall / height))
            axes.set_axis_off()
            if cell is None:
                axes.text(0.5, 0.5, "\N{EN DASH}", ha="center", va="center", color="#999999", transform=axes.transAxes)
            else:
                axes.imshow(cell, aspect="equal")
        top -= tall + gap
    return figure


def _wrap(label: str, width: int) -> str:
    """The label in lines of at most `width` letters, broken after spaces and after the marks in layer names."""
    lines = [""]
    for piece in re.findall(r"\n|[^\s._/:,\-]*(?:[^\S\n]|[._/:,\-])|[^\s._/:,\-]+", label):
        if piece == "\n":
            lines.append("")
            continue
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(line.strip() for line in lines)
