"""The example that explains in a browser: what its page is told of a graph, and the page itself in a real browser."""

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from matplotlib import colormaps

import camkit
from camkit.preprocessing import Preprocessing

EXAMPLE = Path(__file__).parents[1] / "examples" / "browser"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OLDEST_NODE = (20, 19)


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLE)
    return importlib.import_module("prepare")


def session(**changes: object) -> SimpleNamespace:
    """What `prepare.py` reads of a session."""
    provenance = {
        "model": "a test model",
        "method": "gradcam",
        "layer": "layer4",
        "output": "logits",
        "probability": "softmax",
        "preprocessing": Preprocessing(size=(64, 96)).model_dump(mode="json"),
    }
    return SimpleNamespace(provenance={**provenance, **changes}, relu=True, class_names=None, classes=3)


def fields(interface: str) -> set[str]:
    """The names in an interface of src/model.ts."""
    text = (EXAMPLE / "src" / "model.ts").read_text(encoding="utf-8")
    (body,) = re.findall(rf"^export interface {interface} {{\n(.*?)^}}", text, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"^  (\w+): ", body, re.MULTILINE))


def test_the_page_is_told_what_it_reads(prepare: ModuleType):
    facts = json.loads(json.dumps(prepare.page_facts(session())))
    assert set(facts) == fields("Model")
    assert set(facts["preprocessing"]) == fields("Preprocessing") == set(Preprocessing.model_fields)
    assert facts["class_names"] == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"output": "features"}, "has no classes"),
        ({"probability": None}, "has no classes"),
        ({"preprocessing": None}, "preprocessed"),
    ],
)
def test_a_graph_that_the_page_cannot_use_is_refused(prepare: ModuleType, changes: dict[str, object], sentence: str):
    with pytest.raises(SystemExit, match=f"^a test model .*{sentence}"):
        prepare.page_facts(session(**changes))


def test_the_samples_are_there_and_the_expectation_can_be_read(prepare: ModuleType):
    assert [sample for sample in prepare.SCENES if not sample.is_file()] == []
    for resized in importlib.import_module("expectation").expected_resizes():
        assert resized["interpolation"] in str(Preprocessing.model_fields["interpolation"].annotation)


def test_the_colours_are_inferno():
    text = (EXAMPLE / "src" / "colormap.ts").read_text(encoding="utf-8")
    stops = re.findall(r'"((?:[0-9a-f]{6} ?)+)"', text)[0].split()
    given = np.array([list(bytes.fromhex(stop)) for stop in stops]).T
    places = np.linspace(0, 1, 256)
    found = np.stack([np.interp(places, np.linspace(0, 1, len(stops)), channel) for channel in given], axis=1)
    # seventeen colours stand for 256: a few levels are lost between them
    assert np.abs(found - colormaps["inferno"](places)[:, :3] * 255).max() <= 8


def test_packages_have_exact_versions_and_no_lock_file():
    package = json.loads((EXAMPLE / "package.json").read_text(encoding="utf-8"))
    versions = [*package["dependencies"].values(), *package["devDependencies"].values()]
    assert [version for version in versions if not re.fullmatch(r"\d+\.\d+\.\d+", version)] == []
    assert (EXAMPLE / ".npmrc").read_text(encoding="utf-8").split() == ["package-lock=false"]


def missing() -> str | None:
    """What this machine lacks for the page's own tests."""
    absent = [name for name in ("node", "npm") if shutil.which(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S607
    major, minor = (int(part) for part in version.removeprefix("v").split(".")[:2])
    if (major, minor) < OLDEST_NODE:
        return f"Node.js {version.strip()} is older than {'.'.join(map(str, OLDEST_NODE))}"
    if not any(shutil.which(name) for name in BROWSERS):
        return f"none of {', '.join(BROWSERS)} installed"
    return None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path: Path):
    reason = missing()
    if reason:
        pytest.skip(f"the page needs Node.js {'.'.join(map(str, OLDEST_NODE))} and Chromium: {reason}")
    folder = tmp_path / "browser"
    made = ("node_modules", "dist", "public", "expected", "test-results", "__pycache__")
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(*made))
    environment = {**os.environ, "PORT": str(free_port())}
    for command in (
        [sys.executable, "prepare.py"],
        ["npm", "install", "--no-audit", "--no-fund"],
        ["npm", "run", "check"],
        ["npm", "test"],
    ):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}\n{done.stderr[-2000:]}"
    assert camkit.load(folder / "public" / "model.onnx").provenance["model"] == "demo:resnet"
    assert not (folder / "package-lock.json").exists()
