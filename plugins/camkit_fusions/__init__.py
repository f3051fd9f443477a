"""First-party fusions, one file each."""

from collections.abc import Callable
from typing import Any

from camkit import plugin


@plugin.hookimpl
def camkit_fusions() -> list[Callable[..., Any]]:
    """Every function in this package that is marked as a fusion."""
    return plugin.collect(__name__, "fusion")
