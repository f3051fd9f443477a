"""First-party methods, one file each."""

from collections.abc import Callable
from typing import Any

from camkit import plugin


@plugin.hookimpl
def camkit_methods() -> list[Callable[..., Any]]:
    """Every function in this package that is marked as a method."""
    return plugin.collect(__name__, "method")
