"""First-party attacks, one file each."""

from collections.abc import Callable
from typing import Any

from camkit import plugin


@plugin.hookimpl
def camkit_attacks() -> list[Callable[..., Any]]:
    """Every function in this package that is marked as a attack."""
    return plugin.collect(__name__, "attack")
