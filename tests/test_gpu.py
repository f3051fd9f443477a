"""What a CUDA device changes: nothing but the time. All of this is skipped where there is none."""

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import camkit
import zoo
from camkit import Explainer
from camkit.attacks import attack
from camkit.registry import registry
from camkit.testing import HALF_TOLERANCE, Oracle, check_method, relative_error, tolerance
from camkit_adapters import demo
from commandline import succeed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning"),
]

# Model, and its target layer where the adapter's does not do.
MODELS = {
    "demo:resnet": None,
    "demo:vgg": None,
    "demo:vit": None,
    "timm:vit-registers": None,
    "torchvision:densenet": "features.norm5",
}
TRAINED = [name for name in MODELS if name.startswith("demo:")]
# A threshold or an eigenvector may tip with rounding.
TIPPING = ("eigencam", "eigengradcam", "segeigencam", "kpcacam", "fem")
METHODS = [method.name for method in registry().values("method") if method.kind == "map" and method.name != "random"]
ATTACKS = [(name, norm) for name in registry().names("attack") for norm in registry().get("attack", name).norms]
QUICK = {"steps": 4, "searches": 2, "population": 8}
SCENE = Path(demo.__file__).with_name("images") / "scene-01.png"


@pytest.fixture(autouse=True)
def _full_precision():
    """Convolutions in float32, not in TensorFloat-32, whose rounding alone is 1e-3."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def pair(name: str) -> tuple[Explainer, Explainer, Tensor]:
    """The same model on the processor and on the device, and images on the processor."""
    here, there = (copy.deepcopy(zoo.random_model(name)) for _ in range(2))
    return Explainer(here, MODELS[name]), Explainer(zoo.watch(there.to("cuda")), MODELS[name]), zoo.inputs(name)


def error(found: Tensor, expected: Tensor) -> float:
    assert bool((expected.flatten(1).std(dim=1) > 0).all()), "a constant proves nothing"
    return float(relative_error(found.cpu(), expected.cpu()).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_maps_of_the_device_are_those_of_the_processor(name, method):
    here, there, images = pair(name)
    try:
        expected = here(images, method, "top")
    except camkit.CamkitError as refusal:
        pytest.skip(str(refusal))
    found = there(images.cuda(), method, "top")
    assert found.maps.device.type == "cuda"
    assert found.targets.tolist() == expected.targets.tolist()
    assert error(found.maps, expected.maps) <= (5e-2 if method in TIPPING else 1e-3)


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
@pytest.mark.parametrize("name", TRAINED)
def test_the_device_agrees_with_the_float64_oracle(name, method):
    _, there, images = pair(name)
    images = images.cuda()
    found = there(images, method, 3)
    reference = Oracle(there, images, method, there.layer, "class")(images, torch.full((2,), 3, device="cuda"))
    assert error(found.maps, reference.maps) <= tolerance(error(found.logits, reference.logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TRAINED)
def test_half_precision_on_the_device(name, dtype):
    here, there, images = pair(name)
    expected = here(images, "gradcam", 3)
    half = Explainer(there.module.to(dtype))
    zoo.forget()
    zoo.watch(half.module)
    found = half(images.to("cuda", dtype), "gradcam", 3)
    assert found.maps.dtype == torch.float32
    assert error(found.maps, expected.maps) <= HALF_TOLERANCE


@pytest.mark.parametrize("name", TRAINED)
def test_autocast_on_the_device(name):
    here, there, images = pair(name)
    expected = here(images, "gradcam", 3)
    with torch.autocast("cuda", torch.float16):
        found = there(images.cuda(), "gradcam", 3)
    assert error(found.maps, expected.maps) <= HALF_TOLERANCE


@pytest.mark.parametrize("method", ["gradcam", "ablationcam", "scorecam", "smoothgradcam++", "guided-backprop"])
def test_the_conformance_kit_takes_a_model_on_the_device(method):
    _, there, images = pair("demo:resnet")
    check_method(method, there, images.cuda(), exports=False)


def test_a_model_on_the_device_is_not_exported_and_says_why(tmp_path):
    _, there, images = pair("demo:resnet")
    with zoo.refused("cuda", "CPU"):
        camkit.export(there, tmp_path / "cam.onnx", images=images.cuda())


@pytest.mark.parametrize(("name", "norm"), ATTACKS)
def test_attacks_on_the_device(name, norm):
    explainer = Explainer(camkit.load_model("demo:resnet", device="cuda"))
    zoo.watch(explainer.module)
    found = registry().get("attack", name)
    options = {key: value for key, value in QUICK.items() if key in inspect.signature(found.function).parameters}
    asked = {"norm": norm, "options": options, "target": None if "untargeted" in found.goals else 3}
    first, second = (attack(explainer, zoo.scenes(2).cuda(), name, **asked) for _ in range(2))
    assert first.images.device.type == "cuda"
    assert float((first.pixels - first.original).abs().max()) > 0
    assert float((first.pixels - second.pixels).abs().max()) <= 1e-3


def test_the_command_gives_the_same_on_the_device(tmp_path):
    for device in ("cpu", "cuda"):
        succeed("explain", SCENE, "--model", "demo:vgg", "--device", device, "--output", tmp_path / device)
    here, there = (sorted((tmp_path / device).rglob("*.png")) for device in ("cpu", "cuda"))
    assert [path.name for path in here] == [path.name for path in there] != []
    for path, other in zip(here, there, strict=True):
        levels = [np.asarray(Image.open(picture)).astype(int) for picture in (path, other)]
        assert np.abs(levels[0] - levels[1]).max() <= 8  # a map may fall into the next level of the colours
