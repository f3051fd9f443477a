"""``torchvision:NAME``: torchvision's image classifiers with the transforms and categories of their default weights."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, get_type_hints

from camkit import plugin
from camkit.checkpoint import fit, load_into
from camkit.errors import CamkitError, unknown
from camkit.models import BuiltModel, Representative
from camkit.preprocessing import Preprocessing
from camkit_adapters.download import downloading

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


CLASSES = 37


@plugin.model_source("torchvision")
class TorchvisionSource:
    """Builds torchvision's classifiers; see `camkit.models.ModelSource`."""

    def names(self) -> Sequence[str]:
        """The classifiers of `torchvision.models`, not those for detection, segmentation or video."""
        import torchvision

        return [str(name) for name in torchvision.models.list_models(module=torchvision.models)]

    def representatives(self) -> Sequence[Representative]:
        """Every classifier, at a size that is quick to run."""
        return [Representative(name, _family(name), partial(_represent, name)) for name in self.names()]

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


def _family(name: str) -> str:
    """The class that a builder returns, as its annotation says."""
    import torchvision

    return str(get_type_hints(torchvision.models.get_model_builder(name))["return"].__name__)


def _represent(name: str) -> BuiltModel:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    # MaxViT's windows fit no smaller image, Inception's stem leaves little of one
    side = {"maxvit_t": 224, "inception_v3": 192, "vit_h_14": 126}.get(name, 128)
    arguments = {**_arguments(name, weights), **({"image_size": side} if name.startswith("vit_") else {})}
    module = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **arguments)
    return BuiltModel(module.eval(), _preprocessing(weights).with_overrides(None, None, (side, side)))


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
