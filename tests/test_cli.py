"""Every command as a user gives it, on real files: what it prints, what it writes, and that the two agree."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray

import camkit
from camkit.cli.options import parse_options
from camkit_adapters import demo
from commandline import process, run, succeed

SCENES = Path(demo.__file__).with_name("images")
SCENE = SCENES / "scene-01.png"
COMMANDS = [
    "demo",
    "explain",
    "attack",
    "evaluate",
    "robustness",
    "export",
    "verify",
    "serve",
    "plugins",
    "new-plugin",
    "adapters",
    "doctor",
    "summary",
]
HEAVY = {"torch", "torchvision", "timm", "onnx", "onnxruntime", "cv2", "matplotlib"}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "explanations.jsonl").read_text(encoding="utf-8").splitlines()]


def picture(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path))
    assert image is not None, path
    return image


def runs(mask: NDArray[np.bool_], *, gap: int) -> int:
    """How many stretches of True there are, where holes of at most `gap` do not part them."""
    places = np.flatnonzero(mask)
    return 0 if len(places) == 0 else 1 + int((np.diff(places) > gap).sum())


# --- the command itself


def in_a_new_process(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


CALL = """
import json, sys
from camkit.cli import main
for arguments in {calls}:
    sys.argv = ["camkit", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
print(json.dumps(sorted(sys.modules)))
"""


def test_help_needs_no_torch_and_lists_every_command_on_one_line():
    help_page, modules = in_a_new_process(CALL.format(calls=[["--help"]])).rsplit("\n", 2)[:2]
    assert not HEAVY & set(json.loads(modules))
    shown = [line.strip("│ ").split(None, 1) for line in help_page.split("Commands")[1].splitlines() if line[:1] == "│"]
    assert [words[0] for words in shown] == COMMANDS
    assert all(words[1].endswith(".") for words in shown)


def test_the_help_of_every_command_needs_no_torch():
    answer = in_a_new_process(CALL.format(calls=[[command, "-h"] for command in COMMANDS] + [["--version"], []]))
    assert not HEAVY & set(json.loads(answer.splitlines()[-1]))
    for command in COMMANDS:
        assert f"Usage: camkit {command}" in answer
    assert f"camkit {camkit.__version__}" in answer


def test_methods_are_read_without_what_other_kinds_need():
    read = "import json, sys\nfrom camkit.registry import registry\nfound = registry().names('method')\n"
    names, modules = json.loads(in_a_new_process(f"{read}print(json.dumps([found, sorted(sys.modules)]))"))
    assert "gradcam" in names
    assert not {"camkit_export.onnx", "camkit_metrics.deletion", "onnxscript", "sympy"} & {*modules}


def test_version():
    done = process("--version")
    assert (done.code, done.out, done.err) == (0, f"camkit {camkit.__version__}\n", "")


# --- plugins, adapters


def test_plugins():
    table = succeed("plugins")
    for kind, name in (
        ("quantity", "activations"),
        ("target", "counterfactual"),
        ("method", "gradcam"),
        ("attack", "fgsm"),
        ("metric", "pointing_game"),
        ("model source", "timm"),
        ("exporter", "onnx"),
    ):
        assert kind in table
        assert name in table
    assert "Broken" not in table


def test_plugins_as_json():
    found = json.loads(succeed("plugins", "--json"))
    assert {plugin["distribution"] for plugin in found["plugins"]} == {"camkit"}
    assert not [plugin for plugin in [*found["plugins"], *found["items"]] if plugin["error"]]
    methods = {item["name"]: item for item in found["items"] if item["kind"] == "method"}
    assert {"cam", "gradcam", "gradcam++", "xgradcam", "layercam", "hirescam"} <= set(methods)
    assert methods["gradcam"]["asks"] == ["activations", "gradients"]
    assert methods["gradcam"]["paper"] == "arXiv:1610.02391"


@pytest.mark.parametrize("name", ["digit_scenes", "camkit:digit_scenes"])
def test_one_plugin_with_its_options(name):
    shown = succeed("plugins", name)
    assert "digit_scenes: dataset from camkit" in shown
    assert "option: digit_scenes.seed (int) = 0" in shown


def test_adapters():
    assert "timm.vit.class-token" in succeed("adapters")
    listed = {row["name"]: row for row in json.loads(succeed("adapters", "--json"))}
    assert listed["torchvision.vgg"]["targets"]["last"] == ["features.-2"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("demo:resnet", {"adapter": "timm.resnet", "layer": "layer4", "map": "12x12, 160 channels"}),
        ("torchvision:alexnet", {"adapter": "torchvision.alexnet", "layer": "features.11", "layout": "NCHW"}),
        ("timm:vit_tiny_patch16_224", {"layer": "blocks.11.norm1", "layout": "tokens(prefix 1, grid 14x14)"}),
    ],
)
def test_adapter_of_a_model(model, expected):
    found = json.loads(succeed("adapters", "--model", model, "--weights", "none", "--json"))
    assert {key: found[key] for key in expected} == expected
    assert found["rule"].startswith("first match in ")
    assert found["layer"] in succeed("adapters", "--model", model, "--weights", "none")


# --- doctor, summary


@pytest.mark.parametrize(
    ("model", "total"), [("torchvision:alexnet", "61,100,840"), ("torchvision:vgg16", "138,357,544")]
)
def test_summary_totals(model, total):
    shown = succeed("summary", "--model", model, "--weights", "none")
    assert f"Total parameters {total}" in " ".join(shown.split())


def test_doctor_judges_the_layer_that_it_is_asked_about():
    assert "'layer4' (Sequential, [1, 160, 12, 12], NCHW 12x12): Fit for a map." in succeed(
        "doctor", "--model", "demo:resnet"
    )
    verdict = succeed("doctor", "--model", "demo:resnet", "--layer", "fc", "--image", SCENE).splitlines()[-1]
    assert verdict.startswith("'fc' (Linear, [1, 10], -):")
    assert "Fit" not in verdict


# --- explain


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    """Two classes x two layers x three variants, in one command."""
    folder = tmp_path_factory.mktemp("grid")
    asked = ("--target", "six", "--target", "two", "--layer", "stage3,last", "--variant", "relu,signed,counterfactual")
    succeed("explain", SCENE, "--model", "demo:resnet", *asked, "--output", folder)
    return folder


def test_each_combination_is_a_picture_and_a_line(grid):
    facts = lines(grid)
    combinations = {(line["target"]["name"], line["layer"], line["variant"]) for line in facts}
    assert len(facts) == len(combinations) == 12
    assert {name for name, _, _ in combinations} == {"six", "two"}
    assert {layer for _, layer, _ in combinations} == {"layer3", "layer4"}
    pictures = [picture(grid / line["picture"]) for line in facts]
    assert {image.shape for image in pictures} == {(288, 288, 3)}
    assert len({image.tobytes() for image in pictures}) == 12
    assert {path.name for path in grid.iterdir()} == {line["picture"] for line in facts} | {
        "scene-01-grid.png",
        "explanations.jsonl",
    }


def test_the_lines_say_what_the_library_says(grid):
    explainer = camkit.Explainer(loaded := camkit.load_model("demo:resnet"))
    images, _ = loaded.read(SCENE)
    for line in lines(grid):
        sign = -1 if line["variant"] == "counterfactual" else 1
        explanation = explainer(images, target=line["target"]["name"], layer=line["layer"])
        maps = sign * explanation.maps
        assert line["map"]["shape"] == [12, 12]
        assert line["map"]["minimum"] == pytest.approx(float(maps.min()), abs=1e-5)
        assert line["map"]["maximum"] == pytest.approx(float(maps.max()), abs=1e-5)
        assert line["target"]["score"] == pytest.approx(sign * float(explanation.scores), abs=1e-4)
        assert line["prediction"]["name"] == "two"
        assert line["prediction"]["probability"] == pytest.approx(float(explanation.probabilities[0, 2]), abs=1e-5)
        assert line["relu"] == (line["variant"] != "signed")
        if line["variant"] == "relu":
            peak = divmod(int(explanation.heatmaps[0].argmax()), 96)
            assert (line["map"]["peak"]["y"], line["map"]["peak"]["x"]) == peak


def test_the_grid_has_a_label_for_each_row_and_column(grid):
    ink = (picture(grid / "scene-01-grid.png") < 250).any(axis=2)
    in_rows, in_columns = ink.mean(axis=1) > 0.6, ink.mean(axis=0) > 0.6
    assert (runs(in_rows, gap=2), runs(in_columns, gap=2)) == (4, 4)
    top, left = int(in_rows.argmax()), int(in_columns.argmax())
    beside, above = ink[top:, : left - 2].any(axis=1), ink[top - 35 : top - 2, left:].any(axis=0)
    assert (runs(beside, gap=60), runs(above, gap=60)) == (4, 4)


def test_several_methods_and_images_in_batches(tmp_path):
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for number in (1, 2):
        (folder / f"scene-0{number}.png").write_bytes((SCENES / f"scene-0{number}.png").read_bytes())
    (folder / "notes.txt").write_text("not an image")
    twin = folder / "deeper" / "scene-01.png"
    twin.write_bytes((SCENES / "scene-04.png").read_bytes())
    asked = ("--method", "gradcam,gradcam++", "--target", "top-2", "--batch-size", 2)
    shown = succeed("explain", folder, twin, "--model", "demo:resnet", *asked, "--output", tmp_path / "out")
    facts = lines(tmp_path / "out")
    assert len(facts) == len({line["picture"] for line in facts}) == 3 * 2 * 2
    assert len({line["image"] for line in facts}) == 3
    assert sorted(path.name for path in (tmp_path / "out").glob("*-grid.png")) == [
        f"{stem}-grid.png" for stem in ("scene-01-2", "scene-01", "scene-02")
    ]
    assert "Overlays (12), grids (3)" in shown
    # batches do not change results
    succeed("explain", folder, twin, "--model", "demo:resnet", *asked[:4], "--output", tmp_path / "together")
    for line, other in zip(facts, lines(tmp_path / "together"), strict=True):
        assert line["picture"] == other["picture"]
        assert line["map"]["maximum"] == pytest.approx(other["map"]["maximum"], rel=1e-3)


def test_a_command_given_twice_leaves_one_line_for_each_picture(tmp_path):
    (tmp_path / "explanations.jsonl").write_bytes(b"\xff a line of somebody else\n")
    for target in ("six", "two", "six"):
        succeed("explain", SCENE, "--model", "demo:resnet", "--target", target, "--output", tmp_path)
    first, *ours = (tmp_path / "explanations.jsonl").read_bytes().splitlines()
    assert first == b"\xff a line of somebody else"
    assert [json.loads(line)["target"]["name"] for line in ours] == ["two", "six"]


def test_targets_by_number_name_and_rank(tmp_path):
    targets = [part for target in ("6", "SIX", "last", "counterfactual:six") for part in ("--target", target)]
    succeed("explain", SCENE, "--model", "demo:resnet", *targets, "--variant", "signed", "--output", tmp_path)
    facts = {line["target"]["asked"]: line["target"] for line in lines(tmp_path)}
    assert set(facts) == {"six", "last", "counterfactual six"}
    assert facts["six"]["class"] == facts["counterfactual six"]["class"] == 6
    assert facts["six"]["score"] == pytest.approx(-facts["counterfactual six"]["score"], abs=1e-5)
    assert facts["last"]["score"] < facts["six"]["score"]


@pytest.mark.parametrize(
    ("model", "size"),
    [("demo:vgg", 96), ("demo:vit", 96), ("torchvision:alexnet", 224), ("timm:vit_tiny_patch16_224", 224)],
)
def test_random_weights_follow_the_seed(model, size, tmp_path):
    maxima = []
    for number, seed in enumerate((1, 1, 2)):
        asked = ("--model", model, "--weights", "none", "--variant", "signed", "--seed", seed)
        succeed("explain", SCENE, *asked, "--output", tmp_path / str(number))
        (line,) = lines(tmp_path / str(number))
        maxima.append((line["map"]["minimum"], line["map"]["maximum"]))
        image = picture(tmp_path / str(number) / line["picture"])
        assert image.shape[0] % size == 0
    assert maxima[0] == maxima[1] != maxima[2]
    assert maxima[0][0] < maxima[0][1]


def test_a_fine_tuned_checkpoint_with_its_own_labels(tmp_path):
    trained = timm.create_model("resnet10t", num_classes=3).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "best.pt")
    (tmp_path / "labels.txt").write_text("cat\ndog\nred panda\n")
    asked = ("--weights", tmp_path / "best.pt", "--labels", tmp_path / "labels.txt", "--target", "red panda")
    succeed("explain", SCENE, "--model", "timm:resnet10t", *asked, "--variant", "signed", "--output", tmp_path / "out")
    (line,) = lines(tmp_path / "out")
    assert (line["target"]["class"], line["target"]["name"]) == (2, "red panda")
    images, _ = camkit.load_model("timm:resnet10t", weights=tmp_path / "best.pt").read(SCENE)
    assert line["target"]["score"] == pytest.approx(trained(images)[0, 2].item(), abs=1e-5)


def test_preprocessing_options(tmp_path):
    own = camkit.load_model("demo:resnet").preprocessing
    mean, std = (",".join(map(str, values)) for values in (own.mean, own.std))
    for name, asked in {
        "own": (),
        "same": ("--mean", mean, "--std", std, "--size", "96"),
        "shifted": ("--mean", "0.1,0.2,0.3"),
        "wide": ("--size", "64x128"),
    }.items():
        succeed("explain", SCENE, "--model", "demo:resnet", "--target", "two", *asked, "--output", tmp_path / name)
    found = {path.name: lines(path)[0] for path in tmp_path.iterdir()}
    assert found["own"]["target"]["score"] == pytest.approx(found["same"]["target"]["score"], abs=1e-6)
    assert found["own"]["target"]["score"] != found["shifted"]["target"]["score"]
    assert found["wide"]["map"]["shape"] == [8, 16]
    height, width, _ = picture(tmp_path / "wide" / found["wide"]["picture"]).shape
    assert width == 2 * height


def test_colormap_opacity_dtype_and_adapter(tmp_path):
    (tmp_path / "mine.toml").write_text(
        '[[adapter]]\nname = "mine"\nclass = "ResNet"\nlayout = "NCHW"\nclassifier = "fc"\n'
        'probability = "sigmoid"\ntargets.last = "layer2"\n'
    )
    cases = {
        "plain": (),
        "viridis": ("--colormap", "viridis"),
        "faint": ("--alpha", "0.1"),
        "double": ("--dtype", "float64"),
        "adapter": ("--adapter", tmp_path / "mine.toml"),
    }
    found = {}
    for name, asked in cases.items():
        succeed("explain", SCENE, "--model", "demo:resnet", *asked, "--output", tmp_path / name)
        (line,) = lines(tmp_path / name)
        found[name] = line, picture(tmp_path / name / line["picture"]).astype(float)
    assert found["adapter"][0]["layer"] == "layer2"
    assert found["double"][0]["map"]["maximum"] == pytest.approx(found["plain"][0]["map"]["maximum"], rel=1e-4)
    assert np.abs(found["viridis"][1] - found["plain"][1]).max() > 20
    image = cv2.resize(cv2.imread(str(SCENE)), (288, 288), interpolation=cv2.INTER_CUBIC).astype(float)
    strength = {name: np.abs(found[name][1] - image).max() for name in ("plain", "faint")}
    assert 0 < strength["faint"] < strength["plain"] / 3


def test_a_blank_map_is_said_with_the_name_of_its_file(tmp_path):
    result = run("explain", SCENE, "--model", "demo:resnet", "--method", "cam", "--target", "last", "-o", tmp_path)
    note = lines(tmp_path)[0]["note"]
    assert result.code == 0
    assert "no positive value" in note
    assert result.err == f"Note: scene-01.png ({lines(tmp_path)[0]['target']['name']}, relu, cam, layer4): {note}\n"


def test_names_and_paths_are_printed_as_they_are(tmp_path, monkeypatch):
    name = "a [red]long[red] :cat: name $x$ that a narrow screen would break.png"
    (tmp_path / name).write_bytes(SCENE.read_bytes())
    folder = "an output folder, the name of which is much longer than a narrow screen is wide"
    done = process("explain", ".", "--model", "demo:resnet", "-o", folder, cwd=tmp_path, COLUMNS="60")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(f"explanations.jsonl are in {folder}\n")
    monkeypatch.chdir(tmp_path)
    assert name in succeed("explain", ".", "--model", "demo:resnet", "-o", folder)
    (line,) = lines(tmp_path / folder)
    assert picture(tmp_path / folder / line["picture"]).shape == (288, 288, 3)
    assert line["image"] == name


def test_options_of_methods_are_read_as_json_or_text():
    given = ["a.size=3", "a.name=wide", "a.sizes=[1, 2]", "mine:b.flag=true", "a.text=x=y"]
    assert parse_options(given, ["a", "mine:b"]) == {
        "a.size": 3,
        "a.name": "wide",
        "a.sizes": [1, 2],
        "mine:b.flag": True,
        "a.text": "x=y",
    }


# --- export, verify


def test_export_and_verify(tmp_path):
    path = tmp_path / "a folder with a name that would not fit into a narrow line of a terminal" / "hirescam.onnx"
    shown = succeed("export", "--model", "demo:resnet", "--method", "hirescam", "--layer", "stage3", "--output", path)
    assert f"Wrote {path} (" in shown
    assert f"{path} gives what it should.\n" in succeed("verify", path)
    result = camkit.load(path)(np.zeros((2, 3, 96, 96), np.float32), [3, -1])
    assert result.heatmaps.shape == (2, 96, 96)


UNDECIDED = """
import torch
from torch import nn


class Undecided(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3, stride=8)
        self.classifier = nn.Linear(6, 5)

    def forward(self, images):
        pooled = self.features(images).relu().mean(dim=(2, 3))
        return self.classifier(pooled if float(pooled.detach().sum()) > 0 else -pooled)


def undecided():
    return Undecided().eval()
"""


def test_a_head_that_cannot_be_run_alone_is_said_once_and_the_model_runs_instead(tmp_path):
    (tmp_path / "own_undecided.py").write_text(UNDECIDED)
    arguments = ("--model", "python:own_undecided:undecided", "--layer", "features", "--method", "ablationcam")
    done = process("explain", SCENE, SCENES / "scene-02.png", *arguments, "--batch-size", 1, "--size", 64, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.err.count("is not run alone, because torch.export refuses the model") == 1
    assert len(lines(tmp_path / "camkit-output")) == 2
