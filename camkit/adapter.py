"""Adapters: data that says where to cut a family of models and how to read the activations there as a map.

An adapter file is TOML with a list of ``[[adapter]]`` entries. Nothing in it is evaluated: a value such as
``@patch_embed.grid_size`` is a path of attributes that is read off the model.
"""

import os
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from torch import nn

from camkit.cut import Layer, find_module
from camkit.errors import CamkitError, suggestion
from camkit.layout import Layout, resolve_layout
from camkit.registry import FIRST_PARTY, registry

Reference = Annotated[str, Field(pattern=r"^@[\w.\-]+$")]
DEFAULT_TARGET = "last"


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_table(value: Any) -> Any:
    return {"path": value} if isinstance(value, str | list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Position(_Strict):
    """A named place where a model can be cut. What it leaves out is taken from the adapter.

    `path` is a dotted module path with negative indices allowed (``layer4.-1``), or a list of which the first that
    exists is taken.
    """

    path: Names = Field(min_length=1)
    layout: Literal["auto", "NCHW", "NHWC", "tokens"] | None = None
    element: int | str | None = None


class Adapter(_Strict):
    """How a family of models is recognised, cut and read.

    Attributes:
        name: what the adapter is called, such as ``timm.vit.class-token``.
        library: the package that defines the model's class (or a base class of it).
        classes: names of that class; in the file ``class``.
        equals: attributes of the model and the value each must have.
        class_of: module paths and the class names that each may have.
        targets: named positions; ``last`` is the one used when no layer is asked for.
        layout: how outputs are read; ``auto`` decides by shape.
        prefix: the number of class and register tokens before the patches: a number or an ``@attribute``.
        patch: height and width of a patch in pixels (or one side of a square), or an ``@attribute`` that holds them.
        grid: height and width in patches, or an ``@attribute`` that holds them; used where the patch does not tell.
        channels: an ``@attribute`` with the number of channels, which tells NCHW from NHWC.
        reads: which tokens the classifier reads: ``class token``, or ``patches`` where it pools them; by default the
            class token if there are prefix tokens.
        classifier: path of the module that makes the logits; the first that exists.
        output: the entry of the model's output that holds the logits.
        probability: whether probabilities are a softmax or a sigmoid of the logits.
        unsupported: why such models cannot be explained, if so.
    """

    name: str
    library: str | None = None
    classes: Names = Field(default=(), alias="class")
    equals: dict[str, bool | int | float | str] = {}
    class_of: dict[str, Names] = {}
    targets: dict[str, Annotated[Position, BeforeValidator(_as_table)]] = {}
    layout: Literal["auto", "NCHW", "NHWC", "tokens"] = "auto"
    prefix: int | Reference | None = None
    patch: int | tuple[int, int] | Reference | None = None
    grid: tuple[int, int] | Reference | None = None
    channels: Reference | None = None
    reads: Literal["class token", "patches"] | None = None
    classifier: Names = ()
    output: int | str | None = None
    probability: Literal["softmax", "sigmoid"] = "softmax"
    unsupported: str | None = None

    def mismatch(self, module: nn.Module) -> str | None:
        """Why the adapter does not describe a model; None when it does."""
        ancestors = type(module).__mro__
        if self.library and not any(base.__module__.split(".")[0] == self.library for base in ancestors):
            return f"the model's class is not from {self.library}"
        own = [base for base in ancestors if not self.library or base.__module__.split(".")[0] == self.library]
        if self.classes and not any(base.__name__ in self.classes for base in own):
            return f"the model's class is not one of {', '.join(self.classes)}"
        for path, expected in self.equals.items():
            if read(module, path, default=None) != expected:
                return f"its attribute {path} is not {expected!r}"
        for path, names in self.class_of.items():
            try:
                found = type(find_module(module, path)[1]).__name__
            except CamkitError:
                return f"it has no module {path}"
            if found not in names:
                return f"its module {path} is a {found}"
        return None

    def layer(self, module: nn.Module, name: str | None = None) -> Layer:
        """The target layer of that name: a position named in the adapter, or a module path.

        Raises:
            CamkitError: the name is neither, or the adapter states that the model cannot be explained.
        """
        if self.unsupported:
            raise CamkitError(
                f"The adapter '{self.name}' says that this model cannot be explained: {self.unsupported}."
            )
        wanted = name or DEFAULT_TARGET
        position = self.targets.get(wanted)
        if position is None and name is None:
            raise CamkitError(f"The adapter '{self.name}' names no target layer; give one (camkit doctor lists them).")
        if position is None:
            path, found = _find(module, wanted, list(self.targets))
            return Layer(wanted, path, found)
        for candidate in position.path:
            try:
                path, found = find_module(module, candidate)
            except CamkitError:
                continue
            return Layer(wanted, path, found, position.element)
        raise CamkitError(
            f"The adapter '{self.name}' puts the target '{wanted}' at {' or '.join(position.path)}, "
            f"which this model does not have."
        )

    def layout_of(self, module: nn.Module, layer: Layer, shape: Sequence[int], image_size: tuple[int, int]) -> Layout:
        """How the output of a layer, measured to have `shape` for images of `image_size`, is read as maps."""
        position = self.targets.get(layer.name)
        kind = position.layout if position and position.layout else self.layout
        # an adapter speaks of its own positions; at another layer only the shape can decide between maps and tokens
        if position is None and kind != "auto" and (kind == "tokens") != (len(shape) == 3):
            kind = "auto"
        return resolve_layout(
            kind,
            tuple(shape),
            image_size,
            prefix=_number(module, self.prefix, self.name),
            patch=_pair(module, self.patch, self.name, square=True),
            grid=_pair(module, self.grid, self.name),
            channels=_number(module, self.channels, self.name),
        )

    def find_classifier(self, module: nn.Module) -> nn.Module | None:
        """The module that makes the logits, if the adapter names one that exists."""
        for path in self.classifier:
            try:
                return find_module(module, path)[1]
            except CamkitError:
                continue
        return None


@dataclass(frozen=True)
class Resolved:
    """An adapter with the reason why a model got it, in words for the user."""

    adapter: Adapter
    rule: str


class _AdapterFile(_Strict):
    adapter: list[Adapter]


def load_adapters(path: Path) -> list[Adapter]:
    """The adapters of a TOML file, in order.

    Raises:
        CamkitError: there is no such file, it is not TOML, or an entry does not follow the schema.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return _AdapterFile(**content).adapter
    except OSError as error:
        raise CamkitError(f"The adapter file '{path}' cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CamkitError(f"The adapter file '{path}' is not valid TOML: {error}.") from None
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        place = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise CamkitError(f"The adapter file '{path}' is wrong at {place}: {first['msg']}.") from None


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


def read(module: nn.Module, path: str, *, default: Any) -> Any:
    """The attribute of a model at a dotted path; plain attribute access, nothing is called."""
    value: Any = module
    for part in path.split("."):
        if isinstance(value, nn.Module | object) and hasattr(value, part):
            value = getattr(value, part)
        else:
            return default
    return value


def _sources() -> Iterable[tuple[str, Path]]:
    for listed in os.environ.get("CAMKIT_ADAPTERS", "").split(os.pathsep):
        if listed:
            yield f"{Path(listed).name} (CAMKIT_ADAPTERS)", Path(listed)
    for distribution, path in registry().adapter_files():
        shown = Path(path).name if distribution == FIRST_PARTY else f"{Path(path).name} of {distribution}"
        yield shown, Path(path)


def _find(module: nn.Module, wanted: str, names: list[str]) -> tuple[str, nn.Module]:
    try:
        return find_module(module, wanted)
    except CamkitError as error:
        near = suggestion(wanted, names)
        if near.startswith("did you mean"):
            raise CamkitError(f"There is no layer '{wanted}'; {near}") from None
        raise error


def _number(module: nn.Module, value: int | str | None, adapter: str) -> int | None:
    if value is None or isinstance(value, int):
        return value
    found = read(module, value[1:], default=None)
    if not isinstance(found, int):
        raise CamkitError(
            f"The adapter '{adapter}' reads {value}, which is {found!r} on this model, not a whole number."
        )
    return found


def _pair(
    module: nn.Module, value: int | tuple[int, int] | str | None, adapter: str, *, square: bool = False
) -> tuple[int, int] | None:
    found = read(module, value[1:], default=None) if isinstance(value, str) else value
    if isinstance(value, str) and found is None:
        raise CamkitError(f"The adapter '{adapter}' reads {value}, which this model does not have.")
    sides = (found, found) if square and isinstance(found, int) else found
    if sides is None:
        return None
    if not isinstance(sides, tuple | list) or len(sides) != 2:
        raise CamkitError(
            f"The adapter '{adapter}' reads {value}, which is {found!r} on this model, not a height and a width."
        )
    return int(sides[0]), int(sides[1])
