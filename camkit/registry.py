"""What is installed: plugins found through entry points, each item looked up by name, and what is broken and why.

A plugin is loaded in a guard: whatever it raises is kept as its reason, shown by ``camkit plugins``, and said when the
item is asked for. Nothing that a third party does breaks camkit itself.
"""

import importlib
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from camkit import hookspecs, plugin
from camkit.errors import CamkitError, CamkitWarning, unknown

GROUP = "camkit"
FIRST_PARTY = "camkit"

# Kinds in the order in which they must be read (methods name quantities), with the module that understands each.
_PARSERS = {
    "quantity": "camkit.quantities:Quantity",
    "target": "camkit.targets:TargetFunction",
    "method": "camkit.methods:Method",
    "attack": "camkit.attacks:Attack",
    "metric": "camkit.evaluate:Metric",
    "dataset": "camkit.evaluate:DataSet",
    "model_source": None,
    "decomposition": None,
    "exporter": "camkit.exports:Exporter",
}
_HOOKS = {kind: f"camkit_{kind[:-1]}ies" if kind.endswith("y") else f"camkit_{kind}s" for kind in _PARSERS}


@dataclass(frozen=True)
class Item:
    """One thing that a plugin contributes; `value` is None where `error` says why it cannot be used."""

    kind: str
    name: str
    distribution: str
    value: Any = None
    error: str | None = None

    @property
    def qualified(self) -> str:
        """The name by which the item can be reached whatever else is installed: ``distribution:name``."""
        return f"{self.distribution}:{self.name}"


@dataclass(frozen=True)
class Plugin:
    """One entry point: the distribution it comes from, its module, and why it is broken if it is."""

    distribution: str
    version: str
    name: str
    module: str
    error: str | None = None


