"""Preprocessing against torchvision's presets and timm's transforms, on pictures of awkward shapes."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from pydantic import ValidationError
from timm.data import create_transform, resolve_data_config

from camkit.errors import CamkitError
from camkit.preprocessing import Preprocessing
from camkit_adapters.timm_source import preprocessing_of
from camkit_adapters.torchvision_source import TorchvisionSource

SHAPES = [(333, 500), (401, 203), (64, 64), (97, 640)]


def picture(height: int, width: int) -> Image.Image:
    """Noise, so that a crop that is off by one pixel shows."""
    values = np.random.RandomState(height * width).randint(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_large", "efficientnet_b1", "efficientnet_b3"])
def test_agrees_with_torchvision(name: str, shape: tuple[int, int]) -> None:
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    preprocessing = TorchvisionSource().build(name, pretrained=False, num_classes=None).preprocessing
    image = picture(*shape)
    torch.testing.assert_close(preprocessing(image), preset(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_mode": "squash", "crop_pct": 1.0},
        {"crop_mode": "squash", "crop_pct": 0.9},
        {"crop_mode": "border", "crop_pct": 1.0},
        {"crop_mode": "border", "crop_pct": 0.875},
        {"crop_pct": 1.0, "interpolation": "bicubic"},
        {"crop_pct": 0.875, "interpolation": "bilinear"},
        {"input_size": (3, 160, 224), "crop_pct": 0.9},
        {"input_size": (3, 160, 224), "crop_mode": "border"},
    ],
    ids=str,
)
def test_agrees_with_timm(changes: dict[str, Any], shape: tuple[int, int]) -> None:
    config = {**timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k_ft_in1k").to_dict(), **changes}
    transform = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
    image = picture(*shape)
    torch.testing.assert_close(preprocessing_of(config)(image), transform(image), rtol=0, atol=1e-6)


def test_agrees_with_timm_on_every_configuration() -> None:
    image = picture(123, 211)
    tried = set()
    for name in timm.list_models(pretrained=True):
        config = timm.get_pretrained_cfg(name).to_dict()
        resolved = resolve_data_config(pretrained_cfg=config)
        if str(resolved) in tried:
            continue
        tried.add(str(resolved))
        expected = create_transform(**resolved, is_training=False)(image)
        torch.testing.assert_close(preprocessing_of(config)(image), expected, rtol=0, atol=1e-6, msg=name)
    assert len(tried) > 100


@pytest.mark.parametrize("shape", SHAPES)
def test_view_is_what_the_model_sees(shape: tuple[int, int]) -> None:
    preprocessing = Preprocessing(size=(60, 80), resize=(70, 90), resize_mode="contain", fill=(1, 2, 3))
    image = picture(*shape)
    view = preprocessing.view(image)
    assert (view.mode, view.size) == ("RGB", (80, 60))
    pixels = preprocessing.pixels(preprocessing(image)) * 255
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), np.asarray(view), atol=1e-3)


def test_normalise_and_pixels_are_inverse() -> None:
    preprocessing = Preprocessing(size=(8, 8))
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(preprocessing.pixels(preprocessing.normalise(pixels)), pixels, rtol=0, atol=1e-6)
    assert abs(float(preprocessing.normalise(pixels).mean())) < 1
    outside = preprocessing.pixels(torch.full((1, 3, 1, 1), 100.0))
    assert outside.max() == 1


def test_one_channel() -> None:
    preprocessing = Preprocessing(size=(10, 12), resize=(10, 12), mean=(0.5,), std=(0.25,), channels=1)
    tensor = preprocessing(Image.new("RGB", (30, 30), (100, 100, 100)))
    assert tensor.shape == (1, 10, 12)
    torch.testing.assert_close(tensor, torch.full((1, 10, 12), (100 / 255 - 0.5) / 0.25))
    assert preprocessing.view(Image.new("L", (30, 30), 9)).mode == "RGB"
    assert Preprocessing(size=(9, 9), mean=(0.5,), std=(0.5,), channels=1)(Image.new("L", (3, 3), 255)).min() == -1


def test_json_keeps_everything() -> None:
    preprocessing = Preprocessing(size=(60, 80), resize=(70, 90), resize_mode="cover", interpolation="bicubic")
    again = Preprocessing.model_validate_json(preprocessing.model_dump_json())
    assert again == preprocessing
    single = Preprocessing(size=(8, 8), resize=9, mean=(0.5,), std=(0.5,), channels=1)
    assert Preprocessing.model_validate_json(single.model_dump_json()) == single


@pytest.mark.parametrize(
    "wrong",
    [{"mean": (0.5,)}, {"std": (0.5, 0.5, 0.0)}, {"size": (0, 5)}, {"resize": -1}, {"fill": (300, 0, 0)}, {"crop": 3}],
    ids=str,
)
def test_impossible_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing(**{"size": (8, 8), **wrong})


def test_overrides() -> None:
    own = Preprocessing(size=(224, 224), resize=256)
    assert own.with_overrides() == own
    changed = own.with_overrides(mean=[0.5], std=[0.1, 0.2, 0.3])
    assert (changed.mean, changed.std, changed.resize) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3), 256)
    # 256 / 224 of the new size, as timm computes it from the share of the crop
    assert own.with_overrides(size=112).resize == 128
    wide = own.with_overrides(size=(112, 224))
    assert (wide.size, wide.resize, wide.resize_mode) == ((112, 224), (128, 256), "cover")
    exact = Preprocessing(size=(96, 96), resize=(96, 96)).with_overrides(size=(64, 48))
    assert (exact.resize, exact.resize_mode) == ((64, 48), "exact")
    assert Preprocessing(size=(8, 8)).with_overrides(size=9).resize is None
    for preprocessing in (own.with_overrides(size=112), wide, exact):
        height, width = preprocessing.size
        assert preprocessing(picture(333, 500)).shape == (3, height, width)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mean": [123.7, 116.3, 103.5]}, r"pixel values in \[0, 1\]"),
        ({"mean": [0.5, 0.5]}, "2 values, the model takes 3 channels"),
        ({"std": [0.5, 0.5, 0.0]}, r"pixel values in \[0, 1\]"),
        ({"size": (0, 10)}, "in pixels"),
        ({"size": (1, 2, 3)}, "in pixels"),
    ],
)
def test_impossible_overrides_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CamkitError, match=message):
        Preprocessing(size=(224, 224), resize=256).with_overrides(**overrides)


def test_a_thread_of_pixels_is_refused() -> None:
    with pytest.raises(CamkitError, match="too long and thin"):
        Preprocessing(size=(224, 224), resize=256)(Image.new("RGB", (60_000, 2)))
