"""Models by name: a SPEC such as ``torchvision:resnet50`` becomes a model with its preprocessing and class names."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

from camkit.checkpoint import fit, load_checkpoint, load_into
from camkit.errors import CamkitError, first_line, suggestion, unknown
from camkit.images import read_image
from camkit.labels import read_labels
from camkit.preprocessing import Preprocessing
from camkit.registry import registry

Probability = Literal["softmax", "sigmoid"]
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class BuiltModel:
    """What a model source returns.

    Attributes:
        module: the model, which maps images [B, C, H, W] to its output; in evaluation mode.
        preprocessing: how its images are made.
        class_names: in the order of its outputs; None where they are unknown.
        probability: how its logits become probabilities; None leaves that to the model's adapter.
    """

    module: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    probability: Probability | None = None


@dataclass(frozen=True)
class Representative:
    """A model that stands for its family where adapters are measured.

    Attributes:
        name: as in a SPEC, after the colon.
        family: what it stands for, such as ``resnet.ResNet``.
        make: builds it with random weights, of a size that is quick to run.
        shorten: builds it with fewer equal blocks, where exporting all of them would take long.
        shortened: how, in words.
    """

    name: str
    family: str
    make: Callable[[], BuiltModel]
    shorten: Callable[[], BuiltModel] | None = None
    shortened: str = ""


@runtime_checkable
class Zoo(Protocol):
    """A model source whose adapters can be measured family by family: a `ModelSource` may have this, too."""

    def representatives(self) -> Sequence[Representative]:
        """At least one model of each family."""


@runtime_checkable
class ModelSource(Protocol):
    """What stands before the colon of a SPEC: a class marked with `plugin.model_source`, made without arguments."""

    def names(self) -> Sequence[str]:
        """The names that `build` knows, for suggestions; empty where they cannot be listed."""

    def build(self, name: str, *, pretrained: bool, num_classes: int | None) -> BuiltModel:
        """The model of that name.

        Args:
            name: the part of the SPEC after the colon.
            pretrained: whether to load the model's default weights, else its initial ones. The class names are those
                of the default weights in both cases.
            num_classes: the number of classes where it differs from the default, else None; class names are then
                unknown.

        Raises:
            CamkitError: there is no such model, or it cannot be built that way.
        """


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be explained, and what belongs to it.

    Attributes:
        spec: what it was asked for by, ``source:name``.
        module: in evaluation mode, on its device, in its dtype.
        preprocessing: how its images are made.
        class_names: in the order of its outputs; None where they are unknown.
        probability: how its logits become probabilities; None leaves that to the model's adapter.
        weights: ``default``, ``none``, or the name of the checkpoint's file, without folders.
    """

    spec: str
    module: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    probability: Probability | None = None
    weights: str = "default"

    def read(self, paths: Path | str | Iterable[Path | str]) -> tuple[Tensor, list[Image.Image]]:
        """Image files as one batch [B, C, H, W], on the model's device and in its dtype, and its view of each.

        Raises:
            CamkitError: there is no path, or a file cannot be read as an image.
        """
        listed = [paths] if isinstance(paths, str | Path) else list(paths)
        if not listed:
            raise CamkitError("There is no image to read.")
        pictures = [read_image(path) for path in listed]
        batch = torch.stack([self.preprocessing(picture) for picture in pictures])
        parameter = next(self.module.parameters(), batch)
        dtype = parameter.dtype if parameter.is_floating_point() else batch.dtype
        return batch.to(parameter.device, dtype), [self.preprocessing.view(picture) for picture in pictures]


