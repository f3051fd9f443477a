"""Models for tests: real classes of torchvision and timm, mostly narrow, every parameter and statistic random.

Initial weights prove little: torchvision's ViT has a head of zeros, biases are zero, batch norm is the identity.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import camkit
from camkit.errors import CamkitError
from camkit.testing import state
from camkit_adapters.demo.scenes import generate

CLASSES = 10
_watched: list[tuple[nn.Module, dict[str, Any]]] = []


def torchvision_vgg() -> nn.Module:
    with torch.device("meta"):  # of vgg11's 133 million parameters 124 are its classifier
        model = torchvision.models.vgg11(num_classes=CLASSES)
    model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 32), nn.Linear(32, 24)
    model.classifier[6] = nn.Linear(24, CLASSES)
    return model.to_empty(device="cpu")


def torchvision_alexnet() -> nn.Module:
    with torch.device("meta"):
        model = torchvision.models.alexnet(num_classes=CLASSES)
    model.classifier[1], model.classifier[4] = nn.Linear(256 * 36, 32), nn.Linear(32, 24)
    model.classifier[6] = nn.Linear(24, CLASSES)
    return model.to_empty(device="cpu")


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(48, 8, 3, 3, 24, 48, num_classes=CLASSES)


def timm_resnet(**options: Any) -> nn.Module:
    return ResNet(BasicBlock, (1, 2, 1, 1), channels=(8, 12, 16, 24), num_classes=CLASSES, **options)


def timm_vit(**options: Any) -> nn.Module:
    settings = {"img_size": 48, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": CLASSES}
    return VisionTransformer(**{**settings, **options})


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "torchvision:resnet18": lambda: torchvision.models.resnet18(num_classes=CLASSES),
    "torchvision:vgg11": torchvision_vgg,
    "torchvision:alexnet": torchvision_alexnet,
    "torchvision:vit": torchvision_vit,
    "torchvision:densenet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=CLASSES),
    "timm:resnet": timm_resnet,
    "timm:resnet-bottleneck": lambda: timm.create_model("resnet26", num_classes=CLASSES),
    "timm:vit": timm_vit,
    "timm:vit-registers": lambda: timm_vit(reg_tokens=3),
    "timm:vit-average": lambda: timm_vit(global_pool="avg"),
    "timm:vit-average-registers": lambda: timm_vit(global_pool="avg", reg_tokens=3),
    "timm:vit-no-class-token": lambda: timm_vit(global_pool="avg", class_token=False),
    "timm:vit-linear": lambda: timm_vit(global_pool="avg", fc_norm=False),
    "timm:vit-dynamic": lambda: timm_vit(dynamic_img_size=True),
    "timm:vit-postnorm": lambda: timm_vit(block_fn=timm.models.vision_transformer.ResPostBlock),
    "timm:swin-tiny": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(2, 2, 2, 2), num_classes=CLASSES
    ),
    "timm:vit-tiny": lambda: timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=CLASSES),
}


@functools.cache
def random_model(name: str) -> nn.Module:
    """One of `BUILDERS` with random weights, or a trained ``demo:`` model; built once in a session."""
    if name.startswith("demo:"):
        return camkit.load_model(name).module
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return randomised(BUILDERS[name]())


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, everything in it random, of a size that keeps activations near 1."""
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        for name, parameter in own.items():
            norm = isinstance(module, nn.BatchNorm2d | nn.LayerNorm)
            if norm and name == "weight":
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim < 2 or not isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
                parameter.normal_(0, 0.2)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5 * 1.5)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def watch(module: nn.Module) -> nn.Module:
    """From now to the end of the test the model must stay as it is."""
    _watched.append((module, state(module)))
    return module


def forget() -> None:
    """Ends the watch over all models."""
    _watched.clear()


def changes() -> list[str]:
    """What has changed in the watched models."""
    return [
        f"{type(module).__name__}: {name} was {before[name]}, is {after.get(name)}"
        for module, before in _watched
        for after in [state(module)]
        for name in before
        if before[name] != after.get(name)
    ]


def images(count: int = 2, size: int | tuple[int, int] = 48, *, channels: int = 3, seed: int = 0) -> Tensor:
    """Random images, float32 in [0, 1)."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def scenes(count: int = 2, *, seed: int = 0) -> Tensor:
    """Scenes of two handwritten digits, as the demo models take them: [count, 3, 96, 96]."""
    preprocessing = camkit.load_model("demo:resnet").preprocessing
    drawn = generate(count, "test", seed, digit_counts=(2,))
    return torch.stack([preprocessing(Image.fromarray(scene.image)) for scene in drawn])


def inputs(name: str, count: int = 2, size: int | tuple[int, int] = 48, *, seed: int = 0) -> Tensor:
    """What the model of that name is explained on: scenes for the demo models, random images for the others."""
    return scenes(count, seed=seed) if name.startswith("demo:") else images(count, size, seed=seed)


@contextlib.contextmanager
def refused(*words: str) -> Iterator[None]:
    """The block must end in a CamkitError that says these words in one sentence."""
    with pytest.raises(CamkitError) as caught:
        yield
    text = str(caught.value)
    assert "\n" not in text
    assert text[0].isupper()
    assert text[-1] in ".?"
    for word in words:
        assert word in text
