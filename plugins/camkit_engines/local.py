"""The engine ``local``: this process, one task after the other."""

from collections.abc import Iterator
from typing import Any

from camkit import plugin
from camkit.engines import Tasks, Work


@plugin.engine("local")
def local(tasks: Tasks, work: Work) -> Iterator[Any]:
    """In this process, one task after the other."""
    return map(work, tasks)
