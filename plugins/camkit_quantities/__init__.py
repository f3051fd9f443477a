"""First-party quantities, one file each."""

from collections.abc import Callable
from typing import Any

from camkit import plugin


@plugin.hookimpl
def camkit_quantities() -> list[Callable[..., Any]]:
    """Every function in this package that is marked as a quantity."""
    return plugin.collect(__name__, "quantity")
