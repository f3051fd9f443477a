"""The float64 oracle: an explanation without anything that could be wrong in the engine.

A deep copy of the model in float64, plain hooks, full autograd through the whole model, no cut, no head taken as a
graph. Only the method's own function is shared, so it works for any plugin; whether a formula is right is another
question, for hand-computed values.
"""

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from camkit.cut import Forward, element
from camkit.errors import CamkitError
from camkit.explain import AnyMethod, Explainer
from camkit.injection import own_options
from camkit.methods import as_method
from camkit.plan import Plan
from camkit.targets import Target


@dataclass(frozen=True)
class Reference:
    """What the oracle says, in float64: logits [B, classes], the signed map [B, h, w], and the class explained [B]."""

    logits: Tensor
    maps: Tensor
    class_index: Tensor


class Oracle:
    """The float64 oracle of one method at one layer of an explainer's model; one in float64 already is not copied.

    Where a method runs the head many times, `plain` runs the whole model each time; otherwise the head is run alone, as
    the engine does, which is many times faster.
    """

    def __init__(
        self,
        explainer: Explainer,
        images: Tensor,
        method: AnyMethod = "gradcam",
        layer: str | None = None,
        target: str | Target = "class",
        options: Mapping[str, Any] | None = None,
        *,
        eigen_smooth: bool = False,
        plain: bool = True,
    ) -> None:
        twin = explainer if explainer.dtype == torch.float64 else in_double(explainer)
        self.target = Target(target) if isinstance(target, str) else target
        self.options = own_options(options or {}, self.target.name, [as_method(method).name], [self.target.name])
        self.probability = explainer.probability
        self.plain = plain
        self.plan: Plan = twin.plan(
            images.double(),
            [method],
            [layer if layer is not None else _first(explainer.layer)],
            options,
            others=[self.target.name],
            eigen_smooth=eigen_smooth,
        )

    def __call__(self, images: Tensor, class_index: Tensor, inputs: Mapping[str, Tensor] | None = None) -> Reference:
        """The reference for images [B, C, H, W] and class indices [B]; negative means the top class.

        `inputs` are the target's own, by default those that it was given.
        """
        module: nn.Module = self.plan.module
        layer = self.plan.layers[0]
        kept: dict[str, Tensor] = {}

        def keep(child: nn.Module, inputs: Any, output: Any) -> Any:
            tensor = element(output, layer)
            kept[layer.path] = tensor
            # an in-place operation behind the layer must not reach what was kept
            return tensor.clone() if isinstance(output, Tensor) else None

        target = replace(
            self.target,
            class_index=class_index,
            inputs={
                name: value.double() if value.is_floating_point() else value
                for name, value in (self.target.inputs if inputs is None else inputs).items()
            },
        )
        handle = layer.module.register_forward_hook(keep)
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.enable_grad())
                leaf = images.detach().double().clone().requires_grad_()
                observers = self.plan.observers()
                seen = [stack.enter_context(observer) for observer in observers]
                output = module(leaf)
                reader = self.plan.adapter.reader(module)
                logits, dense_logits = reader.logits(output, len(images))
                observed = {type(observer): found for observer, found in zip(observers, seen, strict=True)}
                forward = Forward(leaf, output, logits, kept, dense_logits, observed, reader)
                question = target.question(forward, self.options, self.probability)
                scored = self.plan.score(forward, question, last=True)
                ((_, result),) = self.plan.results(forward, scored, plain=self.plain)
        finally:
            handle.remove()
        return Reference(
            forward.features.detach() if reader.classes is False else logits.detach(),
            result.maps.detach(),
            question.class_index,
        )


def in_double(explainer: Explainer) -> Explainer:
    """The explainer of a copy of the model in float64."""
    twin = copy.copy(explainer)
    twin.module = copy.deepcopy(explainer.module).double()
    return twin


def _first(layer: Any) -> str | None:
    if layer is None or isinstance(layer, str):
        return layer
    if len(layer) != 1:
        raise CamkitError("The oracle computes one layer at a time; name it.")
    return str(layer[0])
