"""What metrics can ask for, of one batch and one explanation of it; each is computed when the first metric asks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from camkit.again import Again
from camkit.answers import ModelAnswers
from camkit.attacks import to_pixels
from camkit.explain import Explainer
from camkit.explanation import Explanation
from camkit.metrics import Explain
from camkit.precision import single


@dataclass
class Batch:
    """A batch of samples as the model takes them; all methods share it.

    Attributes:
        explainer: the model.
        images: [B, C, H, W] as the model takes them.
        objects: for each sample the areas of the asked class, one mask each, bool [k, H, W].
        others: likewise those of other classes.
    """

    explainer: Explainer
    images: Tensor = field(repr=False)
    objects: Sequence[Tensor] = field(default=(), repr=False)
    others: Sequence[Tensor] = field(default=(), repr=False)

    @cached_property
    def pixels(self) -> Tensor:
        """The images in [0, 1], [B, C, H, W]."""
        return to_pixels(self.explainer, single(self.images))

    @cached_property
    def regions(self) -> Tensor:
        """Where the asked class is, bool [B, H, W]; nowhere in a sample without boxes."""
        return self._union(self.objects)

    @cached_property
    def other_regions(self) -> Tensor:
        """Where other classes are, bool [B, H, W]."""
        return self._union(self.others)

    @cached_property
    def boxes(self) -> list[Tensor]:
        """For each sample the boxes of the asked class, float32 [k, 4]: left, top, right and bottom.

        In pixels of the model's input, right and bottom exclusive; what its cropping leaves nothing of is not there.
        """
        return [_boxes(masks) for masks in self.objects]

    def _union(self, areas: Sequence[Tensor]) -> Tensor:
        return torch.stack([masks.any(dim=0) for masks in areas]).to(self.images.device)


@dataclass
class Judged:
    """One method's explanation of a batch: what `camkit.metrics.KNOWN` lists, as attributes.

    Attributes:
        batch: what was explained.
        explanation: with ReLU.
        method: the method's function.
        layer: the target layer, as for an Explainer.
        company: all explanations of the batch that are judged, this one too.
    """

    batch: Batch
    explanation: Explanation
    method: Callable[..., Any]
    layer: str | None = None
    company: "Sequence[Judged]" = field(default=(), repr=False)

    def __getitem__(self, name: str) -> Any:
        return getattr(self if hasattr(type(self), name) else self.batch, name)

    @cached_property
    def heatmaps(self) -> Tensor:
        """[B, H, W] in [0, 1] at the size of the images; zero everywhere where the map is not finite."""
        finite = self.maps.clamp(min=0).isfinite().flatten(1).all(dim=1)
        return self.explanation.heatmaps.masked_fill(~finite[:, None, None], 0.0)

    @property
    def maps(self) -> Tensor:
        """The signed maps [B, h, w], before ReLU; methods of pixels or concepts are summed over their channels."""
        maps = self.explanation.maps
        return maps if self.explanation.kind == "map" else maps.sum(dim=1)

    @cached_property
    def images(self) -> Tensor:
        """[B, C, H, W] as the model takes them, in float32 at least."""
        return single(self.batch.images)

    @property
    def logits(self) -> Tensor:
        """The model's output [B, classes]."""
        return single(self.explanation.logits)

    @property
    def probabilities(self) -> Tensor:
        """[B, classes] in [0, 1], by softmax or sigmoid as the model has it."""
        return self.explanation.probabilities

    @property
    def class_index(self) -> Tensor:
        """The class that was explained, int64 [B]."""
        return self.explanation.targets

    @cached_property
    def answers(self) -> ModelAnswers:
        """What the model says of changed images."""

        def company() -> list[ModelAnswers]:
            return [one.answers for one in self.company or [self]]

        return ModelAnswers(self.batch.explainer, self, self.logits, self.class_index, company)

    @cached_property
    def explain(self) -> Explain:
        """The same method once more."""
        explainer, example = self.batch.explainer, self.batch.images[:1]
        return Again(explainer, self.method, self.class_index, self.layer, dict(self.explanation.options), example)


def _boxes(masks: Tensor) -> Tensor:
    found = []
    for mask in masks[masks.flatten(1).any(dim=1)]:
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        found.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 4)
