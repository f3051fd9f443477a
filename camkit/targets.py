"""Targets: what is explained, as a function from the model's output to one score per image, and how a user names it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camkit import plugin
from camkit.cut import Forward, no_logits
from camkit.errors import CamkitError, suggestion, unknown
from camkit.injection import Signature, in_words, parse_signature
from camkit.precision import single

if TYPE_CHECKING:
    from camkit.registry import Registry

# What a target function can ask for beside its own inputs: the logits [B, classes], their probabilities (softmax or
# sigmoid, as the model has it), the features [B, D] (the logits, or a model's embedding as one vector per image), the
# logits of every pixel [B, classes, h, w], and the model's output as it is.
OUTPUT_TYPES: dict[str, object] = {
    "logits": Tensor,
    "features": Tensor,
    "probabilities": Tensor,
    "dense_logits": Tensor,
    "output": Any,
}


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

    @classmethod
    def wrap(cls, function: Callable[[Any], Tensor]) -> "TargetFunction":
        """Any callable from the model's output to one score [B] per image."""
        name = getattr(function, "__name__", type(function).__name__)
        nothing = parse_signature(lambda: None, f"the target '{name}'", {})
        return cls(name, function, Signature(nothing.owner, ("output",), nothing.options_model), ())

    def scores(self, available: Mapping[str, Any], batch: int, options: Mapping[str, Any]) -> Tensor:
        """One score [B] per image.

        Raises:
            CamkitError: an input is missing, or the function did not return one score per image.
        """
        missing = [name for name in self.signature.asks if name not in available]
        if missing:
            raise CamkitError(f"The target '{self.name}' needs the input '{missing[0]}', which was not given.")
        scores = self.function(*(available[name] for name in self.signature.asks), **options)
        if not isinstance(scores, Tensor) or scores.ndim != 1 or scores.shape[0] != batch:
            raise CamkitError(
                f"The target '{self.name}' returned {in_words(scores)}, but one score per image is expected: [{batch}]."
            )
        return scores


@dataclass(frozen=True)
class Question:
    """What is asked of a forward pass: the scores of one target, for a batch of images whose classes are known.

    Attributes:
        function: the target function.
        class_index: the class of each image, int64 [B].
        inputs: the function's other inputs, [B, ...] each.
        options: the function's options.
        probability: ``softmax`` or ``sigmoid``: how the model's logits become probabilities.
    """

    function: TargetFunction
    class_index: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    probability: str = "softmax"

    def scores(self, forward: Forward, logits: Tensor | None = None) -> Tensor:
        """The scores [B]; from `logits` where they are given in place of the forward pass's own.

        Raises:
            CamkitError: the model's output is not what the target function needs.
        """
        asks = self.function.signature.asks
        logits = single(forward.logits if logits is None else logits)
        if {"logits", "probabilities"} & set(asks) and logits.shape[1] == 0:
            raise no_scores(forward)
        if "dense_logits" in asks and forward.dense_logits is None:
            raise CamkitError(
                f"The target '{self.function.name}' needs logits for every pixel, [batch, classes, height, width], "
                f"which this model does not give."
            )
        available: dict[str, Any] = {**self.inputs, "class_index": self.class_index, "output": forward.output}
        available |= {"logits": logits}
        if "features" in asks:
            available["features"] = logits if logits.shape[1] else single(forward.features)
        if forward.dense_logits is not None:
            # a sum over an image's pixels overflows in half precision
            available["dense_logits"] = single(forward.dense_logits)
        if "probabilities" in asks:
            available["probabilities"] = probabilities(logits, self.probability)
        # not len(): in a traced graph the number of images stays open
        return self.function.scores(available, self.class_index.shape[0], self.options)

    def logit_gradient(self, forward: Forward) -> Tensor:
        """The gradient of the scores with respect to the logits, [B, classes], without the head."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = forward.logits.detach().requires_grad_()
            return torch.autograd.grad(self.scores(forward, leaf).sum(), leaf)[0]

    def repeated(self, times: int) -> "Question":
        """The same question about `times` copies of the batch, one copy after the other."""
        inputs = {name: value.repeat(times, *[1] * (value.ndim - 1)) for name, value in self.inputs.items()}
        return replace(self, class_index=self.class_index.repeat(times), inputs=inputs)


def no_scores(forward: Forward) -> CamkitError:
    """The error for a class that was asked of a model without class scores."""
    if forward.reader.classes:
        return no_logits(forward.output)
    from camkit.registry import registry

    functions: list[TargetFunction] = registry().values("target")
    fit = [one.name for one in functions if "features" in one.signature.asks]
    return CamkitError(
        f"The model gives an embedding [batch, {forward.features.shape[1]}] and no class scores; choose a target that "
        f"needs none: {' or '.join(fit)}."
    )


def probabilities(logits: Tensor, kind: str) -> Tensor:
    """Probabilities [B, classes] of logits: ``softmax``, or ``sigmoid``, which a single logit always has."""
    return logits.sigmoid() if kind == "sigmoid" or logits.shape[1] == 1 else logits.softmax(dim=1)


@dataclass(frozen=True)
class Rank:
    """A class chosen by its place in an image's own ranking: 0 is the top class, -1 the last."""

    place: int

    def __str__(self) -> str:
        return {0: "top", -1: "last"}.get(self.place, f"rank {self.place + 1}")


