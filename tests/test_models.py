"""Models by SPEC: each source, checkpoints, class names, and every way to ask for what does not exist."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

from camkit.errors import CamkitError
from camkit.models import ModelSource, load_model
from camkit.registry import registry
from camkit_adapters.demo.scenes import CLASS_NAMES
from camkit_adapters.timm_source import TimmSource


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (70, 110, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory, of a name that no other test has imported."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent("""
            import timm
            from torch import nn
            from camkit.models import BuiltModel, load_model
            from camkit.preprocessing import Preprocessing

            def bare(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
            def grey(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
            def from_timm(): return timm.create_model("vit_tiny_patch16_224")
            def full(): return BuiltModel(bare(), Preprocessing(size=(20, 30)), ("cat", "dog"), "sigmoid")
            def loaded(): return load_model("demo:vgg", weights="none")
            def sized(num_classes=2): return timm.create_model("resnet10t", num_classes=num_classes)
            def wrong(): return 3
            def failing(): raise ValueError("no\\nway")
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_sources_are_registered() -> None:
    assert {"torchvision", "timm", "python", "demo"} <= set(registry().names("model_source"))
    for source in registry().values("model_source"):
        assert isinstance(source(), ModelSource)


def test_torchvision() -> None:
    model = load_model("torchvision:squeezenet1_1", weights="none")
    assert not model.module.training
    assert model.class_names is not None
    assert len(model.class_names) == 1000
    assert model.class_names[:2] == ("tench", "goldfish")
    assert (model.spec, model.weights, model.probability) == ("torchvision:squeezenet1_1", "none", None)
    assert (model.preprocessing.size, model.preprocessing.resize) == ((224, 224), 256)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(name: str, tmp_path: Path) -> None:
    start = time.process_time()
    model = load_model(f"torchvision:{name}", weights="none", num_classes=5)
    assert time.process_time() - start < 10
    height, width = model.preprocessing.size
    with torch.inference_mode():
        assert model.module(torch.zeros(1, 3, height, width)).shape == (1, 5)
    trained = torchvision.models.get_model(name, weights=None, num_classes=5, aux_logits=True, init_weights=False)
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    fine_tuned = load_model(f"torchvision:{name}", weights=tmp_path / "weights.pt").module
    torch.testing.assert_close(fine_tuned.fc.weight, trained.fc.weight)


def test_timm() -> None:
    model = load_model("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", weights="none")
    assert model.class_names is not None
    assert len(set(model.class_names)) == len(model.class_names) == 1000
    # Two classes are cranes and two are maillots; these are told apart.
    assert model.class_names[243] == "bull mastiff"
    assert [model.class_names[index] for index in (134, 517)] == ["crane (n02012849)", "crane (n03126707)"]
    assert model.preprocessing.interpolation == "bicubic"
    assert load_model("timm:resnet10t", weights="none", num_classes=3).class_names is None
    assert load_model("timm:vit_tiny_patch16_224", weights="none", num_classes=1000).class_names is not None


def test_timm_knows_the_labels_of_larger_image_nets() -> None:
    built = TimmSource().build("vit_tiny_patch16_224.augreg_in21k", pretrained=False, num_classes=None)
    assert built.class_names is not None
    assert len(set(built.class_names)) == 21843


@pytest.mark.parametrize("name", ["resnet", "vgg", "vit", "shortcut"])
def test_demo(name: str, photo: Path) -> None:
    model = load_model(f"demo:{name}")
    assert (model.class_names, model.probability, model.weights) == (CLASS_NAMES, "sigmoid", "default")
    images, views = model.read([photo, photo])
    assert images.shape == (2, 3, 96, 96)
    assert [view.size for view in views] == [(96, 96)] * 2
    untrained = load_model(f"demo:{name}", weights="none")
    with torch.inference_mode():
        assert model.module(images).shape == (2, 10)
        assert not torch.allclose(model.module(images), untrained.module(images))


def test_python(own_module: str, photo: Path) -> None:
    bare = load_model(f"python:{own_module}:bare")
    assert (bare.class_names, bare.preprocessing.size, bare.module.training) == (None, (224, 224), False)
    assert bare.read(photo)[0].shape == (1, 3, 224, 224)
    assert load_model(f"python:{own_module}:grey").read([photo])[0].shape == (1, 1, 224, 224)
    assert load_model(f"python:{own_module}:from_timm").preprocessing.mean == (0.5, 0.5, 0.5)
    full = load_model(f"python:{own_module}:full", mean=[0.1])
    assert (full.class_names, full.probability, full.preprocessing.mean[2]) == (("cat", "dog"), "sigmoid", 0.1)
    assert load_model(f"python:{own_module}:loaded").class_names == CLASS_NAMES
    assert load_model(f"python:{own_module}:sized", num_classes=4).module.num_classes == 4


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong", "returned int; it must return a torch.nn.Module or a BuiltModel"),
        ("failing", r"failed \(ValueError: no way\)"),
        ("bear", "did you mean 'bare'"),
    ],
)
def test_python_function_that_does_not_serve(own_module: str, function: str, message: str) -> None:
    with pytest.raises(CamkitError, match=message):
        load_model(f"python:{own_module}:{function}")


