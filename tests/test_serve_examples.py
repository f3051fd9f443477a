"""examples/serve_onnx and examples/serve_torchscript: real processes, which need no camkit."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_process import small_explainer

EXAMPLES = Path(__file__).parents[1] / "examples"
LIBRARIES = Path(sysconfig.get_paths()["purelib"])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture that is neither square nor of the network's size."""
    values = np.random.default_rng(3).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    Image.fromarray(values).resize((260, 180), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def check(python: Path, name: str, file: Path, photo: Path) -> None:
    overlay = photo.with_name("overlay.png")
    done = subprocess.run(
        [python, "-W", "ignore", EXAMPLES / name / "explain.py", file, photo, overlay],
        capture_output=True,
        text=True,
        cwd=photo.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    explainer = small_explainer()
    with Image.open(photo) as image:
        view = explainer.preprocessing.view(image)
        explanation = explainer(explainer.preprocessing(image)[None], target="top")
    best = int(explanation.logits[0].argmax())
    expected = f"{explanation.class_name(best)} {float(explanation.probabilities[0, best]):.3f}\n"
    assert done.stdout == expected
    opacity = 0.6 * explanation.heatmaps[0].numpy()[..., None]
    assert opacity.std() > 0
    drawn = (1 - opacity) * np.asarray(view) + opacity * np.array([255, 0, 0])
    assert np.abs(np.asarray(Image.open(overlay)) - drawn).max() <= 2.5  # whole levels of opacity and of colour


def python_with(folder: Path, *lent: str) -> Path:
    """An interpreter that sees nothing but what is lent of the libraries that the tests run with."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in lent:
        for found in LIBRARIES.glob(f"{name}*"):
            (site / found.name).symlink_to(found)
    python = folder / "bin" / "python"
    for name in ("torch", "camkit"):
        assert subprocess.run([python, "-c", f"import {name}"], capture_output=True, cwd=folder).returncode
    return python


def test_onnx_runs_on_onnxruntime_numpy_and_pillow_alone(served: Path, photo: Path, tmp_path: Path):
    python = python_with(tmp_path / "env", "numpy", "onnxruntime", "PIL", "pillow")
    check(python, "serve_onnx", served / "gradcam.onnx", photo)


def test_torchscript_needs_torch_and_not_camkit(served: Path, photo: Path):
    assert "import camkit" not in (EXAMPLES / "serve_torchscript" / "explain.py").read_text()
    check(Path(sys.executable), "serve_torchscript", served / "gradcam.pt", photo)
