"""First-party targets, one file each."""

from collections.abc import Callable
from typing import Any

from camkit import plugin


@plugin.hookimpl
def camkit_targets() -> list[Callable[..., Any]]:
    """Every function in this package that is marked as a target."""
    return plugin.collect(__name__, "target")
