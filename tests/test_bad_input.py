"""Every mistake of a user through the CLI: one sentence, exit code 2, nothing half-written."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import camkit
from camkit_adapters import demo
from commandline import process, run

SCENE = Path(demo.__file__).with_name("images") / "scene-01.png"

OWN_MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2))
        self.unused = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, images):
        return self.fc(self.features(images).mean((2, 3)))

def make():
    return Net()

def fails():
    raise RuntimeError("no luck")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are not what they seem."""
    made = tmp_path_factory.mktemp("bad")
    Image.open(SCENE).resize((200, 200)).save(made / "whole.jpg")
    content = (made / "whole.jpg").read_bytes()
    (made / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (made / "truncated.png").write_bytes(SCENE.read_bytes()[:2000])
    (made / "text.png").write_text("This is no picture.")
    (made / "empty.png").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(made / "dot.png")
    (made / "no pictures").mkdir()
    (made / "file").write_text("in the way")
    (made / "labels.txt").write_text("only\ntwo\n")
    (made / "adapter.toml").write_text('[[adapter]]\nname = "x"\nlayouts = "NCHW"\n')
    torch.save(timm.create_model("resnet10t", num_classes=6).state_dict(), made / "other.pt")
    torch.save(nn.Linear(2, 2), made / "pickled.pt")
    (made / "own_models_of_bad_input.py").write_text(OWN_MODELS)
    return made


@dataclass(frozen=True)
class Case:
    """What is asked for, instead of `explain SCENE --model demo:resnet`, and the sentence that answers."""

    asked: str
    sentence: str
    image: str = str(SCENE)
    model: str = "demo:resnet"


EXPLAIN = {
    "no such file": Case("", "There is no file or folder 'absent.png'.", image="absent.png"),
    "text named .png": Case("", "'text.png' is not an image in a format that can be read.", image="text.png"),
    "empty file": Case("", "'empty.png' is not an image in a format that can be read.", image="empty.png"),
    "truncated JPEG": Case("", "The image 'truncated.jpg' is damaged: ", image="truncated.jpg"),
    "truncated PNG": Case("", "The image 'truncated.png' is damaged: ", image="truncated.png"),
    "1x1 image": Case("", "The image 'dot.png' is 1x1 pixels; it must be at least 2x2.", image="dot.png"),
    "folder without images": Case("", "The folder 'no pictures' holds no image.", image="no pictures"),
    "one bad image among good ones": Case("text.png", "'text.png' is not an image"),
    "unknown model": Case("", "There is no timm model 'resnet10'; did you mean 'resnet10t'", model="timm:resnet10"),
    "unknown demo": Case("", "There is no demo model 'resnett'; did you mean 'resnet'?", model="demo:resnett"),
    "unknown source": Case("", "There is no model source 'tim'; did you mean 'timm'?", model="tim:resnet18"),
    "no source": Case("", "The model 'resnet18' is not written as source:name; did you mean", model="resnet18"),
    "module without a function": Case("", "did you mean 'make'", model="python:own_models_of_bad_input:mak"),
    "function that fails": Case("", "no luck", model="python:own_models_of_bad_input:fails"),
    "unknown method": Case("--method gradcan", "There is no method 'gradcan'; did you mean 'gradcam'"),
    "one unknown method": Case("--method gradcam,gradcan", "There is no method 'gradcan'; did you mean 'gradcam'"),
    "no method": Case("--method ,", "At least one method and one variant are needed."),
    "unknown option of a method": Case("--option gradcam.size=1", "The method 'gradcam' has no option 'size'"),
    "option of no method": Case("--option size=1", "The option 'size=1' was not understood; write method.option=value"),
    "option without a value": Case("--option gradcam.size", "The option 'gradcam.size' was not understood"),
    "option of another method": Case("--option layercam.x=1", "the method 'layercam', which was not asked for"),
    "unknown layer": Case("--layer layr4", "There is no layer 'layr4'"),
    "misspelt layer": Case("--layer layr4", "did you mean 'layer4'"),
    "unknown position": Case("--layer stage33", "There is no layer 'stage33'; did you mean 'stage3'"),
    "unknown class": Case("--target sixx", "There is no class 'sixx'; did you mean 'six'?"),
    "class too large": Case("--target 10", "Class 10 was asked for, but the model has 10 classes: 0 to 9."),
    "more than all classes": Case("--target top-11", "asks for more classes than the model has (10)."),
    "unknown target function": Case("--target clas:six", "There is no target function 'clas'; did you mean 'class'"),
    "unknown variant": Case("--variant relu,sign", "There is no variant 'sign'; did you mean 'signed'?"),
    "counterfactual of a counterfactual": Case(
        "--target counterfactual:six --variant counterfactual", "The variant 'counterfactual' is of a class"
    ),
    "unknown colormap": Case("--colormap virids", "There is no colormap 'virids'; did you mean 'viridis'"),
    "opacity": Case("--alpha 2", "Invalid value for '--alpha'"),
    "batch size 0": Case("--batch-size 0", "Invalid value for '--batch-size'"),
    "unknown command option": Case("--metod gradcam", "No such option: --metod"),
    "checkpoint of another architecture": Case(
        "--weights other.pt",
        "The checkpoint 'other.pt' is not one of 'torchvision:resnet18'",
        model="torchvision:resnet18",
    ),
    "checkpoint that runs code": Case("--weights pickled.pt", "'pickled.pt'", model="torchvision:resnet18"),
    "no checkpoint": Case("--weights absent.pt", "There is no checkpoint file 'absent.pt'."),
    "labels for other classes": Case("--labels labels.txt", "holds 2 class names, but 'demo:resnet' has 10 classes."),
    "no labels": Case("--labels absent.txt", "There is no file of class names 'absent.txt'."),
    "mean of two channels": Case("--mean 1,2", "The mean has 2 values, the model takes 3 channels."),
    "mean in words": Case("--mean low,low,low", "--mean was 'low,low,low'; numbers separated by commas are expected"),
    "std of zero": Case("--std 0,0,0", "The std must be given for pixel values in [0, 1]"),
    "size in words": Case("--size 96x", "--size was '96x'; a number of pixels such as 224"),
    "size that the model refuses": Case(
        "--weights none --size 64x128", "'demo:vit' does not take images of 64x128 pixels", model="demo:vit"
    ),
    "device": Case("--device abacus", "The device 'abacus' cannot be used"),
    "dtype": Case("--dtype float3", "There is no dtype 'float3'; did you mean 'float32'"),
    "no adapter file": Case("--adapter absent.toml", "The adapter file 'absent.toml' cannot be read"),
    "adapter file": Case("--adapter adapter.toml", "The adapter file 'adapter.toml' is wrong at adapter.0.layouts"),
    "layer that never runs": Case(
        "--layer unused", "The layer 'unused' never runs in a forward pass", model="python:own_models_of_bad_input:make"
    ),
    "CAM without its architecture": Case(
        "--weights none --method cam",
        "CAM needs a model whose logits are one linear layer",
        model="torchvision:alexnet",
    ),
}


def says(result, sentence: str) -> None:
    assert result.code == 2
    assert result.out == ""
    assert re.fullmatch(r"Error: [^\n]+\n", result.err), result.err
    assert sentence in result.err


@pytest.mark.parametrize("case", EXPLAIN.values(), ids=EXPLAIN.keys())
def test_explain(case: Case, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    before = sorted(folder.rglob("*"))
    says(run("explain", case.image, *case.asked.split(), "--model", case.model, "-o", tmp_path / "out"), case.sentence)
    assert not list(tmp_path.rglob("*.*"))
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == before


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("explian", "There is no command 'explian'; did you mean 'explain'"),
        ("explain whole.jpg", "Missing option '--model' / '-m'."),
        ("explain --model demo:resnet", "Missing argument 'IMAGE|FOLDER'."),
        ("plugins gradcan", "There is no item 'gradcan'; did you mean 'gradcam'"),
        ("adapters --model demo:resnett", "There is no demo model 'resnett'; did you mean 'resnet'?"),
        ("doctor --model demo:resnet --layer layr4", "There is no layer 'layr4'"),
        ("doctor --model demo:resnet --image absent.png", "There is no file 'absent.png'."),
        ("summary --model demo:resnet --weights absent.pt", "There is no checkpoint file 'absent.pt'."),
        ("export --model demo:resnet --output new.onx", "There is no export format '.onx'; did you mean '.onnx'?"),
        ("export --model demo:resnet --output new.onnx --format pt2", "'new.onnx' ends in .onnx, but a file"),
        ("export --model demo:resnet --output new.onnx --layer layr4", "There is no layer 'layr4'"),
        ("export --model demo:resnet --output new.onnx --method gradcan", "There is no method 'gradcan'"),
        ("export --model demo:resnet --output file/new.onnx", "The output folder 'file' cannot be written"),
        ("verify absent.onnx", "There is no file 'absent.onnx'."),
        ("verify file", "There is no engine for files that end in 'file'"),
    ],
)
def test_other_commands(asked: str, sentence: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    says(run(*asked.split()), sentence)
    assert not list(folder.glob("new*"))


@pytest.mark.parametrize("place", ["file", "file/deeper"])
def test_output_folder_that_cannot_be_written(place: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    says(run("explain", SCENE, "--model", "demo:resnet", "-o", place), f"The output folder '{place}' cannot be written")
    assert Path("file").read_text() == "in the way"


@pytest.mark.slow  # what is said is tested with the models; here once more as a process
def test_hub_that_cannot_be_reached(tmp_path: Path):
    """Nothing listens on port 9 of this machine, where the proxy variables lead every download."""
    nowhere = "http://127.0.0.1:9"
    environment = {
        **dict.fromkeys(("HOME", "TORCH_HOME", "XDG_CACHE_HOME"), str(tmp_path / "cache")),
        **dict.fromkeys(("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"), nowhere),
        **dict.fromkeys(("no_proxy", "NO_PROXY"), ""),
    }
    output = tmp_path / "out"
    result = process("explain", SCENE, "--model", "torchvision:squeezenet1_1", "-o", output, **environment)
    notice, _, error = result.err.partition("\n")
    assert notice.startswith("Downloading: ")
    says(replace(result, err=error), "The default weights of 'torchvision:squeezenet1_1' could not be loaded (")
    assert "use --weights none" in error
    assert not output.exists()


def test_model_in_training_mode():
    module = camkit.load_model("demo:resnet").module
    with pytest.raises(camkit.CamkitError, match=r"in training mode; call model\.eval\(\) first\.$"):
        camkit.Explainer(module.train())
    explainer = camkit.Explainer(module.eval())
    module.layer4.train()
    with pytest.raises(camkit.CamkitError, match="its layer 'layer4' is in training mode"):
        explainer(torch.zeros(1, 3, 96, 96))
