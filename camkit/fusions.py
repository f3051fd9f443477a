"""Fusions: the maps of several layers as one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from camkit import heatmap, plugin
from camkit.errors import CamkitError
from camkit.injection import Signature, in_words, parse_signature

if TYPE_CHECKING:
    from camkit.registry import Registry

KNOWN: dict[str, object] = {"maps": list[Tensor]}


@dataclass(frozen=True)
class Fusion:
    """A registered fusion."""

    name: str
    function: Callable[..., Tensor]
    signature: Signature
    paper: str

    @classmethod
    def parse(cls, function: Callable[..., Tensor], mark: plugin.Mark, registry: "Registry") -> "Fusion":
        """Reads a marked function; it asks for `maps`."""
        signature = parse_signature(function, f"the fusion '{mark.name}'", KNOWN)
        return cls(mark.name, function, signature, mark.facts["paper"])

    def fuse(self, maps: Sequence[Tensor], options: Mapping[str, Any], *, relu: bool) -> Tensor:
        """One map [B, h, w] of several layers' signed maps, at the size of the largest.

        Each layer's map is first scaled and then resized, as in grad-cam and torchcam, so that no layer outweighs
        another by its unit alone.

        Raises:
            CamkitError: the function returned something else than one map.
        """
        size = max((tuple(one.shape[1:]) for one in maps), key=lambda shape: shape[0] * shape[1])
        scaled = [heatmap.scale(one.clamp(min=0) if relu else one, relu=relu).unsqueeze(1) for one in maps]
        resized = [F.interpolate(one, size, mode="bilinear", align_corners=False).squeeze(1) for one in scaled]
        fused = self.function(resized, **options)
        if not isinstance(fused, Tensor) or fused.shape != (len(maps[0]), *size):
            raise CamkitError(
                f"The fusion '{self.name}' returned {in_words(fused)}; one map {[len(maps[0]), *size]} is expected."
            )
        return fused
