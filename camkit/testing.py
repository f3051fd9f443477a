"""What authors of plugins and adapters test with: the float64 oracle, when results are equal, a conformance kit.

The oracle computes an explanation without anything that could be wrong in the engine: a deep copy of the model in
float64, plain hooks, full autograd through the whole model, no cut. Only the method's own function is shared, so it
works for any plugin; whether a formula is right is another question, for hand-computed values.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camkit import heatmap
from camkit.cut import Forward, select_logits
from camkit.errors import CamkitError
from camkit.explain import Explainer
from camkit.plan import Plan
from camkit.registry import registry
from camkit.targets import resolve_top

HALF_TOLERANCE = 2e-2
HEATMAP_TOLERANCE = 1e-3
TIE = 1e-4


@dataclass(frozen=True)
class Reference:
    """What the oracle says, in float64: logits [B, classes], the signed map [B, h, w], and the class explained [B]."""

    logits: Tensor
    maps: Tensor
    class_index: Tensor


class Oracle:
    """The float64 oracle of one method at one layer of an explainer's model."""

    def __init__(
        self,
        explainer: Explainer,
        images: Tensor,
        method: str = "gradcam",
        layer: str | None = None,
        target: str = "class",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        twin = copy.copy(explainer)
        twin.module = copy.deepcopy(explainer.module).double()
        self.plan: Plan = twin.plan(
            images.double(), [method], [layer if layer is not None else _first(explainer.layer)], options
        )
        self.target = registry().get("target", target)

    def __call__(self, images: Tensor, class_index: Tensor) -> Reference:
        """The reference for images [B, C, H, W] and class indices [B]; negative means the top class."""
        module: nn.Module = self.plan.module
        layer = self.plan.layers[0]
        kept: dict[str, Tensor] = {}

        def keep(child: nn.Module, inputs: Any, output: Any) -> Any:
            tensor = output if isinstance(output, Tensor) else output[layer.element]
            kept[layer.path] = tensor
            # an in-place operation behind the layer must not reach what was kept
            return tensor.clone() if isinstance(output, Tensor) else None

        handle = layer.module.register_forward_hook(keep)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                inputs = images.detach().double().clone().requires_grad_()
                output = module(inputs)
                logits = select_logits(output, self.plan.adapter.output)
                explained = resolve_top(class_index, logits)
                forward = Forward(inputs, output, logits, kept)
                scored = self.plan.score(forward, self.target, explained, {}, last=True)
                ((_, maps),) = self.plan.maps(forward, scored, checks=True)
        finally:
            handle.remove()
        return Reference(logits.detach(), maps.detach(), explained)


def relative_error(found: Tensor, reference: Tensor) -> Tensor:
    """Max |found - reference| / max |reference| for each image, [B]; infinite where `found` is not finite."""
    difference = (found.double() - reference.double()).flatten(1).abs().amax(dim=1)
    error = difference / reference.double().flatten(1).abs().amax(dim=1)
    return torch.where(error.isnan(), torch.full_like(error, torch.inf), error)


def tolerance(eager_error: float, dtype: torch.dtype = torch.float32) -> float:
    """How far a result may be from the oracle: 10 times what eager float32 is, within [1e-4, 1e-3]; 2e-2 for half."""
    return HALF_TOLERANCE if dtype in (torch.float16, torch.bfloat16) else min(1e-3, max(1e-4, 10 * eager_error))


def untied(logits: Tensor) -> Tensor:
    """Which images have one clear top class, bool [B]: others may be explained for either of two."""
    if logits.shape[1] < 2:
        return torch.ones(len(logits), dtype=torch.bool)
    first, second = logits.double().topk(2, dim=1).values.unbind(1)
    return first - second > TIE * logits.double().abs().amax(dim=1)


def assert_informative(reference: Reference, size: tuple[int, int]) -> None:
    """Fails where the reference map or heatmap is constant, so that agreement with it would mean nothing."""
    heat = heatmap.heatmaps(reference.maps, size, relu=False)
    for name, values in (("map", reference.maps), ("heatmap", heat)):
        flat = values.flatten(1)
        spread = flat.amax(dim=1) - flat.amin(dim=1)
        if bool((spread <= 1e-9 * flat.abs().amax(dim=1)).any()):
            raise AssertionError(
                f"The reference {name} is constant for some image, so comparing with it proves nothing."
            )


def assert_agrees(
    logits: Tensor,
    maps: Tensor,
    reference: Reference,
    size: tuple[int, int],
    *,
    relu: bool = True,
    allowed: float = 1e-4,
    heatmap_allowed: float = HEATMAP_TOLERANCE,
) -> None:
    """Fails where logits, map or heatmap differ from the reference by more than is allowed."""
    assert_informative(reference, size)
    for name, found, expected in (("logits", logits, reference.logits), ("map", maps, reference.maps)):
        worst = float(relative_error(found.cpu(), expected.cpu()).max())
        if not worst <= allowed:
            raise AssertionError(
                f"The {name} differ from the oracle by {worst:.2e} of their largest value; {allowed:.0e} is allowed."
            )
    found_heat = heatmap.heatmaps(maps.double().cpu(), size, relu=relu)
    expected_heat = heatmap.heatmaps(reference.maps.cpu(), size, relu=relu)
    shown = expected_heat.flatten(1).abs().amax(dim=1) > 0
    worst = float((found_heat - expected_heat)[shown].abs().max()) if bool(shown.any()) else 0.0
    if not worst <= heatmap_allowed:
        raise AssertionError(f"The heatmap differs from the oracle by {worst:.2e}; {heatmap_allowed:.0e} is allowed.")


def check_method(
    explainer: Explainer, images: Tensor, method: str, *, layer: str | None = None, class_index: int = 0
) -> None:
    """The conformance kit for a method: run it in a test of your plugin, on any model that it supports.

    It demands that the method gives finite signed maps of the right shape, treats each image of a batch by itself,
    equals the float64 oracle, and leaves the model as it was.
    """
    before = state(explainer.module)
    together = explainer(images, method, target=class_index, layer=layer, relu=False)
    if not bool(together.maps.isfinite().all()):
        raise AssertionError(f"The method '{method}' gave values that are not finite.")
    single = [explainer(image[None], method, target=class_index, layer=layer, relu=False) for image in images]
    alone = torch.cat([explanation.maps for explanation in single])
    if float(relative_error(together.maps, alone).max()) > 1e-3:
        raise AssertionError(f"The method '{method}' lets the images of a batch influence each other.")
    if state(explainer.module) != before:
        raise AssertionError(f"The method '{method}' left the model changed.")
    index = torch.full((len(images),), class_index)
    reference = Oracle(explainer, images, method, layer)(images, index)
    size = (images.shape[2], images.shape[3])
    assert_agrees(together.logits, together.maps, reference, size, allowed=1e-3, heatmap_allowed=1e-2)


def state(module: nn.Module) -> dict[str, Any]:
    """Everything about a model that an explanation must leave as it was, in a form that can be compared."""
    found: dict[str, Any] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        found[f"module {name}"] = (
            id(child),
            child.training,
            getattr(child, "inplace", None),
            [tuple(getattr(child, hook)) for hook in hooks],
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        gradient = tensor.grad
        found[f"tensor {name}"] = (
            id(tensor),
            tensor.dtype,
            str(tensor.device),
            tensor.requires_grad,
            tensor._version if not tensor.is_inference() else None,
            None if gradient is None else (id(gradient), gradient._version),
        )
    return found


def _first(layer: Any) -> str | None:
    if layer is None or isinstance(layer, str):
        return layer
    if len(layer) != 1:
        raise CamkitError("The oracle computes one layer at a time; name it.")
    return str(layer[0])
