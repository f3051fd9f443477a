"""First-party metrics, one file each."""

from collections.abc import Callable
from typing import Any

from camkit import plugin


@plugin.hookimpl
def camkit_metrics() -> list[Callable[..., Any]]:
    """Every function in this package that is marked as a metric."""
    return plugin.collect(__name__, "metric")
