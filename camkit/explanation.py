"""The Explanation: what one method says about one layer and one target, for a batch of images."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from camkit import heatmap
from camkit.errors import CamkitError, MapWarning
from camkit.methods import Kind
from camkit.precision import single
from camkit.targets import Target, class_label, probabilities


@dataclass(frozen=True)
class Explanation:
    """What one method says about one layer and one target, for a batch of images.

    Attributes:
        maps: signed maps [B, h, w], float32, on the model's device; before any ReLU. Methods of kind ``pixels`` give
            [B, C, H, W], of kind ``concepts`` [B, k, h, w].
        logits: the model's output [B, classes].
        targets: the class that was explained, int64 [B].
        scores: the target's value, [B].
        method, options: the method's name and all of its options.
        layer: path of the target layer; None where a method has none.
        target: what was asked for.
        size: height and width of the images.
        relu: whether heatmaps show the positive part only.
        class_names: names of the classes, if known.
        probability: ``softmax`` or ``sigmoid``: how logits become probabilities.
        kind: ``map``, ``pixels`` or ``concepts``.
        remarks: what the method said about single images, (bool [B], sentence) each.
        fusion: the fusion that made one map of several layers' maps, if one did.
        target_options: all options of the target function.
        smoothing: ``eigen``, ``augmentation``, both or none.
    """

    maps: Tensor
    logits: Tensor
    targets: Tensor
    scores: Tensor
    method: str
    options: Mapping[str, Any]
    layer: str | None
    target: Target
    size: tuple[int, int]
    relu: bool = True
    class_names: Sequence[str] | None = None
    probability: str = "softmax"
    kind: Kind = "map"
    remarks: tuple[tuple[Tensor, str], ...] = ()
    fusion: str | None = None
    target_options: Mapping[str, Any] = field(default_factory=dict)
    smoothing: tuple[str, ...] = ()

    @cached_property
    def heatmaps(self) -> Tensor:
        """Heatmaps [B, H, W] at the size of the images, in [0, 1]; in [-1, 1] without ReLU."""
        maps = self.maps if self.kind == "map" else self.maps.sum(dim=1)
        return heatmap.heatmaps(maps, self.size, relu=self.relu)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """For each image one sentence where its heatmap is blank, not finite or not to be trusted, else ``""``."""
        flat = self.maps.flatten(1)
        finite, zero = flat.isfinite().all(dim=1), (flat == 0).all(dim=1)
        negative = (flat <= 0).all(dim=1) & self.relu
        even = (flat == flat[:, :1]).all(dim=1) & (self.relu and self.kind == "map")
        if not self.remarks and bool((finite & ~zero & ~negative & ~even).all()):
            return ("",) * len(flat)
        # a method knows its own reasons better
        causes = [
            (~finite, _BLANK["infinite"]),
            *self.remarks,
            (zero, _BLANK["zero"]),
            (negative & ~zero, _BLANK["negative"]),
            (even, _BLANK["even"]),
        ]
        return tuple(
            next((sentence for affected, sentence in causes if affected[index]), "") for index in range(len(flat))
        )

    @cached_property
    def probabilities(self) -> Tensor:
        """The probability of every class, [B, classes]."""
        return probabilities(single(self.logits), self.probability)

    def class_name(self, index: int) -> str:
        """The name of a class, or its number."""
        return class_label(index, self.class_names)

    def overlay(self, images: Any = None, *, colormap: str | None = None, alpha: float = 0.6) -> "np.ndarray[Any, Any]":
        """What was found, drawn over pictures: uint8 [B, H, W, 3]; see `draw` for how.

        `images` are the pictures as the model saw them: uint8 [B, H, W, 3], or a tensor [B, 3, H, W] or [B, 1, H, W]
        in [0, 1]. A tensor that was normalised for the model is brought to that range first. Without pictures the
        ground is white.
        """
        count = len(self.maps)
        pictures = np.full((count, *self.size, 3), 255, np.uint8) if images is None else as_pictures(images)
        if len(pictures) != count:
            raise CamkitError(
                f"There are {count} heatmaps, but {len(pictures)} pictures were given; one for each is expected."
            )
        return np.stack(
            [self.draw(index, picture, colormap=colormap, alpha=alpha) for index, picture in enumerate(pictures)]
        )

    def draw(
        self, index: int, picture: "np.ndarray[Any, Any]", *, colormap: str | None = None, alpha: float = 0.6
    ) -> "np.ndarray[Any, Any]":
        """One image's result on its picture uint8 [H, W, 3], the image as the model saw it or 2, 3, … times as large.

        A map becomes the heatmap over the picture; concepts become areas over the picture in grey, each in a colour of
        its own; pixels become a picture by themselves, in which grey is zero, and `colormap` and `alpha` do nothing.
        """
        from camkit import visualize

        factor = max(1, picture.shape[0] // self.size[0])
        if self.kind == "map":
            heat = visualize.upscale(_array(self.heatmaps[index]), factor)
            return visualize.overlay(picture, heat, signed=not self.relu, colormap=colormap, alpha=alpha)
        if self.kind == "pixels":
            return visualize.upscale(visualize.signed_pixels(_array(self.maps[index])), factor)
        size = (self.size[0] * factor, self.size[1] * factor)
        resized = F.interpolate(self.maps[index : index + 1].float(), size=size, mode="bilinear", align_corners=False)
        return visualize.concepts(picture, _array(resized[0]), colormap=colormap, alpha=alpha)

    def record(self, index: int) -> dict[str, Any]:
        """One image's result as JSON values: prediction, target and map statistics; None for what is not finite."""
        explained = int(self.targets[index])
        chances = self.probabilities[index]
        top = int(chances.argmax()) if len(chances) else None
        values = self.maps[index].detach().float()
        heat = self.heatmaps[index]
        row, column = divmod(int(heat.argmax()), heat.shape[1])
        return {
            "method": self.method,
            "options": dict(self.options),
            "layer": self.layer,
            "fusion": self.fusion,
            "smoothing": list(self.smoothing),
            "prediction": None
            if top is None
            else {"class": top, "name": self.class_name(top), "probability": _number(chances[top])},
            "target": {
                "function": self.target.name,
                "options": dict(self.target_options),
                "asked": self.target.label,
                "class": explained,
                "name": self.class_name(explained),
                "probability": None if top is None else _number(chances[explained]),
                "score": _number(self.scores[index]),
            },
            "map": {
                "shape": list(values.shape),
                "minimum": _number(values.min()),
                "maximum": _number(values.max()),
                "mean": _number(values.mean()),
                "positive_share": _number((values > 0).float().mean()),
                "peak": {"x": column, "y": row},
            },
            "relu": self.relu,
            "note": self.notes[index],
        }

    def save(self, directory: str | Path, images: Any = None, *, stem: str = "image") -> list[Path]:
        """Writes one PNG per image (an overlay if `images` are given, else the heatmap) and a JSON line for each.

        Returns the paths of the pictures. The lines are added to ``explanations.jsonl`` in the directory.
        """
        from camkit import output, visualize

        folder = output.directory(Path(directory))
        paths, lines = [], []
        for index, picture in enumerate(self.overlay(images)):
            name = output.file_name(
                stem, str(index), self.method, self.layer, self.class_name(int(self.targets[index]))
            )
            visualize.save_png(folder / f"{name}.png", picture)
            paths.append(folder / f"{name}.png")
            lines.append({"picture": f"{name}.png", **self.record(index)})
        output.update_lines(folder / "explanations.jsonl", lines, "picture")
        return paths

    def _repr_html_(self) -> str:
        from html import escape

        from camkit import visualize

        figures = []
        for index, picture in enumerate(self.overlay()):
            name = escape(self.class_name(int(self.targets[index])))
            uri = visualize.data_uri(visualize.upscale(picture, max(1, math.ceil(160 / self.size[0]))))
            figures.append(
                f'<figure style="display:inline-block;margin:4px"><img src="{uri}" alt="{name}" '
                f'style="height:160px"><figcaption>{name}</figcaption></figure>'
            )
        caption = escape(f"{self.method} at {self.layer}")
        return f"<div><p>{caption}</p>{''.join(figures)}</div>"


