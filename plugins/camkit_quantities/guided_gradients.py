"""Gradients with respect to the images under another backward rule at every ReLU: guided, and of a deconvnet."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from camkit import plugin
from camkit.errors import CamkitError
from camkit.quantities import Pass
from camkit_quantities.recording import gradient_at_images

# A module calls its functional form, and every form of a function is an object of its own.
_RELU = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_RELATIVES = {F.relu6, F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.gelu, F.silu, F.mish, F.hardswish}
_BOUNDED = {F.hardtanh, F.hardtanh_}


@plugin.quantity("guided_gradients", traceable=False, layer=False, reruns=True)
def guided_gradients(this: Pass) -> Tensor:
    """The gradient of the scores with respect to the images, [B, C, H, W], guided (arXiv:1412.6806).

    At every ReLU, called as a module, as a function or in place, only a positive gradient passes, and only where the
    input is positive: g (x > 0) (g > 0). The papers know ReLU alone; its relatives (ReLU6, leaky ReLU, ELU, GELU, SiLU,
    Mish, hard swish) follow the same rule and keep their own derivative: g f'(x) (x > 0) (g > 0).

    Raises:
        CamkitError: none of these functions runs in the model, so there is nothing to guide.
    """
    return _modified(this, guided=True)


@plugin.quantity("deconvnet_gradients", traceable=False, layer=False, reruns=True)
def deconvnet_gradients(this: Pass) -> Tensor:
    """What a deconvnet (arXiv:1311.2901) projects from the scores to the images, [B, C, H, W].

    Written as a gradient, it differs from the plain one at every ReLU and its relatives (see `guided_gradients`): the
    positive part of the gradient passes, whatever the input was.

    Raises:
        CamkitError: none of these functions runs in the model.
    """
    return _modified(this, guided=False)


class ModifiedRectifiers(TorchFunctionMode):
    """While it is entered, every ReLU and relative of it has the modified backward; the model itself stays untouched.

    Attributes:
        count: how many were met on the way from the images.
    """

    def __init__(self, *, guided: bool) -> None:
        super().__init__()
        self.guided = guided
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a call as it is, or with the modified backward; in-place calls change their tensor."""
        given = dict(kwargs or {})
        inputs, rest = (args[0], args[1:]) if args else (given.pop("input", None), ())
        if not _rectifies(func, rest, given) or not inputs.requires_grad:
            return func(*args, **(kwargs or {}))
        self.count += 1
        # none of these functions has another flag
        in_place = func.__name__.endswith("_") or given.get("inplace", False) or any(value is True for value in rest)

        def function(values: Tensor) -> Tensor:
            result: Tensor = func(values.clone() if in_place else values, *rest, **given)
            return result

        passing = partial(_passing, func, function) if self.guided else None
        output = _Modified.apply(inputs, function, passing)
        return inputs.copy_(output) if in_place else output


class _Modified(torch.autograd.Function):
    """A function in whose backward the positive part of the gradient passes, times what `passing` gives if any."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, function: Callable[[Tensor], Tensor], passing: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        if passing is not None:
            ctx.save_for_backward(passing(inputs))
        return function(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        positive = gradients[0].clamp(min=0)
        return (positive * ctx.saved_tensors[0] if ctx.saved_tensors else positive), None, None


def _passing(called: Any, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The derivative where the input is positive, else 0; of a ReLU it is one bit."""
    positive = inputs > 0
    if called in _RELU:
        return positive
    with torch.enable_grad():
        start = inputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(start).sum(), start)
    return slope * positive


def _rectifies(function: Any, rest: tuple[Any, ...], given: dict[str, Any]) -> bool:
    # nn.ReLU6 calls hardtanh, which is a rectifier only where it ends at zero
    if function in _BOUNDED:
        return bool((rest[0] if rest else given.get("min_val", -1.0)) == 0)
    return function in _RELU or function in _RELATIVES


def _modified(this: Pass, *, guided: bool) -> Tensor:
    rectifiers = ModifiedRectifiers(guided=guided)
    again = this.again(this.scored.forward.images, from_images=True, observers=[rectifiers])
    if not rectifiers.count:
        raise CamkitError(
            "No ReLU (nor GELU, SiLU or another of its relatives) runs between the images and the scores, so guided "
            "and deconvnet gradients would be the plain gradient; use another method for this model."
        )
    return gradient_at_images(again)
