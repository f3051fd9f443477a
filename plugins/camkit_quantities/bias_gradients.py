"""Gradient times bias at every bias of the model, with the gradient at the images, from one rerun (Full-Grad)."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from camkit import plugin
from camkit.errors import CamkitError
from camkit.layout import NCHW, NHWC, Layout, Tokens
from camkit.precision import single
from camkit.quantities import Pass, Quantity
from camkit_quantities.recording import gradient_at_images

# Where each function takes its bias.
_CHANNELS_FIRST = {
    F.conv1d: 2,
    F.conv2d: 2,
    F.conv3d: 2,
    F.conv_transpose2d: 2,
    F.group_norm: 3,
    F.instance_norm: 4,
    F.batch_norm: 4,
}
_CHANNELS_LAST = {F.linear: 2, F.layer_norm: 3}
_BIAS = {**_CHANNELS_FIRST, **_CHANNELS_LAST}


class FullGradients(NamedTuple):
    """What one backward pass through the whole model gives: [B, C, H, W], and [B, K, h, w] for each bias in a map."""

    images: Tensor
    biases: tuple[Tensor, ...]


@plugin.quantity("bias_gradients", traceable=False, layer=False, reruns=True)
def bias_gradients(this: Pass) -> tuple[Tensor, ...]:
    """Gradient times bias, [B, K, h, w] for each place where the model adds a bias to a map, in the order of the pass.

    Biases are those of convolutions, linear layers and normalisations, wherever they are called; a module that runs
    twice counts twice. A batch norm's is all that it adds, bias - running_mean * weight / sqrt(running_var + eps); a
    LayerNorm or GroupNorm, which is not linear, has the bias at its output. In a network of ReLUs these terms and those
    that are in no map add up, with gradient times image, to the score.

    Tokens are read as maps by the adapter's layout, without the prefix tokens. Left out is what has no place in a map:
    biases behind the pooling or on 1x1 maps (a classifier, squeeze-and-excitation), in windows and heads of attention,
    and what is added without being a layer's bias (position embeddings, frozen batch norms).
    """
    return full_gradients(this).biases


def full_gradients(this: Pass) -> FullGradients:
    """The gradients at images and biases, computed once for a pass, whichever of the quantities comes first."""
    found: FullGradients = this.value(_FULL_GRADIENTS)
    return found


class BiasTerms(TorchFunctionMode):
    """While it is entered, every bias added to a map is noted, to be multiplied by its gradient in the backward pass.

    The products are made as the gradients come by: all gradients at once would be held beside them.
    """

    def __init__(self, this: Pass) -> None:
        super().__init__()
        self.this = this
        self.found: list[Tensor | None] = []

    @property
    def terms(self) -> tuple[Tensor, ...]:
        """The products of those that have an influence on the scores."""
        return tuple(term for term in self.found if term is not None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a call as it is, and notes its bias."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _BIAS and output.requires_grad:
            bias = _bias(func, args, kwargs)
            layout = self._layout(output, bias, channels_last=func in _CHANNELS_LAST)
            if layout is not None:
                self._note(output, layout, single(bias.detach())[:, None, None])
        return output

    def _note(self, output: Tensor, layout: Layout, bias: Tensor) -> None:
        place = len(self.found)
        self.found.append(None)

        def multiply(gradient: Tensor) -> None:
            self.found[place] = single(layout.to_maps(gradient)) * bias

        # a hook keeps to the values at this point, also where the model overwrites them in place behind it
        output.register_hook(multiply)

    def _layout(self, output: Tensor, bias: Tensor | None, *, channels_last: bool) -> Layout | None:
        """How the output of a function is read as maps; None where it has no bias or no positions of the image."""
        shape = output.shape
        channels = shape[-1] if channels_last else shape[1]
        if bias is None or bias.shape != (channels,) or len(shape) not in (3, 4):
            return None
        images = self.this.scored.forward.images
        if shape[0] != len(images):
            return None
        if len(shape) == 3:
            return self._tokens(output) if channels_last else None
        height, width = shape[1:3] if channels_last else shape[2:4]
        # heads of attention times tokens are no height and width
        if height * width == 1 or (channels_last and not _alike(height / width, images.shape[2] / images.shape[3])):
            return None
        return NHWC() if channels_last else NCHW()

    def _tokens(self, output: Tensor) -> Layout | None:
        this, size = self.this, self.this.scored.forward.images.shape[2:]
        try:
            # under no name, so that what the adapter says of the target layer alone is not taken for this one
            layer = replace(this.layer, name="")
            layout = this.adapter.layout_of(this.module, layer, output.shape, (size[0], size[1]))
        except CamkitError:
            return None
        if not isinstance(layout, Tokens) or layout.grid == (1, 1):
            return None
        # a Mixer's channels may happen to be as many as some grid has places; true grids differ by halving
        if isinstance(this.layout, Tokens):
            halvings = math.log2(layout.grid[0] / this.layout.grid[0])
            return layout if abs(halvings - round(halvings)) < 0.1 else None
        return layout


def _bias(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function adds to each channel, [K]; None if nothing."""

    def given(name: str, place: int, default: Any = None) -> Any:
        return kwargs.get(name, args[place] if len(args) > place else default)

    bias = given("bias", _BIAS[function])
    # with the statistics of the image itself it is no linear function, like the other normalisations
    if function is not F.batch_norm or given("training", 5):
        return bias
    mean, variance, weight = given("running_mean", 1), given("running_var", 2), given("weight", 3)
    shift = -single(mean) / torch.sqrt(single(variance) + given("eps", 7, 1e-5))
    shift = shift if weight is None else shift * weight
    return shift if bias is None else shift + bias


def _alike(first: float, second: float) -> bool:
    return abs(math.log(first / second)) <= math.log(2)


def _full_gradients(this: Pass) -> FullGradients:
    biases = BiasTerms(this)
    again = this.again(this.scored.forward.images, from_images=True, observers=[biases])
    images = gradient_at_images(again)
    return FullGradients(images, biases.terms)


# kept on the pass like any quantity, but nothing to ask for by name
_FULL_GRADIENTS = Quantity(
    "full_gradients", _full_gradients, FullGradients, traceable=False, graph=False, layer=False, reruns=True
)