@dataclass(frozen=True)
class Target:
    """What to explain: a target function, the class it is about, and its other inputs.

    `function` is the name of a target function, or any callable from the model's output to one score [B] per image.
    `class_index` is one class for all images, a tensor [B] with one for each, or a `Rank`. A negative number means the
    top class. `inputs` are tensors [B, ...], or [1, ...] for all images. `label` is how files and pictures name it.
    """

    function: str | Callable[[Any], Tensor] = "class"
    class_index: int | Tensor | Rank = Rank(0)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    label: str = "top"

    @property
    def name(self) -> str:
        """The name of the target function."""
        return self.function if isinstance(self.function, str) else TargetFunction.wrap(self.function).name

    def question(self, forward: Forward, options: Mapping[str, Any], probability: str) -> Question:
        """The target as a question to a forward pass: its classes resolved, its inputs one for each image.

        Raises:
            CamkitError: the function is not known, an option or an input is wrong, or the top class is asked of a
                model without logits.
        """
        from camkit.registry import registry

        function: TargetFunction = (
            registry().get("target", self.function)
            if isinstance(self.function, str)
            else TargetFunction.wrap(self.function)
        )
        batch, device = len(forward.images), forward.images.device
        if forward.logits.shape[1] > 0:
            class_index = self.resolve(forward.logits)
        elif "class_index" in function.inputs:
            class_index = self._given(batch, device, no_scores(forward))
        else:
            class_index = torch.zeros(batch, dtype=torch.int64, device=device)
        known = [name for name in function.inputs if name != "class_index"]
        for name in self.inputs:
            if name not in known:
                ending = suggestion(name, known) if known else "it takes none."
                raise CamkitError(f"The target '{function.name}' has no input '{name}'; {ending}")
        inputs = {name: _batched(name, value, batch).to(device) for name, value in self.inputs.items()}
        for name, value in inputs.items():
            _check_classes(name, value, forward.logits.shape[1])
        return Question(function, class_index, inputs, function.signature.options(options), probability)

    def _given(self, batch: int, device: torch.device, otherwise: CamkitError) -> Tensor:
        if isinstance(self.class_index, Rank) or bool((torch.as_tensor(self.class_index) < 0).any()):
            raise otherwise
        return self._index(batch, device).expand(batch)

    def _index(self, batch: int, device: torch.device) -> Tensor:
        index = torch.as_tensor(self.class_index, device=device)
        if index.is_floating_point() or index.ndim > 1 or (index.ndim == 1 and len(index) != batch):
            raise CamkitError(
                f"Class indices were given as a {index.dtype} tensor of shape {list(index.shape)}; "
                f"one whole number, or one for each of the {batch} images, is expected."
            )
        return index.long()

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
        index = self._index(batch, logits.device)
        if int(index.max()) >= classes:
            raise CamkitError(_too_large(int(index.max()), classes))
        return resolve_top(index.expand(batch), logits)


def _batched(name: str, value: Tensor, batch: int) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) not in (1, batch):
        given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise CamkitError(
            f"The target's input '{name}' was given as {given}; a tensor with one entry for each of the {batch} images "
            f"is expected."
        )
    # what was made in inference mode cannot be part of a graph; its copy can
    value = value.clone() if value.is_inference() else value.detach()
    return value.expand(batch, *value.shape[1:])


def _check_classes(name: str, value: Tensor, classes: int) -> None:
    """Whole numbers are taken as classes, as in exported graphs."""
    if value.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64) or classes == 0:
        return
    lowest, highest = int(value.min()), int(value.max())
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise CamkitError(f"The target's input '{name}' holds classes, from 0 to {classes - 1}, not {wrong}.")


def resolve_top(class_index: Tensor, logits: Tensor) -> Tensor:
    """Class indices [B] with every negative number replaced by the image's top class; traceable."""
    return torch.where(class_index < 0, logits.detach().argmax(dim=1), class_index)


def parse_targets(given: Any, class_names: Sequence[str] | None, functions: Sequence[str]) -> tuple[list[Target], bool]:
    """Targets from what a user wrote, and whether several were asked for (then a list of Explanations is returned).

    Accepted are ``"top"``, ``"top-3"``, ``"last"``, a class index, a class name, ``"function:class"`` such as
    ``"counterfactual:top"``, a function alone (of the top class, where it is of a class), a tensor [B] of class
    indices, a callable from the model's output to scores [B], a `Target`, and lists of these.

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
    if callable(given):
        own = Target(given)
        return [replace(own, label=own.name)], False
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
    if text in functions and text not in names:
        return [Target(text, label=text)], False
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
