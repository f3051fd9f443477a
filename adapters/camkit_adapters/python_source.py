"""``python:package.module:factory``: a model that the user's own function returns."""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from camkit import plugin
from camkit.errors import CamkitError, unknown
from camkit.models import BuiltModel, LoadedModel
from camkit.preprocessing import Preprocessing


@plugin.model_source("python")
class PythonSource:
    """Calls a function that returns an `nn.Module`, `BuiltModel` or `LoadedModel`; see `camkit.models.ModelSource`.

    The current directory is importable. The function is called without arguments, but for ``pretrained`` and
    ``num_classes`` where it has parameters of these names. A bare module gets timm's data configuration if it carries
    one, else ImageNet's customary one: shorter side 256, centre crop 224.
    """

    def names(self) -> Sequence[str]:
        """Empty: what a user's modules hold is not known before they are imported."""
        return ()

    def build(self, name: str, *, pretrained: bool, num_classes: int | None) -> BuiltModel:
        """The model that the function returns, in evaluation mode."""
        factory = _factory(name)
        made = _call(factory, name, pretrained=pretrained, num_classes=num_classes)
        if isinstance(made, LoadedModel):
            made = BuiltModel(made.module, made.preprocessing, made.class_names, made.probability)
        if isinstance(made, nn.Module):
            made = BuiltModel(made, _preprocessing(made))
        if not isinstance(made, BuiltModel):
            raise CamkitError(
                f"'python:{name}' returned {type(made).__name__}; it must return a torch.nn.Module or a BuiltModel."
            )
        made.module.eval()
        return made


def _factory(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    parts = [*module_name.split("."), function_name]
    if not all(part.isidentifier() for part in parts):
        raise CamkitError(f"'python:{name}' is not written as python:package.module:function.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    # A user's module may raise anything while it is imported.
    except Exception as error:
        raise CamkitError(f"The module '{module_name}' cannot be imported ({_reason(error)}).") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"function in '{module_name}' named", function_name, public)
    return function  # type: ignore[no-any-return]


def _call(factory: Callable[..., Any], name: str, *, pretrained: bool, num_classes: int | None) -> Any:
    parameters = inspect.signature(factory).parameters
    arguments: dict[str, Any] = {"pretrained": pretrained} if "pretrained" in parameters else {}
    if num_classes is not None:
        if "num_classes" not in parameters:
            raise CamkitError(
                f"'python:{name}' cannot be built with {num_classes} classes: it has no parameter 'num_classes'."
            )
        arguments["num_classes"] = num_classes
    try:
        return factory(**arguments)
    except CamkitError:
        raise
    # So may their function.
    except Exception as error:
        raise CamkitError(f"'python:{name}' failed ({_reason(error)}).") from error


def _preprocessing(module: nn.Module) -> Preprocessing:
    config = getattr(module, "pretrained_cfg", None)
    if config is not None:
        from camkit_adapters.timm_source import preprocessing_of

        return preprocessing_of(config)
    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is not None and first.in_channels == 1:
        return Preprocessing(size=(224, 224), resize=256, mean=(0.5,), std=(0.5,), channels=1)
    return Preprocessing(size=(224, 224), resize=256)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
