"""Models that break recipes: what trips a rule of thumb, as one line of a table each, on small builds of real classes.

Each is held against the conformance kit for adapters: the layer runs once, an occluder moves the change with it, the
gradient is not zero, Grad-CAM equals the float64 oracle, and the layers with other names can be explained.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import zoo
from camkit import Explainer
from camkit.adapter_files import find_adapter
from camkit.testing import check_adapter, vary_constants
from camkit.testing.adapters import LEAST_SIMILARITY


@dataclass(frozen=True)
class Pitfall:
    """A model, its images, and what it must get without being told. `mixed`: occlusion cannot tell its layout."""

    model: str
    size: int | tuple[int, int]
    adapter: str
    layer: str
    layout: str
    options: dict[str, Any]
    mixed: bool = False

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        library, _, name = self.model.partition(":")
        make = timm.create_model if library == "timm" else torchvision.models.get_model
        module = make(name, **{"num_classes": zoo.CLASSES, **self.options}).eval()
        vary_constants(module)
        return module


def timm_model(name, size, adapter, layer, layout, *, mixed=False, **options):
    return Pitfall(f"timm:{name}", size, f"timm.{adapter}", layer, layout, options, mixed)


def torchvision_model(name, size, adapter, layer, layout, **options):
    return Pitfall(f"torchvision:{name}", size, f"torchvision.{adapter}", layer, layout, options)


TOKENS = "tokens(prefix {}, grid {})"
PITFALLS = {
    # the last block's output has no gradient at the patches
    "class token": timm_model(
        "vit_tiny_patch16_224", 64, "vit.class-token", "blocks.1.norm1", TOKENS.format(1, "4x4"), img_size=64, depth=2
    ),
    "class token, torchvision": torchvision_model(
        "vit_b_32", 96, "vit", "encoder.layers.encoder_layer_11.ln_1", TOKENS.format(1, "3x3"), image_size=96
    ),
    # pooled patches beside a class token that nothing reads
    "pooled beside a class token": timm_model(
        "beit_base_patch16_224", 64, "vit.pooled", "norm", TOKENS.format(1, "4x4"), img_size=64, depth=2
    ),
    "registers": timm_model(
        "vit_tiny_patch16_dinov3_qkvb", 64, "vit.pooled", "norm", TOKENS.format(5, "4x4"), img_size=64, depth=2
    ),
    "a distillation token": timm_model(
        "deit_tiny_distilled_patch16_224",
        64,
        "vit.class-token",
        "blocks.1.norm1",
        TOKENS.format(2, "4x4"),
        img_size=64,
        depth=2,
    ),
    "a distillation token that is not called a prefix": timm_model(
        "pit_ti_distilled_224",
        96,
        "pit",
        "transformers.2.blocks.0.norm1",
        TOKENS.format(2, "3x3"),
        img_size=96,
        depth=(1, 1, 1),
    ),
    # num_prefix_tokens is 1, and holds for the last blocks only
    "a class token that comes late": timm_model(
        "cait_xxs24_224", 64, "class-token", "blocks_token_only.1.norm1", TOKENS.format(1, "4x4"), img_size=64, depth=2
    ),
    "a class token that comes late, patches of 8": timm_model(
        "xcit_nano_12_p8_224",
        64,
        "class-token",
        "cls_attn_blocks.1.norm1",
        TOKENS.format(1, "8x8"),
        img_size=64,
        depth=2,
    ),
    "a class token and no number of prefix tokens": timm_model(
        "volo_d1_224", 64, "volo", "post_network.1.norm1", TOKENS.format(1, "4x4"), img_size=64
    ),
    "no norm in front of the last attention": timm_model(
        "vit_small_patch16_18x2_224",
        64,
        "vit.class-token.no-prenorm",
        "blocks.0",
        TOKENS.format(1, "4x4"),
        img_size=64,
        depth=2,
    ),
    "two branches": timm_model(
        "crossvit_tiny_240", 240, "crossvit", "blocks.2.fusion.0.norm1", TOKENS.format(1, "14x14")
    ),
    "parallel branches": timm_model(
        "coat_tiny",
        64,
        "coat.parallel",
        "parallel_blocks.0.norm14",
        TOKENS.format(1, "2x2"),
        img_size=64,
        serial_depths=(1, 1, 1, 1),
        parallel_depth=1,
    ),
    "convolutions below a transformer": timm_model(
        "vit_tiny_r_s16_p8_224",
        256,
        "vit.class-token",
        "blocks.1.norm1",
        TOKENS.format(1, "8x8"),
        img_size=256,
        depth=2,
    ),
    "channels last": timm_model(
        "swin_tiny_patch4_window7_224", 64, "swin", "norm", "NHWC", img_size=64, window_size=2, depths=(1, 1, 1, 1)
    ),
    "channels last, torchvision": torchvision_model("swin_t", 96, "swin", "norm", "NHWC"),
    # norm is [B, h, w, K], and no attribute says so
    "channels last without a word": timm_model("nest_tiny_jx", 224, "trunk-end", "norm", "NHWC"),
    "hierarchical tokens in a list that never runs": timm_model(
        "mvitv2_tiny", 128, "trunk-end", "norm", TOKENS.format(0, "4x4"), img_size=128
    ),
    "hierarchical tokens": timm_model(
        "hiera_tiny_224",
        128,
        "trunk-end",
        "blocks.3",
        TOKENS.format(0, "4x4"),
        img_size=(128, 128),
        stages=(1, 1, 1, 1),
    ),
    "a hybrid whose tokens are all mixed": timm_model(
        "levit_128s", 224, "trunk-end", "stages.2", TOKENS.format(0, "4x4"), mixed=True
    ),
    # a head of zeros: untrained, every map is zero
    "an MLP-Mixer": timm_model("mixer_s32_224", 224, "trunk-end", "norm", TOKENS.format(0, "7x7")),
    # conv_head comes after the pooling
    "MobileNetV3": timm_model("mobilenetv3_small_050", 160, "trunk-end", "blocks.5.0", "NCHW", mixed=True),
    "MobileNetV3, torchvision": torchvision_model("mobilenet_v3_small", 160, "trunk-end", "features.12", "NCHW"),
    "GhostNet": timm_model("ghostnet_050", 160, "trunk-end", "blocks.9.0", "NCHW"),
    # bn2, the last in a list of layers by size, is a dead end
    "HRNet": timm_model("hrnet_w18_small", 96, "trunk-end", "final_layer.2", "NCHW"),
    # F.relu(features, inplace=True) behind the layer
    "a ReLU in place behind the layer": torchvision_model("densenet121", 96, "densenet", "features.norm5", "NCHW"),
    # the child called head is the end of the trunk
    "a trunk that ends in a head": timm_model("selecsls42", 128, "selecsls", "head.3", "NCHW"),
    "auxiliary heads": torchvision_model(
        "googlenet", 96, "trunk-end", "inception5b", "NCHW", aux_logits=True, init_weights=False
    ),
    "an auxiliary head in the middle of the trunk": torchvision_model(
        "inception_v3", 224, "trunk-end", "Mixed_7c", "NCHW", aux_logits=True, init_weights=False
    ),
    "a wide image": torchvision_model("resnet18", (96, 160), "resnet", "layer4", "NCHW"),
    "a wide image of tokens": timm_model(
        "hiera_tiny_224",
        (96, 160),
        "trunk-end",
        "blocks.3",
        TOKENS.format(0, "3x5"),
        img_size=(96, 160),
        stages=(1, 1, 1, 1),
    ),
    "a wide image with channels last": timm_model(
        "swin_tiny_patch4_window7_224",
        (64, 96),
        "swin",
        "norm",
        "NHWC",
        img_size=(64, 96),
        window_size=2,
        depths=(1, 1, 1, 1),
    ),
    "a tall image, patches of another size of image": timm_model(
        "vit_tiny_patch16_224",
        (96, 64),
        "vit.class-token",
        "blocks.1.norm1",
        TOKENS.format(1, "6x4"),
        depth=2,
        dynamic_img_size=True,
    ),
}


# A dozen seconds each; a smaller build of the same class, or the sweep, says the same.
SLOW = {
    "channels last without a word",
    "an auxiliary head in the middle of the trunk",
    "class token, torchvision",
    "hierarchical tokens in a list that never runs",
    "two branches",
    "a trunk that ends in a head",
    "HRNet",
}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PITFALLS]
)
def test_a_model_that_breaks_recipes_is_explained_without_configuration(case):
    pitfall = PITFALLS[case]
    module = zoo.watch(pitfall.build())
    resolved = find_adapter(module)
    assert resolved.adapter.name == pitfall.adapter
    height, width = pitfall.size if isinstance(pitfall.size, tuple) else (pitfall.size, pitfall.size)
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    report = check_adapter(Explainer(module), images, exports=False)
    assert report.failures == {}
    assert (report.layer, report.layout) == (pitfall.layer, pitfall.layout)
    assert report.gradient_share > 0.9
    assert report.follows > LEAST_SIMILARITY or pitfall.mixed


def test_the_same_name_of_a_stage_is_the_same_place_in_the_image():
    """Stage 3 of a ResNet, a ConvNeXt, a Swin, a RegNet, an EfficientNet: the image's sides divided by 16."""
    names = {
        "timm:test_resnet": "layer3",
        "timm:test_convnext": "stages.2",
        "timm:test_efficientnet": "blocks.3",
        "timm:regnetx_002": "s3",
        "torchvision:regnet_x_400mf": "trunk_output.block3",
        "torchvision:swin_t": "features.5",
        "torchvision:mobilenet_v2": "features.13",
        "torchvision:squeezenet1_1": "features",
        "torchvision:vgg11": "features.19",
    }
    found = {}
    for name in names:
        module = Pitfall(name, 96, "", "", "", {}).build()
        explanation = Explainer(zoo.watch(module))(zoo.images(1, 96), layer="stage3", relu=False)
        assert explanation.maps.shape in ((1, 6, 6), (1, 5, 5))
        found[name] = explanation.layer
    assert found == names


def test_an_input_that_is_no_image_is_refused():
    """NaFlexViT takes a dictionary of patches, too; a map is of an image."""
    module = timm.create_model("naflexvit_base_patch16_gap", num_classes=zoo.CLASSES, depth=1).eval()
    patches = {"patches": torch.zeros(1, 4, 768), "patch_coord": torch.zeros(1, 4, 2), "patch_valid": torch.ones(1, 4)}
    with zoo.refused("Images were given as dict", "[batch, channels, height, width] is expected"):
        Explainer(module)(patches)
    with zoo.refused("Images were given as a torch.float32 tensor of shape [1, 4, 768]"):
        Explainer(module)(patches["patches"])
