"""The conformance kit for metrics: what every metric promises, checked one promise at a time.

Each check is named after its promise, and fails with a sentence that says it.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camkit.errors import CamkitError, CamkitWarning
from camkit.explain import AnyMethod, Explainer
from camkit.explanation import Explanation
from camkit.judging import Batch, Judged
from camkit.methods import as_method
from camkit.metrics import KNOWN, AnyMetric, Metric, as_metric
from camkit.testing.examples import examples
from camkit.testing.oracle import in_double
from camkit.testing.promises import options_have_types, repeatable, without_global_draws
from camkit.testing.state import state

# Of values in double precision that differ in nothing but the order of sums, relative to 1 or to the value itself.
_SAME = 1e-4
_MAPS = {"heatmaps", "maps"}
_PLACES = {"regions", "boxes"}


def check_metric(
    name: AnyMetric,
    explainer: Explainer | None = None,
    images: Tensor | None = None,
    *,
    method: AnyMethod = "gradcam",
    options: Mapping[str, Any] | None = None,
    flat: float | None = None,
) -> None:
    """Checks that a metric keeps the contract of camkit; run it in a test of your plugin.

    Args:
        name: the name of a registered metric, or a function marked with `plugin.metric`.
        explainer: the model to check it on. By default small ones with random weights: a convolutional network with
            softmax, and a transformer with sigmoid.
        images: for that model, at least two, [B, C, H, W].
        method: whose maps are judged, where the kit does not make maps of its own.
        options: options of the metric, for instance fewer steps.
        flat: what the metric gives for a heatmap that is flat, where that is documented; None for NaN.

    Raises:
        AssertionError: a promise is not kept; the sentence says which.
        CamkitError: the metric cannot be used at all.
    """
    metric = as_metric(name)
    options_have_types(metric.signature)
    for own, pictures in examples(explainer, images):
        _check(Case(metric, metric.signature.options(options), own, pictures, method), flat)


@dataclass(frozen=True)
class Case:
    """A metric on a model, and the maps that it judges."""

    metric: Metric
    options: Mapping[str, Any]
    explainer: Explainer
    images: Tensor
    method: AnyMethod

    def __call__(self, batch: Batch | None = None, maps: Tensor | None = None) -> Tensor:
        """The values of a batch; of the method's own maps, or of those that are given in their place."""
        judged = self.judged(self.batch() if batch is None else batch, maps)
        return self.metric.values(judged, self.options, len(judged.images))

    def judged(self, given: Batch, maps: Tensor | None = None) -> Judged:
        """What the metric can ask for about a batch."""
        with warnings.catch_warnings():
            # a model with random weights may well have blank maps
            warnings.simplefilter("ignore", CamkitWarning)
            explanation: Explanation = given.explainer(given.images, self.method)
            if maps is not None:
                # what asks for signed maps may compare them with others, which are of the layer's size
                height, width = (explanation.maps if "maps" in self.asks else maps).shape[-2:]
                own = torch.nn.functional.adaptive_avg_pool2d(maps, (height, width))
                explanation = replace(explanation, maps=own.to(explanation.maps), kind="map")
        return Judged(given, explanation, as_method(self.method).function)

    def batch(self, rows: slice = slice(None), explainer: Explainer | None = None, *, known: bool = True) -> Batch:
        """Some of the images; each has a square in the upper left for the asked class, one lower right for another."""
        own = explainer or self.explainer
        height, width = self.images.shape[2:]
        asked, other = torch.zeros(2, len(self.images), 1, height, width, dtype=torch.bool)
        if known:
            for place in range(len(self.images)):
                top, left, side = place % 2 + 1, place % 3 + 1, min(height, width) // 3
                asked[place, 0, top : top + side, left : left + side] = True
                other[place, 0, -side - top : -top, -side - left : -left] = True
        return Batch(own, self.images[rows].to(own.dtype), asked[rows], other[rows])

    @property
    def asks(self) -> set[str]:
        """What the metric asks for."""
        return set(self.metric.signature.asks)


@repeatable()
def _check(case: Case, flat: float | None) -> None:
    before, judged = state(case.explainer.module), case.judged(case.batch())
    copies = [tensor.clone() for tensor in _given_tensors(judged)]
    try:
        values = case.metric.values(judged, case.options, len(judged.images))
    except CamkitError as refusal:
        raise _broken(
            case, f"was refused: {refusal}", "a tensor [B] or [B, ...] of finite values, or NaN, is returned"
        ) from refusal
    _nothing_that_was_given_is_changed(case, judged, copies, before)
    _the_value_is_the_same_every_time(case, values)
    _the_callers_mode_does_not_matter(case, values)
    _samples_of_a_batch_do_not_influence_each_other(case)
    if case.asks & _MAPS:
        _a_flat_map_is_not_judged(case, flat)
    if case.asks & _PLACES:
        _a_sample_without_boxes_is_not_judged(case)
    if case.asks & _MAPS and case.asks & _PLACES:
        _a_map_of_the_asked_class_beats_one_of_another(case)
    _the_reduction_gives_one_value_for_each_method(case, values)
    if state(case.explainer.module) != before:
        raise _broken(case, "left the model changed", "the user's model comes back as it was")


