"""examples/small_images: what its README says happens, on a handful of pictures; and CIFAR-10 as it lies on a disk."""

import csv
import json
import pickle
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

import camkit
from commandline import run

EXAMPLE = Path(__file__).parents[1] / "examples" / "small_images"
README = (EXAMPLE / "README.md").read_text(encoding="utf-8")
# enough to tell some digits apart, and to be wrong about others
STEPS, PICTURES = 16, 24


def commands() -> list[str]:
    """The README's commands, each in one line."""
    found = re.findall(r"^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return "".join(found).replace("\\\n", " ").splitlines()


def execute(command: str) -> str:
    """What a command of the README prints; training is short."""
    words = shlex.split(command)
    if words[0] == "camkit":
        result = run(*words[1:])
        assert result.code == 0, result.err
        return result.out
    if words[0] == "python":
        train(*words[2:])
        return ""
    # the line is the README's own
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout  # noqa: S602


def train(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *arguments, "--steps", str(STEPS), "--pictures", str(PICTURES)])
        runpy.run_path("train.py", run_name="__main__")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, so that what is written there leaves nothing behind."""
    folder = tmp_path_factory.mktemp("example") / "small_images"
    folder.mkdir()
    for script in EXAMPLE.glob("*.py"):
        shutil.copy(script, folder)
    return folder


@pytest.fixture(autouse=True)
def folder(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the reader of the README is."""
    monkeypatch.syspath_prepend(copied)
    monkeypatch.chdir(copied)
    yield copied
    for name in ("pictures", "small_cnn"):
        sys.modules.pop(name, None)


def table(folder: str) -> list[dict[str, str]]:
    with (Path(folder) / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_commands_of_the_readme_do_what_it_says(folder: Path):
    printed = [execute(command) for command in commands() if "cifar10" not in command]
    assert len(printed) == 6

    pictures = sorted((folder / "digits").glob("*/*.png"))
    assert len(pictures) == PICTURES
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.size == (32, 32)

    chosen = " ".join(printed[1].split())
    (said,) = re.findall(r"^```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    for line in said.splitlines():
        assert " ".join(line.split()) in chosen

    rows = table("study")
    at = {(row["metric"], row["target"], row["prediction"]): row for row in rows}
    assert len(rows) == len(at) == 3 * 2 * 3
    for metric in {row["metric"] for row in rows}:
        # one class is explained where the prediction is right, two where it is wrong
        assert at[metric, "top", "right"]["value"] == at[metric, "true", "right"]["value"]
    assert any(at[metric, "top", "wrong"]["value"] != at[metric, "true", "wrong"]["value"] for metric, _, _ in at)
    # the lines that the README's table is made of
    assert len(printed[3].splitlines()) == 12
    for name in ("right", "predicted-and-true"):
        assert (folder / "study" / f"grid-python_small_cnn_digits-{name}.png").is_file()

    of_wrong, of_right = (
        [json.loads(line) for line in (folder / name / "explanations.jsonl").read_text().splitlines()]
        for name in ("wrong", "right")
    )
    assert [line["method"] for line in of_wrong] == ["gradcam", "gradcam", "layercam", "layercam"]
    assert of_wrong[1]["target"]["name"] == "one"
    assert of_right[0]["target"]["name"] != of_right[1]["target"]["name"]
    assert {line["layer"] for line in (*of_wrong, *of_right)} == {"blocks"}


def test_the_box_is_around_the_digit_in_the_middle(folder: Path):
    import pictures

    made, fewer = pictures.house_numbers(50, "test", 3), pictures.house_numbers(5, "test", 3)
    assert np.array_equal(made.images[:5], fewer.images)
    assert made.images.shape == (50, 32, 32, 3)
    left, top, right, bottom = made.boxes.T
    assert ((left < 16) & (right > 16) & (top < 16) & (bottom > 16)).all()
    assert ((right - left >= 3) & (bottom - top >= 14)).all()


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A tree with pickles as CIFAR-10's, of few pictures; the pixels of the test pictures, [N, 3072]."""
    base = root / CIFAR10.base_folder
    base.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for file, _ in (*CIFAR10.train_list, *CIFAR10.test_list):
        batch = {"data": random.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [*range(10), *range(10)]}
        (base / file).write_bytes(pickle.dumps(batch))
    (base / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": names}))
    # the sums are those of the real files
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, name, [[file, None] for file, _ in getattr(CIFAR10, name)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    return batch["data"]


def test_cifar10_is_read_where_it_lies(folder: Path, monkeypatch: pytest.MonkeyPatch):
    pixels = cifar10(folder / "data", monkeypatch)
    training, evaluation = (command for command in commands() if "cifar10" in command)
    execute(training)
    pictures = sorted((folder / "cifar10").glob("*/*.png"), key=lambda path: path.name)
    assert [path.parent.name for path in pictures[:3]] == ["airplane", "automobile", "bird"]
    assert len(pictures) == 20
    with Image.open(pictures[7]) as image:
        assert np.array_equal(np.asarray(image), pixels[7].reshape(3, 32, 32).transpose(1, 2, 0))
    assert not (folder / "cifar10" / "annotations.json").exists()
    execute(evaluation)
    counts = {row["prediction"]: int(row["n"]) for row in table("cifar10-study") if row["target"] == "top"}
    assert counts["all"] == counts.get("right", 0) + counts.get("wrong", 0) > 0


def test_nothing_is_downloaded(folder: Path):
    with pytest.raises(SystemExit, match="does not hold CIFAR-10 as torchvision keeps it"):
        train("--cifar10", "nowhere")


def test_the_factories_know_their_classes(folder: Path):
    for name, first in (("digits", "zero"), ("cifar10", "airplane")):
        model = camkit.load_model(f"python:small_cnn:{name}")
        assert model.class_names is not None
        assert model.class_names[0] == first
        assert model.module(torch.zeros(1, 3, 32, 32)).shape == (1, len(model.class_names))
