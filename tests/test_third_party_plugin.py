"""The example plugin, installed by pip into a new environment, is used everywhere and changes nothing of camkit."""

import json
import shutil
from pathlib import Path

import pytest

from camkit_adapters import demo
from environments import Environment

EXAMPLE = Path(__file__).parents[1] / "examples" / "third_party_plugin"
SCENE = Path(demo.__file__).with_name("images") / "scene-01.png"
CONTRIBUTED = {
    ("quantity", "median_gradients"),
    ("method", "median-gradcam"),
    ("attack", "random-signs"),
    ("metric", "spread"),
    ("decomposition", "aten.median.dim"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that building it leaves nothing behind."""
    folder = tmp_path_factory.mktemp("example") / "camkit-robust"
    return Path(shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", ".*", "dist")))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Environment:
    environment = Environment.create(tmp_path_factory.mktemp("installed") / "env")
    environment.install(tree)
    return environment


def test_only_its_own_files_are_installed(installed: Environment):
    (record,) = installed.site.glob("camkit_robust-*.dist-info/RECORD")
    files = [line.split(",")[0] for line in record.read_text().splitlines()]
    assert {file.split("/")[0] for file in files} == {"camkit_robust", record.parent.name}


def test_it_is_listed_and_nothing_is_broken(installed: Environment, tmp_path: Path):
    found = json.loads(installed.succeed("camkit", "plugins", "--json", cwd=tmp_path))
    (plugin,) = [plugin for plugin in found["plugins"] if plugin["distribution"] == "camkit-robust"]
    assert (plugin["version"], plugin["module"]) == ("0.1.0", "camkit_robust")
    assert [entry for entry in [*found["plugins"], *found["items"]] if entry["error"]] == []
    theirs = [item for item in found["items"] if item["distribution"] == "camkit-robust"]
    assert {(item["kind"], item["name"]) for item in theirs} == CONTRIBUTED
    (method,) = [item for item in theirs if item["kind"] == "method"]
    assert method["asks"] == ["activations", "median_gradients"]
    assert method["options"] == {"positive": {"type": "bool", "default": False}}


def test_on_the_command_line(installed: Environment, tmp_path: Path):
    asked = ("--model", "demo:resnet", "--method", "median-gradcam,gradcam", "--layer", "stage3", "--target", "six")
    options = ("--option", "median-gradcam.positive=true")
    installed.succeed("camkit", "explain", SCENE, *asked, *options, "--output", "out", cwd=tmp_path)
    lines = [json.loads(text) for text in (tmp_path / "out" / "explanations.jsonl").read_text().splitlines()]
    found = {line["method"]: line for line in lines}
    assert list(found) == ["median-gradcam", "gradcam"]
    assert found["median-gradcam"]["options"] == {"positive": True}
    assert (tmp_path / "out" / found["median-gradcam"]["picture"]).is_file()
    minima, maxima = ([line["map"][end] for line in found.values()] for end in ("minimum", "maximum"))
    # stage3 ends in a ReLU, so that positive weights leave nothing negative; Grad-CAM's are of both signs
    assert minima[0] >= 0 > minima[1]
    assert maxima[0] > 0


def test_from_python(installed: Environment, tmp_path: Path):
    found = installed.found(
        """
        import camkit
        loaded = camkit.load_model("demo:resnet")
        explainer = camkit.Explainer(loaded)
        images, _ = loaded.read([scene])
        asked = dict(target="six", layer="stage3", relu=False)
        signed = explainer(images, "median-gradcam", **asked).maps
        positive = explainer(images, "camkit-robust:median-gradcam", options={"positive": True}, **asked).maps

        # the same by PyTorch alone
        kept = []
        handle = explainer.module.get_submodule(layer).register_forward_hook(lambda *call: kept.append(call[-1]))
        logits = explainer.module(images)
        handle.remove()
        (gradients,) = torch.autograd.grad(logits[:, 6].sum(), kept[0])
        weights = gradients.flatten(2).sort(dim=2).values[:, :, (gradients[0, 0].numel() - 1) // 2, None, None]
        expected = [(kept[0] * weights).sum(1), (kept[0] * weights.relu()).sum(1)]

        control = camkit.attack(explainer, images, "random-signs", epsilon=0.03)
        measured = camkit.measure(explainer, "spread", method=["median-gradcam", "gradcam"], layer="stage3",
                                  data_options={"count": 4})
        pairs = list(zip((signed, positive), expected))
        found = {
            "errors": [float((maps - right).abs().max() / right.abs().max()) for maps, right in pairs],
            "spreads": [float(right.std() / right.abs().max()) for _, right in pairs],
            "distance": control.distance.tolist(),
            "measured": [measurement.value for measurement in measured],
        }
        """,
        cwd=tmp_path,
        scene=str(SCENE),
        layer="layer3",
    )
    assert max(found["errors"]) < 1e-4
    assert min(found["spreads"]) > 0.01
    assert found["distance"] == pytest.approx([0.03], abs=1e-6)
    assert all(0 < value < 0.3 for value in found["measured"])
    assert found["measured"][0] != found["measured"][1]


EXPORT = ("--model", "demo:resnet", "--method", "median-gradcam", "--layer", "stage3", "--output", "median.onnx")


def test_as_onnx(installed: Environment, tmp_path: Path):
    assert "verified" in installed.succeed("camkit", "export", *EXPORT, cwd=tmp_path)
    found = installed.found(
        """
        import camkit, onnx
        loaded = camkit.load_model("demo:resnet")
        images, _ = loaded.read([scene, scene])
        session = camkit.load("median.onnx")
        classes = torch.tensor([6, 2])
        served = session(images.numpy(), classes=classes.numpy())
        expected = camkit.Explainer(loaded)(images, "median-gradcam", layer="stage3", target=classes).maps
        nodes = onnx.load("median.onnx").graph.node
        found = {
            "method": session.provenance["method"],
            "error": float((torch.from_numpy(served.maps) - expected).abs().max() / expected.abs().max()),
            "spread": float(expected.std() / expected.abs().max()),
            "domains": sorted({node.domain for node in nodes}),
        }
        """,
        cwd=tmp_path,
        scene=str(SCENE),
    )
    assert found["method"] == "median-gradcam"
    assert found["error"] < 1e-4
    assert found["spread"] > 0.01
    assert found["domains"] == [""]
    assert "gives what it should" in installed.succeed("camkit", "verify", "median.onnx", cwd=tmp_path)


@pytest.mark.slow
def test_without_its_rule_the_export_is_refused(tree: Path, tmp_path: Path):
    bare = Path(shutil.copytree(tree, tmp_path / "bare"))
    (bare / "src" / "camkit_robust" / "decompositions.py").unlink()
    environment = Environment.create(tmp_path / "env")
    environment.install(bare)
    refused = environment.run("camkit", "export", *EXPORT, cwd=tmp_path)
    assert refused.code == 2
    assert "The operator aten.median.dim" in refused.err
    assert "camkit_decompositions" in refused.err
    assert not (tmp_path / "median.onnx").exists()


def test_its_own_tests_pass(installed: Environment, tree: Path):
    assert " passed" in installed.succeed("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tree)
