"""The methods that are compared, and what each library calls them.

A contestant is set up and called as in contestants.py. Its name is "library, method", and `CONTESTANTS` holds them all,
so that a process that measures memory finds one by its name.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from contestants import (
    CLASS,
    PLAIN,
    Call,
    Case,
    Contestant,
    Run,
    camkit_all_methods,
    floor,
    plain,
    tokens_to_maps,
)
from timing import Cost

CAMKIT, GRAD_CAM, TORCHCAM, BY_HAND = "camkit", "grad-cam", "torchcam", "by hand"
LIBRARIES = (CAMKIT, BY_HAND, GRAD_CAM, TORCHCAM)

ABLATION, SCORE, EVERY, PREPARED = "Ablation-CAM", "Score-CAM", "all single-pass methods, one call", "prepared once"

# how many copies the hand-written loop runs at a time
COPIES = 64


@dataclass(frozen=True)
class Row:
    """One method: its name in camkit, and its class in the other libraries where they have it.

    `long` ones run the model or its head once per channel or position. Those that are `alike` differ from Grad-CAM or
    Eigen-CAM in arithmetic on one layer's maps alone, so their memory is not measured again.
    """

    title: str
    camkit: str
    grad_cam: str | None = None
    torchcam: str | None = None
    long: bool = False
    attention: bool = False
    alike: bool = False


METHODS = (
    Row("Grad-CAM", "gradcam", "GradCAM", "GradCAM"),
    Row("Grad-CAM++", "gradcam++", "GradCAMPlusPlus", "GradCAMpp", alike=True),
    Row("XGrad-CAM", "xgradcam", "XGradCAM", "XGradCAM", alike=True),
    Row("LayerCAM", "layercam", "LayerCAM", "LayerCAM", alike=True),
    Row("HiResCAM", "hirescam", "HiResCAM", alike=True),
    Row("Eigen-CAM", "eigencam", "EigenCAM"),
    Row("Eigen-Grad-CAM", "eigengradcam", "EigenGradCAM", alike=True),
    Row("KPCA-CAM", "kpcacam", "KPCA_CAM", alike=True),
    Row("Full-Grad", "fullgrad", "FullGrad"),
    Row("Smooth Grad-CAM++", "smoothgradcam++", None, "SmoothGradCAMpp"),
    Row("Shapley-CAM", "shapleycam", "ShapleyCAM"),
    Row("guided backpropagation", "guided-backprop", "GuidedBackpropReLUModel"),
    Row("Recipro-CAM", "reciprocam", long=True),
    Row("attention rollout", "rollout", attention=True),
    Row("Chefer", "chefer", attention=True),
    Row(ABLATION, "ablationcam", "AblationCAM", long=True),
    Row(SCORE, "scorecam", "ScoreCAM", "ScoreCAM", long=True),
)


@contextmanager
def by_camkit(method: str, model: nn.Module, case: Case) -> Iterator[Run]:
    import camkit

    explainer = camkit.Explainer(model, layer=case.layer)
    yield lambda images: explainer(images, method=method, target=CLASS).heatmaps


@contextmanager
def by_grad_cam(method: str, model: nn.Module, case: Case) -> Iterator[Run]:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer = model.get_submodule(case.layer)
    further: dict[str, Any] = {}
    if method == "AblationCAM" and case.tokens:
        further["ablation_layer"] = pytorch_grad_cam.AblationLayerVit()
    # Full-Grad finds its layers itself, convolutions all of them, and says so if it is given some
    own_layers = method == "FullGrad"
    layers = [] if own_layers else [layer]
    reshape = tokens_to_maps if case.tokens and not own_layers else None
    with getattr(pytorch_grad_cam, method)(model, layers, reshape_transform=reshape, **further) as explain:

        def run(images: Tensor) -> Any:
            try:
                # some of its methods ask the user's own images for a gradient
                return explain(images.clone(), targets=[ClassifierOutputTarget(CLASS)] * len(images))
            finally:
                # Ablation-CAM leaves its own layer in the model when it is stopped
                model.set_submodule(case.layer, layer)

        yield run


@contextmanager
def guided_by_grad_cam(model: nn.Module, case: Case) -> Iterator[Run]:
    from pytorch_grad_cam import GuidedBackpropReLUModel

    # it exchanges the model's ReLUs for good
    explain = GuidedBackpropReLUModel(copy.deepcopy(model), "cpu")
    yield lambda images: explain(images.clone(), target_category=CLASS)


@contextmanager
def by_torchcam(method: str, model: nn.Module, case: Case) -> Iterator[Run]:
    from torchcam import methods

    reshape = tokens_to_maps if case.tokens else None
    with getattr(methods, method)(model, case.layer, reshape_transform=reshape) as explain:

        def run(images: Tensor) -> Any:
            with torch.inference_mode(mode=method == "ScoreCAM"):
                return explain(CLASS, model(images))

        yield run


@contextmanager
def prepared_by_camkit(model: nn.Module, case: Case) -> Iterator[Run]:
    """The first call of a model whose head is run alone, with one perturbation: what making the head's graph costs."""
    import camkit
    from camkit import plugin
    from camkit.contracts import Head

    def first(activations: Tensor, head: Head) -> Tensor:
        return activations * head.map(lambda i: activations, 1)[:, :, None, None]

    explainer = camkit.Explainer(case.build(), layer=case.layer)
    method = plugin.method("first", paper="none")(first)
    yield lambda images: explainer(images, method=method, target=CLASS).maps


