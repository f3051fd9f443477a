"""Narrow instances of library models: what publish() compares is the whole test, so each case only exports."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock as TimmBlock
from timm.models.resnet import ResNet as TimmResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import VGG, make_layers

from camkit_export.onnx import export_onnx
from camkit_export.pt2 import export_pt2
from camkit_export.torchscript import export_torchscript
from standin import layercam, make_request


def resnet() -> nn.Module:
    return ResNet(BasicBlock, [1, 2, 1, 1], num_classes=9)


def timm_resnet() -> nn.Module:
    return TimmResNet(TimmBlock, [1, 1, 1, 1], channels=(8, 12, 16, 24), num_classes=9)


def densenet() -> nn.Module:
    return DenseNet(8, (2, 2, 2), 16, num_classes=9)


def vgg() -> nn.Module:
    model = VGG(make_layers([12, "M", 16, "M", 20, 20, "M"]), num_classes=9, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d((3, 4))
    model.classifier = nn.Sequential(nn.Linear(20 * 12, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 9))
    return model


class Padded(nn.Module):
    """Zeros on two sides of a max-pooling's input, as in HGNet's stem; the input is negative in places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.features = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 12, 3)
        self.classifier = nn.Linear(12, 9)

    def forward(self, images: Tensor) -> Tensor:
        pooled = F.max_pool2d(F.pad(self.stem(images), (0, 1, 0, 1)), 2, stride=1, ceil_mode=True)
        return self.classifier(self.features(pooled).relu().mean(dim=(2, 3)))


def transformer() -> nn.Module:
    return VisionTransformer(img_size=64, patch_size=16, embed_dim=48, depth=3, num_heads=3, num_classes=9)


def swin() -> nn.Module:
    return SwinTransformer(img_size=64, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=9)


CASES = {
    "last stage": lambda: make_request(resnet(), "layer4", 64),
    "inside a residual stage": lambda: make_request(resnet(), "layer2.0", (64, 75), method=layercam),
    "before max-pooling": lambda: make_request(timm_resnet(), "act1", 48),
    "zeros around max-pooling": lambda: make_request(Padded(), "stem", 32),
    "in-place ReLU behind the layer": lambda: make_request(vgg(), "features.8", (61, 84), relu=False),
    "adaptive pooling that does not divide": lambda: make_request(vgg(), "features.9", (61, 84)),
    "average pooling between blocks": lambda: make_request(densenet(), "features.denseblock1", 75),
    "tokens": lambda: make_request(transformer(), "blocks.1.norm1", 64, layout="tokens", prefix=1, grid=(4, 4)),
    "channels last": lambda: make_request(swin(), "layers.0", 64, layout="nhwc"),
    "layer norm and depthwise convolution": lambda: make_request(
        ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), num_classes=9), "stages.2", 96
    ),
}  # fmt: skip


# the others are variations that the library models of `make test-all` have too
QUICK = (
    "zeros around max-pooling",
    "before max-pooling",
    "adaptive pooling that does not divide",
    "tokens",
)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)
@pytest.mark.parametrize(
    ("export", "suffix"),
    [
        (export_onnx, "onnx"),
        # the graph as it was traced, in torch's own operators
        pytest.param(export_torchscript, "pt", marks=pytest.mark.slow),
        pytest.param(export_pt2, "pt2", marks=pytest.mark.slow),
    ],
)
def test_export(case, export, suffix, tmp_path):
    torch.manual_seed(0)
    report = export(CASES[case](), tmp_path / f"a.{suffix}")
    oracle = {check.name.split()[0]: check for check in report.checks if "oracle" in check.name}
    assert oracle["logits"].images == 12
    assert oracle["map"].images >= 10
    assert oracle["heatmap"].images >= 4
    assert oracle["map"].error <= oracle["map"].tolerance <= 5e-4
