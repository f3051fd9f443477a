"""Adapters: data that says where to cut a family of models and how to read the activations there as a map.

Nothing in an adapter is evaluated: a value such as ``@patch_embed.grid_size`` is a path of attributes that is read off
the model (`camkit.references`), a target such as ``@trunk_end`` a rule (`camkit.rules`).
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from torch import Tensor, nn

from camkit import rules
from camkit.cut import Layer, Reader, find_module
from camkit.errors import CamkitError, suggestion
from camkit.layout import Layout, resolve_layout
from camkit.references import Reference, follow, read

DEFAULT_TARGET = "last"


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_table(value: Any) -> Any:
    return {"path": value} if isinstance(value, str | list) else value


ModulePath = Annotated[str, Field(pattern=rf"^({rules.RULE}|[\w\-]+(\.[\w\-]+)*)$")]
LayoutName = Literal["auto", "NCHW", "NHWC", "tokens"]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Paths = Annotated[tuple[ModulePath, ...], BeforeValidator(_as_tuple)]
References = Annotated[tuple[Reference, ...], BeforeValidator(_as_tuple)]


class Strict(BaseModel):
    """What a config may say: these keys and no others, described to editors by the docstrings."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)


class Position(Strict):
    """A named place where a model can be cut. What it leaves out is taken from the adapter."""

    path: Paths = Field(min_length=1)
    """A dotted module path, in which negative numbers count from the end (`layer4.-1`); or the rule `@trunk_end`, the
    last child in front of the read-out; or `@stride:N`, the last layer that divides the image's sides by N. Of a list,
    the first that exists."""

    layout: LayoutName | None = None
    """How the output here is read, where the adapter's own layout does not hold."""

    element: int | str | None = None
    """Which part of the output holds the activations, where it is a tuple or a mapping of several tensors."""


