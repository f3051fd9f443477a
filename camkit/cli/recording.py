"""Commands that work through images: a bar while they run, a line for each result, a table of what came out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from camkit.cli import printing

Images = Annotated[
    list[Path], typer.Argument(metavar="IMAGE|FOLDER", help="Images, or folders of images.", show_default=False)
]

LONGEST_TABLE = 60


@contextmanager
def recording(what: str, images: int, lines: Sequence[Mapping[str, Any]], path: Path) -> Iterator[Callable[[], None]]:
    """Shows a bar over so many images, and writes the lines into the JSON lines at `path`, by their pictures.

    What is given is called after each image. What was drawn before an interruption has its line too.
    """
    from camkit.output import update_lines
    from camkit.progress import shown_in

    screen = printing.console(stderr=True)
    progress = Progress(console=screen, transient=True, disable=not screen.is_terminal)
    try:
        with progress, shown_in(progress):
            task = progress.add_task(what, total=images)
            yield lambda: progress.advance(task)
    finally:
        if lines:
            update_lines(path, lines, key="picture")


def show(table: Table) -> None:
    """Prints a table that somebody would read."""
    if table.row_count <= LONGEST_TABLE:
        printing.console().print(table)
