"""``torchvision:NAME``: torchvision's image classifiers with the transforms and categories of their default weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from camkit import plugin
from camkit.checkpoint import fit, load_into
from camkit.errors import CamkitError, unknown
from camkit.models import BuiltModel
from camkit.preprocessing import Preprocessing
from camkit_adapters.download import downloading

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


@plugin.model_source("torchvision")
class TorchvisionSource:
    """Builds torchvision's classifiers; see `camkit.models.ModelSource`."""

    def names(self) -> Sequence[str]:
        """The classifiers of `torchvision.models`, not those for detection, segmentation or video."""
        import torchvision

        return [str(name) for name in torchvision.models.list_models(module=torchvision.models)]

    def build(self, name: str, *, pretrained: bool, num_classes: int | None) -> BuiltModel:
        """The classifier of that name, with the preprocessing of its default weights."""
        import torchvision

        if name not in self.names():
            raise unknown("torchvision model", name, self.names())
        weights = torchvision.models.get_model_weights(name).DEFAULT
        categories = tuple(weights.meta["categories"])
        if pretrained and num_classes not in (None, len(categories)):
            raise CamkitError(f"The default weights of 'torchvision:{name}' have {len(categories)} classes.")
        module = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes or len(categories), **_arguments(name, weights)
        )
        if pretrained:
            with downloading(f"torchvision:{name}"):
                tensors = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
            load_into(module, fit(tensors, module))
        known = num_classes in (None, len(categories))
        return BuiltModel(module.eval(), _preprocessing(weights), categories if known else None)


def _arguments(name: str, weights: "WeightsEnum") -> dict[str, Any]:
    """What torchvision's builders set only where they load the weights themselves."""
    height, width = weights.meta["min_size"]
    if name in ("googlenet", "inception_v3"):
        # The auxiliary heads serve training; their own initialisation takes a minute.
        return {"aux_logits": False, "init_weights": False, "transform_input": True}
    if name.startswith("vit_"):
        return {"image_size": height}
    if name.startswith("maxvit"):
        return {"input_size": (height, width)}
    return {}


def _preprocessing(weights: "WeightsEnum") -> Preprocessing:
    preset = weights.transforms()
    side = preset.crop_size[0]
    return Preprocessing(
        size=(side, side),
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
