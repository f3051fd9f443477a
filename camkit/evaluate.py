"""Evaluation: metrics of methods over a data set of samples, batch by batch."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypedDict, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camkit import plugin
from camkit.errors import CamkitError
from camkit.explain import AnyMethod, Explainer
from camkit.explanation import Explanation
from camkit.injection import Signature, own_options, parse_signature
from camkit.judging import Batch, Judged
from camkit.methods import as_method
from camkit.metrics import AnyMetric, Metric, as_metric, mean, nanmean
from camkit.pictures import as_images, as_region, require_preprocessing
from camkit.registry import registry
from camkit.samples import Box as Box
from camkit.samples import Sample as Sample
from camkit.statistics import Interval, bootstrap, bootstrap_together

if TYPE_CHECKING:
    from camkit.registry import Registry

Value = float | None | list[Any]

# How many samples are looked at before the first is explained, to see whether what a metric needs is there.
_LOOK_AHEAD = 32


@dataclass(frozen=True)
class DataSet:
    """A registered data set."""

    name: str
    function: Callable[..., Iterable[Sample]]
    signature: Signature

    @classmethod
    def parse(cls, function: Callable[..., Iterable[Sample]], mark: plugin.Mark, registry: "Registry") -> "DataSet":
        """Reads a marked function; it takes options only."""
        return cls(mark.name, function, parse_signature(function, f"the data set '{mark.name}'", {}))

    def samples(self, options: Mapping[str, Any] | None = None) -> Iterable[Sample]:
        """The samples, made with these options."""
        return self.function(**self.signature.options(options))


class Row(TypedDict):
    """What was found of one sample, in values that JSON can hold.

    `name` is the sample's; `label` its class, negative where nobody knows; `explained` the class that was explained,
    `probability` the model's for it; `predicted` the model's top class. `values` are by method, then by metric: a
    number, or a list of them where the metric gives several, with None for NaN.
    """

    name: str
    label: int
    explained: int
    predicted: int
    probability: float
    values: dict[str, dict[str, Value]]


@dataclass(frozen=True)
class Measurement:
    """A metric of one method over a data set.

    Attributes:
        metric, method: the names.
        value: the reduced value; NaN where no sample could be judged.
        values: what the metric gave for each sample, [n], or [n, ...] where it gives several; NaN where a sample cannot
            be judged.
        higher_is_better: how to read the value.
        low, high: the 95 % bootstrap interval of the value, over samples.
        count: how many samples could be judged.
        unit: of the value.
    """

    metric: str
    method: str
    value: float
    values: Tensor = field(repr=False)
    higher_is_better: bool
    low: float = float("nan")
    high: float = float("nan")
    count: int = 0
    unit: str = ""

    @property
    def judged(self) -> int:
        """The number of samples that have a value."""
        return self.count


class Evaluation:
    """Metrics of methods on one model: batches of samples go in, a row for each sample comes out.

    Guaranteed: a row depends on its sample alone, up to rounding, and not on the batch that it came in; rows come in
    the order of the samples; `reduce` gives the same for rows as they came and for rows that were written as JSON and
    read again, in any number of pieces; whatever is random follows `seed`; the model is left as it was; and nothing is
    computed that no metric asks for.

    Args:
        explainer: the model, with the preprocessing that turns pictures into its input.
        metric: name of a metric or a function marked as one, or a list of these.
        method: as for an Explainer, one or a list; all are measured in the same passes.
        layer: as for an Explainer.
        target: which class is explained and asked about: ``true`` each sample's own; or any single class as for an
            Explainer, such as ``top``, what the model predicts.
        options: options of the methods, as for an Explainer.
        metric_options: options of the metrics: ``metric.option``, or ``option`` where there is one metric.
        seed: of the intervals, and of every metric that has an option ``seed`` and is not given it.

    Raises:
        CamkitError: something is not known or given twice, the model has no preprocessing, or a metric compares more
            methods than there are.
    """

    def __init__(
        self,
        explainer: Explainer,
        metric: AnyMetric | Sequence[AnyMetric] = "pointing_game",
        method: AnyMethod | Sequence[AnyMethod] = "gradcam",
        *,
        layer: str | None = None,
        target: Any = "true",
        options: Mapping[str, Any] | None = None,
        metric_options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        require_preprocessing(explainer)
        self.explainer, self.layer, self.target = explainer, layer, target
        self.options, self.seed = options, seed
        self._methods = _listed(method)
        self.methods = [one if isinstance(one, str) else as_method(one).name for one in self._methods]
        self.metrics = {one if isinstance(one, str) else as_metric(one).name: as_metric(one) for one in _listed(metric)}
        if len(self.metrics) < len(_listed(metric)) or len(set(self.methods)) < len(self.methods):
            raise CamkitError("A method or a metric was given twice; name each once.")
        for name, found in self.metrics.items():
            if found.least_methods > len(self.methods):
                raise CamkitError(
                    f"The metric '{name}' compares methods; give {found.least_methods} or more, not {self.methods}."
                )
        self._metric_options = {name: self._chosen(name, metric_options or {}) for name in self.metrics}
        self._asked = {ask for found in self.metrics.values() for ask in found.signature.asks}

    def check(self, samples: Sequence[Sample]) -> None:
        """Says before work begins that a metric needs boxes, and that none of the samples has any."""
        for name, found in self.metrics.items():
            asks = set(found.signature.asks)
            if asks & {"regions", "boxes"} and samples and not any(sample.boxes for sample in samples):
                raise CamkitError(
                    f"The metric '{name}' needs boxes, and none of the first {len(samples)} samples has one; choose a "
                    f"data set with boxes or another metric."
                )
            if "other_regions" in asks and samples and not any(sample.other_boxes for sample in samples):
                raise CamkitError(
                    f"The metric '{name}' needs pictures of several classes with a box for each, and none of the first "
                    f"{len(samples)} samples has a box of another class; choose another data set or another metric."
                )

    def __call__(self, samples: Sequence[Sample]) -> list[Row]:
        """One row for each sample, from one pass over all of them.

        Raises:
            CamkitError: a method refuses the model, or a metric returned something else than it should.
        """
        batch = self._batch(samples)
        asked = self.target
        if isinstance(asked, str) and asked == "true":
            asked = torch.tensor([sample.class_index for sample in samples], device=batch.images.device)
        found: list[Explanation] = self.explainer(batch.images, self._methods, asked, self.layer, self.options)
        if len(found) != len(self.methods):
            raise CamkitError(f"One class of each sample is explained, but '{self.target}' names several.")
        if found[0].logits.shape[1] == 0:
            raise CamkitError("The model gives no class scores, and metrics ask about a class.")
        rows = [_row(sample, found[0], place) for place, sample in enumerate(samples)]
        company = [
            Judged(batch, explanation, as_method(method).function, self.layer)
            for method, explanation in zip(self._methods, found, strict=True)
        ]
        for available in company:
            available.company = company
        for name, available in zip(self.methods, company, strict=True):
            for metric, chosen in self._metric_options.items():
                values = self.metrics[metric].values(available, chosen, len(samples))
                for row, value in zip(rows, values.tolist(), strict=True):
                    row["values"].setdefault(name, {})[metric] = _to_json(value)
        return rows

    def reduce(self, rows: Iterable[Row]) -> list[Measurement]:
        """One `Measurement` for each metric and method, in this order, from rows of `__call__`.

        Raises:
            CamkitError: there are no rows, or they lack a metric or a method.
        """
        collected = [row["values"] for row in rows]
        if not collected:
            raise CamkitError("The data set has no samples, so there is nothing to measure.")
        measured = []
        for name, metric in self.metrics.items():
            try:
                values = np.array(
                    [[row[method][name] for row in collected] for method in self.methods], dtype=np.float64
                )
            except (KeyError, ValueError) as error:
                raise CamkitError(
                    f"The rows do not hold '{name}' of {', '.join(self.methods)} for every sample, or not alike; they "
                    f"are not of this evaluation."
                ) from error
            for method, own, interval in zip(self.methods, values, self._intervals(metric, values), strict=True):
                measured.append(
                    Measurement(
                        metric=name,
                        method=method,
                        value=interval.value,
                        values=torch.from_numpy(own).float(),
                        higher_is_better=metric.higher_is_better,
                        low=interval.low,
                        high=interval.high,
                        count=interval.count,
                        unit=metric.unit,
                    )
                )
        return measured

    def _intervals(self, metric: Metric, values: NDArray[np.float64]) -> list[Interval]:
        if metric.reduce is mean:
            per_sample = nanmean(values.reshape(*values.shape[:2], -1), axis=2)
            return [bootstrap(own, seed=self.seed) for own in per_sample]
        return bootstrap_together(values, metric.reduce, seed=self.seed)

    def _chosen(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """A metric's options; one that can be seeded is."""
        signature = self.metrics[name].signature
        own = own_options(given, name, list(self.metrics), kind="metric")
        seeded = {"seed": self.seed} if "seed" in signature.options_model.model_fields else {}
        return signature.options({**seeded, **own})

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        explainer = self.explainer
        needs_objects, needs_others = self._asked & {"regions", "boxes"}, "other_regions" in self._asked
        return Batch(
            explainer,
            as_images(explainer, [sample.picture for sample in samples]),
            [_masks(explainer, sample, sample.boxes) for sample in samples] if needs_objects else (),
            [_masks(explainer, sample, sample.other_boxes) for sample in samples] if needs_others else (),
        )