def head(model: Any, case: Case) -> Callable[[Tensor, Tensor], Tensor]:
    """What the model runs behind the layer: from its output, and what bypasses it, to the logits."""
    if case.tokens:
        block = model.encoder.layers[-1]

        def run(tokens: Tensor, residual: Tensor) -> Tensor:
            attended, _ = block.self_attention(tokens, tokens, tokens, need_weights=False)
            tokens = attended + residual
            tokens = tokens + block.mlp(block.ln_2(tokens))
            return model.heads(model.encoder.ln(tokens)[:, 0])

        return run
    if case.model.startswith("vgg"):
        return lambda maps, _: model.classifier(model.avgpool(model.features[30](maps)).flatten(1))
    return lambda maps, _: model.fc(model.avgpool(maps).flatten(1))


@dataclass
class Seen:
    """What one plain forward of one image shows: logits, the layer's output, and what bypasses the layer in a ViT."""

    logits: Tensor
    output: Tensor
    residual: Tensor

    @classmethod
    def of(cls, model: nn.Module, case: Case, images: Tensor) -> "Seen":
        """Runs the model."""
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            kept.extend((output.clone(), inputs[0]))

        with torch.inference_mode(), model.get_submodule(case.layer).register_forward_hook(keep):
            return cls(model(images), *kept)

    def activations(self, case: Case) -> Tensor:
        """The layer's output as maps [1, K, h, w]."""
        return tokens_to_maps(self.output) if case.tokens else self.output


@contextmanager
def ablation_by_hand(model: nn.Module, case: Case) -> Iterator[Run]:
    """Ablation-CAM of one image by a loop written for this model alone: the map [1, h, w] and no more."""
    scores_of = head(model, case)

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        seen = Seen.of(model, case, images)
        activations = seen.activations(case)
        channels = activations.flatten(2).any(dim=2)[0].nonzero()[:, 0].tolist()
        drops = torch.zeros_like(activations[:, :, 0, 0])
        score = seen.logits[:, CLASS]
        # made once: a channel that was set to zero is put back afterwards
        copies = seen.output.repeat(COPIES, *(1,) * (seen.output.ndim - 1))
        maps = copies[:, 1:].transpose(1, 2) if case.tokens else copies
        whole = seen.output[0, 1:].T if case.tokens else seen.output[0]
        for start in range(0, len(channels), COPIES):
            part = channels[start : start + COPIES]
            for place, channel in enumerate(part):
                maps[place, channel] = 0
            drops[:, part] = score - scores_of(copies[: len(part)], seen.residual)[:, CLASS]
            for place, channel in enumerate(part):
                maps[place, channel] = whole[channel]
        return (activations * (drops / score.abs())[:, :, None, None]).sum(dim=1)

    yield run


class _Enough(BaseException):
    """Ends a call; no library catches it."""


@dataclass
class Beginning:
    """A contestant of one image that is stopped when it has run the model on so many chunks.

    A chunk is a forward pass of more than one image; what is run before, and alone, is preparation.
    """

    contestant: Contestant
    chunks: int
    images: int = field(default=0, init=False)

    @contextmanager
    def __call__(self, model: nn.Module, case: Case) -> Iterator[Run]:
        """Sets it up; after a call `images` says how many images the chunks held."""

        def run(images: Tensor) -> None:
            done = self.images = 0

            def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                nonlocal done
                if len(inputs[0]) == 1:
                    return
                if done == self.chunks:
                    raise _Enough
                done += 1
                self.images += len(inputs[0])

            with model.register_forward_pre_hook(count), suppress(_Enough):
                call(images)

        with self.contestant(model, case) as call:
            yield run


