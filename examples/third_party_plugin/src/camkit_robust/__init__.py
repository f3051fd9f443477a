"""Explanations that outliers do not decide: what this distribution contributes to camkit, one hook for each kind."""

from collections.abc import Callable
from typing import Any

from camkit import plugin


@plugin.hookimpl
def camkit_quantities() -> list[Callable[..., Any]]:
    """What methods can ask for by name."""
    return plugin.collect(__name__, "quantity")


@plugin.hookimpl
def camkit_methods() -> list[Callable[..., Any]]:
    """CAM methods."""
    return plugin.collect(__name__, "method")


@plugin.hookimpl
def camkit_attacks() -> list[Callable[..., Any]]:
    """Attacks on images."""
    return plugin.collect(__name__, "attack")


@plugin.hookimpl
def camkit_metrics() -> list[Callable[..., Any]]:
    """Measures of maps."""
    return plugin.collect(__name__, "metric")


@plugin.hookimpl
def camkit_decompositions() -> list[Any]:
    """Operators in terms of exportable ones."""
    return plugin.collect(__name__, "decomposition")
