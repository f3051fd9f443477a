"""The conformance kit: what every method promises, checked one promise at a time.

Each check is named after its promise, and fails with a sentence that says it.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from camkit.errors import CamkitError, CamkitWarning
from camkit.explain import Explainer
from camkit.explanation import Explanation
from camkit.layout import NCHW
from camkit.methods import Method, as_method
from camkit.plan import Plan
from camkit.quantities import Pass
from camkit.targets import Target
from camkit.testing.equality import assert_agrees
from camkit.testing.examples import at_least_two
from camkit.testing.formats import refusals
from camkit.testing.models import SmallConvNet, SmallPooledNet, SmallTransformer, random_images
from camkit.testing.oracle import Oracle, in_double
from camkit.testing.promises import options_have_types, repeatable, without_global_draws
from camkit.testing.state import state

# Two passes of one precision that differ in nothing but the order of sums.
SAME = 1e-5
PARITY = 1e-3


def check_method(
    method: str | Callable[..., Any],
    explainer: Explainer | None = None,
    images: Tensor | None = None,
    *,
    layer: str | None = None,
    class_index: int = 0,
    options: Mapping[str, Any] | None = None,
    exports: bool = True,
) -> None:
    """Checks that a method keeps the contract of camkit; run it in a test of your plugin.

    Args:
        method: the name of a registered method, or a function marked with `plugin.method`.
        explainer: the model to check it on. By default small ones: a convolutional network and a transformer, of which
            the method may refuse one.
        images: for that model, at least two, [B, C, H, W].
        layer: as for an Explainer.
        class_index: the class that is explained.
        options: options of the method, for instance fewer samples.
        exports: whether a method that can be traced is exported to every format and compared there too.

    Raises:
        AssertionError: a promise is not kept; the sentence says which.
        CamkitError: the method cannot be used at all.
    """
    parsed = as_method(method)
    options_have_types(parsed.signature)
    if explainer is not None:
        _check(Case(method, parsed, explainer, at_least_two(images), layer, class_index, options or {}), exports)
        return
    refusals: list[str] = []
    accepted = 0
    for network in (SmallConvNet(), SmallTransformer(), SmallPooledNet()):
        own = Explainer(network, adapter=network.adapter)
        # the third is there for methods that want nothing between pooling and classifier, as CAM does
        if accepted and isinstance(network, SmallPooledNet):
            break
        try:
            _explain(own, random_images(), method, options=options)
        except CamkitError as refusal:
            refusals.append(str(refusal))
            continue
        case = Case(method, parsed, own, random_images(), layer, class_index, options or {})
        # one model is enough to see that the method can be traced
        _check(case, exports and not accepted)
        accepted += 1
        if isinstance(network, SmallConvNet):
            _degenerate_input_gives_finite_maps(case)
    if not accepted:
        raise CamkitError(f"The method '{parsed.name}' explains none of the small models: {' '.join(refusals)}")


@dataclass(frozen=True)
class Case:
    """A method on a model."""

    given: str | Callable[..., Any]
    method: Method
    explainer: Explainer
    images: Tensor
    layer: str | None
    class_index: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, images: Tensor | None = None, explainer: Explainer | None = None) -> Explanation:
        """The signed explanation."""
        own, given = explainer or self.explainer, self.images if images is None else images
        return _explain(own, given, self.given, self.layer, self.class_index, self.options)


def _explain(
    explainer: Explainer,
    images: Tensor,
    method: Any,
    layer: str | None = None,
    target: Any = 0,
    options: Mapping[str, Any] | None = None,
) -> Explanation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamkitWarning)
        found: Explanation = explainer(images, method, target, layer, options=options, relu=False)
    return found


@repeatable()
def _check(case: Case, exports: bool) -> None:
    before = state(case.explainer.module)
    explanation = case()
    _the_result_has_the_shape_of_its_kind(case, explanation)
    _the_result_is_finite(case, explanation)
    _the_result_is_the_same_every_time(case, explanation)
    _images_of_a_batch_do_not_influence_each_other(case)
    _inputs_are_not_changed(case)
    _callers_may_switch_gradients_off(case, explanation)
    _only_a_class_specific_method_depends_on_the_class(case, explanation)
    if state(case.explainer.module) != before:
        raise _broken(case, "left the model changed", "the user's model comes back as it was")
    if case.method.kind == "map":
        _the_result_equals_the_oracle(case, explanation)
        if exports and case.method.traceable and case.explainer.dtype == torch.float32:
            _every_export_equals_the_oracle(case)


def _broken(case: Case, what: str, contract: str) -> AssertionError:
    return AssertionError(f"The method '{case.method.name}' {what}; the contract: {contract}.")


def _the_result_has_the_shape_of_its_kind(case: Case, explanation: Explanation) -> None:
    maps, images = explanation.maps, case.images
    dimensions = 3 if case.method.kind == "map" else 4
    if maps.ndim != dimensions or len(maps) != len(images):
        raise _broken(
            case,
            f"gave a result of shape {list(maps.shape)} for {len(images)} images",
            "a map is [B, h, w], pixels are [B, C, H, W], concepts are [B, k, h, w]",
        )
    if case.method.kind == "pixels" and maps.shape != images.shape:
        raise _broken(case, f"gave pixels {list(maps.shape)}", "pixels have the shape of the images")
    if maps.device != images.device:
        raise _broken(case, f"gave a result on {maps.device}", "the result is on the device of the images")


def _the_result_is_finite(case: Case, explanation: Explanation) -> None:
    if not bool(explanation.maps.isfinite().all()):
        raise _broken(case, "gave values that are not finite", "a map is finite wherever activations are")


def _images_of_a_batch_do_not_influence_each_other(case: Case) -> None:
    twin = in_double(case.explainer)
    together = case(case.images.double(), twin).maps
    alone = torch.cat([case(image[None].double(), twin).maps for image in case.images])
    if float(_difference(together, alone)) > SAME:
        raise _broken(
            case, "lets the images of a batch influence each other", "a batch gives exactly what single images give"
        )


def _the_result_is_the_same_every_time(case: Case, explanation: Explanation) -> None:
    again = without_global_draws(case, partial(_broken, case), seed=case.class_index + 1)
    if not torch.equal(again.maps, explanation.maps):
        raise _broken(case, "gave two results for one question", "the same images and options give the same map")


def _inputs_are_not_changed(case: Case) -> None:
    this, plan = _first_pass(case.explainer, case.images, case)
    given = [this.value(quantity) for quantity in case.method.quantities]
    tensors = [
        (quantity.name, tensor)
        for quantity, value in zip(case.method.quantities, given, strict=True)
        for tensor in (value if isinstance(value, tuple) else (value,))
        if isinstance(tensor, Tensor)
    ]
    copies = [tensor.clone() for _, tensor in tensors]
    with torch.no_grad():
        case.method.function(*given, **plan.options[0])
    for (name, tensor), copied in zip(tensors, copies, strict=True):
        if not torch.equal(tensor, copied):
            raise _broken(case, f"changed '{name}' in place", "other methods of the same pass share the quantities")


def _callers_may_switch_gradients_off(case: Case, explanation: Explanation) -> None:
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = case()
        if float(_difference(found.maps, explanation.maps)) > SAME:
            raise _broken(case, f"gave another map under torch.{mode.__name__}", "the caller's mode does not matter")


def _only_a_class_specific_method_depends_on_the_class(case: Case, explanation: Explanation) -> None:
    classes = explanation.logits.shape[1]
    if classes < 2:
        return
    other = _explain(
        case.explainer, case.images, case.given, case.layer, (case.class_index + 1) % classes, case.options
    )
    same = float(_difference(other.maps, explanation.maps)) <= SAME
    if same and case.method.class_specific:
        raise _broken(case, "gave the same map for two classes", "such a method is marked with class_specific=False")
    if not same and not case.method.class_specific:
        raise _broken(
            case, "is marked with class_specific=False but gave other maps for two classes", "the mark says the truth"
        )


def _the_result_equals_the_oracle(case: Case, explanation: Explanation) -> None:
    index = torch.full((len(case.images),), case.class_index, device=case.images.device)
    oracle = Oracle(case.explainer, case.images, case.given, case.layer, options=case.options)
    reference = oracle(case.images, index)
    try:
        assert_agrees(
            explanation.logits,
            explanation.maps,
            reference,
            explanation.size,
            relu=False,
            allowed=PARITY,
            heatmap_allowed=10 * PARITY,
        )
    except AssertionError as difference:
        raise _broken(
            case, f"is not what it is in float64: {difference}", "float32 is within 1e-3 of the float64 oracle"
        ) from None


def _every_export_equals_the_oracle(case: Case) -> None:
    # an export is verified against the oracle of this package, so it cannot be imported before it
    from camkit.exports import request

    promise = "a method whose quantities can all be traced can be exported, and agrees with the oracle there"
    try:
        asked = request(
            case.explainer, case.given, layer=case.layer, options=case.options, images=case.images, relu=False
        )
    except CamkitError as error:
        raise _broken(case, f"could not be exported: {error}", promise) from error
    for name, reason in refusals(asked).items():
        if reason:
            raise _broken(case, f"could not be exported to {name}: {reason}", promise)


def _degenerate_input_gives_finite_maps(case: Case) -> None:
    for name, (explainer, images) in dict(_degenerate()).items():
        this, plan = _first_pass(explainer, images, case)
        with torch.inference_mode(False), torch.no_grad():
            try:
                result = case.method.compute(this, plan.options[0])
            except CamkitError as refusal:
                if isinstance(refusal.__cause__, Exception):
                    raise _broken(case, f"failed on {name}: {refusal}", "it gives a finite map") from refusal
                continue
        if not bool(result.maps.isfinite().all()):
            raise _broken(case, f"gave values that are not finite on {name}", "it gives a finite map")


def _degenerate() -> Iterator[tuple[str, tuple[Explainer, Tensor]]]:
    """Models on which quotients, norms and principal components have nothing to hold on to."""

    def explainer(module: nn.Module) -> Explainer:
        return Explainer(module, adapter=SmallConvNet.adapter)

    blind = SmallConvNet()
    nn.init.zeros_(blind.classifier.weight)
    yield "zero gradients", (explainer(blind), random_images())
    for value, what in ((1.0, "constant activations"), (-1.0, "activations that are all zero")):
        constant = SmallConvNet()
        nn.init.zeros_(constant.features[5].weight)  # type: ignore[arg-type]
        nn.init.constant_(constant.features[5].bias, value)  # type: ignore[arg-type]
        yield what, (explainer(constant), random_images())
    yield "a single channel", (explainer(SmallConvNet(channels=1)), random_images())
    yield "a map of 1x1", (explainer(SmallConvNet()), random_images(size=4))


def _first_pass(explainer: Explainer, images: Tensor, case: Case) -> tuple[Pass, Plan]:
    """What the method's quantities are computed from, also at a layer of 1x1, which the engine would refuse."""
    plan = explainer.plan(images, [case.given], [case.layer], case.options)
    forward = plan.forward(images)
    question = Target(class_index=case.class_index).question(forward, {}, explainer.probability)
    scored = plan.score(forward, question, last=False)
    layer = plan.layers[0]
    shape = forward.captured[layer.path].shape
    try:
        layout = plan.adapter.layout_of(plan.module, layer, shape, (images.shape[2], images.shape[3]))
    except CamkitError:
        layout = NCHW()
    return Pass(plan.module, plan.adapter, scored, layer, layout, memory=plan.memory), plan


def _difference(found: Tensor, expected: Tensor) -> Tensor:
    scale = expected.abs().max()
    return (found - expected).abs().max() / torch.where(scale > 0, scale, torch.ones_like(scale))
