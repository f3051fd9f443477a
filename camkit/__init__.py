"""camkit explains what an image model looked at: class activation maps as plugins, exported as graphs.

Names are imported when they are first used, so that ``import camkit`` needs neither torch nor pluggy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from camkit.errors import CamkitError, CamkitWarning
from camkit.version import __version__

if TYPE_CHECKING:
    from camkit import plugin
    from camkit.adapter import Adapter
    from camkit.attacks import AttackResult, attack
    from camkit.evaluate import Measurement, Sample, measure
    from camkit.explain import Explainer
    from camkit.explanation import Explanation
    from camkit.exports import ExportReport, export
    from camkit.models import LoadedModel, load_model
    from camkit.serving import load
    from camkit.targets import Target

_HOMES = {
    "Adapter": "camkit.adapter",
    "AttackResult": "camkit.attacks",
    "attack": "camkit.attacks",
    "Measurement": "camkit.evaluate",
    "Sample": "camkit.evaluate",
    "measure": "camkit.evaluate",
    "Explainer": "camkit.explain",
    "Explanation": "camkit.explanation",
    "ExportReport": "camkit.exports",
    "export": "camkit.exports",
    "LoadedModel": "camkit.models",
    "load_model": "camkit.models",
    "load": "camkit.serving",
    "Target": "camkit.targets",
}

__all__ = [
    "Adapter",
    "AttackResult",
    "CamkitError",
    "CamkitWarning",
    "Explainer",
    "Explanation",
    "ExportReport",
    "LoadedModel",
    "Measurement",
    "Sample",
    "Target",
    "__version__",
    "attack",
    "export",
    "load",
    "load_model",
    "measure",
    "plugin",
]


def __getattr__(name: str) -> Any:
    if name == "plugin":
        return import_module("camkit.plugin")
    if name not in _HOMES:
        raise AttributeError(f"module 'camkit' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
