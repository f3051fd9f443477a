"""First-party engines: one file for each way to share out work."""

from collections.abc import Callable
from typing import Any

from camkit import plugin


@plugin.hookimpl
def camkit_engines() -> list[Callable[..., Any]]:
    """The functions that are marked as engines."""
    return plugin.collect(__name__, "engine")
