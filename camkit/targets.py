"""Targets: what is explained, as a function from the model's output to one score per image, and how a user names it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camkit import plugin
from camkit.errors import CamkitError, unknown
from camkit.injection import Signature, in_words, parse_signature
from camkit.quantities import single

if TYPE_CHECKING:
    from camkit.registry import Registry

OUTPUT_TYPES: dict[str, object] = {"logits": Tensor, "output": Any}


@dataclass(frozen=True)
class TargetFunction:
    """A registered target function."""

    name: str
    function: Callable[..., Tensor]
    signature: Signature
    inputs: tuple[str, ...]

    @classmethod
    def parse(cls, function: Callable[..., Tensor], mark: plugin.Mark, registry: "Registry") -> "TargetFunction":
        """Reads a marked function; it asks for the model's `logits` or `output` and for the inputs that it declares."""
        inputs = tuple(mark.facts["inputs"])
        known = {**OUTPUT_TYPES, **dict.fromkeys(inputs, Tensor)}
        signature = parse_signature(function, f"the target '{mark.name}'", known)
        return cls(mark.name, function, signature, inputs)

    def scores(self, logits: Tensor, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """One score [B] per image, in float32 for half-precision models.

        Raises:
            CamkitError: an input is missing, or the function did not return one score per image.
        """
        available = {"logits": single(logits), "output": output, **inputs}
        missing = [name for name in self.signature.asks if name not in available]
        if missing:
            raise CamkitError(f"The target '{self.name}' needs the input '{missing[0]}', which was not given.")
        scores = self.function(*(available[name] for name in self.signature.asks))
        if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
            raise CamkitError(
                f"The target '{self.name}' returned {in_words(scores)}, "
                f"but one score per image is expected: [{len(logits)}]."
            )
        return scores


@dataclass(frozen=True)
class Rank:
    """A class chosen by its place in an image's own ranking: 0 is the top class, -1 the last."""

    place: int

    def __str__(self) -> str:
        return {0: "top", -1: "last"}.get(self.place, f"rank {self.place + 1}")


@dataclass(frozen=True)
class Target:
    """What to explain: a target function by name, the class it is about, and its other inputs.

    `class_index` is one class for all images, a tensor [B] with one for each, or a `Rank`. A negative number means the
    top class. `label` is how files and pictures name it.
    """

    function: str = "class"
    class_index: int | Tensor | Rank = Rank(0)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    label: str = "top"

    def resolve(self, logits: Tensor) -> Tensor:
        """The class index of each image, int64 [B].

        Raises:
            CamkitError: an index is as large as the number of classes, or there is not one for each image.
        """
        batch, classes = logits.shape
        if isinstance(self.class_index, Rank):
            if self.class_index.place >= classes:
                raise CamkitError(f"The target '{self.label}' asks for more classes than the model has ({classes}).")
            return logits.detach().argsort(dim=1, descending=True, stable=True)[:, self.class_index.place]
        index = torch.as_tensor(self.class_index, device=logits.device)
        if index.is_floating_point() or index.ndim > 1 or (index.ndim == 1 and len(index) != batch):
            raise CamkitError(
                f"Class indices were given as a {index.dtype} tensor of shape {list(index.shape)}; "
                f"one whole number, or one for each of the {batch} images, is expected."
            )
        if int(index.max()) >= classes:
            raise CamkitError(_too_large(int(index.max()), classes))
        return resolve_top(index.long().expand(batch), logits)


def resolve_top(class_index: Tensor, logits: Tensor) -> Tensor:
    """Class indices [B] with every negative number replaced by the image's top class; traceable."""
    return torch.where(class_index < 0, logits.detach().argmax(dim=1), class_index)


def parse_targets(given: Any, class_names: Sequence[str] | None, functions: Sequence[str]) -> tuple[list[Target], bool]:
    """Targets from what a user wrote, and whether several were asked for (then a list of Explanations is returned).

    Accepted are ``"top"``, ``"top-3"``, ``"last"``, a class index, a class name, ``"function:class"`` such as
    ``"counterfactual:top"``, a tensor [B] of class indices, a `Target`, and lists of these.

    Raises:
        CamkitError: a class or target function is not known; the nearest names are suggested.
    """
    if isinstance(given, list | tuple):
        if not given:
            raise CamkitError("No target was given; 'top' explains the top class.")
        return [target for one in given for target in parse_targets(one, class_names, functions)[0]], True
    if isinstance(given, Target):
        return [given], False
    if isinstance(given, Tensor):
        return [Target(class_index=given, label="given")], False
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise CamkitError(
            f"A target was given as {given!r}; a class index, a class name, 'top', 'top-3' or 'last' is expected."
        )
    if isinstance(given, int):
        return [_numbered(given, class_names)], False
    return _parse_text(given.strip(), class_names, functions)


def class_label(index: int, class_names: Sequence[str] | None) -> str:
    """The class's name where it is known, else its number; ``top`` for a negative index."""
    if index < 0:
        return "top"
    return class_names[index] if class_names and index < len(class_names) else str(index)


def _numbered(index: int, class_names: Sequence[str] | None) -> Target:
    if class_names and index >= len(class_names):
        raise CamkitError(_too_large(index, len(class_names)))
    return Target(class_index=index, label=class_label(index, class_names))


def _too_large(index: int, classes: int) -> str:
    return f"Class {index} was asked for, but the model has {classes} classes: 0 to {classes - 1}."


def _parse_text(text: str, class_names: Sequence[str] | None, functions: Sequence[str]) -> tuple[list[Target], bool]:
    names = list(class_names or ())
    if ":" in text and text not in names:
        # a function may itself be written distribution:name
        named = [name for name in functions if text.startswith(f"{name}:")]
        if not named:
            raise unknown("target function", text.partition(":")[0], functions)
        function = max(named, key=len)
        targets, many = _parse_text(text.removeprefix(f"{function}:"), class_names, functions)
        return [Target(function, t.class_index, t.inputs, f"{function} {t.label}") for t in targets], many
    if text in ("top", "last"):
        return [Target(class_index=Rank(0 if text == "top" else -1), label=text)], False
    if match := re.fullmatch(r"top-([1-9]\d*)", text):
        places = range(int(match[1]))
        if names and len(places) > len(names):
            raise CamkitError(f"The target '{text}' asks for more classes than the model has ({len(names)}).")
        return [Target(class_index=Rank(place), label=f"top {place + 1}") for place in places], True
    if re.fullmatch(r"-?\d+", text):
        return [_numbered(int(text), class_names)], False
    for index, name in enumerate(names):
        # ImageNet's names are lists of synonyms, "tabby, tabby cat"
        if text.lower() in (name.lower(), *(synonym.strip().lower() for synonym in name.split(","))):
            return [Target(class_index=index, label=name)], False
    hint = (
        "give its number."
        if names
        else "the model's class names are not known, give the class's number or a labels file."
    )
    raise unknown("class", text, [synonym.strip() for name in names for synonym in name.split(",")], hint)
