"""First-party adapters: one TOML file per library; and model sources: one file per way to build a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from camkit import plugin


@plugin.hookimpl
def camkit_adapters() -> list[Path]:
    """Every adapter file of this package."""
    return sorted(Path(__file__).parent.glob("*.toml"))


@plugin.hookimpl
def camkit_model_sources() -> list[type]:
    """The classes that are marked as model sources."""
    return plugin.collect(__name__, "model_source")


@plugin.hookimpl
def camkit_datasets() -> list[Callable[..., Any]]:
    """The functions that are marked as data sets."""
    return plugin.collect(__name__, "dataset")
