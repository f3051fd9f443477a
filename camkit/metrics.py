"""Metrics: how good a map is, sample by sample, and what a metric can ask for to tell.

A metric is a pure function. What it asks for is computed once for a batch and one method, and only if a metric asks for
it; what it returns is one value per sample, or several, which its reduction makes one over a data set.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camkit import plugin
from camkit.contracts import Make
from camkit.errors import CamkitError
from camkit.injection import Signature, blaming, in_words, parse_signature
from camkit.registry import item

if TYPE_CHECKING:
    from camkit.registry import Registry

Score = Literal["probability", "softmax", "sigmoid", "logit", "correct"]
Space = Literal["images", "pixels"]
Reduce = Callable[[NDArray[np.float64]], NDArray[np.float64]]
AnyMetric = str | Callable[..., Tensor]


class Answers(Protocol):
    """``answers``: what the model says of changed images, about the class that was explained.

    `score` is what it is read as: the class's ``probability`` as the model has it, by ``softmax`` or by ``sigmoid``,
    all in [0, 1]; its ``logit``; or whether it is ``correct``, 1 or 0: the top class, or for a sigmoid its logit
    positive.
    `space` says how images are given: ``images`` normalised as the model takes them, where 0 is the mean colour, or
    ``pixels`` in [0, 1], where 0 is black.
    """

    def before(self, score: Score = "probability") -> Tensor:
        """The answer [B] about the images as they are, which costs nothing."""

    def masked(self, masks: Tensor, *, score: Score = "probability", space: Space = "images") -> Tensor:
        """The answer [B] about the images times masks [B, H, W]; asked once for all metrics with the same masks."""

    def map(self, make: Make, n: int, *, score: Score = "probability", space: Space = "images") -> Tensor:
        """The answers [B, n] about n changes of the images, of which ``make(i)`` builds the i-th [B, C, H, W].

        They run in chunks that fit the memory budget, without an autograd graph.
        """


class Explain(Protocol):
    """``explain``: the same method, options and classes, asked about other images or a copy of the model."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the modules that hold parameters of their own, in the order in which they ran."""

    def maps(self, images: Tensor, *, space: Space = "images") -> Tensor:
        """The signed maps [B, h, w] of images [B, C, H, W], one for each image of the batch."""

    def heatmaps(self, images: Tensor, *, space: Space = "images") -> Tensor:
        """Likewise the heatmaps [B, H, W] in [0, 1]."""

    def randomised(self, layers: Sequence[str], seed: int) -> "Explain":
        """The same on a copy of the model, in which every parameter of these layers is drawn anew.

        Each is normal with the mean and deviation that the trained one has; a layer's draw depends on its path and the
        seed alone. The user's model stays as it is.
        """


KNOWN: dict[str, object] = {
    "heatmaps": Tensor,
    "maps": Tensor,
    "images": Tensor,
    "pixels": Tensor,
    "logits": Tensor,
    "probabilities": Tensor,
    "class_index": Tensor,
    "regions": Tensor,
    "other_regions": Tensor,
    "boxes": list[Tensor],
    "answers": Answers,
    "explain": Explain,
}


class Available(Protocol):
    """What `KNOWN` lists, by name."""

    def __getitem__(self, name: str) -> Any:
        """The value of that name."""


@dataclass(frozen=True)
class Metric:
    """A registered metric; see `plugin.metric` for what it says of itself."""

    name: str
    function: Callable[..., Tensor]
    signature: Signature
    higher_is_better: bool
    reduce: Reduce
    paper: str
    unit: str
    least_methods: int

    @classmethod
    def parse(cls, function: Callable[..., Tensor], mark: plugin.Mark, registry: "Registry") -> "Metric":
        """Reads a marked function; what it can ask for is listed in `KNOWN`."""
        signature = parse_signature(function, f"the metric '{mark.name}'", KNOWN)
        reduce = mark.facts["reduce"]
        if reduce != "mean" and not callable(reduce):
            raise CamkitError(f"The reduction '{reduce}' is not known; write 'mean' or give a function.")
        facts = {**mark.facts, "reduce": mean if reduce == "mean" else reduce}
        return cls(mark.name, function, signature, **facts)

    @property
    def facts(self) -> dict[str, str]:
        """What a user should know before choosing it."""
        return {"unit": self.unit or "none", "better": "higher" if self.higher_is_better else "lower"}

    def values(self, available: Available, options: Mapping[str, Any], count: int) -> Tensor:
        """The values [B] or [B, ...] of a batch of `count` samples, float32 on the CPU.

        `available` gives everything that the signature asks for.

        Raises:
            CamkitError: the function failed, or it returned anything but finite values or NaN, for each sample.
        """
        with blaming(f"the metric '{self.name}'"), torch.no_grad():
            values = self.function(*(available[ask] for ask in self.signature.asks), **options)
        if not isinstance(values, Tensor) or values.ndim < 1 or values.shape[0] != count:
            raise CamkitError(
                f"The metric '{self.name}' returned {in_words(values)}; one value per sample is expected, [{count}], "
                f"or several, [{count}, ...]."
            )
        values = values.detach().float().cpu()
        if bool(values.isinf().any()):
            raise CamkitError(
                f"The metric '{self.name}' returned an infinite value; NaN is expected where a sample cannot be judged."
            )
        return values


def as_metric(given: AnyMetric) -> Metric:
    """A metric by its name, or of a function marked with `plugin.metric` that no plugin has registered.

    Raises:
        CamkitError: the name is not known, or the function is not marked as one metric.
    """
    found: Metric = item("metric", given, "NAME, paper=..., higher_is_better=...")
    return found


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of values [methods, n, ...] over all but the first axis, [methods].

    Of a sample with several values their mean counts once; NaN is left out.
    """
    return nanmean(nanmean(values.reshape(*values.shape[:2], -1), axis=2), axis=1)


def nanmean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The mean along an axis without what is NaN; NaN, and no warning, where nothing else is."""
    judged = np.isfinite(values)
    count = judged.sum(axis=axis)
    total = np.where(judged, values, 0.0).sum(axis=axis)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def is_flat(heatmaps: Tensor) -> Tensor:
    """Which heatmaps [B, H, W] have one value everywhere, or one that is not finite: they show nothing, bool [B]."""
    flat = heatmaps.flatten(1)
    return ~(flat.amax(dim=1) > flat.amin(dim=1)) | ~flat.isfinite().all(dim=1)


def judged(values: Tensor, samples: Tensor) -> Tensor:
    """Values [B, ...] where `samples`, bool [B], can be judged; NaN where not."""
    where = samples.reshape(-1, *[1] * (values.ndim - 1))
    return torch.where(where, values, torch.full_like(values, torch.nan))
