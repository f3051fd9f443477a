"""``transformers:PATH-OR-NAME``: image classifiers of Hugging Face transformers, from a folder or from the hub."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from camkit import plugin
from camkit.checkpoint import COUNTER
from camkit.errors import CamkitError
from camkit.models import BuiltModel, Probability
from camkit_adapters.download import downloading
from camkit_adapters.transformers_preprocessing import PROCESSOR_FILES, holds, in_words, preprocessing_of

SECONDS_WITHOUT_ANSWER = 5.0
CONFIG_FILE = "config.json"
SAFE_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
OTHER_WEIGHTS = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json")


@plugin.model_source("transformers")
class TransformersSource:
    """Builds the image classifiers of Hugging Face transformers; see `camkit.models.ModelSource`.

    The name is a folder as `save_pretrained` writes it, or ``OWNER/NAME`` on the Hugging Face hub. Code that comes with
    a model is never run.
    """

    def names(self) -> Sequence[str]:
        """Empty: the hub has too many, and folders are not known."""
        return ()

    def build(self, name: str, *, pretrained: bool, num_classes: int | None) -> BuiltModel:
        """The classifier in that folder or of that name, with its own preprocessing and class names."""
        spec = f"transformers:{name}"
        _require_library(spec)
        folder = Path(name).expanduser()
        if not folder.is_dir():
            folder = _fetched(name, pretrained)
        with _quiet():
            config = _config(folder, spec)
            kind = _classifier(config, spec)
            default = config.num_labels
            if pretrained and num_classes not in (None, default):
                raise CamkitError(f"The default weights of '{spec}' have {default} classes.")
            if num_classes not in (None, default):
                config.num_labels = num_classes
            module = _trained(kind, config, folder, spec) if pretrained else _untrained(kind, config, spec)
            preprocessing = preprocessing_of(folder, config, spec)
        names = _class_names(config) if config.num_labels == default else None
        return BuiltModel(module.eval(), preprocessing, names, _probability(config))


def _require_library(spec: str) -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise CamkitError(
            f"The model '{spec}' needs the package transformers, which is not installed; run "
            f"pip install 'camkit[transformers]'."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, transformers reports errors alone: what else matters of its reports is an error of camkit."""
    from transformers.utils import logging

    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()


def _fetched(name: str, pretrained: bool) -> Path:
    """The folder with a copy of a model of the hub; what was fetched before serves where the hub does not answer.

    Raises:
        CamkitError: the hub has no such model, or does not answer.
    """
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import HFValidationError

    files = [CONFIG_FILE, *PROCESSOR_FILES, *(SAFE_WEIGHTS if pretrained else ())]
    with downloading(f"transformers:{name}"):
        try:
            # asked once, and not for most of a minute as the client does where it fetches files
            model_info(name, timeout=SECONDS_WITHOUT_ANSWER)
        except HFValidationError:
            raise CamkitError(
                f"There is no folder '{name}', and a model of the Hugging Face hub is written OWNER/NAME; give a "
                f"folder that save_pretrained wrote, or such a name."
            ) from None
        # The hub's client and the one below it have errors of their own.
        except Exception as error:
            with suppress(Exception):
                return Path(snapshot_download(name, allow_patterns=files, local_files_only=True))
            raise _not_had(name, error) from error
        folder = Path(snapshot_download(name, allow_patterns=files))
        if pretrained and not holds(folder, SAFE_WEIGHTS):
            snapshot_download(name, allow_patterns=[*OTHER_WEIGHTS])
        return folder


def _not_had(name: str, error: Exception) -> CamkitError:
    from huggingface_hub.errors import RepositoryNotFoundError

    why = in_words(error)
    if isinstance(error, RepositoryNotFoundError):
        why = "it has none, or only for those whom its owner lets in"
    return CamkitError(
        f"There is no folder '{name}', and no model of that name could be had from the Hugging Face hub ({why}); check "
        f"the name and the connection, or give a folder that save_pretrained wrote."
    )


