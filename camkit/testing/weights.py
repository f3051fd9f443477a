"""Weights that a freshly built model lacks: many layers begin as zeros or ones, and then a map is blank.

Many others begin so small that a model says nearly the same of every image; its map is then the small remainder of
large terms, in which rounding shows.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_CONSTANT = 1e-3
_LEAST_VARIANCE = 0.5

# What rounding may make of an output, and by what the gains of norms are lowered where it makes more.
_CALM = 2e-6
_CALMING = 0.85
_CALMING_STEPS = 8


@torch.no_grad()
def vary_constants(module: nn.Module, seed: int = 0) -> None:
    """Makes everything random that is constant in an untrained model, of the size that training gives it.

    Heads, class tokens and residual gains of zeros, layer scales of 1e-6, norms of ones, and the statistics of batch
    norms. What has been drawn at random already stays; the weights of linear and convolutional layers are enlarged
    where they would shrink what they are given.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if parameter.is_floating_point() and _is_constant(parameter):
                _fill(parameter, generator)
            elif isinstance(part, nn.Linear | nn.modules.conv._ConvNd) and parameter.ndim > 1:
                ordinary = parameter[0].numel() ** -0.5
                parameter.mul_(max(1.0, ordinary / float(parameter.std())))
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.running_mean is not None:
            part.running_mean.normal_(0, 0.2, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]


@torch.no_grad()
def restrain_batch_norms(module: nn.Module, images: Tensor) -> None:
    """Lets batch norms hold back what grows on the way of images [B, C, H, W], as they do after training.

    Variances of the size of 1 do not: in a deep residual model one block's output may be twice the block's before, and
    its map chaotic. Half of each channel's mean is taken off: with all of it, rounding is enlarged from layer to layer;
    with none, what differs between images becomes as small as rounding, and the map is the same for all.

    Where a model is so deep that rounding is enlarged nevertheless, the gains of its norms are lowered step by step,
    until float32 gives what float64 gives.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    norms = [norm for norm in norms if norm.running_var is not None]
    for _ in range(_CALMING_STEPS):
        _follow(module, images, norms)
        if not norms or _rounding(module, images) <= _CALM:
            return
        for norm in norms:
            norm.weight.mul_(_CALMING)


def _follow(module: nn.Module, images: Tensor, norms: Sequence[nn.Module]) -> None:
    """Gives norms the statistics of what reaches them."""

    def restrain(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        channels = inputs[0].transpose(0, 1).flatten(1)
        mean, variance = norm.running_mean, norm.running_var
        mean.copy_(channels.mean(dim=1) / 2)  # type: ignore[operator]
        spread = (channels - mean[:, None]).square().mean(dim=1)  # type: ignore[index]
        variance.copy_(spread.clamp(min=_LEAST_VARIANCE))  # type: ignore[operator]

    hooks = [norm.register_forward_pre_hook(restrain) for norm in norms]
    try:
        module(images)
    finally:
        for hook in hooks:
            hook.remove()


def _rounding(module: nn.Module, images: Tensor) -> float:
    """How far the model's output in float32 is from that in float64, relative to the largest value."""
    found = tree_leaves(module(images))[0]
    exact = tree_leaves(copy.deepcopy(module).double()(images.double()))[0]
    return float((found - exact).abs().max() / exact.abs().max())


def _is_constant(parameter: Tensor) -> bool:
    return parameter.numel() < 2 or float(parameter.std()) <= _CONSTANT


def _fill(parameter: Tensor, generator: torch.Generator) -> None:
    if parameter.ndim > 1:
        parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    elif float(parameter.mean()) > 0 or parameter.ndim == 0:
        parameter.uniform_(0.5, 1.5, generator=generator)
    else:
        parameter.normal_(0, 0.2, generator=generator)
