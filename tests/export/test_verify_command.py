"""``camkit verify`` as a user calls it: what it compares, what it refuses, its exit codes and its reports."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import pytest
from PIL import Image

from camkit_adapters import demo
from commandline import process, run, succeed

SCENES = Path(demo.__file__).with_name("images")
SPEC = "python:own_small:build"
MODEL = ("--model", SPEC, "--size", "40x32")
FACTORY = """
import torch
from torch import nn


def build():
    torch.manual_seed(3)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
    return nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)).eval()
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a model, two exports of it, and images of which one is broken."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "own_small.py").write_text(FACTORY)
    (folder / "images").mkdir()
    for scene in ("scene-01.png", "scene-02.png", "scene-03.png", "scene-04.png", "scene-05.png"):
        shutil.copy(SCENES / scene, folder / "images")
    (folder / "images" / "scene-03.png").write_text("no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        succeed("export", *MODEL, "--layer", "0", "--output", "right.onnx")
        succeed("export", *MODEL, "--layer", "0", "--output", "pictures.pt", "--with-preprocessing", "--raw")
        clipped(folder / "right.onnx", folder / "clipped.onnx")
    return folder


@pytest.fixture
def inside(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    return workplace


def clipped(source: Path, destination: Path) -> None:
    """A graph that cuts its input off at 50: right for every image that is preprocessed as it should be."""
    model = onnx.load(source)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "image":
                node.input[place] = "image_cut_off"
    for name, value in (("least", -50), ("most", 50)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    model.graph.node.insert(0, onnx.helper.make_node("Clip", ["image", "least", "most"], ["image_cut_off"]))
    onnx.save(model, destination)


def report_of(path: Path) -> dict:
    return json.loads(Path(f"{path}.verify.json").read_text())


def test_right_file_with_a_model_and_real_images(inside):
    done = run("verify", "right.onnx", *MODEL, "--images", "images")
    assert (done.code, done.err.count("scene-03.png' is not an image")) == (0, 1)
    assert "right.onnx gives what it should.\n" in done.out
    report = report_of(inside / "right.onnx")
    assert (report["passed"], report["providers"]) == (True, ["CPUExecutionProvider"])
    assert report["runtime"].startswith("onnxruntime ")
    assert (report["folder"]["files"], report["folder"]["compared"]) == (5, 4)
    assert "scene-03.png" in report["folder"]["skipped"][0]
    kinds = {one["images_are"]: one for one in report["comparisons"]}
    assert {kind: one["images"] for kind, one in kinds.items()} == {
        "stored": 3, "random": 12, "real": 4, "constant": 12, "tiny": 12, "huge": 12
    }  # fmt: skip
    for kind, one in kinds.items():
        for check in one["checks"]:
            assert check["passed"]
            assert check["error"] <= check["allowed"] <= 1e-3
            if check["output"] in ("logits", "map"):
                assert check["images"] > 0, kind
    for kind in ("random", "real", "huge"):
        assert kinds[kind]["rank_correlation"]["lowest"] > 0.999
        assert kinds[kind]["top_area_overlap"]["lowest"] > 0.99
    page = (inside / "right.onnx.verify.md").read_text()
    assert "**right.onnx gives what it should.**" in page
    assert "Run by: onnxruntime" in page
    assert "## Huge images" in page


def test_file_that_is_wrong_for_huge_images_alone(inside):
    done = process("verify", "clipped.onnx", *MODEL, "--report", "reports", cwd=inside)
    assert done.code == 1
    assert "Error: 'clipped.onnx' does not give what it should: of huge images, " in done.err
    assert "Traceback" not in done.err
    report = report_of(inside / "reports" / "clipped.onnx")
    assert not report["passed"]
    assert [one["images_are"] for one in report["comparisons"] if not one["passed"]] == ["huge"]
    assert "**differs**" in (inside / "reports" / "clipped.onnx.verify.md").read_text().split("## Huge images")[1]
    assert not (inside / "clipped.onnx.verify.md").exists()
    assert "gives what it should" in succeed("verify", "clipped.onnx", "--no-report")


def test_file_that_differs_from_its_vectors(inside, tmp_path):
    model = onnx.load("right.onnx")
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.01)).tobytes()
    onnx.save(model, tmp_path / "changed.onnx")
    done = run("verify", tmp_path / "changed.onnx")
    assert done.code == 1
    assert "of stored images, " in done.err
    assert [one["images_are"] for one in report_of(tmp_path / "changed.onnx")["comparisons"]] == ["stored"]


def test_pictures_have_kinds_of_their_own(inside):
    done = run("verify", "pictures.pt", *MODEL, "--images", "images", "--max-images", "2")
    assert done.code == 0, done.err
    report = report_of(inside / "pictures.pt")
    assert report["providers"] == ["CPU"]
    assert [one["images_are"] for one in report["comparisons"]] == [
        "stored", "random", "real", "constant", "low contrast", "black and white"
    ]  # fmt: skip
    assert [one["images"] for one in report["comparisons"]] == [3, 12, 2, 12, 12, 12]


def test_report_that_cannot_be_written_does_not_hide_the_verdict(inside, tmp_path):
    shutil.copy("right.onnx", tmp_path)
    (tmp_path / "right.onnx.verify.json").mkdir()
    done = run("verify", tmp_path / "right.onnx")
    assert done.code == 0
    assert "cannot be written" in done.err
    assert "Name another folder with --report." in done.err
    assert "gives what it should" in done.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--images", "images"], "Real images are compared with the model's own answers; name the model with --model"),
        (["--images", "empty", *MODEL], "The folder 'empty' holds no image."),
        (["--images", "absent", *MODEL], "There is no file or folder 'absent'."),
        (["--images", "broken", *MODEL], "None of the 1 images can be read. 'broken/a.png' is not an image"),
        (["--images", "images", "--model", SPEC, "--size", "48"], "name their height and width with --size"),
        (["--report", "own_small.py"], "The output folder 'own_small.py' cannot be written"),
    ],
)
def test_what_is_refused(inside, arguments, sentence):
    for name in ("empty", "broken"):
        Path(name).mkdir(exist_ok=True)
    Path("broken/a.png").write_text("no image")
    done = run("verify", "right.onnx", *arguments)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err


def test_one_broken_image_among_pictures_of_every_size(inside, tmp_path):
    Image.new("L", (7, 300), 90).save(tmp_path / "thin.png")
    shutil.copy(SCENES / "scene-01.png", tmp_path)
    assert run("verify", "pictures.pt", *MODEL, "--images", tmp_path, "--no-report").code == 0