def load_model(
    spec: str,
    *,
    weights: str | Path = "default",
    labels: Path | str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
) -> LoadedModel:
    """The model that a SPEC names, with weights, preprocessing and class names, ready to be explained.

    Args:
        spec: ``source:name``, such as ``torchvision:resnet50``, ``timm:vit_tiny_patch16_224`` or ``demo:vit``.
        weights: ``default``, ``none`` (the initial ones), or a checkpoint file: its number of classes is read off it.
            Where that is the default number, the default class names are kept.
        labels: file of class names; see `camkit.labels.read_labels`.
        mean: overrides the model's own, of pixel values in [0, 1]; likewise `std`.
        std: see `mean`.
        size: overrides the input size, in pixels: (height, width) or one side of a square.
        num_classes: the number of classes where it is not the default one.
        device: where the model goes, as PyTorch names it.
        dtype: float32, float64, float16 or bfloat16.

    Raises:
        CamkitError: anything that is asked for does not exist or does not fit; the sentence says what.
    """
    source, name = _source(spec)
    checkpoint = None if str(weights) in ("default", "none") else load_checkpoint(weights)
    target, kind = _device(device), _dtype(dtype)

    built = _build(source, spec, name, pretrained=str(weights) == "default", num_classes=num_classes)
    used = "none" if str(weights) == "none" else "default"
    if checkpoint is not None:
        used = Path(weights).name
        fitted = fit(checkpoint, built.module, file=f"checkpoint '{used}'", model=f"'{spec}'")
        if fitted.classes is not None:
            if num_classes is not None:
                raise CamkitError(f"The checkpoint '{used}' has {fitted.classes} classes, not {num_classes}.")
            built = _build(source, spec, name, pretrained=False, num_classes=fitted.classes)
        load_into(built.module, fitted)

    preprocessing = built.preprocessing.with_overrides(mean, std, size)
    module = built.module.eval()
    class_names = built.class_names
    if size is not None or labels is not None:
        classes = _classes(module, preprocessing, spec)
        class_names = class_names if labels is None else _labels(labels, classes, spec)
    return LoadedModel(spec, module.to(target, kind), preprocessing, class_names, built.probability, used)


def _source(spec: str) -> tuple[ModelSource, str]:
    """The source that a SPEC names, and the model's name."""
    known = [name for item in registry().items("model_source") for name in (item.name, item.qualified)]
    named = [name for name in known if spec.startswith(f"{name}:")]
    # A source may itself be written distribution:source.
    source_name = max(named, key=len) if named else spec.partition(":")[0]
    name = spec.removeprefix(source_name).removeprefix(":")
    if ":" not in spec or not name or not source_name:
        raise _malformed(spec)
    source = registry().get("model_source", source_name)()
    if not isinstance(source, ModelSource):
        raise CamkitError(f"The model source '{source_name}' lacks the method names or build.")
    return source, name


def _malformed(spec: str) -> CamkitError:
    known = []
    for source in registry().names("model_source"):
        with suppress(CamkitError):
            known += [f"{source}:{name}" for name in registry().get("model_source", source)().names()]
    exact = [candidate for candidate in known if candidate.endswith(f":{spec}")]
    hint = suggestion(spec, exact or known) or f"sources are {', '.join(registry().names('model_source'))}."
    return CamkitError(f"The model '{spec}' is not written as source:name; {hint}")


def _build(source: ModelSource, spec: str, name: str, *, pretrained: bool, num_classes: int | None) -> BuiltModel:
    if num_classes is not None and num_classes < 1:
        raise CamkitError(f"A model cannot have {num_classes} classes.")
    built = source.build(name, pretrained=pretrained, num_classes=num_classes)
    if not isinstance(built, BuiltModel):
        raise CamkitError(f"The source of '{spec}' returned {type(built).__name__}, not BuiltModel.")
    return built


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    # An unknown name raises RuntimeError, a device that torch was not built for AssertionError or others.
    except Exception as error:
        raise CamkitError(f"The device '{device}' cannot be used: {first_line(error)}") from error
    return found


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name]


def _classes(module: nn.Module, preprocessing: Preprocessing, spec: str) -> int | None:
    """The number of classes that the model gives for an image of its size; None where its output is not [B, C]."""
    height, width = preprocessing.size
    try:
        with torch.inference_mode():
            output = module(torch.zeros(1, preprocessing.channels, height, width))
    # What a model raises on an image that is too small or of another size is its own.
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CamkitError(f"'{spec}' does not take images of {height}x{width} pixels ({reason}).") from error
    return output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 else None


def _labels(path: Path | str, classes: int | None, spec: str) -> tuple[str, ...]:
    names = read_labels(path)
    if classes is not None and len(names) != classes:
        raise CamkitError(f"The file '{path}' holds {len(names)} class names, but '{spec}' has {classes} classes.")
    return names
