"""The same explanation once more: of other images, or by a copy of the model with other weights."""

import copy
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from camkit.errors import CamkitError, CamkitWarning
from camkit.explain import Explainer
from camkit.explanation import Explanation
from camkit.loss import to_model
from camkit.metrics import Space
from camkit.walk import walk


@dataclass(frozen=True)
class Again:
    """The `camkit.metrics.Explain` of one method and the classes that it explained.

    Attributes:
        explainer: the model.
        method: the method's function.
        class_index: the classes, [B].
        layer: the target layer, as for an Explainer.
        options: the method's own options.
        example: an image [1, C, H, W] as the model takes it, to see in which order layers run.
    """

    explainer: Explainer
    method: Callable[..., Any]
    class_index: Tensor
    layer: str | None
    options: dict[str, Any]
    example: Tensor

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """See `camkit.metrics.Explain`."""
        return tuple(record.path for record in walk(self.explainer.module, self.example).layers if record.parameters)

    def maps(self, images: Tensor, *, space: Space = "images") -> Tensor:
        """See `camkit.metrics.Explain`."""
        found = self._explanation(images, space)
        return found.maps if found.kind == "map" else found.maps.sum(dim=1)

    def heatmaps(self, images: Tensor, *, space: Space = "images") -> Tensor:
        """See `camkit.metrics.Explain`."""
        return self._explanation(images, space).heatmaps

    @torch.inference_mode(False)
    def randomised(self, layers: Sequence[str], seed: int) -> "Again":
        """See `camkit.metrics.Explain`."""
        twin = copy.copy(self.explainer)
        try:
            twin.module = copy.deepcopy(self.explainer.module)
        except Exception as error:
            raise CamkitError(
                f"The model cannot be copied, and a copy is what gets other weights: {type(error).__name__}: {error}"
            ) from error
        modules = dict(twin.module.named_modules())
        for path in layers:
            _redraw(modules[path], zlib.crc32(path.encode()) + seed)
        return replace(self, explainer=twin)

    def _explanation(self, images: Tensor, space: Space) -> Explanation:
        shown = to_model(self.explainer, images) if space == "pixels" else images
        with warnings.catch_warnings():
            # that a map of changed images or weights is blank is what a metric may be after
            warnings.simplefilter("ignore", CamkitWarning)
            found: Explanation = self.explainer(
                shown.to(self.explainer.dtype), self.method, self.class_index, self.layer, options=self.options
            )
        return found


@torch.no_grad()
def _redraw(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters(recurse=False):
        drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.copy_(drawn * parameter.std(correction=0) + parameter.mean())
