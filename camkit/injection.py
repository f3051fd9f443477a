"""A signature is a contract: what a plugin function asks for, and which options it takes.

Positional parameters are asked for by name, as pytest does with fixtures. Keyword-only parameters with defaults are the
function's options, validated by pydantic. Methods, targets, attacks and metrics are all called this way.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import Tensor

from camkit.errors import CamkitError, suggestion

Function = Callable[..., Any]


@dataclass(frozen=True)
class Signature:
    """What a function asks for, in order, and the pydantic model of its options."""

    owner: str
    asks: tuple[str, ...]
    options_model: type[BaseModel]

    def options(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All options with their values: the given ones validated, the others at their defaults.

        Raises:
            CamkitError: an option is unknown or its value is not valid.
        """
        known = list(self.options_model.model_fields)
        for name in given or {}:
            if name not in known:
                ending = suggestion(name, known) if known else "it takes no options."
                raise _error(f"{self.owner} has no option '{name}'" + (f"; {ending}" if ending else "."))
        try:
            return self.options_model(**(given or {})).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            option = f"option '{first['loc'][0]}' of {self.owner}"
            raise _error(f"{option} was {first['input']!r}: {first['msg']}.") from None

    def describe(self) -> dict[str, dict[str, Any]]:
        """Each option's type and default, as text and JSON values."""
        return {
            name: {"type": _type_name(info.annotation), "default": info.default}
            for name, info in self.options_model.model_fields.items()
        }


@contextmanager
def blaming(owner: str) -> Iterator[None]:
    """Whatever a plugin's function stumbles over is its own: the error names it, and has the cause for its author."""
    try:
        yield
    except CamkitError:
        raise
    except Exception as error:
        raise _error(f"{owner} failed: {type(error).__name__}: {error}") from error


def parse_signature(function: Function, owner: str, known: Mapping[str, object]) -> Signature:
    """Reads the contract off a function.

    `known` maps each name that can be asked for to its type; a type of `Any` accepts every annotation.

    Raises:
        CamkitError: an unknown name is asked for, an annotation is missing or wrong, or a parameter is neither
            asked for nor an option.
    """
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:
        raise _error(f"the annotations of {owner} cannot be read: {error}.") from error
    asks: list[str] = []
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        name = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise _error(f"{owner} takes *{name}; its parameters must be named, since the names are its contract.")
        if parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                raise _error(f"option '{name}' of {owner} needs a default value.")
            fields[name] = (hints.get(name, Any), parameter.default)
        elif parameter.default is not parameter.empty:
            raise _error(f"parameter '{name}' of {owner} has a default: options are keyword-only, write '*' first.")
        else:
            asks.append(_checked(name, owner, hints, known))
    # a default of another type than its annotation is the author's mistake, to be said before anyone uses it
    config = ConfigDict(extra="forbid", validate_default=True)
    signature = Signature(owner, tuple(asks), create_model(f"{function.__name__}_options", __config__=config, **fields))
    signature.options()
    return signature


def parse_value(text: str) -> Any:
    """An option value from the command line: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def own_options(
    options: Mapping[str, Any], name: str, methods: Sequence[str], others: Sequence[str] = (), *, kind: str = "method"
) -> dict[str, Any]:
    """The options of `name` among those of `methods` and of `others` (target functions, a fusion).

    They are written ``name.option``, or with a single method also ``option`` for it. `kind` says what the methods are
    where they are something else.

    Raises:
        CamkitError: an option names nobody though there are several methods, or somebody who was not asked for.
    """
    own = {}
    for key, value in options.items():
        owner, dot, option = key.rpartition(".")
        if not dot and len(methods) == 1:
            owner = methods[0]
        elif not dot:
            raise CamkitError(f"With several {kind}s, write the option '{key}' as '{kind}.{key}'.")
        elif owner not in (*methods, *others):
            raise CamkitError(f"The option '{key}' is for '{owner}', which was not asked for.")
        if owner == name:
            own[option] = value
    return own


def in_words(result: object) -> str:
    """What a plugin's function returned, for the sentence that says what was expected: a shape, or a type."""
    return f"shape {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__


def _checked(name: str, owner: str, hints: Mapping[str, object], known: Mapping[str, object]) -> str:
    if name not in known:
        ending = suggestion(name, known)
        raise _error(f"{owner} asks for '{name}', which nothing provides" + (f"; {ending}" if ending else "."))
    expected = known[name]
    if name not in hints:
        raise _error(f"parameter '{name}' of {owner} has no annotation; write '{name}: {_type_name(expected)}'.")
    if expected is not Any and hints[name] != expected:
        wrong, right = _type_name(hints[name]), _type_name(expected)
        raise _error(f"{owner} annotates '{name}' as {wrong}, but it is {right}.")
    return name


def _type_name(annotation: object) -> str:
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _error(text: str) -> CamkitError:
    return CamkitError(text[0].upper() + text[1:])
