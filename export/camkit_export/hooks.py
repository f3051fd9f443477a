"""The entry point of the group ``camkit``: what this package contributes. Nothing heavy is imported before a call."""

from collections.abc import Callable
from typing import Any

from camkit import plugin


@plugin.hookimpl
def camkit_decompositions() -> list[Any]:
    """Backward operators in terms of forward ones."""
    return plugin.collect("camkit_export", "decomposition")


@plugin.hookimpl
def camkit_exporters() -> list[Callable[..., Any]]:
    """File formats, one module each."""
    return plugin.collect("camkit_export", "exporter")
