"""Adapter files: TOML with a list of ``[[adapter]]`` entries; how they are read, and how a model finds its adapter."""

import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator
from torch import nn

from camkit.adapter import Adapter, Strict
from camkit.errors import CamkitError
from camkit.registry import FIRST_PARTY, registry

LARGEST_FILE = 2**20


@dataclass(frozen=True)
class Resolved:
    """An adapter with the reason why a model got it, in words for the user."""

    adapter: Adapter
    rule: str


class AdapterFile(Strict):
    """Adapters of camkit, in order: the first that describes a model wins."""

    defaults: dict[str, Any] = Field(default={})
    """What every adapter of the file says unless it says otherwise; targets are taken one by one."""

    adapter: list[Adapter]
    """The adapters."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, content: Any) -> Any:
        defaults, entries = (content.get(key) for key in ("defaults", "adapter"))
        if not isinstance(defaults, dict) or not isinstance(entries, list):
            return content
        return {**content, "adapter": [_merged(defaults, entry) for entry in entries]}


def _merged(defaults: dict[str, Any], entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    merged = {**defaults, **entry}
    if all(isinstance(one.get("targets"), dict) for one in (defaults, entry)):
        merged["targets"] = {**defaults["targets"], **entry["targets"]}
    return merged


def json_schema() -> dict[str, Any]:
    """The schema of an adapter file as JSON schema, for editors."""
    return AdapterFile.model_json_schema(by_alias=True)


def load_adapters(path: Path) -> list[Adapter]:
    """The adapters of a TOML file, in order.

    Raises:
        CamkitError: there is no such file, it is too large, it is not TOML, or an entry does not follow the schema.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise CamkitError(
                f"The adapter file '{path}' has {path.stat().st_size / LARGEST_FILE:.1f} MiB; an adapter is a few "
                f"lines, and more than 1 MiB is not read."
            )
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        adapters = AdapterFile(**content).adapter
    except OSError as error:
        raise CamkitError(f"The adapter file '{path}' cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CamkitError(f"The adapter file '{path}' is not valid TOML: {error}.") from None
    except RecursionError:
        raise CamkitError(f"The adapter file '{path}' is not valid TOML: it is nested too deeply.") from None
    except (ValidationError, TypeError) as error:
        raise CamkitError(f"The adapter file '{path}' is wrong at {_place(error)}.") from None
    for adapter in adapters:
        adapter._file = path.name
    return adapters


def _place(error: ValidationError | TypeError) -> str:
    """Where a file is wrong and how: the entry by its number, then the key."""
    if not isinstance(error, ValidationError):
        return f"the top level: {error}"
    # a key that may be one of several types has an error for each of them
    first = error.errors()[0]
    same = [one for one in error.errors() if one["loc"][:3] == first["loc"][:3]]
    place = ".".join(str(part) for part in first["loc"]) or "the top level"
    return f"{place}: {'; '.join(dict.fromkeys(one['msg'] for one in same))}"


def find_adapter(module: nn.Module, given: Adapter | Path | str | None = None) -> Resolved | None:
    """The adapter for a model: the one given, else from ``CAMKIT_ADAPTERS``, a third party, or camkit itself.

    Raises:
        CamkitError: an adapter was given and does not describe the model.
    """
    if isinstance(given, Adapter):
        return Resolved(given, "given")
    if given is not None:
        path = Path(given)
        reasons = []
        for adapter in load_adapters(path):
            reason = adapter.mismatch(module)
            if reason is None:
                return Resolved(adapter, f"given in {path.name}")
            reasons.append(f"'{adapter.name}': {reason}")
        raise CamkitError(
            f"No adapter in '{path}' describes a {type(module).__name__}: {'; '.join(reasons) or 'it is empty'}."
        )
    for origin, path in _sources():
        for adapter in load_adapters(path):
            if adapter.mismatch(module) is None:
                return Resolved(adapter, f"first match in {origin}")
    return None


def _sources() -> Iterable[tuple[str, Path]]:
    for listed in os.environ.get("CAMKIT_ADAPTERS", "").split(os.pathsep):
        if listed:
            yield f"{Path(listed).name} (CAMKIT_ADAPTERS)", Path(listed)
    for distribution, path in registry().adapter_files():
        shown = Path(path).name if distribution == FIRST_PARTY else f"{Path(path).name} of {distribution}"
        yield shown, Path(path)
