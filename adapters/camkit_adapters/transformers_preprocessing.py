"""The preprocessing of Hugging Face's image processors, as data."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from camkit.errors import CamkitError, CamkitWarning
from camkit.preprocessing import Preprocessing

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
USUAL_SIDE = 224
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Families whose published weights were trained on pixel values in [-1, 1].
_TRAINED_ON_HALVES = ("beit", "data2vec-vision", "mobilenet_v1", "mobilenet_v2", "siglip", "vit")
# Image processors that do no more than Preprocessing can say.
_FOLLOWED = (
    "BeitImageProcessor",
    "BitImageProcessor",
    "CLIPImageProcessor",
    "ConvNextImageProcessor",
    "DeiTImageProcessor",
    "EfficientNetImageProcessor",
    "LevitImageProcessor",
    "MobileNetV1ImageProcessor",
    "MobileNetV2ImageProcessor",
    "MobileViTImageProcessor",
    "PoolFormerImageProcessor",
    "PvtImageProcessor",
    "SegformerImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
)
# From this size on ConvNeXt's image processor stretches the picture to a square, below it crops.
_CONVNEXT_STRETCHES_FROM = 384


def preprocessing_of(folder: Path, config: Any, spec: str) -> Preprocessing:
    """What the image processor in a folder does; without one, what is customary for the model's family.

    Where the processor leaves pictures that are not square as they are, they are cropped, so that a batch is one size.

    Raises:
        CamkitError: the processor's file cannot be used, or asks for what no `Preprocessing` is.
    """
    vision = getattr(config, "vision_config", config)
    size, channels = _sides(vision), getattr(vision, "num_channels", 3)
    try:
        if holds(folder, PROCESSOR_FILES):
            values, remark = _as_the_processor(_image_processor(folder, config), size, channels)
        else:
            values, remark = _as_is_customary(config.model_type, size, channels)
        preprocessing = Preprocessing.model_validate({**values, "channels": channels})
    # What an image processor raises on a value that it cannot use is its own.
    except Exception as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else in_words(error)
        raise CamkitError(
            f"The images of '{spec}' cannot be made as its preprocessor_config.json and config.json say ({said}); "
            f"correct them."
        ) from error
    if remark:
        warnings.warn(f"The images of '{spec}' {remark}.", CamkitWarning, stacklevel=2)
    return preprocessing


def holds(folder: Path, patterns: Sequence[str]) -> bool:
    """Whether a folder has a file of one of these names."""
    return any(any(folder.glob(pattern)) for pattern in patterns)


def in_words(error: Exception) -> str:
    """What an error of transformers says, without the advice that follows it."""
    text = " ".join(str(error).strip().partition("\n\n")[0].split())
    return f"{type(error).__name__}: {text.rstrip('.')}" if text else type(error).__name__


def _as_is_customary(family: str, size: tuple[int, int], channels: int) -> tuple[Mapping[str, Any], str]:
    mean, std = HALVES if family in _TRAINED_ON_HALVES else IMAGENET
    remark = (
        f"are stretched to {size[0]}x{size[1]} and normalised with mean {mean[0]} ... and std {std[0]} ..., since it "
        f"has no preprocessor_config.json; where it was trained otherwise, give --mean, --std and --size"
    )
    return {"size": size, "resize": size, "mean": mean[:channels], "std": std[:channels]}, remark


def _as_the_processor(processor: Any, size: tuple[int, int], channels: int) -> tuple[Mapping[str, Any], str]:
    steps = []
    if _kind(processor) not in _FOLLOWED:
        steps.append(f"a {_kind(processor)} may have steps of its own")
    if getattr(processor, "do_flip_channel_order", False):
        steps.append("it turns RGB into BGR")
    if processor.do_pad:
        steps.append("it pads")
    values = {
        **_resizing(processor, size),
        **_scaling(processor, channels),
        "interpolation": Image.Resampling(int(processor.resample)).name.lower(),
    }
    remark = f"may not be as its image processor makes them ({' and '.join(steps)}); compare them" if steps else ""
    return values, remark


def _image_processor(folder: Path, config: Any) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, config=config, trust_remote_code=False, local_files_only=True)


def _sides(vision: Any) -> tuple[int, int]:
    """The height and width that a configuration states."""
    side = getattr(vision, "image_size", None) or USUAL_SIDE
    return (side, side) if isinstance(side, int) else (int(side[-2]), int(side[-1]))


def _resizing(processor: Any, stated: tuple[int, int]) -> Mapping[str, Any]:
    """The resize and the crop of an image processor, as `Preprocessing` has them."""
    size, kind = processor.size, _kind(processor)
    crop = processor.crop_size if processor.do_center_crop else None
    cropped = (crop.height, crop.width) if crop else None
    if not processor.do_resize:
        return {"size": cropped or stated}
    shorter, exact = size.shortest_edge, (size.height, size.width) if size.height and size.width else None
    if not shorter and not exact:
        raise ValueError(f"the size is {dict(size)}, not a shortest_edge or a height and a width")
    share = getattr(processor, "crop_pct", None)
    if kind == "ConvNextImageProcessor" and shorter:
        stretched = shorter >= _CONVNEXT_STRETCHES_FROM
        resize = (shorter, shorter) if stretched else int(shorter / share)
        return {"size": cropped or (shorter, shorter), "resize": resize}
    if kind == "PoolFormerImageProcessor" and shorter and share:
        shorter = int(shorter / share)
    if kind == "LevitImageProcessor" and shorter:
        shorter = int(256 / 224 * shorter)
    return {"size": cropped or exact or (shorter, shorter), "resize": shorter or exact}


def _scaling(processor: Any, channels: int) -> Mapping[str, Any]:
    """Mean and std of an image processor for pixel values in [0, 1], whatever it multiplies and adds."""
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    offset = 1.0 if processor.do_rescale and getattr(processor, "rescale_offset", False) else 0.0
    mean = _each(processor.image_mean if processor.do_normalize else 0.0, channels)
    std = _each(processor.image_std if processor.do_normalize else 1.0, channels)
    # EfficientNet's processor divides once more
    again = _each(processor.image_std if getattr(processor, "include_top", False) else 1.0, channels)
    return {
        "mean": tuple((value + offset) / scale for value in mean),
        "std": tuple(value * other / scale for value, other in zip(std, again, strict=True)),
    }


def _each(values: float | Sequence[float], channels: int) -> tuple[float, ...]:
    return (float(values),) * channels if isinstance(values, int | float) else tuple(float(value) for value in values)


def _kind(processor: Any) -> str:
    return type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
