"""References: attributes that a config names and camkit reads off a model. Nothing is called, nothing is evaluated."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from camkit.errors import CamkitError

Reference = Annotated[
    str,
    Field(
        pattern=r"^@[A-Za-z0-9][\w\-]*(\.[A-Za-z0-9\-][\w\-]*)*\??$",
        description="A path of attributes that is read off the model, such as `@patch_embed.grid_size`. Parts may be "
        "keys and indices (`@feature_info.-1.reduction`). With `?` at the end it may be missing.",
    ),
]


def read(module: nn.Module, path: str, *, default: Any = None) -> Any:
    """What lies at a dotted path in a model: attributes, keys of mappings, indices of lists and of a module's children.

    Returns `default` where a part does not exist; names that begin with an underscore are never looked at.
    """
    value: Any = module
    for part in path.split("."):
        if part.startswith("_"):
            return default
        try:
            value = _step(value, part)
        except (AttributeError, KeyError, IndexError):
            return default
    return value


def follow(module: nn.Module, reference: str, owner: str) -> Any:
    """The value of a reference; None where it may be missing and is.

    `owner` says who refers, such as "The adapter 'mine' (mine.toml, prefix)".

    Raises:
        CamkitError: the model has nothing at that path, and the reference does not end with ``?``.
    """
    found = read(module, reference.lstrip("@").rstrip("?"))
    if found is None and not reference.endswith("?"):
        raise CamkitError(
            f"{owner} reads {reference}, which a {type(module).__name__} does not have; "
            f"write {reference}? if it may be missing."
        )
    return found


def _step(value: Any, part: str) -> Any:
    if isinstance(value, Mapping) and part in value:
        return value[part]
    if part.lstrip("-").isdigit() and isinstance(value, nn.Module):
        return list(value.children())[int(part)]
    if part.lstrip("-").isdigit() and isinstance(value, Sequence):
        return value[int(part)]
    return getattr(value, part)
