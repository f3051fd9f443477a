"""Raw maps against grad-cam, torchcam and captum, where their formulas and ours are the same; and where they are not.

Each peer runs on a copy of the model, for it leaves gradients and hooks behind. Compared are signed low-resolution maps
before ReLU, so that no peer's normalisation or constant is in between.
"""

import copy

import numpy as np
import pytest
import pytorch_grad_cam as pgc
import torch
import torchcam.methods as tc
from captum.attr import LayerGradCam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import reference
import zoo
from camkit import Explainer
from camkit.cut import find_module
from camkit.testing import relative_error

CLASSES = [3, 7]
AGREE = 1e-5

# The layer, and how a peer's user would have to reshape tokens.
LAYERS = {
    "torchvision:resnet18": ["layer4", "layer3", "layer2.0"],
    "torchvision:vgg11": ["features.-2", "features.10"],
    "timm:vit-tiny": ["blocks.-1.norm1", "blocks.5"],
    "timm:swin-tiny": ["layers.2.blocks.1", "layers.1"],
}
SIZES = {
    "torchvision:resnet18": (64, 96),
    "torchvision:vgg11": (64, 96),
    "timm:vit-tiny": (96, 96),
    "timm:swin-tiny": (64, 64),
}


def reshape_tokens(tokens):
    patches = tokens[:, 1:]
    return patches.reshape(len(patches), 6, 6, patches.shape[2]).permute(0, 3, 1, 2)


# The transform that grad-cam ships for Swin expects a sequence; timm's Swin keeps [B, h, w, K].
RESHAPE = {"timm:vit-tiny": reshape_tokens, "timm:swin-tiny": lambda maps: maps.permute(0, 3, 1, 2)}


def gradcam_package(name, peer, layer):
    """A grad-cam object on a copy of the model after its forward and backward pass, and the raw maps it makes."""
    model = copy.deepcopy(zoo.random_model(name))
    module = find_module(model, layer)[1]
    extractor = peer(model, [module], reshape_transform=RESHAPE.get(name))
    images, targets = zoo.images(2, SIZES[name]), [ClassifierOutputTarget(index) for index in CLASSES]
    extractor(images, targets)
    activations = extractor.activations_and_grads.activations[0].numpy()
    gradients = extractor.activations_and_grads.gradients[0].numpy()
    maps = extractor.get_cam_image(images, module, targets, activations, gradients, eigen_smooth=False)
    return torch.from_numpy(maps), activations, gradients


def torchcam_package(name, peer, layer):
    model = copy.deepcopy(zoo.random_model(name))
    path = find_module(model, layer)[0]
    options = {"fc_layer": "fc"} if peer is tc.CAM else {}
    if name in RESHAPE:
        options["reshape_transform"] = RESHAPE[name]
    extractor = peer(model, path, **options)
    extractor._relu = False
    (maps,) = extractor(CLASSES, model(zoo.images(2, SIZES[name])), normalized=False)
    return maps.detach()


def captum_package(name, layer):
    model = copy.deepcopy(zoo.random_model(name))
    attribution = LayerGradCam(model, find_module(model, layer)[1])
    return attribution.attribute(zoo.images(2, SIZES[name]), target=CLASSES).detach()[:, 0]


def ours(name, method, layer):
    return Explainer(zoo.watch(zoo.random_model(name)))(
        zoo.images(2, SIZES[name]), method, torch.tensor(CLASSES), layer, relu=False
    ).maps


def assert_same(found, expected):
    flat = expected.flatten(1)
    assert bool((flat.amax(dim=1) - flat.amin(dim=1) > 0.1 * flat.abs().amax(dim=1)).all()), "the peer's map is flat"
    assert relative_error(found, expected).max() <= AGREE


# For each of our methods the peer's; XGrad-CAM on ReLU features only, as both peers add a constant to a signed sum.
GRADCAM_PACKAGE = {
    "gradcam": pgc.GradCAM,
    "layercam": pgc.LayerCAM,
    "hirescam": pgc.HiResCAM,
    "xgradcam": pgc.XGradCAM,
}
TORCHCAM_PACKAGE = {"gradcam": tc.GradCAM, "layercam": tc.LayerCAM, "xgradcam": tc.XGradCAM}
POSITIONS = [(name, layer) for name, layers in LAYERS.items() for layer in layers]


def rows(methods):
    return [
        (name, layer, method)
        for name, layer in POSITIONS
        for method in methods
        if not (method == "xgradcam" and name in RESHAPE)
    ]


@pytest.mark.parametrize(("name", "layer", "method"), rows(GRADCAM_PACKAGE))
def test_equals_grad_cam(name, layer, method):
    assert_same(ours(name, method, layer), gradcam_package(name, GRADCAM_PACKAGE[method], layer)[0])


@pytest.mark.parametrize(("name", "layer", "method"), rows(TORCHCAM_PACKAGE))
def test_equals_torchcam(name, layer, method):
    assert_same(ours(name, method, layer), torchcam_package(name, TORCHCAM_PACKAGE[method], layer))


def test_cam_equals_torchcam():
    name, layer = "torchvision:resnet18", "layer4"
    assert_same(ours(name, "cam", layer), torchcam_package(name, tc.CAM, layer))


# captum knows no tokens: on a ViT it averages over the wrong axes
@pytest.mark.parametrize(("name", "layer"), [row for row in POSITIONS if row[0] not in RESHAPE])
def test_gradcam_equals_captum(name, layer):
    assert_same(ours(name, "gradcam", layer), captum_package(name, layer))


def test_gradcam_of_a_layer_before_an_in_place_relu_equals_captum():
    """The other two multiply gradients before the ReLU with activations behind it, or take both behind it."""
    name, layer = "torchvision:vgg11", "features.-3"
    assert_same(ours(name, "gradcam", layer), captum_package(name, layer))
    mixed = gradcam_package(name, pgc.GradCAM, layer)[0]
    assert relative_error(ours(name, "gradcam", layer), mixed).min() > 0.1


def without_constants(activations, gradients):
    return torch.from_numpy(
        np.stack([reference.gradcam_plusplus(a, g) for a, g in zip(activations, gradients, strict=True)])
    )


@pytest.mark.parametrize(("name", "layer"), POSITIONS[:1] + POSITIONS[3:4])
def test_gradcam_plusplus_is_the_paper_on_a_peers_own_gradients(name, layer):
    """grad-cam adds 1e-6 to a denominator of the size of a squared gradient, so its own map is another one."""
    peers_map, activations, gradients = gradcam_package(name, pgc.GradCAMPlusPlus, layer)
    found, paper = ours(name, "gradcam++", layer), without_constants(activations, gradients)
    assert_same(found, paper)
    shrunk = without_constants(activations, gradients * 1e-4)
    with_constant = pgc.GradCAMPlusPlus.get_cam_weights(None, None, None, None, activations, gradients * 1e-4)
    theirs = torch.from_numpy((with_constant[:, :, None, None] * activations).sum(axis=1))
    assert relative_error(theirs, shrunk).min() > 0.5, "a constant would outweigh small gradients"
    assert relative_error(peers_map, paper).max() > AGREE