def as_pictures(images: Any) -> "np.ndarray[Any, Any]":
    """Pictures uint8 [B, H, W, 3] from uint8 arrays, PIL images, or tensors [B, C, H, W]."""
    if isinstance(images, Tensor):
        values = images.detach().float().cpu()
        low, high = values.amin(dim=(1, 2, 3), keepdim=True), values.amax(dim=(1, 2, 3), keepdim=True)
        if float(low.min()) < 0 or float(high.max()) > 1:
            values = (values - low) / (high - low).clamp(min=1e-12)
        values = values.expand(-1, 3, -1, -1) if values.shape[1] == 1 else values
        return (values * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    pictures = np.stack([np.asarray(image) for image in images])
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise CamkitError(
            f"Pictures were given as {pictures.dtype} of shape {list(pictures.shape)}; "
            f"uint8 [batch, height, width, 3] is expected."
        )
    return pictures


def warn_of_blanks(explanation: Explanation) -> None:
    """A warning for each cause of blank maps, with the images that it concerns."""
    notes = explanation.notes
    for note in dict.fromkeys(filter(None, notes)):
        affected = [str(index) for index, own in enumerate(notes) if own == note]
        which = f"image {affected[0]}" if len(affected) == 1 else f"images {', '.join(affected)}"
        where = f" at '{explanation.layer}'" if explanation.layer else ""
        text = f"The map by {explanation.method}{where} of {which} {note.removeprefix('The map ')}"
        warnings.warn(text, MapWarning, stacklevel=5)


def _array(tensor: Tensor) -> "np.ndarray[Any, Any]":
    return np.asarray(tensor.detach().cpu().numpy())


def _number(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


_BLANK = {
    "infinite": "The map is not finite: activations or gradients overflow; try float32.",
    "zero": "The map is zero everywhere: the layer's positions have no influence on this class (a classifier whose "
    "weights are zero, or a layer behind a class token's last attention); camkit doctor shows which.",
    "even": "The map has one value everywhere, so its heatmap is blank: the target layer has a single position, or "
    "tells none apart; choose an earlier layer.",
    "negative": "The map has no positive value, so its heatmap is blank: nothing there speaks for this class; show the "
    "signed map (relu=False, --variant signed).",
}
