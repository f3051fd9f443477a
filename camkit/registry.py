"""What is installed: plugins found through entry points, each item looked up by name, and what is broken and why.

A plugin is loaded in a guard: whatever it raises is kept as its reason, shown by ``camkit plugins``, and said when the
item is asked for. Nothing that a third party does breaks camkit itself. The items of a kind are read when the first of
them is asked for, so that what only other kinds need is not imported.
"""

import importlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

import pluggy

from camkit import hookspecs, plugin
from camkit.errors import CamkitError, CamkitWarning, unknown

GROUP = "camkit"
FIRST_PARTY = "camkit"

Key = TypeVar("Key")
Value = TypeVar("Value")

# Kinds, with what understands each: by name, since those modules look things up here.
_PARSERS = {
    "quantity": "camkit.quantities:Quantity",
    "target": "camkit.targets:TargetFunction",
    "method": "camkit.methods:Method",
    "fusion": "camkit.fusions:Fusion",
    "attack": "camkit.attacks:Attack",
    "metric": "camkit.metrics:Metric",
    "dataset": "camkit.evaluate:DataSet",
    "engine": "camkit.engines:Engine",
    "model_source": None,
    "decomposition": None,
    "exporter": "camkit.exports:Exporter",
}
_ADAPTERS = "camkit_adapters"
_ADAPTER_READER = "camkit.adapter_files:load_adapters"
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


class Registry:
    """The installed plugins and their items. Use `registry()`; make one only to load another selection."""

    def __init__(self, selected: frozenset[str] | None = None) -> None:
        self.selected = selected
        self._manager = pluggy.PluginManager("camkit")
        self._manager.add_hookspecs(hookspecs)
        self._plugins: list[Plugin] = []
        self._items: dict[str, dict[str, Item] | None] = {}
        self._adapter_files: dict[str, list[tuple[str, Path]] | None] = {}
        self._loaded = list(self._load())

    @property
    def plugins(self) -> list[Plugin]:
        """Every entry point; all that they contribute is read, to find out what is broken."""
        for kind in _PARSERS:
            self._of(kind)
        self.adapter_files()
        return self._plugins

    def get(self, kind: str, name: str) -> Any:
        """The item of that kind and name (``name`` or ``distribution:name``).

        Raises:
            CamkitError: there is no such item (the nearest names are suggested), or it is broken (the reason is said).
        """
        item = self._of(kind).get(name)
        label = kind.replace("_", " ")
        if item is None:
            broken = [f"{p.distribution} ({p.error})" for p in self._plugins if p.error]
            error = unknown(label, name, self.names(kind))
            if broken:
                raise CamkitError(f"{error} Some plugins could not be loaded: {'; '.join(broken)}")
            raise error
        if item.error:
            raise CamkitError(f"The {label} '{name}' of {item.distribution} is broken: {item.error}")
        return item.value

    def items(self, kind: str) -> list[Item]:
        """Every item of a kind, broken ones too, first-party items first, in order of name."""
        unique = {item.qualified: item for item in self._of(kind).values()}
        return sorted(
            unique.values(), key=lambda item: (item.distribution != FIRST_PARTY, item.distribution, item.name)
        )

    def names(self, kind: str, *, qualified: bool = False) -> list[str]:
        """The bare names of the items of a kind that work; if `qualified`, their ``distribution:name`` too."""
        working = [name for name, item in self._of(kind).items() if not item.error]
        return sorted(name for name in working if qualified or ":" not in name)

    def values(self, kind: str) -> list[Any]:
        """The working items of a kind, first-party ones first."""
        return [item.value for item in self.items(kind) if not item.error]

    def adapter_files(self) -> list[tuple[str, Path]]:
        """(distribution, path) of every adapter file that can be read, third-party files before first-party ones."""
        found = _once(self._adapter_files, _ADAPTERS, self._read_adapters)
        return sorted(found, key=lambda pair: pair[0] == FIRST_PARTY)

    def kinds(self) -> tuple[str, ...]:
        """The kinds of items."""
        return tuple(_PARSERS)

    def _of(self, kind: str) -> dict[str, Item]:
        """The items of a kind by their names, bare and qualified."""
        return _once(self._items, kind, partial(self._read, kind))

    def _load(self) -> Iterator[tuple[EntryPoint, Any]]:
        found = sorted(entry_points(group=GROUP), key=lambda entry: (not _is_first_party(entry), _distribution(entry)))
        for entry in found:
            if not _is_selected(entry, self.selected):
                continue
            version = entry.dist.version if entry.dist else "unknown"
            listed = Plugin(_distribution(entry), version, entry.name, entry.value)
            name = f"{listed.distribution}:{entry.name}"
            try:
                module = entry.load()
                self._manager.register(module, name)
                self._manager.check_pending()
            except (Exception, SystemExit) as exception:
                if self._manager.has_plugin(name):
                    self._manager.unregister(name=name)
                self._plugins.append(replace(listed, error=_reason(exception)))
                continue
            self._plugins.append(listed)
            yield entry, module
        installed = {_normal(_distribution(entry)) for entry in found}
        for absent in sorted((self.selected or frozenset()) - installed):
            reason = "CAMKIT_PLUGINS names it, but no such distribution with a camkit plugin is installed."
            self._plugins.append(Plugin(absent, "", "", "", reason))

    def _call(self, hook: str, entry: EntryPoint, module: Any) -> list[Any]:
        others = [other for other in self._manager.get_plugins() if other is not module]
        try:
            answers = self._manager.subset_hook_caller(hook, others)()
            return [item for answer in answers for item in answer]
        except Exception as exception:
            self._mark_broken(entry, f"{hook} failed: {_reason(exception)}")
            return []

    def _mark_broken(self, entry: EntryPoint, error: str) -> None:
        for index, known in enumerate(self._plugins):
            if (known.distribution, known.name) == (_distribution(entry), entry.name):
                self._plugins[index] = replace(known, error=known.error or error)

    def _read_adapters(self) -> list[tuple[str, Path]]:
        found = []
        for entry, module in self._loaded:
            for path in self._call(_ADAPTERS, entry, module):
                try:
                    _named(_ADAPTER_READER)(Path(path))
                except Exception as exception:
                    self._mark_broken(entry, _reason(exception))
                else:
                    found.append((_distribution(entry), Path(path)))
        return found

    def _read(self, kind: str) -> dict[str, Item]:
        found: dict[str, Item] = {}
        for entry, module in self._loaded:
            for function in self._call(_HOOKS[kind], entry, module):
                marks = [mark for mark in plugin.marks(function) if mark.kind == kind]
                if not marks:
                    reason = f"{_HOOKS[kind]} returned {function!r}, which is not marked as a {kind}."
                    self._mark_broken(entry, reason)
                for mark in marks:
                    _add(found, self._item(function, mark, _distribution(entry)))
        return found

    def _item(self, function: Any, mark: plugin.Mark, distribution: str) -> Item:
        try:
            return Item(mark.kind, mark.name, distribution, _parser(mark.kind)(function, mark, self))
        except Exception as exception:
            return Item(mark.kind, mark.name, distribution, error=_reason(exception))


