"""One self-contained HTML page of text, tables and pictures. It knows nothing of what the pictures show."""

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from camkit.atomic import write_bytes
from camkit.errors import CamkitError
from camkit.version import __version__
from camkit.visualize import Image, data_uri

Cell = str | int | float | None


@dataclass(frozen=True)
class Text:
    """A section of prose; an empty line in `body` begins a new paragraph."""

    title: str
    body: str


@dataclass(frozen=True)
class Table:
    """A section with a table.

    Whole numbers are written with thousands separated, other numbers with three decimals, None as a dash; whatever
    needs another form comes as text. Columns that hold nothing but numbers, also as text such as "93 %", stand right.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, RGB [H, W, 3] uint8, with a caption of its own below the name of its column."""

    image: Image
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Pictures:
    """A section with a grid of pictures: labelled rows, one picture or None for each column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Picture | Image | None]]]
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A section with one drawing as wide as the page allows; `png` is the content of a PNG file.

    `alternative` is what is read aloud in its place.
    """

    title: str
    png: bytes
    alternative: str
    note: str = ""


Section = Text | Table | Pictures | Plot


def write_report(
    path: str | os.PathLike[str], *, title: str, introduction: str = "", sections: Sequence[Section]
) -> Path:
    """Writes the page and returns its path.

    The file needs nothing beside itself: no script, no link, no picture elsewhere. All text is escaped.
    Raises `CamkitError` where a row does not fit its columns, or the file cannot be written.
    """
    pages = Environment(
        loader=PackageLoader("camkit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = pages.get_template("report.html.j2").render(
        title=title,
        introduction=_paragraphs(introduction),
        sections=[_drawn(section) for section in sections],
        version=__version__,
    )
    return write_bytes(path, html.encode("utf-8"))


# what the template is given, one form per kind of section


@dataclass(frozen=True)
class _DrawnText:
    title: str
    paragraphs: list[str]
    kind: str = "text"


@dataclass(frozen=True)
class _DrawnTable:
    title: str
    note: list[str]
    columns: list[tuple[str, bool]]
    """A heading, and whether the column holds numbers."""
    rows: list[list[tuple[str, bool]]]
    kind: str = "table"


@dataclass(frozen=True)
class _DrawnFigure:
    source: str
    width: int
    height: int
    alternative: str
    name: str
    caption: str


@dataclass(frozen=True)
class _DrawnPictures:
    title: str
    note: list[str]
    width: int
    """The number of columns."""
    rows: list[tuple[str, list[_DrawnFigure | str]]]
    """A label, and a figure, or the bare name of the column where there is none."""
    kind: str = "pictures"


@dataclass(frozen=True)
class _DrawnPlot:
    title: str
    note: list[str]
    source: str
    alternative: str
    kind: str = "plot"


# a sign such as "<", a number, a spread, and a unit of one or two letters
_NUMBER = re.compile(r"[^\w\s]?\s?\d[\d,.]*(\s?±\s?[\d.]+)?(e[+-]?\d+)?\s?(%|[^\W\d_]{1,2})?")


def _drawn(section: Section) -> _DrawnText | _DrawnTable | _DrawnPictures | _DrawnPlot:
    if isinstance(section, Text):
        return _DrawnText(section.title, _paragraphs(section.body))
    if isinstance(section, Plot):
        source = "data:image/png;base64," + base64.b64encode(section.png).decode("ascii")
        return _DrawnPlot(section.title, _paragraphs(section.note), source, section.alternative)
    rows = section.rows if isinstance(section, Table) else [images for _, images in section.rows]
    if any(len(row) != len(section.columns) for row in rows):
        raise CamkitError(f"Each row of '{section.title}' needs {len(section.columns)} cells, one for each column.")
    if isinstance(section, Table):
        numeric = [_is_numeric([row[index] for row in section.rows]) for index in range(len(section.columns))]
        return _DrawnTable(
            section.title,
            _paragraphs(section.note),
            list(zip(section.columns, numeric, strict=True)),
            [list(zip(map(_written, row), numeric, strict=True)) for row in section.rows],
        )
    pictures = [
        (label, [_figure(label, name, cell) for name, cell in zip(section.columns, cells, strict=True)])
        for label, cells in section.rows
    ]
    return _DrawnPictures(section.title, _paragraphs(section.note), len(section.columns), pictures)


def _figure(row: str, column: str, cell: Picture | Image | None) -> _DrawnFigure | str:
    if cell is None:
        return column
    picture = cell if isinstance(cell, Picture) else Picture(cell)
    height, width = picture.image.shape[:2]
    alternative = ", ".join(part for part in (row, column, picture.caption) if part)
    return _DrawnFigure(data_uri(picture.image), width, height, alternative, column, picture.caption)


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _is_numeric(cells: Sequence[Cell]) -> bool:
    present = [cell for cell in cells if cell is not None and cell != ""]
    return bool(present) and all(not isinstance(cell, str) or _NUMBER.fullmatch(cell.strip()) for cell in present)


def _written(cell: Cell) -> str:
    if cell is None:
        return "\N{EN DASH}"
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.3f}"