@dataclass(frozen=True)
class Subset:
    """A long contestant that is timed twice, up to its first chunk and up to a later one; the rest is extrapolated."""

    before: Beginning
    partial: Beginning

    @classmethod
    def of(cls, contestant: Contestant, chunks: int) -> "Subset":
        """The first `chunks` of a contestant."""
        return cls(Beginning(contestant, 0), Beginning(contestant, chunks))


def extrapolated(before: Sequence[Cost], partial: Sequence[Cost], times: float) -> list[Cost]:
    """Costs of the whole by round: what comes before the first chunk, and `times` the timed chunks."""
    return [
        Cost(*(start + (end - start) * times for start, end in ((first.cpu, last.cpu), (first.wall, last.wall))))
        for first, last in zip(before, partial, strict=True)
    ]


@contextmanager
def ready(contestant: Contestant, model: nn.Module, case: Case, images: Tensor) -> Iterator[Call]:
    """A contestant that is set up for a model, and called without arguments."""
    with contestant(model, case) as run:
        yield partial(run, images)


# Chunks that are timed of what runs the whole model once per channel.
CHUNKS = 1


def name_of(library: str, title: str) -> str:
    """The name of a contestant."""
    return f"{library}, {title}"


def _contestants() -> Iterator[tuple[str, Contestant]]:
    yield PLAIN, plain
    yield name_of(BY_HAND, "Grad-CAM"), floor
    yield name_of(BY_HAND, ABLATION), ablation_by_hand
    yield name_of(CAMKIT, EVERY), camkit_all_methods
    yield name_of(CAMKIT, PREPARED), prepared_by_camkit
    for row in METHODS:
        yield name_of(CAMKIT, row.title), partial(by_camkit, row.camkit)
        if row.grad_cam == "GuidedBackpropReLUModel":
            yield name_of(GRAD_CAM, row.title), guided_by_grad_cam
        elif row.grad_cam:
            yield name_of(GRAD_CAM, row.title), partial(by_grad_cam, row.grad_cam)
        if row.torchcam:
            yield name_of(TORCHCAM, row.title), partial(by_torchcam, row.torchcam)


_WHOLE = dict(_contestants())

# Those that run the whole model once per channel: grad-cam's Ablation-CAM, and everybody's Score-CAM.
SUBSETS: Mapping[str, Subset] = MappingProxyType(
    {
        name: Subset.of(_WHOLE[name], CHUNKS)
        for name in (name_of(GRAD_CAM, ABLATION), *(name_of(one, SCORE) for one in (CAMKIT, GRAD_CAM, TORCHCAM)))
    }
)

# What can be called to its end in a short time.
CONTESTANTS: Mapping[str, Contestant] = MappingProxyType(
    {name: SUBSETS[name].partial if name in SUBSETS else contestant for name, contestant in _WHOLE.items()}
)

LONG = {
    name_of(BY_HAND, ABLATION),
    name_of(CAMKIT, PREPARED),
    *(name_of(CAMKIT, row.title) for row in METHODS if row.long),
    *SUBSETS,
}


def applies(name: str, case: Case) -> bool:
    """Whether a contestant can explain a model.

    grad-cam's Shapley-CAM differentiates attention twice, which the fused kernel refuses.
    """
    if name == name_of(GRAD_CAM, "Shapley-CAM"):
        return not case.tokens
    return case.tokens or not any(name == name_of(CAMKIT, row.title) for row in METHODS if row.attention)


def holds_its_own(name: str) -> bool:
    """Whether the memory of a contestant is measured: not where it is another's, nor of loops by hand."""
    alike = {name_of(library, row.title) for row in METHODS if row.alike for library in LIBRARIES}
    return name not in alike and name != name_of(CAMKIT, PREPARED) and not name.startswith(BY_HAND)


def channels(model: nn.Module, case: Case, images: Tensor) -> tuple[int, int]:
    """How many channels the layer has, and how many of them are not constant: camkit leaves the others out."""
    maps = Seen.of(model, case, images).activations(case)
    return maps.shape[1], int((maps.amax(dim=(2, 3)) > maps.amin(dim=(2, 3))).sum())


def titles(names: Sequence[str]) -> list[str]:
    """The methods among contestants, in the order of the table."""
    order = [*(row.title for row in METHODS), EVERY, PREPARED]
    return [title for title in order if any(name_of(library, title) in names for library in LIBRARIES)]
