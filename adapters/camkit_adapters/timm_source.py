"""``timm:NAME``: models of timm with the data configuration and labels of their pretrained weights."""

import math
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from camkit import plugin
from camkit.errors import CamkitError, unknown
from camkit.models import BuiltModel, Representative
from camkit.preprocessing import Preprocessing
from camkit_adapters.download import downloading

HUB_PREFIX = "hf-hub:"
SECONDS_WITHOUT_ANSWER = 5.0
FAMILIES = Path(__file__).with_name("families") / "timm.toml"
CLASSES = 37
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@plugin.model_source("timm")
class TimmSource:
    """Builds timm's models, with or without the tag of their weights; see `camkit.models.ModelSource`.

    ``hf-hub:OWNER/NAME`` is a model of the Hugging Face hub that was written for timm.
    """

    def names(self) -> Sequence[str]:
        """Architectures, then the same with each tag of pretrained weights."""
        import timm

        return [*timm.list_models(), *timm.list_models(pretrained=True)]

    def representatives(self) -> Sequence[Representative]:
        """The smallest model of every class, as listed in ``families/timm.toml``."""
        listed = tomllib.loads(FAMILIES.read_text(encoding="utf-8"))
        return [_representative(family, **entry) for family, entry in listed.items()]

    def build(self, name: str, *, pretrained: bool, num_classes: int | None) -> BuiltModel:
        """The model of that name, with the preprocessing of its pretrained weights."""
        import timm

        on_hub = name.startswith(HUB_PREFIX)
        if not on_hub and name not in self.names():
            raise unknown("timm model", name, self.names())
        if pretrained or on_hub:
            with downloading(f"timm:{name}"):
                _require_hub(name)
                module = timm.create_model(name, pretrained=pretrained, num_classes=None if pretrained else num_classes)
        else:
            module = timm.create_model(name, pretrained=False, num_classes=num_classes)
        if pretrained and num_classes not in (None, module.num_classes):
            raise CamkitError(f"The default weights of 'timm:{name}' have {module.num_classes} classes.")
        config: Mapping[str, Any] = module.pretrained_cfg
        names = _class_names(config) if module.num_classes == config["num_classes"] else None
        return BuiltModel(module.eval(), preprocessing_of(config), names)


def _representative(
    family: str,
    *,
    model: str,
    size: int,
    options: Mapping[str, Any] = MappingProxyType({}),
    short: Mapping[str, Any] = MappingProxyType({}),
) -> Representative:
    return Representative(
        name=model,
        family=family,
        make=partial(_represent, model, size, options),
        shorten=partial(_represent, model, size, {**options, **short}) if short else None,
        shortened=", ".join(f"{key} = {value}" for key, value in short.items()),
    )


def _represent(name: str, side: int, options: Mapping[str, Any]) -> BuiltModel:
    """A small build of a model for square images of `side` pixels, with classes if it can have any."""
    import timm

    config = timm.get_pretrained_cfg(name)
    chosen = {"num_classes": CLASSES, **options}
    resized = config is not None and config.fixed_input_size and config.input_size[-1] != side
    module = timm.create_model(name, **chosen, **({"img_size": side} if resized else {}))
    preprocessing = preprocessing_of(module.pretrained_cfg).with_overrides(None, None, (side, side))
    return BuiltModel(module.eval(), preprocessing)


def preprocessing_of(pretrained_config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that timm's data configuration prescribes for a model with this `pretrained_cfg`."""
    from timm.data import resolve_data_config

    config = resolve_data_config(pretrained_cfg=pretrained_config)
    channels, height, width = config["input_size"]
    share, mode = config["crop_pct"], config["crop_mode"]
    scaled = (math.floor(height / share), math.floor(width / share))
    mean = tuple(float(value) for value in config["mean"])
    common = {
        "size": (height, width),
        "interpolation": config["interpolation"],
        "mean": mean,
        "std": tuple(float(value) for value in config["std"]),
        "channels": channels,
    }
    if mode == "squash":
        return Preprocessing(**common, resize=scaled, resize_mode="exact")
    if mode == "border":
        fill = tuple(round(255 * value) for value in mean)
        return Preprocessing(**common, resize=scaled, resize_mode="contain", fill=fill)
    if scaled[0] == scaled[1]:
        return Preprocessing(**common, resize=scaled[0])
    return Preprocessing(**common, resize=scaled, resize_mode="cover")


def _require_hub(name: str) -> None:
    """Asks the hub once, where the weights are not on disk: its own client goes on asking for most of a minute."""
    import timm
    from huggingface_hub import constants, get_session, try_to_load_from_cache

    if name.startswith(HUB_PREFIX):
        repository = name.removeprefix(HUB_PREFIX)
    else:
        config = timm.get_pretrained_cfg(name)
        if config is None or not config.has_weights:
            raise CamkitError(f"There are no default weights of 'timm:{name}'; use --weights none or --weights FILE.")
        repository = config.hf_hub_id or ""
    repository = repository.partition("@")[0]
    cached = any(isinstance(try_to_load_from_cache(repository, file), str) for file in WEIGHT_FILES if repository)
    if repository and not cached:
        get_session().head(constants.ENDPOINT, timeout=SECONDS_WITHOUT_ANSWER)


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels of the data that the weights were trained on, as far as timm knows them."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    given = config.get("label_names")
    if given:
        descriptions = config.get("label_descriptions") or {}
        return tuple(str(descriptions.get(label, label)) for label in given)
    subset = infer_imagenet_subset(dict(config))
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return _unambiguous(info.label_descriptions(), info.label_names())


def _unambiguous(synonyms: Sequence[str], identifiers: Sequence[str]) -> tuple[str, ...]:
    """The first of each class's synonyms; all of them, then its identifier too, where two classes share a name."""
    names = [text.split(",")[0] for text in synonyms]
    for longer in (synonyms, [f"{text} ({key})" for text, key in zip(synonyms, identifiers, strict=True)]):
        count = Counter(names)
        names = [name if count[name] == 1 else other for name, other in zip(names, longer, strict=True)]
    return tuple(names)
