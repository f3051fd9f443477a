"""Checkpoints: weights read from a file without running anything in it, and fitted to the names of a model."""

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from camkit.errors import CamkitError

# Where training scripts keep the weights in what they save, beside the optimizer and the epoch; the first one counts.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "state_dict_ema", "model_ema")
COUNTER = "num_batches_tracked"


def load_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """The named tensors in a file, on the CPU, under the names that they have there.

    The file is safetensors (by its suffix) or what `torch.save` wrote. Only tensors and plain containers are read:
    a pickle that asks for anything else is refused and nothing in it runs.

    Raises:
        CamkitError: there is no such file, it is no checkpoint, it is damaged, or it holds more than plain weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CamkitError(f"There is no checkpoint file '{path}'.")
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)
    tensors = _unwrap(content)
    if not tensors:
        raise CamkitError(f"The file '{path}' holds no weights by name (a state_dict).")
    return tensors


@dataclass(frozen=True)
class Fit:
    """A checkpoint under the names of a model.

    Attributes:
        tensors: by the model's names, complete but for counters of batches.
        classes: the number of classes of the checkpoint where only that differs from the model's, else None.
    """

    tensors: Mapping[str, Tensor]
    classes: int | None


def fit(
    checkpoint: Mapping[str, Tensor], module: nn.Module, *, file: str = "checkpoint", model: str = "the model"
) -> Fit:
    """Finds a model's tensors in a checkpoint, whatever prefix they have there (``module.``, ``model.``, ...).

    Beside the prefixed tensors others may stand (losses and metrics of a training framework); among them only
    auxiliary heads, which serve training alone.

    Args:
        checkpoint: tensors by name.
        module: the model, with its own number of classes.
        file: how messages name the checkpoint.
        model: how messages name the model.

    Raises:
        CamkitError: the checkpoint is one of another architecture; a tensor or two that show it are named.
    """
    expected = module.state_dict()
    renamed, missing, surplus = _under_the_names_of(expected, checkpoint)
    different = [name for name, tensor in renamed.items() if tensor.shape != expected[name].shape]
    classes = _other_class_count(different, renamed, expected)
    complaint = ""
    if missing:
        complaint = f"it has no {_listed(missing)}"
    elif different and classes is None:
        shapes = f"{list(renamed[different[0]].shape)} where the model has {list(expected[different[0]].shape)}"
        complaint = f"its '{different[0]}' is {shapes}{_and_more(len(different) - 1)}"
    elif surplus:
        complaint = f"the model has no {_listed(surplus)}"
    if complaint:
        raise CamkitError(f"The {file} is not one of {model}: {complaint}.")
    return Fit(renamed, classes)


def load_into(module: nn.Module, fitted: Fit) -> None:
    """Copies a checkpoint that fits into a model, in place; every tensor must find its place.

    Raises:
        CamkitError: a tensor has another shape than the model's.
    """
    own = module.state_dict()
    counters = {name: tensor for name, tensor in own.items() if name.endswith(COUNTER)}
    for name, tensor in fitted.tensors.items():
        if own[name].shape != tensor.shape:
            shapes = f"{list(tensor.shape)} where the model has {list(own[name].shape)}"
            raise CamkitError(f"The checkpoint does not fit the model: its '{name}' is {shapes}.")
    module.load_state_dict({**counters, **fitted.tensors}, strict=True)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        tensors: Mapping[str, Any] = load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise CamkitError(f"The file '{path}' is not a safetensors file, or is damaged: {error}.") from error
    return tensors


def _read_torch(path: Path) -> Any:
    try:
        # Training scripts of timm and torchvision save their arguments along; a Namespace does nothing when made.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CamkitError(
            f"The checkpoint '{path}' is a pickle of more than plain weights, which could run any code; where you "
            "trust it, write it again with torch.save(model.state_dict(), FILE)."
        ) from error
    # What torch.load raises on a file that it does not know depends on the first bytes.
    except Exception as error:
        if "TorchScript" in str(error):
            raise CamkitError(
                f"'{path}' is a TorchScript file, not a checkpoint; write the weights with "
                "torch.save(model.state_dict(), FILE)."
            ) from error
        raise CamkitError(f"The file '{path}' is not a checkpoint, or is damaged.") from error


def _unwrap(content: Any) -> dict[str, Tensor]:
    inner = next((key for key in CONTAINERS if isinstance(content, Mapping) and _holds(content, key)), None)
    if inner is not None:
        return _unwrap(content[inner])
    if not isinstance(content, Mapping):
        return {}
    return {name: tensor for name, tensor in content.items() if isinstance(name, str) and isinstance(tensor, Tensor)}


def _holds(content: Mapping[Any, Any], key: str) -> bool:
    return isinstance(content.get(key), Mapping) and len(content[key]) > 0


def _under_the_names_of(
    expected: Mapping[str, Tensor], checkpoint: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The checkpoint's tensors by the model's names, the names that are missing, and those that are too many."""
    keys = {_key(name): name for name in checkpoint}
    needed = {_key(name): name for name in expected}
    prefix = _prefix(keys, [key for key, name in needed.items() if not name.endswith(COUNTER)])
    renamed = {name: checkpoint[keys[prefix + key]] for key, name in needed.items() if prefix + key in keys}
    missing = [name for name in expected if name not in renamed and not name.endswith(COUNTER)]
    surplus = [
        name.removeprefix(prefix)
        for key, name in keys.items()
        if key.startswith(prefix) and key.removeprefix(prefix) not in needed and not _dispensable(key, prefix)
    ]
    return renamed, missing, surplus


def _key(name: str) -> str:
    # torch.compile puts its wrapper's name wherever a compiled module stands; published DenseNets are older than the
    # rule that a module's name has no dot, and say norm.1 where the model says norm1.
    return re.sub(r"(?<=[a-z])\.(?=\d+\.)", "", name.replace("_orig_mod.", ""))


def _prefix(keys: Mapping[str, str], needed: list[str]) -> str:
    """The prefix under which most of the needed keys are found; of several such the shortest."""
    if not needed:
        return ""
    samples = (needed[0], needed[-1], max(needed, key=len))
    candidates = {""} | {key.removesuffix(end) for end in samples for key in keys if key.endswith(end)}
    return min(candidates, key=lambda prefix: (-sum(prefix + key in keys for key in needed), len(prefix), prefix))


def _dispensable(key: str, prefix: str) -> bool:
    return key.endswith(COUNTER) or key.removeprefix(prefix).lower().startswith("aux")


def _other_class_count(different: list[str], found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> int | None:
    """The checkpoint's number of classes, if nothing but the first dimension of some tensors differs, by one pair."""
    pairs = set()
    for name in different:
        here, there = found[name].shape, expected[name].shape
        if not here or not there or here[1:] != there[1:]:
            return None
        pairs.add((here[0], there[0]))
    return pairs.pop()[0] if len(pairs) == 1 else None


def _listed(names: list[str]) -> str:
    return " and ".join(f"'{name}'" for name in names[:2]) + _and_more(len(names) - 2)


def _and_more(count: int) -> str:
    return f" (and {count} more)" if count > 0 else ""