def _add(known: dict[str, Item], item: Item) -> None:
    earlier = known.get(item.name)
    if item.qualified in known:
        reason = f"{item.distribution} contributes two of that name."
        item = replace(item, value=None, error=reason)
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
    parse: Parse = _named(location).parse
    return parse


@cache
def _named(location: str) -> Any:
    module, name = location.split(":")
    return getattr(importlib.import_module(module), name)


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"


def _is_first_party(entry: EntryPoint) -> bool:
    return _distribution(entry) == FIRST_PARTY


def _is_selected(entry: EntryPoint, selected: frozenset[str] | None) -> bool:
    return _is_first_party(entry) or selected is None or _normal(_distribution(entry)) in selected


def _normal(distribution: str) -> str:
    """The spelling by which distributions are compared, as package indexes do."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _reason(exception: BaseException) -> str:
    if isinstance(exception, CamkitError):
        return str(exception)
    text = " ".join(str(exception).split()) or "no message"
    return f"{type(exception).__name__}: {text}"


def selection(environment: Mapping[str, str] = os.environ) -> frozenset[str] | None:
    """The third-party distributions named in ``CAMKIT_PLUGINS`` (comma-separated; empty: none; unset: all)."""
    listed = environment.get("CAMKIT_PLUGINS")
    return None if listed is None else frozenset(_normal(name.strip()) for name in listed.split(",") if name.strip())


# reentrant, so that a plugin that asks for the registry while it is loaded is told so instead of waiting for itself
_lock = threading.RLock()
_loaded: dict[frozenset[str] | None, Registry | None] = {}


def registry() -> Registry:
    """The registry of this process, loaded once for each value of ``CAMKIT_PLUGINS``."""
    chosen = selection()
    return _once(_loaded, chosen, partial(Registry, chosen))


def _once(known: dict[Key, Value | None], key: Key, make: Callable[[], Value]) -> Value:
    """What belongs to a key, made when it is first asked for; None stands for what is being made.

    Raises:
        CamkitError: it is asked for by what makes it.
    """
    with _lock:
        if key not in known:
            known[key] = None
            try:
                known[key] = make()
            finally:
                if known[key] is None:
                    del known[key]
        found = known[key]
        if found is None:
            raise CamkitError("The registry was asked for an item while plugins are being loaded; ask for it later.")
        return found


def item(kind: str, given: str | Callable[..., Any], how: str) -> Any:
    """An item by its name, or of a marked function that no plugin has registered; `how` is the mark as it is written.

    Raises:
        CamkitError: the name is not known, or the function is not marked as one item of that kind.
    """
    if isinstance(given, str):
        return registry().get(kind, given)
    marks = [mark for mark in plugin.marks(given) if mark.kind == kind]
    if len(marks) != 1:
        name = getattr(given, "__name__", type(given).__name__)
        article = "an" if kind[0] in "aeiou" else "a"
        raise CamkitError(f"The function '{name}' is not {article} {kind}; mark it with @plugin.{kind}({how}).")
    return _parser(kind)(given, marks[0], registry())


def commands() -> dict[str, EntryPoint]:
    """CLI commands by name, first-party ones first; a name that is taken is reached as ``distribution:name``."""
    chosen = selection()
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=f"{GROUP}.commands"), key=lambda e: (not _is_first_party(e), e.name)):
        if _is_selected(entry, chosen):
            found[f"{_distribution(entry)}:{entry.name}" if entry.name in found else entry.name] = entry
    return found
