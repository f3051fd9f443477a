"""The benchmarks run, and compare equal things. How long anything takes is for a quiet machine to say, not a test."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_quick_run_fills_every_table(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    command = [sys.executable, str(BENCHMARKS / "explain.py"), "--quick", "--write", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "Time, batch 2",
        "Peak memory, batch 2",
        "Exported, in ONNX Runtime",
        "Aims",
    ]
    cells = {
        name: cell
        for name, cell in re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
        if re.search(r"\d", cell)
    }
    contestants = {"hand-written floor", "camkit Grad-CAM", "grad-cam", "torchcam", "captum LayerGradCam"}
    assert contestants | {"camkit Grad-CAM, ONNX", "plain forward, PyTorch"} <= set(cells)
    for name, cell in cells.items():
        numbers = [float(number) for number in re.findall(r"\d+\.?\d*(?:e-?\d+)?", cell)]
        assert all(math.isfinite(number) and number > 0 for number in numbers), (name, cell)
    assert str(tmp_path) not in text
    assert str(BENCHMARKS.parent) not in text


@pytest.mark.parametrize(("model", "size"), [("resnet18", 64), ("vit_b_16", 224)])
def test_the_contestants_make_the_same_map(model: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import contestants

    case = contestants.CASES[model]
    module, images = case.build(), contestants.make_images(2, size)

    def heatmaps(name: str) -> torch.Tensor:
        with contestants.ready(name, module, case, images) as call:
            return torch.as_tensor(call())

    floor = heatmaps(contestants.FLOOR)
    assert floor.shape == (2, size, size)
    torch.testing.assert_close(heatmaps(contestants.CAMKIT), floor, rtol=1e-4, atol=1e-5)
    # grad-cam resizes with OpenCV, which weighs pixels by fractions of 1/2048
    torch.testing.assert_close(heatmaps(contestants.GRAD_CAM), floor, rtol=0, atol=5e-3)
    assert all(parameter.requires_grad for parameter in module.parameters())
