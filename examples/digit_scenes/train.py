"""Train one of the four demo models from scratch, on scenes made as it goes.

Usage: python examples/digit_scenes/train.py resnet|vgg|vit|shortcut [--output PATH]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save as serialise
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import OneCycleLR

from camkit_adapters.demo import models, scenes, shortcut

SEED = 0
REPORT_EVERY = 100


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW, one cycle of the learning rate, clipped gradients."""

    steps: int
    batch: int
    peak_learning_rate: float
    weight_decay: float
    scenes: Callable[..., list[scenes.Scene]] = scenes.generate


RECIPES = {
    "resnet": Recipe(steps=2000, batch=48, peak_learning_rate=2e-3, weight_decay=0.05),
    "vgg": Recipe(steps=2400, batch=48, peak_learning_rate=2e-3, weight_decay=0.05),
    "vit": Recipe(steps=4000, batch=64, peak_learning_rate=1e-3, weight_decay=0.05),
    "shortcut": Recipe(steps=1000, batch=48, peak_learning_rate=2e-3, weight_decay=0.05, scenes=shortcut.generate),
}


def train(name: str, recipe: Recipe) -> nn.Module:
    """Train a model on scenes of the train split, none of them seen twice."""
    torch.manual_seed(SEED)
    model = models.build(name).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe.weight_decay))
    schedule = OneCycleLR(optimizer, recipe.peak_learning_rate, total_steps=recipe.steps, pct_start=0.15)
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=recipe.steps, loss=float("nan"))
        recent_losses: list[float] = []
        for step in range(recipe.steps):
            batch = recipe.scenes(recipe.batch, "train", seed=step)
            images = torch.from_numpy(scenes.inputs(batch))
            wanted = torch.from_numpy(scenes.targets(batch))
            loss = binary_cross_entropy_with_logits(model(images.contiguous(memory_format=torch.channels_last)), wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            schedule.step()
            recent_losses.append(loss.item())
            if (step + 1) % REPORT_EVERY == 0:
                mean_loss = sum(recent_losses) / len(recent_losses)
                recent_losses.clear()
                progress.update(task, loss=mean_loss)
                progress.console.print(f"step {step + 1}: loss {mean_loss:.4f}")
            progress.advance(task)
    return model.eval()


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices and kernels decay; biases, norms and the like do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def save(model: nn.Module, output: Path) -> None:
    """Write the weights as float16; `output` is either complete or left as it was."""
    weights = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in model.state_dict().items()
    }
    unfinished = output.with_name(output.name + ".part")
    unfinished.write_bytes(serialise(weights))
    unfinished.replace(output)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one of the four demo models.")
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--output", type=Path, help="where to write the weights; default: the shipped file")
    arguments = parser.parse_args()
    # The scenes' arrays are too small for OpenCV's threads to pay.
    cv2.setNumThreads(1)
    output = arguments.output or models.weights_path(arguments.name)
    save(train(arguments.name, RECIPES[arguments.name]), output)


if __name__ == "__main__":
    main()
