"""Four small classifiers of digit scenes, narrow instances of classes of timm and torchvision.

Each maps normalised images [B, 3, 96, 96] (see `scenes.inputs`) to logits [B, 10]; a digit's
probability is the sigmoid of its logit, for a scene may show several.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.vgg import VGG, make_layers

from camkit_adapters.demo.scenes import CLASS_NAMES, SIDE

CLASS_COUNT = len(CLASS_NAMES)


def build_resnet() -> ResNet:
    """An untrained residual network whose `layer4` gives activations [B, 160, 12, 12]."""
    return ResNet(
        block=BasicBlock,
        layers=(1, 1, 1, 1),
        channels=(24, 48, 96, 160),
        stem_type="deep",
        stem_width=12,
        output_stride=8,
        num_classes=CLASS_COUNT,
    )


def build_vgg() -> VGG:
    """An untrained VGG whose `features[-2]` gives activations [B, 160, 12, 12].

    The classifier is one linear layer on their mean over space, as original CAM needs it.
    """
    # VGG always makes the 4096-wide classifier first; on the meta device that costs no memory.
    with torch.device("meta"):
        model = VGG(features=nn.Identity(), num_classes=CLASS_COUNT, init_weights=False)
    features = make_layers([16, "M", 32, 32, "M", 64, 64, "M", 160], batch_norm=True)
    # Stands where VGG has its last pooling, so that features[-2] is the last ReLU as in any VGG.
    features.append(nn.Identity())
    model.features = features
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(160, CLASS_COUNT)
    return model


class ConvolutionStem(nn.Module):
    """Three convolutions of stride 2 in place of a ViT's patch embedding.

    The attributes are those that timm reads off a patch embedding.
    """

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **_unused: object) -> None:
        super().__init__()
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        narrow, wide = embed_dim // 3, 2 * embed_dim // 3
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, narrow, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, wide, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, embed_dim, kernel_size=3, stride=2, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Turn images [B, 3, H, W] into tokens [B, H / 8 * W / 8, embed_dim]."""
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


def build_vit() -> VisionTransformer:
    """An untrained vision transformer: a class token and 12x12 patch tokens [B, 145, 96]."""
    return VisionTransformer(
        img_size=SIDE,
        patch_size=8,
        embed_dim=96,
        depth=4,
        num_heads=4,
        mlp_ratio=3,
        global_pool="token",
        embed_layer=ConvolutionStem,
        num_classes=CLASS_COUNT,
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet": build_resnet,
    "vgg": build_vgg,
    "vit": build_vit,
    # The same network trained on scenes with a shortcut (see `shortcut`).
    "shortcut": build_resnet,
}


def build(name: str) -> nn.Module:
    """Build the untrained model of this name.

    Raises:
        ValueError: There is no model of this name.
    """
    if name not in MODELS:
        raise ValueError(f"no demo model {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]()


def weights_path(name: str) -> Path:
    """Where the shipped weights of a model lie: safetensors, float16."""
    return Path(__file__).with_name(f"{name}.safetensors")


def load(name: str) -> nn.Module:
    """A trained model in float32, on the CPU, in evaluation mode.

    Raises:
        ValueError: There is no model of this name.
    """
    model = build(name)
    # Parameters are float32 from the start: copying the float16 weights in converts them.
    model.load_state_dict(load_file(weights_path(name)), strict=True)
    return model.eval()