def test_python_module_that_does_not_serve(own_module: str) -> None:
    Path("broken_module_of_test.py").write_text("import absent_package_of_test\n")
    with pytest.raises(CamkitError, match=r"cannot be imported \(ModuleNotFoundError: .*absent_package_of_test"):
        load_model("python:broken_module_of_test:f")
    with pytest.raises(CamkitError, match=r"not written as python:package\.module:function"):
        load_model("python:os.system('true'):f")
    with pytest.raises(CamkitError, match="has no parameter 'num_classes'"):
        load_model(f"python:{own_module}:bare", num_classes=4)


def test_fine_tuned_checkpoint_just_loads(tmp_path: Path) -> None:
    trained = timm.create_model("resnet10t", num_classes=6).eval()
    lightning = {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {**lightning, "loss.weight": torch.ones(6)}, "epoch": 9}, path)
    model = load_model("timm:resnet10t", weights=path)
    assert (model.class_names, model.weights) == (None, "last.ckpt")
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model.module(images), trained(images), rtol=0, atol=0)
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\nf\n")
    assert load_model("timm:resnet10t", weights=path, labels=tmp_path / "labels.txt").class_names == tuple("abcdef")
    with pytest.raises(CamkitError, match="has 6 classes, not 5"):
        load_model("timm:resnet10t", weights=path, num_classes=5)


def test_checkpoint_with_the_default_number_of_classes_keeps_the_names(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "weights.pt")
    names = load_model("timm:resnet10t", weights=str(tmp_path / "weights.pt")).class_names
    assert names is not None
    assert names[0] == "tench"