@overload
def measure(
    explainer: Explainer,
    metric: AnyMetric = ...,
    data: str | Iterable[Sample] = ...,
    *,
    method: AnyMethod = ...,
    layer: str | None = ...,
    target: Any = ...,
    options: Mapping[str, Any] | None = ...,
    metric_options: Mapping[str, Any] | None = ...,
    data_options: Mapping[str, Any] | None = ...,
    batch_size: int = ...,
    seed: int = ...,
) -> Measurement: ...


@overload
def measure(
    explainer: Explainer,
    metric: AnyMetric | Sequence[AnyMetric] = ...,
    data: str | Iterable[Sample] = ...,
    *,
    method: AnyMethod | Sequence[AnyMethod] = ...,
    layer: str | None = ...,
    target: Any = ...,
    options: Mapping[str, Any] | None = ...,
    metric_options: Mapping[str, Any] | None = ...,
    data_options: Mapping[str, Any] | None = ...,
    batch_size: int = ...,
    seed: int = ...,
) -> Any: ...


def measure(
    explainer: Explainer,
    metric: AnyMetric | Sequence[AnyMetric] = "pointing_game",
    data: str | Iterable[Sample] = "digit_scenes",
    *,
    method: AnyMethod | Sequence[AnyMethod] = "gradcam",
    layer: str | None = None,
    target: Any = "true",
    options: Mapping[str, Any] | None = None,
    metric_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Any:
    """Measures methods on one model over a data set, by all the metrics in one go.

    To write results as they come, and to go on later, use an `Evaluation`, which this is a loop over.

    Args:
        explainer: the model, with the preprocessing that turns pictures into its input.
        metric: name of a metric or a function marked as one, or a list of these.
        data: name of a data set, or samples.
        method: as for an Explainer, one or a list.
        layer: as for an Explainer.
        target: which class is explained: ``true`` each sample's own, ``top`` what the model predicts, or any other
            single class as for an Explainer.
        options: as for an Explainer.
        metric_options: options of the metrics: ``metric.option``, or ``option`` where there is one metric.
        data_options: the data set's options.
        batch_size: images in one pass.
        seed: of the bootstrap intervals, and of every metric with an option ``seed`` that is not given it.

    Returns:
        A `Measurement`; a list of them, by metric, then by method, if one of the two was a list.

    Raises:
        CamkitError: something is not known, the model has no preprocessing, there are no samples, or they lack what a
            metric needs.
    """
    evaluation = Evaluation(
        explainer,
        metric,
        method,
        layer=layer,
        target=target,
        options=options,
        metric_options=metric_options,
        seed=seed,
    )
    samples = iter(registry().get("dataset", data).samples(data_options) if isinstance(data, str) else data)
    first = list(islice(samples, max(batch_size, _LOOK_AHEAD)))
    evaluation.check(first)
    rows = [row for batch in _batches(chain(first, samples), batch_size) for row in evaluation(batch)]
    measured = evaluation.reduce(rows)
    return measured if _several(metric) or _several(method) else measured[0]


def _several(given: Any) -> bool:
    return not (isinstance(given, str) or callable(given))


def _listed(given: Any) -> list[Any]:
    return list(given) if _several(given) else [given]


def _batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while batch := list(islice(iterator, size)):
        yield batch


def _row(sample: Sample, explanation: Explanation, place: int) -> Row:
    explained = int(explanation.targets[place])
    return Row(
        name=sample.name,
        label=sample.class_index,
        explained=explained,
        predicted=int(explanation.logits[place].argmax()),
        probability=float(explanation.probabilities[place, explained]),
        values={},
    )


def _to_json(value: Any) -> Value:
    if isinstance(value, list):
        return [_to_json(one) for one in value]
    return None if math.isnan(value) else float(value)


def _masks(explainer: Explainer, sample: Sample, boxes: Iterable[Box]) -> Tensor:
    """One mask for each box, bool [k, H, W], after an empty one, so that there is always one."""
    size = sample.picture.size
    return torch.stack([as_region(explainer, size, ()), *(as_region(explainer, size, (box,)) for box in boxes)])