@dataclass
class Registry:
    """The installed plugins and their items. Use `registry()`; make one only to load another selection."""

    selected: frozenset[str] | None = None
    plugins: list[Plugin] = field(default_factory=list)
    _items: dict[str, dict[str, Item]] = field(default_factory=dict)
    _adapter_files: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._manager = pluggy.PluginManager("camkit")
        self._manager.add_hookspecs(hookspecs)
        self._items = {kind: {} for kind in _PARSERS}
        loaded = list(self._load())
        for kind in _PARSERS:
            for entry, module in loaded:
                self._read(kind, entry, module)
        for entry, module in loaded:
            self._adapter_files.extend(
                (_distribution(entry), path) for path in self._call("camkit_adapters", entry, module)
            )

    def get(self, kind: str, name: str) -> Any:
        """The item of that kind and name (``name`` or ``distribution:name``).

        Raises:
            CamkitError: there is no such item (the nearest names are suggested), or it is broken (the reason is said).
        """
        item = self._items[kind].get(name)
        label = kind.replace("_", " ")
        if item is None:
            broken = [f"{p.distribution} ({p.error})" for p in self.plugins if p.error]
            error = unknown(label, name, self.names(kind))
            if broken:
                raise CamkitError(f"{error} Some plugins could not be loaded: {'; '.join(broken)}")
            raise error
        if item.error:
            raise CamkitError(f"The {label} '{name}' of {item.distribution} is broken: {item.error}")
        return item.value

    def items(self, kind: str) -> list[Item]:
        """Every item of a kind, broken ones too, first-party items first, in order of name."""
        unique = {item.qualified: item for item in self._items[kind].values()}
        return sorted(
            unique.values(), key=lambda item: (item.distribution != FIRST_PARTY, item.distribution, item.name)
        )

    def names(self, kind: str) -> list[str]:
        """The bare names of the items of a kind that work."""
        return sorted(name for name, item in self._items[kind].items() if ":" not in name and not item.error)

    def values(self, kind: str) -> list[Any]:
        """The working items of a kind, first-party ones first."""
        return [item.value for item in self.items(kind) if not item.error]

    def adapter_files(self) -> list[tuple[str, Any]]:
        """(distribution, path) of every adapter file, third-party files before first-party ones."""
        return sorted(self._adapter_files, key=lambda pair: pair[0] == FIRST_PARTY)

    def kinds(self) -> tuple[str, ...]:
        """The kinds of items, in the order in which they are read."""
        return tuple(_PARSERS)

    def _load(self) -> Iterator[tuple[EntryPoint, Any]]:
        for entry in sorted(
            entry_points(group=GROUP), key=lambda e: (_distribution(e) != FIRST_PARTY, _distribution(e))
        ):
            distribution = _distribution(entry)
            if distribution != FIRST_PARTY and self.selected is not None and distribution not in self.selected:
                continue
            error = None
            try:
                module = entry.load()
                self._manager.register(module, name=f"{distribution}:{entry.name}")
                self._manager.check_pending()
            except Exception as exception:
                error = _reason(exception)
                self._manager.unregister(name=f"{distribution}:{entry.name}")
            version = entry.dist.version if entry.dist else "unknown"
            self.plugins.append(Plugin(distribution, version, entry.name, entry.value, error))
            if error is None:
                yield entry, module

    def _call(self, hook: str, entry: EntryPoint, module: Any) -> list[Any]:
        others = [other for other in self._manager.get_plugins() if other is not module]
        try:
            answers = self._manager.subset_hook_caller(hook, others)()
            return [item for answer in answers for item in answer]
        except Exception as exception:
            self._mark_broken(entry, f"{hook} failed: {_reason(exception)}")
            return []

    def _mark_broken(self, entry: EntryPoint, error: str) -> None:
        for index, known in enumerate(self.plugins):
            if (known.distribution, known.name) == (_distribution(entry), entry.name):
                self.plugins[index] = Plugin(known.distribution, known.version, known.name, known.module, error)

    def _read(self, kind: str, entry: EntryPoint, module: Any) -> None:
        distribution = _distribution(entry)
        for function in self._call(_HOOKS[kind], entry, module):
            marks = [mark for mark in plugin.marks(function) if mark.kind == kind]
            if not marks:
                self._mark_broken(entry, f"{_HOOKS[kind]} returned {function!r}, which is not marked as a {kind}.")
            for mark in marks:
                value, error = function, None
                try:
                    value = _parser(kind)(function, mark, self)
                except Exception as exception:
                    value, error = None, _reason(exception)
                self._add(Item(kind, mark.name, distribution, value, error))

    def _add(self, item: Item) -> None:
        known = self._items[item.kind]
        earlier = known.get(item.name)
        if item.qualified in known:
            reason = f"{item.distribution} contributes two of that name."
            item = Item(item.kind, item.name, item.distribution, None, reason)
        elif earlier is not None and earlier.distribution != item.distribution:
            warnings.warn(
                f"Both {earlier.distribution} and {item.distribution} contribute the {item.kind} '{item.name}': that "
                f"name means {earlier.qualified}; write {item.qualified} for the other.",
                CamkitWarning,
                stacklevel=2,
            )
        known[item.qualified] = item
        if earlier is None or earlier.distribution == item.distribution:
            known[item.name] = item


Parse = Callable[[Any, plugin.Mark, Registry], Any]


@cache
def _parser(kind: str) -> Parse:
    location = _PARSERS[kind]
    if location is None:
        return lambda function, mark, registry: function
    module, name = location.split(":")
    parse: Parse = getattr(importlib.import_module(module), name).parse
    return parse


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"


def _reason(exception: Exception) -> str:
    if isinstance(exception, CamkitError):
        return str(exception)
    text = " ".join(str(exception).split()) or "no message"
    return f"{type(exception).__name__}: {text}"


def selection(environment: Mapping[str, str] = os.environ) -> frozenset[str] | None:
    """The third-party distributions named in ``CAMKIT_PLUGINS`` (comma-separated; empty: none; unset: all)."""
    listed = environment.get("CAMKIT_PLUGINS")
    return None if listed is None else frozenset(name.strip() for name in listed.split(",") if name.strip())


_lock = threading.Lock()
_loaded: dict[frozenset[str] | None, Registry] = {}


def registry() -> Registry:
    """The registry of this process, loaded once for each value of ``CAMKIT_PLUGINS``."""
    chosen = selection()
    with _lock:
        if chosen not in _loaded:
            _loaded[chosen] = Registry(chosen)
        return _loaded[chosen]


def commands() -> Iterable[EntryPoint]:
    """Entry points of CLI commands, first-party ones first, the third-party ones that are selected after them."""
    chosen = selection()
    found = entry_points(group=f"{GROUP}.commands")
    allowed = [e for e in found if _distribution(e) == FIRST_PARTY or chosen is None or _distribution(e) in chosen]
    return sorted(allowed, key=lambda entry: (_distribution(entry) != FIRST_PARTY, entry.name))