def _broken(case: Case, what: str, contract: str) -> AssertionError:
    return AssertionError(f"The metric '{case.metric.name}' {what}; the contract: {contract}.")


def _given_tensors(judged: Judged) -> list[Tensor]:
    found = [judged[name] for name, kind in KNOWN.items() if kind is Tensor]
    return [*found, *judged["boxes"]]


def _nothing_that_was_given_is_changed(
    case: Case, judged: Judged, copies: list[Tensor], before: Mapping[str, Any]
) -> None:
    if state(case.explainer.module) != before:
        raise _broken(case, "left the model changed", "the user's model comes back as it was")
    if not all(_same(now, then, 0.0) for now, then in zip(_given_tensors(judged), copies, strict=True)):
        raise _broken(case, "changed in place what it was given", "what a metric is given stays as it is")


def _the_value_is_the_same_every_time(case: Case, values: Tensor) -> None:
    again = without_global_draws(case, partial(_broken, case))
    if not _same(again, values, 0.0):
        raise _broken(case, "gave two values for one question", "the same maps and options give the same values")


def _the_callers_mode_does_not_matter(case: Case, values: Tensor) -> None:
    for mode in (torch.enable_grad, torch.inference_mode):
        with mode():
            found = case()
        if not _same(found, values, 0.0):
            raise _broken(case, f"gave other values under torch.{mode.__name__}", "the caller's mode does not matter")


def _samples_of_a_batch_do_not_influence_each_other(case: Case) -> None:
    twin = in_double(case.explainer)
    together = case(case.batch(explainer=twin))
    for place in range(len(case.images)):
        row = slice(place, place + 1)
        if not _same(case(case.batch(row, twin)), together[row], _SAME):
            raise _broken(
                case, "lets the samples of a batch influence each other", "a batch gives what single samples give"
            )


def _a_flat_map_is_not_judged(case: Case, flat: float | None) -> None:
    expected = float("nan") if flat is None else flat
    for level in (0.0, 1.0):
        values = case(maps=torch.full_like(case.images[:, 0], level))
        if not _same(values, torch.full_like(values, expected), _SAME):
            raise _broken(
                case,
                f"judged a flat map, {_some(values)}",
                "a flat map says nothing, so that its value is NaN, or what check_metric is told with flat=...",
            )


def _a_sample_without_boxes_is_not_judged(case: Case) -> None:
    values = case(case.batch(known=False), _planted(case.batch(), "asked"))
    if not bool(values.isnan().all()):
        raise _broken(
            case,
            f"judged samples without boxes, {_some(values)}",
            "where nobody knows the right place the value is NaN",
        )


def _a_map_of_the_asked_class_beats_one_of_another(case: Case) -> None:
    batch = case.batch()
    values = torch.stack([case(batch, _planted(batch, which)) for which in ("asked", "other")])
    right, wrong = case.metric.reduce(values.double().numpy())
    if not (right > wrong if case.metric.higher_is_better else right < wrong):
        better = "higher" if case.metric.higher_is_better else "lower"
        raise _broken(
            case,
            f"gave {right:.4g} for a map that is the box of the asked class, and {wrong:.4g} for the box of another",
            f"{better} is better, as higher_is_better says",
        )


def _the_reduction_gives_one_value_for_each_method(case: Case, values: Tensor) -> None:
    first = values.nan_to_num(nan=0.5).double().numpy()
    several = np.stack([first, first[::-1]])
    contract = "reduce makes values [methods, n, ...] one for each method, whatever the order of samples"
    found = case.metric.reduce(several)
    if np.shape(found) != (2,) or not np.isfinite(found).all():
        raise _broken(case, f"reduced two methods' values to {found!r}", contract)
    if not np.allclose(case.metric.reduce(several[:, ::-1]), found):
        raise _broken(case, "reduced other values when samples changed places", contract)
    unjudged = np.concatenate([several, np.full_like(several[:, :1], np.nan)], axis=1)
    if not np.allclose(case.metric.reduce(unjudged), found):
        raise _broken(case, "let a sample count whose values are NaN", "what cannot be judged does not count")


def _planted(batch: Batch, which: str) -> Tensor:
    """Maps that are 1 in the box of the asked class, or of the other one, with a peak in its middle; else 0."""
    regions = (batch.regions if which == "asked" else batch.other_regions).float()
    smooth = torch.nn.functional.avg_pool2d(regions.unsqueeze(1), 3, stride=1, padding=1)[:, 0]
    return regions * (1 + 0.01 * smooth)


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def _some(values: Tensor) -> str:
    return f"with {values[~values.isnan()].flatten()[:3].tolist()}"
