"""The hooks: one per kind of thing that a plugin can contribute.

Each hook takes no argument and returns an iterable. Hooks are called one plugin at a time, so that a plugin that raises
is reported and harms nobody else. Arguments may be added to a hook later without breaking plugins (pluggy passes each
implementation what it names); none will be taken away.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("camkit")
hookimpl = pluggy.HookimplMarker("camkit")

Functions = Iterable[Callable[..., Any]]


@hookspec
def camkit_quantities() -> Functions:  # type: ignore[empty-body]
    """Functions marked with `plugin.quantity`: what methods can ask for."""


@hookspec
def camkit_methods() -> Functions:  # type: ignore[empty-body]
    """Functions marked with `plugin.method`: CAM methods."""


@hookspec
def camkit_targets() -> Functions:  # type: ignore[empty-body]
    """Functions marked with `plugin.target`: what is explained."""


@hookspec
def camkit_fusions() -> Functions:  # type: ignore[empty-body]
    """Functions marked with `plugin.fusion`: how the maps of several layers become one."""


@hookspec
def camkit_attacks() -> Functions:  # type: ignore[empty-body]
    """Functions marked with `plugin.attack`."""


@hookspec
def camkit_metrics() -> Functions:  # type: ignore[empty-body]
    """Functions marked with `plugin.metric`."""


@hookspec
def camkit_datasets() -> Functions:  # type: ignore[empty-body]
    """Functions marked with `plugin.dataset`."""


@hookspec
def camkit_engines() -> Functions:  # type: ignore[empty-body]
    """Functions marked with `plugin.engine`: who does the tasks of a long piece of work."""


@hookspec
def camkit_model_sources() -> Iterable[type]:  # type: ignore[empty-body]
    """Classes marked with `plugin.model_source`: what stands before the colon of a model SPEC."""


@hookspec
def camkit_adapters() -> Iterable[Path]:  # type: ignore[empty-body]
    """TOML files with adapter configs; within a file the first entry that matches a model wins."""


@hookspec
def camkit_decompositions() -> Iterable[Any]:  # type: ignore[empty-body]
    """Rules marked with `plugin.decomposition` and modes marked with `plugin.function_mode`."""


@hookspec
def camkit_exporters() -> Functions:  # type: ignore[empty-body]
    """Functions marked with `plugin.exporter`: file formats of exported graphs."""