def _config(folder: Path, spec: str) -> Any:
    """The configuration in a folder.

    Raises:
        CamkitError: there is none, it cannot be read, or it is not one that transformers itself has the code for.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CamkitError(
            f"The model '{spec}' has no config.json; give a folder that save_pretrained wrote, or OWNER/NAME on the "
            f"Hugging Face hub."
        ) from None
    except (OSError, ValueError) as error:
        raise CamkitError(
            f"The config.json of '{spec}' is not JSON ({in_words(error)}); save the model again."
        ) from None
    if not isinstance(content, dict):
        raise CamkitError(f"The config.json of '{spec}' is not an object with a model_type; save the model again.")
    kind = content.get("model_type")
    if kind == "timm_wrapper" or (kind is None and "architecture" in content):
        architecture = content.get("architecture")
        raise CamkitError(
            f"The model '{spec}' is timm's {architecture}; give it as timm:hf-hub:OWNER/NAME, or as "
            f"timm:{architecture} with --weights FILE."
        )
    named = content.get("architectures")
    known = isinstance(named, list) and any(one in _names_of_classes(kind) for one in named)
    if content.get("auto_map") and not known:
        raise CamkitError(
            f"The model '{spec}' is built by code that comes with it (auto_map in its config.json), which camkit does "
            f"not run; build it in a function of your own and give python:MODULE:FUNCTION."
        )
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise CamkitError(
            f"The config.json of '{spec}' has the model_type {kind!r}, which this version of transformers does not "
            f"know; give an image classifier of transformers, or install a newer version."
        )
    try:
        return AutoConfig.from_pretrained(
            folder,
            trust_remote_code=False,
            local_files_only=True,
            # what a model may give beside its logits costs memory, or a hook in each of its layers
            return_dict=True,
            output_hidden_states=False,
            output_attentions=False,
        )
    # What a configuration raises on a value that it cannot use is its own.
    except Exception as error:
        raise CamkitError(f"The config.json of '{spec}' cannot be used ({in_words(error)}); correct it.") from error


def _names_of_classes(kind: object) -> tuple[str, ...]:
    """Names of the classes that transformers has for images of a model type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    names = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(kind, ()) if isinstance(kind, str) else ()
    return (names,) if isinstance(names, str) else tuple(names)


def _classifier(config: Any, spec: str) -> Any:
    """The class of image classifiers for a configuration: the one that it names, where there are several."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    try:
        kinds: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    except KeyError:
        raise CamkitError(
            f"The model '{spec}' is of type '{config.model_type}', for which transformers has no image classifier; "
            f"give one that AutoModelForImageClassification loads."
        ) from None
    kinds = kinds if isinstance(kinds, tuple | list) else (kinds,)
    named = [kind for kind in kinds if kind.__name__ in (config.architectures or ())]
    return [*named, *kinds][0]


def _untrained(kind: Any, config: Any, spec: str) -> nn.Module:
    try:
        return kind(config)  # type: ignore[no-any-return]
    # Likewise of a model, and some need packages of their own.
    except Exception as error:
        raise CamkitError(f"A {kind.__name__} cannot be built for '{spec}' ({in_words(error)}).") from error


def _trained(kind: Any, config: Any, folder: Path, spec: str) -> nn.Module:
    """The model with the weights in a folder, all of which must be there; a pickle may hold nothing but tensors."""
    import torch

    otherwise = "use --weights none for a model that is not trained, or --weights FILE for a checkpoint"
    if not holds(folder, (*SAFE_WEIGHTS, *OTHER_WEIGHTS)):
        raise CamkitError(f"The model '{spec}' has no weights (model.safetensors); {otherwise}.")
    try:
        module, found = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            weights_only=True,
            # where they differ they are told below, with their names
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    # What the readers of weights raise depends on the first bytes.
    except Exception as error:
        raise CamkitError(f"The weights of '{spec}' cannot be loaded ({in_words(error)}); {otherwise}.") from error
    missing = sorted(name for name in found["missing_keys"] if not name.endswith(COUNTER))
    different = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found["mismatched_keys"])
    if missing:
        raise CamkitError(
            f"The weights of '{spec}' have no {_listed(missing)}, without which this is no trained classifier; "
            f"{otherwise}."
        )
    if different:
        raise CamkitError(
            f"The weights of '{spec}' do not fit its config.json: {_listed(different)} has another shape; {otherwise}."
        )
    return module  # type: ignore[no-any-return]


def _listed(names: Sequence[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"'{names[0]}'{more}"


def _class_names(config: Any) -> tuple[str, ...] | None:
    """The labels in a configuration; None for those that transformers counts out where there are none."""
    labels = config.id2label or {}
    names = [str(labels.get(index, "")) for index in range(config.num_labels)]
    counted = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return None if counted or not all(names) else tuple(names)


def _probability(config: Any) -> Probability:
    several = config.problem_type == "multi_label_classification"
    return "sigmoid" if several or config.num_labels == 1 else "softmax"
