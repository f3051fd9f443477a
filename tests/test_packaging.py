"""The wheel, built from a copy of the tree and used where nothing but the wheel is camkit."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

import camkit

ROOT = Path(__file__).parents[1]
LIBRARIES = Path(sysconfig.get_paths()["purelib"])
PACKAGES = {
    "camkit": ROOT / "camkit",
    "camkit_quantities": ROOT / "plugins" / "camkit_quantities",
    "camkit_methods": ROOT / "plugins" / "camkit_methods",
    "camkit_targets": ROOT / "plugins" / "camkit_targets",
    "camkit_fusions": ROOT / "plugins" / "camkit_fusions",
    "camkit_attacks": ROOT / "plugins" / "camkit_attacks",
    "camkit_metrics": ROOT / "plugins" / "camkit_metrics",
    "camkit_engines": ROOT / "plugins" / "camkit_engines",
    "camkit_adapters": ROOT / "adapters" / "camkit_adapters",
    "camkit_export": ROOT / "export" / "camkit_export",
}
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CAMKIT_PLUGINS")}


def execute(*arguments: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, arguments)],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for part in ("camkit", "plugins", "adapters", "export"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / part, tree / part)
    # nothing answers at that address: the build must need no network
    nowhere = dict.fromkeys(("https_proxy", "HTTPS_PROXY", "PIP_INDEX_URL"), "http://127.0.0.1:9")
    execute(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", tree),
        cwd=folder,
        **nowhere,
    )
    (built,) = (folder / "dist").glob("*.whl")
    return built


def environment_with(folder: Path, wheel: Path, lent: Iterable[str] | None) -> Path:
    """A new virtual environment with the wheel in it, and the libraries that are lent (all, where None); its bin."""
    execute(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    binaries = folder / "bin"
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--python",
        binaries / "python",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    )
    execute(*pip, wheel, cwd=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    source = LIBRARIES
    if lent is not None:
        source = folder / "lent"
        source.mkdir()
        for name in lent:
            for found in LIBRARIES.glob(f"{name}*"):
                (source / found.name).symlink_to(found)
    # a folder that a .pth file names is searched last, and its own .pth files, such as that of an editable
    # installation, are not read
    (site / "lent.pth").write_text(f"{source}\n")
    return binaries


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    return environment_with(tmp_path_factory.mktemp("installed") / "env", wheel, lent=None)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Path:
    path = tmp_path_factory.mktemp("exported") / "gradcam.onnx"
    execute(installed / "camkit", "export", "--model", "demo:resnet", "--output", path, cwd=path.parent)
    return path


def test_contents(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for name in names:
            assert str(ROOT).encode() not in archive.read(name), name
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    sources = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == sources
    assert {
        "camkit/py.typed",
        "camkit_adapters/torchvision.toml",
        "camkit_adapters/timm.toml",
        "camkit_adapters/demo/digits.npz",
        "camkit_adapters/demo/images/boxes.json",
        "camkit_adapters/demo/resnet.safetensors",
        "camkit_adapters/demo/vgg.safetensors",
        "camkit_adapters/demo/vit.safetensors",
    } <= names
    assert len([name for name in names if re.fullmatch(r"camkit_adapters/demo/images/scene-\d\d\.png", name)]) == 12
    assert [name for name in names if name.startswith("camkit/templates/")]
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    weights = [path.stat().st_size for path in PACKAGES["camkit_adapters"].glob("demo/*.safetensors")]
    assert sum(weights) < 6e6


def test_the_wheel_and_not_the_tree_is_used(installed: Path, tmp_path: Path):
    program = """
from importlib.util import find_spec
import camkit, camkit_methods, camkit_export
print(*camkit.__path__, *camkit_methods.__path__, *camkit_export.__path__)
print([name for name in ("tests", "plugins", "export", "adapters", "examples") if find_spec(name)])
"""
    places, folders = execute(installed / "python", "-c", program, cwd=tmp_path).splitlines()
    assert [str(installed.parent) in place for place in places.split()] == [True] * 3
    # folders of the tree, which the editable installation makes importable by accident
    assert folders == "[]"


def test_version_and_plugins(installed: Path, tmp_path: Path):
    assert execute(installed / "camkit", "--version", cwd=tmp_path) == f"camkit {camkit.__version__}\n"
    found = json.loads(execute(installed / "camkit", "plugins", "--json", cwd=tmp_path))
    own = [entry for entry in [*found["plugins"], *found["items"]] if entry["distribution"] == "camkit"]
    assert not [entry for entry in own if entry["error"]]
    kinds = {item["kind"] for item in own if "kind" in item}
    assert kinds == {
        *(
            "quantity",
            "target",
            "method",
            "fusion",
            "attack",
            "metric",
            "dataset",
            "engine",
            "model source",
            "decomposition",
            "exporter",
        )
    }


def test_explain_a_shipped_scene(installed: Path, tmp_path: Path):
    (scene,) = installed.parent.glob("lib/python*/site-packages/camkit_adapters/demo/images/scene-01.png")
    execute(installed / "camkit", "explain", scene, "--model", "demo:resnet", "--target", "six", cwd=tmp_path)
    line = json.loads((tmp_path / "camkit-output" / "explanations.jsonl").read_text())
    assert line["target"]["name"] == "six"
    assert (tmp_path / "camkit-output" / line["picture"]).stat().st_size > 1000
    assert (tmp_path / "camkit-output" / "scene-01-grid.png").stat().st_size > 1000


SERVE = """
import importlib.util, json, sys
import numpy as np
import camkit

absent = ("torch", "torchvision", "timm", "pluggy", "pydantic", "typer", "cv2", "PIL", "onnx", "onnxscript")
assert not [name for name in absent if importlib.util.find_spec(name)]
session = camkit.load(sys.argv[1])
result = session(np.load("images.npy"), np.load("classes.npy"))
np.savez("results.npz", logits=result.logits, heatmaps=result.heatmaps, maps=result.maps, classes=result.classes)
print(json.dumps([session.provenance["method"], session.class_names]))
"""


def test_an_exported_file_is_served_by_numpy_and_onnxruntime_alone(tmp_path: Path, wheel: Path, exported: Path):
    binaries = environment_with(tmp_path / "env", wheel, lent=("numpy", "onnxruntime"))
    loaded = camkit.load_model("demo:resnet")
    folder = PACKAGES["camkit_adapters"] / "demo" / "images"
    scenes = dict(list(json.loads((folder / "boxes.json").read_text()).items())[:3])
    images, _ = loaded.read([folder / name for name in scenes])
    classes = np.array([digits[0]["class_index"] for digits in scenes.values()])
    classes[1] = -1
    np.save(tmp_path / "images.npy", images.numpy())
    np.save(tmp_path / "classes.npy", classes)
    (tmp_path / "serve.py").write_text(SERVE)
    answer = json.loads(execute(binaries / "python", "serve.py", exported, cwd=tmp_path))
    assert answer == ["gradcam", list(loaded.class_names)]
    expected = camkit.Explainer(loaded)(images, target=torch.from_numpy(classes))
    with np.load(tmp_path / "results.npz") as found:
        np.testing.assert_array_equal(found["classes"], expected.targets)
        for name, reference in (("logits", expected.logits), ("maps", expected.maps), ("heatmaps", expected.heatmaps)):
            values = reference.detach().numpy()
            assert values.std() > 0
            np.testing.assert_allclose(found[name], values, atol=1e-3 * np.abs(values).max(), err_msg=name)
