"""A stand-in for the engine: an `ExportRequest` from a plain forward hook, independent of camkit's cut and methods."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from camkit.exports import ExportRequest
from camkit_export.session import Session

# To be completed by what opens the file and reads its metadata into `extra`.
ALONE = """
import json, sys, torch
extra = {"camkit.json": ""}
module = %s
outputs = module(torch.ones(2, 3, 45, 38), torch.tensor([-1, 3]))
assert not [name for name in sys.modules if name.split(".")[0] in ("camkit", "camkit_export", "onnx", "pluggy")]
print(json.dumps([list(output.shape) for output in outputs] + [json.loads(extra["camkit.json"])["classes"]]))
"""


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    return (gradients.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1)


def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    return (gradients.clamp(min=0) * activations).sum(dim=1)


def as_grid(output: Tensor, layout: str, prefix: int, grid: tuple[int, int] | None) -> Tensor:
    """The output of a layer as [B, K, h, w]."""
    if layout == "tokens":
        assert grid is not None
        return output[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)
    return output.permute(0, 3, 1, 2) if layout == "nhwc" else output


def random_head(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with a last layer that is not zero, and batch norm that is not the identity."""
    generator = torch.Generator().manual_seed(1)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        if last:
            last[-1].weight.normal_(0, 0.5, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def make_request(
    model: nn.Module,
    layer: str,
    size: int | tuple[int, int] = 64,
    *,
    method: Callable[[Tensor, Tensor], Tensor] = gradcam,
    layout: str = "nchw",
    prefix: int = 0,
    grid: tuple[int, int] | None = None,
    relu: bool = True,
) -> ExportRequest:
    """One explanation of a model at a layer; `oracle` runs a float64 copy with full autograd."""
    shape = (3, size, size) if isinstance(size, int) else (3, *size)
    model = random_head(model).requires_grad_(False)
    precise = copy.deepcopy(model).double()

    def pick(logits: Tensor, class_index: Tensor) -> Tensor:
        return torch.where(class_index < 0, logits.argmax(dim=1), class_index)

    def explain(images: Tensor, class_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        leaf: list[Tensor] = []

        def cut(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            leaf.append(output.detach().requires_grad_())
            return leaf[0].clone()

        handle = model.get_submodule(layer).register_forward_hook(cut)
        try:
            with torch.enable_grad():
                logits = model(images)
                explained = pick(logits, class_index)
                scores = logits.gather(1, explained.unsqueeze(1)).squeeze(1)
                (gradients,) = torch.autograd.grad(scores.sum(), leaf[0])
        finally:
            handle.remove()
        activations = as_grid(leaf[0].detach(), layout, prefix, grid)
        return logits.detach(), method(activations, as_grid(gradients, layout, prefix, grid)), explained

    def oracle(images: Tensor, class_index: Tensor, inputs: Any = None) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            kept.append(output)
            return output.clone()  # an in-place ReLU behind the layer must not reach what was kept

        handle = precise.get_submodule(layer).register_forward_hook(keep)
        try:
            with torch.enable_grad():
                logits = precise(images.double().requires_grad_())
                scores = logits.gather(1, pick(logits, class_index).unsqueeze(1)).squeeze(1)
                (gradients,) = torch.autograd.grad(scores.sum(), kept[0])
        finally:
            handle.remove()
        maps = method(as_grid(kept[0].detach(), layout, prefix, grid), as_grid(gradients, layout, prefix, grid))
        return logits.detach(), maps

    with torch.no_grad():
        classes = model(torch.zeros(1, *shape)).shape[1]
    return ExportRequest(
        explain=explain,
        oracle=oracle,
        image_shape=shape,
        classes=classes,
        relu=relu,
        provenance={
            "model": "a test model",
            "method": method.__name__,
            "options": {},
            "layer": layer,
            "class_names": [f"class {index}" for index in range(classes)],
        },
    )


class Small(nn.Module):
    """A residual network of a few thousand parameters with every kind of pooling, quick to trace."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.stage = nn.Sequential(nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.mix = nn.Conv2d(12, 12, 3, 2, padding=1, groups=3)
        self.average = nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False)
        self.adapt = nn.AdaptiveAvgPool2d((3, 2))
        self.fc = nn.Linear(72, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.stage(self.stem(images)))
        features = torch.nn.functional.silu(self.mix(features)) + features[:, :, ::2, ::2]
        return self.fc(self.adapt(self.average(features)).flatten(1))


def images(count: int, shape: tuple[int, ...], seed: int = 7) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((count, *shape)).astype(np.float32)


def assert_torch_alone_loads(path: Path, opening: str, folder: Path) -> None:
    """Opens an exported `Small` in a process without camkit, by an expression of Python that knows torch."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALONE % opening, path], capture_output=True, text=True, cwd=folder
    )
    assert run.stderr == ""
    assert json.loads(run.stdout) == [[2, 7], [2, 45, 38], [2, 23, 19], [2], 7]


def assert_equals_eager(session: Session, small: ExportRequest, batch: int) -> None:
    """A session's answers are those of the request, for classes that are named and for the top class."""
    given, classes = images(batch, small.image_shape), [4, -1, 6, 0][:batch]
    found = session(given, classes)
    logits, maps, explained = small.explain(torch.from_numpy(given), torch.tensor(classes))
    np.testing.assert_allclose(found.logits, logits.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.maps, maps.numpy(), rtol=0, atol=1e-5 * float(maps.abs().max()))
    assert found.classes.tolist() == explained.tolist()
    assert found.heatmaps.max(axis=(1, 2)).tolist() == [1.0] * batch