def test_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CamkitError, match=r"^The checkpoint 'weights\.pt' is not one of 'torchvision:squeezenet1_1': "):
        load_model("torchvision:squeezenet1_1", weights=tmp_path / "weights.pt")
    with pytest.raises(CamkitError, match="'demo:vgg' has 10 classes, not 3"):
        load_model("demo:vgg", weights="none", num_classes=3)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("labels.txt", "\ufeffcat\ndog \n\n", ("cat", "dog")),
        ("labels.json", json.dumps(["cat", "dog"]), ("cat", "dog")),
        ("labels.json", json.dumps({"1": "dog", "0": "cat"}), ("cat", "dog")),
        ("labels.txt", "cat\n", "holds 1 class names, but .* has 2 classes"),
        ("labels.txt", "cat\n\ndog\n", "none of them empty"),
        ("labels.txt", "", "none of them empty"),
        ("labels.json", json.dumps({"1": "dog", "2": "cat"}), "numbered from 0 to 1"),
        ("labels.json", json.dumps([1, 2]), "list of class names"),
        ("labels.json", "{", "is not JSON"),
        ("absent.txt", None, "There is no file of class names"),
    ],
)
def test_labels(
    own_module: str, tmp_path: Path, file: str, content: str | None, expected: str | tuple[str, ...]
) -> None:
    if content is not None:
        (tmp_path / file).write_text(content, encoding="utf-8")
    if isinstance(expected, tuple):
        assert load_model(f"python:{own_module}:bare", labels=tmp_path / file).class_names == expected
    else:
        with pytest.raises(CamkitError, match=expected):
            load_model(f"python:{own_module}:bare", labels=tmp_path / file)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("squeezenet1_1", r"not written as source:name; did you mean 'torchvision:squeezenet1_1'\?"),
        ("resnet18x", r"not written as source:name; did you mean 'timm:"),
        ("", "not written as source:name"),
        ("timm:", "not written as source:name"),
        (":resnet18", "not written as source:name"),
        ("torchvison:resnet18", "There is no model source 'torchvison'; did you mean 'torchvision'"),
        ("torchvision:resnet19", r"There is no torchvision model 'resnet19'; did you mean 'resnet18'"),
        ("timm:resnet10", r"There is no timm model 'resnet10'; did you mean 'resnet10t'"),
        ("timm:resnet18.bogus", "There is no timm model 'resnet18.bogus'"),
        ("demo:resnett", r"There is no demo model 'resnett'; did you mean 'resnet'\?"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(CamkitError, match=message) as caught:
        load_model(spec, weights="none")
    assert "\n" not in str(caught.value)


def test_source_by_the_name_of_its_distribution() -> None:
    assert load_model("camkit:demo:vgg", weights="none").class_names == CLASS_NAMES


def test_device_and_dtype(photo: Path) -> None:
    model = load_model("demo:resnet", weights="none", dtype="float64")
    assert model.read(photo)[0].dtype == torch.float64
    with pytest.raises(CamkitError, match="did you mean 'float32'"):
        load_model("demo:resnet", weights="none", dtype="float3")
    with pytest.raises(CamkitError, match="The device 'abacus' cannot be used"):
        load_model("demo:resnet", weights="none", device="abacus")
    with pytest.raises(CamkitError, match="There is no image to read"):
        model.read([])


def test_size(photo: Path) -> None:
    model = load_model("demo:resnet", weights="none", size=(64, 128))
    assert model.read(photo)[0].shape == (1, 3, 64, 128)
    with pytest.raises(CamkitError, match="'demo:vit' does not take images of 64x128 pixels"):
        load_model("demo:vit", weights="none", size=(64, 128))


def test_default_weights_have_their_own_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(CamkitError, match=r"The default weights of 'torchvision:resnet18' have 1000 classes"):
        load_model("torchvision:resnet18", num_classes=4)
    with pytest.raises(CamkitError, match=r"There are no default weights of 'timm:resnetblur18'"):
        load_model("timm:resnetblur18")


@pytest.mark.parametrize(
    "spec",
    [
        "torchvision:squeezenet1_1",
        pytest.param("timm:resnet10t", marks=pytest.mark.slow),
        pytest.param("timm:hf-hub:nobody/nothing", marks=pytest.mark.slow),
    ],
)
def test_hub_that_cannot_be_reached(spec: str, tmp_path: Path) -> None:
    """Nothing listens on port 9 of this machine; the proxy variables lead both download clients there."""
    program = f"""
        import sys, time
        from camkit.errors import CamkitError
        from camkit.models import load_model
        import timm, torchvision
        start = time.monotonic()
        try:
            load_model({spec!r})
        except CamkitError as error:
            print(round(time.monotonic() - start, 2), error, sep="|")
    """
    nowhere = "http://127.0.0.1:9"
    environment = {**os.environ, "HOME": str(tmp_path), "https_proxy": nowhere, "HTTPS_PROXY": nowhere}
    for cache in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "no_proxy", "NO_PROXY"):
        environment.pop(cache, None)
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, timeout=60
    )
    seconds, sentence = result.stdout.strip().split("|")
    assert float(seconds) < 8
    assert sentence.startswith(f"The default weights of '{spec}' could not be loaded (")
    assert sentence.endswith(
        "; use --weights none for a model that is not trained, or --weights FILE for a checkpoint."
    )
    assert "\n" not in sentence
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pth", ".safetensors", ".partial")]
