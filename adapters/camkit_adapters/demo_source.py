"""``demo:resnet``, ``demo:vgg``, ``demo:vit``, and ``demo:shortcut``, which cheats: small models of digit scenes."""

from collections.abc import Sequence

from camkit import plugin
from camkit.errors import CamkitError, unknown
from camkit.models import BuiltModel
from camkit.preprocessing import Preprocessing


@plugin.model_source("demo")
class DemoSource:
    """Builds the demo models; see `camkit.models.ModelSource`."""

    def names(self) -> Sequence[str]:
        """The four models."""
        from camkit_adapters.demo.models import MODELS

        return tuple(MODELS)

    def build(self, name: str, *, pretrained: bool, num_classes: int | None) -> BuiltModel:
        """The model of that name; a scene shows several digits, so each has a probability of its own."""
        from camkit_adapters.demo import models, scenes

        if name not in models.MODELS:
            raise unknown("demo model", name, models.MODELS)
        if num_classes not in (None, len(scenes.CLASS_NAMES)):
            raise CamkitError(f"'demo:{name}' has {len(scenes.CLASS_NAMES)} classes, not {num_classes}.")
        side = (scenes.SIDE, scenes.SIDE)
        preprocessing = Preprocessing(size=side, resize=side, mean=scenes.MEAN, std=scenes.STD)
        module = models.load(name) if pretrained else models.build(name)
        return BuiltModel(module.eval(), preprocessing, tuple(scenes.CLASS_NAMES), "sigmoid")
