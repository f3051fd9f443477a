"""Measure the shipped demo models on fresh scenes of handwriting that they never saw.

Prints each model's macro average precision, and how often the peak of a plain Grad-CAM for one
of two digits falls on that digit; then the average precision of the model that cheats, with the mark that it was
trained on and without. Exits with 1 when an average precision is below its bar.

Usage: python examples/digit_scenes/evaluate.py [--count 2000] [--seed 0]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchmetrics.classification import MultilabelAveragePrecision

from camkit_adapters.demo import models, scenes, shortcut

BATCH = 100
LOWEST_AVERAGE_PRECISION = {"resnet": 0.99, "vgg": 0.98, "vit": 0.95}
TARGET_LAYERS = {"resnet": "layer4", "vgg": "features.20", "vit": "blocks.3.norm1"}


@dataclass(frozen=True)
class Pointing:
    """Where the peaks of the maps fell, as shares of all maps, 0 to 1."""

    on_asked_digit: float
    on_other_digit: float


def average_precision(model: nn.Module, held_out: Sequence[scenes.Scene]) -> float:
    """Average precision of each class, averaged over the ten classes: 0 to 1."""
    metric = MultilabelAveragePrecision(num_labels=len(scenes.CLASS_NAMES), average="macro")
    with torch.inference_mode():
        for start in range(0, len(held_out), BATCH):
            batch = held_out[start : start + BATCH]
            logits = model(torch.from_numpy(scenes.inputs(batch)))
            metric.update(logits, torch.from_numpy(scenes.targets(batch)).long())
    return float(metric.compute())


def pointing(model: nn.Module, layer: str, held_out: Sequence[scenes.Scene]) -> Pointing:
    """Ask scenes of two digits for each digit, and look where the map of Grad-CAM peaks."""
    on_asked = on_other = 0
    for start in range(0, len(held_out), BATCH):
        batch = held_out[start : start + BATCH]
        for asked, other in ((0, 1), (1, 0)):
            labels = torch.tensor([scene.digits[asked].label for scene in batch])
            maps = grad_cam(model, layer, torch.from_numpy(scenes.inputs(batch)), labels)
            width = maps.shape[2]
            cell = scenes.SIDE / width
            for scene, peak in zip(batch, maps.flatten(1).argmax(dim=1).tolist(), strict=True):
                point = ((peak % width + 0.5) * cell, (peak // width + 0.5) * cell)
                on_asked += _inside(point, scene.digits[asked].box)
                on_other += _inside(point, scene.digits[other].box)
    return Pointing(on_asked / (2 * len(held_out)), on_other / (2 * len(held_out)))


def grad_cam(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    """Grad-CAM (arXiv:1610.02391) with a plain hook, as a check that owes nothing to camkit.

    The layer is a dotted path; images are normalised, [B, 3, 96, 96]; labels [B] are the classes
    that are asked for. Gives maps [B, h, w], before any ReLU.
    """
    kept: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _module, _arguments, output: kept.append(output))
    scores = model(images).gather(1, labels[:, None]).sum()
    hook.remove()
    (gradients,) = torch.autograd.grad(scores, kept)
    activations = kept[0]
    if activations.ndim == 3:
        activations, gradients = _without_class_token(activations), _without_class_token(gradients)
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    return (weights * activations).sum(dim=1).detach()


def _without_class_token(tokens: Tensor) -> Tensor:
    """Tokens [B, 1 + 144, K] as activations [B, K, 12, 12]."""
    return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, 12, 12)


def _inside(point: tuple[float, float], box: scenes.Box) -> bool:
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the shipped demo models.")
    parser.add_argument("--count", type=int, default=2000, help="how many scenes (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (default 0)")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    held_out = scenes.generate(arguments.count, "test", arguments.seed)
    pairs = scenes.generate(arguments.count // 4, "test", arguments.seed + 1, digit_counts=(2,))
    table = Table("model", "average precision", "bar", "peak on asked digit", "peak on other digit")
    too_low: list[str] = []
    for name, bar in LOWEST_AVERAGE_PRECISION.items():
        model = models.load(name)
        precision = average_precision(model, held_out)
        peaks = pointing(model, TARGET_LAYERS[name], pairs)
        if precision < bar:
            too_low.append(name)
        table.add_row(
            name,
            f"{precision:.4f}",
            f"{bar:.2f}",
            f"{peaks.on_asked_digit:.1%}",
            f"{peaks.on_other_digit:.1%}",
        )
    console = Console()
    console.print(table)
    cheats = models.load("shortcut")
    marked = shortcut.generate(arguments.count, "test", arguments.seed)
    with_mark, without = (average_precision(cheats, drawn) for drawn in (marked, held_out))
    console.print(f"shortcut: average precision {with_mark:.4f} with the mark, {without:.4f} without")
    if too_low:
        console.print(f"Below the bar: {', '.join(too_low)}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
