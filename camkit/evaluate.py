"""Metrics: how good maps are, sample by sample and over a data set."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from camkit import plugin
from camkit.errors import CamkitError
from camkit.explain import Explainer
from camkit.injection import Signature, in_words, parse_signature
from camkit.registry import registry

if TYPE_CHECKING:
    from camkit.registry import Registry

Box = tuple[float, float, float, float]

KNOWN: dict[str, object] = dict.fromkeys(("heatmaps", "maps", "regions", "images", "logits", "class_index"), Tensor)


@dataclass(frozen=True)
class Sample:
    """One question to an explanation: a picture, the class that is asked for, and where that class is.

    `boxes` are (left, top, right, bottom) in pixels of the picture, right and bottom exclusive.
    """

    picture: Image.Image
    class_index: int
    boxes: tuple[Box, ...] = ()


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


@dataclass(frozen=True)
class Metric:
    """A registered metric."""

    name: str
    function: Callable[..., Tensor]
    signature: Signature
    higher_is_better: bool
    reduce: Callable[[Tensor], float]
    paper: str

    @classmethod
    def parse(cls, function: Callable[..., Tensor], mark: plugin.Mark, registry: "Registry") -> "Metric":
        """Reads a marked function; what it can ask for is listed in `KNOWN`."""
        signature = parse_signature(function, f"the metric '{mark.name}'", KNOWN)
        if mark.facts["reduce"] not in _REDUCTIONS:
            raise CamkitError(
                f"The reduction '{mark.facts['reduce']}' is not known; choose {' or '.join(_REDUCTIONS)}."
            )
        facts = mark.facts
        return cls(
            mark.name, function, signature, facts["higher_is_better"], _REDUCTIONS[facts["reduce"]], facts["paper"]
        )


@dataclass(frozen=True)
class Measurement:
    """A metric over a data set.

    Attributes:
        metric, method: the names.
        value: the reduced value.
        values: one per sample, NaN where a sample cannot be judged.
        higher_is_better: how to read the value.
    """

    metric: str
    method: str
    value: float
    values: Tensor = field(repr=False)
    higher_is_better: bool

    @property
    def judged(self) -> int:
        """The number of samples that have a value."""
        return int(self.values.isfinite().sum())


def measure(
    explainer: Explainer,
    metric: str = "pointing_game",
    data: str | Iterable[Sample] = "digit_scenes",
    *,
    method: str | Sequence[str] = "gradcam",
    layer: str | None = None,
    options: Mapping[str, Any] | None = None,
    metric_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    batch_size: int = 32,
) -> Any:
    """Measures methods on one model over a data set.

    Args:
        explainer: the model, with the preprocessing that turns pictures into its input.
        metric: name of the metric.
        data: name of a data set, or samples.
        method: as for an Explainer, one name or a list; each sample's own class is explained.
        layer: as for an Explainer.
        options: as for an Explainer.
        metric_options: the metric's options.
        data_options: the data set's options.
        batch_size: images in one pass.

    Returns:
        A `Measurement`; a list of them, from the same passes, if `method` was a list.

    Raises:
        CamkitError: something is not known, the model has no preprocessing, or there are no samples.
    """
    found: Metric = registry().get("metric", metric)
    chosen = found.signature.options(metric_options)
    samples = registry().get("dataset", data).samples(data_options) if isinstance(data, str) else data
    names = [method] if isinstance(method, str) else list(method)
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    for batch in _batches(samples, batch_size):
        images, regions, class_index = _tensors(explainer, batch)
        given = {"images": images, "regions": regions, "class_index": class_index}
        for explanation in explainer(images, names, target=class_index, layer=layer, options=options):
            results = {"heatmaps": explanation.heatmaps, "maps": explanation.maps, "logits": explanation.logits}
            available = {**given, **results}
            value = found.function(*(available[ask] for ask in found.signature.asks), **chosen)
            if not isinstance(value, Tensor) or value.shape != (len(batch),):
                raise CamkitError(
                    f"The metric '{metric}' returned {in_words(value)}; "
                    f"one value per sample is expected: [{len(batch)}]."
                )
            values[explanation.method].append(value.detach().float().cpu())
    if not all(values.values()):
        raise CamkitError("The data set has no samples, so there is nothing to measure.")
    measured = [_measurement(found, name, torch.cat(values[name])) for name in names]
    return measured[0] if isinstance(method, str) else measured


def _measurement(metric: Metric, method: str, values: Tensor) -> Measurement:
    return Measurement(metric.name, method, metric.reduce(values), values, metric.higher_is_better)


def _batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while batch := list(islice(iterator, size)):
        yield batch


def _tensors(explainer: Explainer, batch: list[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    preprocessing = explainer.preprocessing
    if preprocessing is None:
        raise CamkitError(
            "The Explainer does not know how pictures become the model's input; give it preprocessing=..."
        )
    device = explainer.device
    images = torch.stack([preprocessing(sample.picture) for sample in batch]).to(device, explainer.dtype)
    regions = torch.stack([_region(preprocessing.view, sample) for sample in batch]).to(device)
    return images, regions, torch.tensor([sample.class_index for sample in batch], device=device)


def _region(view: Callable[[Image.Image], Image.Image], sample: Sample) -> Tensor:
    # the boxes travel as a picture through the model's own resizing and cropping, which nothing else knows exactly
    mask = Image.new("RGB", sample.picture.size)
    for left, top, right, bottom in sample.boxes:
        ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=(255, 255, 255))
    return torch.from_numpy(np.asarray(view(mask).convert("L")) > 127)


def _mean(values: Tensor) -> float:
    return float(values.nanmean())


_REDUCTIONS: dict[str, Callable[[Tensor], float]] = {"mean": _mean}