class Adapter(Strict):
    """How a family of models is recognised, cut and read."""

    name: str
    """What the adapter is called, such as `timm.vit.class-token`."""

    library: str | None = None
    """The package that defines the model's class, or a base class of it."""

    classes: Names = Field(default=(), alias="class")
    """Names of that class."""

    equals: dict[str, bool | int | float | str] = {}
    """Attributes of the model, as dotted paths, and the value that each must have."""

    class_of: dict[str, Names] = {}
    """Paths of modules, and the names of the classes that each may have."""

    targets: dict[str, Annotated[Position, BeforeValidator(_as_table)]] = {}
    """Named target layers. `last` is the one used when no layer is asked for; `stage1` to `stage4` divide the image by
    4, 8, 16 and 32."""

    readout: Names = ()
    """For the rule `@trunk_end`: patterns of the names of children that read the features out, such as `head*`."""

    auxiliary: Names = ()
    """For the rule `@trunk_end`: patterns of the names of children that do not count, such as `aux*`."""

    layout: LayoutName = "auto"
    """How outputs are read: maps `NCHW` or `NHWC`, or `tokens` [batch, prefix + patches, channels]; `auto` decides by
    their shape."""

    prefix: int | Reference | None = None
    """The number of class, distillation and register tokens before the patches."""

    patch: int | tuple[int, int] | Reference | None = None
    """Height and width of a patch in pixels, or one side of a square."""

    grid: tuple[int, int] | Reference | None = None
    """Height and width in patches; used where the patch does not tell."""

    stride: int | Reference | None = None
    """Pixels between two positions of the target `last`; used where neither patch nor grid tell."""

    channels: References = ()
    """The number of channels, which tells NCHW from NHWC; of several, the first that is the size of one axis."""

    reads: Literal["class token", "patches"] | None = None
    """Which tokens the classifier reads, `patches` where it pools them; by default the class token if there are prefix
    tokens."""

    classifier: Names = ()
    """Path of the module that makes the logits, or an `@attribute` that holds it; the first that exists."""

    output: int | str | None = None
    """The entry of the model's output that holds the logits."""

    class_count: Reference | None = None
    """The number of classes; where it is 0, the output is an embedding and not class scores."""

    probability: Literal["softmax", "sigmoid"] = "softmax"
    """Whether probabilities are a softmax or a sigmoid of the logits."""

    note: str | None = None
    """What a user should know of the choice, such as which of several branches is explained."""

    unsupported: str | None = None
    """Why such models cannot be explained, if so."""

    _file: str = PrivateAttr("")

    @property
    def label(self) -> str:
        """The adapter's name in quotation marks, with its file where it comes from one, for error messages."""
        return f"'{self.name}' ({self._file})" if self._file else f"'{self.name}'"

    def mismatch(self, module: nn.Module) -> str | None:
        """Why the adapter does not describe a model; None when it does."""
        ancestors = type(module).__mro__
        if self.library and not any(base.__module__.split(".")[0] == self.library for base in ancestors):
            return f"the model's class is not from {self.library}"
        own = [base for base in ancestors if not self.library or base.__module__.split(".")[0] == self.library]
        if self.classes and not any(base.__name__ in self.classes for base in own):
            return f"the model's class is not one of {', '.join(self.classes)}"
        for path, expected in self.equals.items():
            if read(module, path) != expected:
                return f"its attribute {path} is not {expected!r}"
        for path, names in self.class_of.items():
            try:
                found = type(find_module(module, path)[1]).__name__
            except CamkitError:
                return f"it has no module {path}"
            if found not in names:
                return f"its module {path} is a {found}"
        return None

    def require(self, module: nn.Module, name: str) -> None:
        """Refuses a layer that is neither a named target nor a path of the model; costs no forward pass."""
        position = self.targets.get(name)
        if position is None or not any(map(rules.is_measured, position.path)):
            self.layer(module, name)

    def layer(self, module: nn.Module, name: str | None = None, images: Tensor | None = None) -> Layer:
        """The target layer of that name: a position named in the adapter, or a module path.

        `images` [B, C, H, W] are needed for positions that are measured (``@stride:N``), and for no others.

        Raises:
            CamkitError: the name is neither, or the adapter states that the model cannot be explained.
        """
        if self.unsupported:
            raise CamkitError(f"The adapter {self.label} says that this model cannot be explained: {self.unsupported}.")
        wanted = name or DEFAULT_TARGET
        position = self.targets.get(wanted)
        if position is None and name is None:
            raise CamkitError(f"The adapter {self.label} names no target layer; give one (camkit doctor lists them).")
        if position is None:
            return Layer(wanted, *_runnable(module, _find(module, wanted, list(self.targets))))
        for candidate in position.path:
            path = self._path(module, candidate, images)
            if path is not None:
                return Layer(wanted, *_runnable(module, path), position.element)
        raise CamkitError(
            f"The adapter {self.label} puts the target '{wanted}' at {' or '.join(position.path)}, "
            f"which a {type(module).__name__} does not have; correct targets.{wanted}."
        )

    def _path(self, module: nn.Module, candidate: str, images: Tensor | None) -> str | None:
        if candidate == rules.TRUNK_END:
            return rules.trunk_end(module, self.readout, self.auxiliary)
        if rules.is_measured(candidate):
            if images is None:
                raise CamkitError(f"The target {candidate} of the adapter {self.label} is measured; give images.")
            end = self.layer(module).path
            return rules.at_stride(module, images, int(candidate.removeprefix(rules.STRIDE)), end)
        try:
            return find_module(module, candidate)[0]
        except CamkitError:
            return None

    def layout_of(self, module: nn.Module, layer: Layer, shape: Sequence[int], image_size: tuple[int, int]) -> Layout:
        """How the output of a layer, measured to have `shape` for images of `image_size`, is read as maps.

        Raises:
            CamkitError: what the adapter says of tokens does not fit the output, or there are no positions.
        """
        position = self.targets.get(layer.name)
        kind = position.layout if position and position.layout else self.layout
        # an adapter speaks of the positions that it names; at another layer the shape decides between maps and tokens
        named = position is not None and not any(map(rules.is_measured, position.path))
        if not named and kind != "auto" and (kind == "tokens") != (len(shape) == 3):
            kind = "auto"
        channels = (self._number(module, "channels", reference) for reference in self.channels)
        try:
            return resolve_layout(
                kind,
                tuple(shape),
                image_size,
                prefix=self._number(module, "prefix", self.prefix),
                patch=self._pair(module, "patch", self.patch, square=True),
                grid=self._pair(module, "grid", self.grid),
                stride=self._number(module, "stride", self.stride),
                channels=next((count for count in channels if count in (shape[1], shape[-1])), None),
            )
        except CamkitError as error:
            origin = f" (adapter {self.label})" if self._file else ""
            raise CamkitError(f"{str(error).rstrip('.')}{origin}.") from None

    def find_classifier(self, module: nn.Module) -> nn.Module | None:
        """The module that makes the logits, if the adapter names one that exists."""
        for named in self.classifier:
            path = read(module, named.lstrip("@").rstrip("?")) if named.startswith("@") else named
            # with distillation there are two classifiers, of which the first is the class token's
            path = path[0] if isinstance(path, tuple | list) and path else path
            try:
                if isinstance(path, str):
                    return find_module(module, path)[1]
            except CamkitError:
                continue
        return None

    def reader(self, module: nn.Module) -> Reader:
        """How the model's output is read."""
        return Reader(self.output, classes=self._number(module, "class_count", self.class_count) != 0)

    def _number(self, module: nn.Module, key: str, value: int | str | None) -> int | None:
        found = self._value(module, key, value)
        if found is not None and not isinstance(found, int):
            raise CamkitError(
                f"The adapter {self.label} reads {value} as its {key}, which is {found!r} on this model, not a whole "
                f"number."
            )
        return found

    def _pair(
        self, module: nn.Module, key: str, value: int | tuple[int, int] | str | None, *, square: bool = False
    ) -> tuple[int, int] | None:
        found = self._value(module, key, value)
        sides = (found, found) if square and isinstance(found, int) else found
        if sides is None:
            return None
        if not isinstance(sides, tuple | list) or len(sides) != 2:
            raise CamkitError(
                f"The adapter {self.label} reads {value} as its {key}, which is {found!r} on this model, not a height "
                f"and a width."
            )
        return int(sides[0]), int(sides[1])

    def _value(self, module: nn.Module, key: str, value: Any) -> Any:
        return follow(module, value, f"The adapter {self.label}, {key},") if isinstance(value, str) else value


def _runnable(module: nn.Module, path: str) -> tuple[str, nn.Module]:
    """The module at a path; of a list of modules, which cannot run, the last."""
    path = rules.last_part(module, path, (nn.ModuleList,))
    return path, module.get_submodule(path)


def _find(module: nn.Module, wanted: str, names: list[str]) -> str:
    try:
        return find_module(module, wanted)[0]
    except CamkitError as error:
        near = suggestion(wanted, names)
        if near.startswith("did you mean") or re.fullmatch(r"stage\d", wanted):
            raise CamkitError(f"There is no layer '{wanted}'; {near or f'choose one of {names}.'}") from None
        raise error
