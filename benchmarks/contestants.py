"""The models that are explained, and everybody who explains them, each as its own users would call it.

A contestant is a context manager: what it sets up (hooks, frozen parameters) is there while it runs and gone while the
plain forward that it is compared with runs. It gives a function of the images. Libraries are imported inside, so that
a process that measures memory holds one of them only.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

Run = Callable[[Tensor], Any]
Call = Callable[[], Any]

THREADS = 2

# the class that everybody explains: given, not asked of the model, because captum has to know it before its forward
CLASS = 3

PLAIN = "plain forward"
FLOOR = "hand-written floor"
CAMKIT = "camkit Grad-CAM"
ALL_METHODS = "camkit, all methods in one call"
GRAD_CAM = "grad-cam"
TORCHCAM = "torchcam"
CAPTUM = "captum LayerGradCam"


@dataclass(frozen=True)
class Case:
    """A torchvision model with random weights, and its last layer with a spatial meaning."""

    model: str
    layer: str
    tokens: bool = False

    def build(self) -> nn.Module:
        """The model in evaluation mode, the same at every call."""
        torch.manual_seed(0)
        model = torchvision.models.get_model(self.model, weights=None).eval()
        if self.tokens:
            # torchvision starts a ViT's head at zero, with which every gradient is zero
            nn.init.normal_(model.heads.head.weight, std=0.02)
        return model


CASES: Mapping[str, Case] = MappingProxyType(
    {
        case.model: case
        for case in (
            Case("resnet50", "layer4"),
            Case("vgg16", "features.29"),
            Case("vit_b_16", "encoder.layers.encoder_layer_11.ln_1", tokens=True),
            Case("resnet18", "layer4"),
        )
    }
)


def make_images(batch: int, size: int) -> Tensor:
    """Random images [batch, 3, size, size]."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@contextmanager
def plain(model: nn.Module, case: Case) -> Iterator[Run]:
    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images)

    yield run


@contextmanager
def floor(model: nn.Module, case: Case) -> Iterator[Run]:
    """Nothing but what Grad-CAM needs, written for this model alone: no check, no option, no way to put it wrong."""
    seen: list[Tensor] = []

    def begin(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    def run(images: Tensor) -> Tensor:
        score = model(images)[:, CLASS].sum()
        activations = seen.pop()
        (gradients,) = torch.autograd.grad(score, activations)
        with torch.no_grad():
            if case.tokens:
                activations, gradients = tokens_to_maps(activations), tokens_to_maps(gradients)
            weights = gradients.mean(dim=(2, 3), keepdim=True)
            maps = (weights * activations).sum(dim=1, keepdim=True).clamp(min=0)
            heat = F.interpolate(maps, size=images.shape[2:], mode="bilinear", align_corners=False).squeeze(1)
            low, high = heat.amin(dim=(1, 2), keepdim=True), heat.amax(dim=(1, 2), keepdim=True)
            return (heat - low) / (high - low).clamp(min=1e-12)

    # no parameter asks for a gradient, so autograd records from the layer on and not before
    model.requires_grad_(False)
    handle = model.get_submodule(case.layer).register_forward_hook(begin)
    try:
        yield run
    finally:
        handle.remove()
        model.requires_grad_(True)


@contextmanager
def camkit_gradcam(model: nn.Module, case: Case) -> Iterator[Run]:
    import camkit

    explainer = camkit.Explainer(model, layer=case.layer)
    yield lambda images: explainer(images, target=CLASS).heatmaps


# The methods that a model does not refuse, filled when they are first asked for.
METHODS: dict[Case, list[str]] = {}


@contextmanager
def camkit_all_methods(model: nn.Module, case: Case) -> Iterator[Run]:
    import camkit

    explainer = camkit.Explainer(model, layer=case.layer)
    if case not in METHODS:
        METHODS[case] = explainer.applicable(make_images(1, 224), single_pass=True)
    methods = METHODS[case]
    yield lambda images: [one.heatmaps for one in explainer(images, method=methods, target=CLASS)]


@contextmanager
def grad_cam(model: nn.Module, case: Case) -> Iterator[Run]:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    reshape = tokens_to_maps if case.tokens else None
    with GradCAM(model, [model.get_submodule(case.layer)], reshape_transform=reshape) as explain:
        yield lambda images: explain(images, targets=[ClassifierOutputTarget(CLASS)] * len(images))


@contextmanager
def torchcam(model: nn.Module, case: Case) -> Iterator[Run]:
    from torchcam.methods import GradCAM

    reshape = tokens_to_maps if case.tokens else None
    with GradCAM(model, case.layer, reshape_transform=reshape) as explain:
        yield lambda images: explain(CLASS, model(images))


@contextmanager
def captum(model: nn.Module, case: Case) -> Iterator[Run]:
    from captum.attr import LayerGradCam

    explain = LayerGradCam(model, model.get_submodule(case.layer))
    yield lambda images: explain.attribute(images, target=CLASS)


Contestant = Callable[[nn.Module, Case], AbstractContextManager[Run]]

CONTESTANTS: Mapping[str, Contestant] = MappingProxyType(
    {
        PLAIN: plain,
        FLOOR: floor,
        CAMKIT: camkit_gradcam,
        ALL_METHODS: camkit_all_methods,
        TORCHCAM: torchcam,
        CAPTUM: captum,
        GRAD_CAM: grad_cam,
    }
)


def applies(name: str, case: Case) -> bool:
    """Whether a contestant can explain a model: captum takes tokens for channels and has no option to say otherwise."""
    return not (case.tokens and name == CAPTUM)


@contextmanager
def ready(name: str, model: nn.Module, case: Case, images: Tensor) -> Iterator[Call]:
    """A contestant that is set up for a model, and called without arguments."""
    with CONTESTANTS[name](model, case) as run:
        yield partial(run, images)


def tokens_to_maps(tokens: Tensor) -> Tensor:
    """[B, 1 + h * w, K] with a class token in front -> [B, K, h, w], for a square grid."""
    batch, count, channels = tokens.shape
    side = round((count - 1) ** 0.5)
    return tokens[:, 1:].reshape(batch, side, side, channels).permute(0, 3, 1, 2)


def ignore_warnings() -> None:
    """A model with random weights gives blank maps now and then, which is no news here."""
    warnings.simplefilter("ignore")
