"""A progress bar for long work inside a pass: in the bar of whoever called, or in one of its own on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_shared: "ContextVar[Progress | None]" = ContextVar("camkit_progress", default=None)


@contextmanager
def shown_in(progress: "Progress") -> Iterator[None]:
    """Work inside the block adds its tasks to this display; two displays at once would overwrite each other."""
    token = _shared.set(progress)
    try:
        yield
    finally:
        _shared.reset(token)


@contextmanager
def task(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that is told how many of `total` steps were done; the bar is gone afterwards."""
    shared = _shared.get()
    if shared is None and not sys.stderr.isatty():
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import Progress

    # a shared display is opened and closed by whoever shares it
    with nullcontext(shared) if shared else Progress(console=Console(stderr=True), transient=True) as display:
        task_id = display.add_task(description, total=total)
        try:
            yield lambda steps: display.advance(task_id, steps)
        finally:
            display.remove_task(task_id)
