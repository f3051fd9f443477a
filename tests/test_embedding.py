"""Models without classes: encoders, and classifiers built without a head. They are explained by their embedding."""

import json

import pytest
import timm
import torch
from torch import nn

import camkit
import zoo
from camkit import Explainer
from camkit.targets import Target
from camkit.testing import Oracle, assert_agrees, check_adapter, vary_constants
from commandline import run, succeed


def built(name, **options):
    torch.manual_seed(0)
    module = timm.create_model(name, **options).eval()
    vary_constants(module)
    return zoo.watch(module)


# Model: how it is built, the images, and the shape of its output for two of them.
ENCODERS = {
    "no head": (lambda: built("test_resnet", num_classes=0), 64, (2, 96)),
    "no pooling": (lambda: built("test_resnet", num_classes=0, global_pool=""), 64, (2, 96, 2, 2)),
    "no pooling, tokens": (lambda: built("test_vit2", num_classes=0, global_pool="", img_size=64), 64, (2, 17, 64)),
    "no pooling, channels last": (
        lambda: built(
            "swin_tiny_patch4_window7_224",
            num_classes=0,
            global_pool="",
            img_size=64,
            window_size=2,
            depths=(1, 1, 1, 1),
        ),
        64,
        (2, 2, 2, 768),
    ),
    "a class token and no head": (lambda: built("test_vit", num_classes=0, img_size=64), 64, (2, 64)),
    "an encoder": (lambda: built("deepseek_vit_412m_enc", depth=1), 224, (2, 36, 5120)),
}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow if name == "an encoder" else ()) for name in ENCODERS]
)
def test_an_encoder_is_explained_by_its_embedding(case):
    make, size, shape = ENCODERS[case]
    module, images = make(), zoo.images(2, size)
    with torch.no_grad():
        output = module(images)
    assert output.shape == shape
    explainer = Explainer(module)
    found = explainer(images, target="embedding", relu=False)
    axes = {2: (), 3: (1,), 4: (1, 2) if shape[-1] == 768 else (2, 3)}[output.ndim]
    vector = output.mean(dim=axes) if axes else output
    assert torch.allclose(found.scores, vector.norm(dim=1), rtol=1e-4)
    assert found.logits.shape == (2, 0)
    reference = Oracle(explainer, images, target="embedding")(images, found.targets)
    assert_agrees(vector, found.maps, reference, (size, size), relu=False, allowed=1e-3)


def test_an_encoder_has_no_classes_and_says_what_to_ask_for():
    explainer = Explainer(built("test_resnet", num_classes=0))
    for target in ("top", 3, "counterfactual:top", "probability"):
        with zoo.refused("gives an embedding [batch, 96] and no class scores", "embedding or similarity"):
            explainer(zoo.images(2, 64), target=target)


def test_two_images_are_compared_by_similarity():
    module, images = built("test_resnet", num_classes=0), zoo.images(2, 64)
    with torch.no_grad():
        embedding = module(images)
    explainer = Explainer(module)
    found = explainer(images, target=Target("similarity", inputs={"embedding": embedding.flip(0)}), relu=False)
    expected = nn.functional.cosine_similarity(embedding, embedding.flip(0))
    assert torch.allclose(found.scores, expected, atol=1e-5)
    with zoo.refused("shape [2, 5]", "[2, 96]"):
        explainer(images, target=Target("similarity", inputs={"embedding": torch.ones(1, 5)}))


def test_a_classifier_may_be_asked_for_its_embedding_too(random_model):
    found = Explainer(random_model("timm:resnet"))(zoo.images(2, 64), target="embedding", relu=False)
    assert torch.allclose(found.scores, found.logits.norm(dim=1))


def test_an_encoder_is_exported_with_its_embedding(tmp_path):
    module, images = built("test_resnet", num_classes=0), zoo.images(3, 64)
    camkit.export(Explainer(module), tmp_path / "encoder.onnx", target="embedding", images=images)
    session = camkit.load(tmp_path / "encoder.onnx")
    result = session(images.numpy())
    with torch.no_grad():
        assert abs(result.logits - module(images).numpy()).max() < 1e-4
    expected = Explainer(module)(images, target="embedding").maps
    assert abs(result.maps - expected.numpy()).max() < 1e-4 * float(expected.abs().max())
    assert session.provenance["output"] == "embedding"


def test_the_conformance_kit_takes_an_encoder():
    report = check_adapter(Explainer(built("test_resnet", num_classes=0)), zoo.images(2, 96), exports=False)
    assert report.failures == {}


FACTORY = """
import timm

def encoder():
    return timm.create_model("test_resnet", num_classes=0)
"""


def test_an_encoder_on_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "encoders.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from PIL import Image

    pixels = (zoo.images(1, 200)[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save("picture.png")
    model = ("--model", "python:encoders:encoder")
    assert "embedding (--target embedding)" in succeed("adapters", *model)
    result = run("explain", "picture.png", *model)
    assert result.code == 2
    assert "choose a target that needs none: embedding or similarity" in result.err
    succeed("explain", "picture.png", *model, "--target", "embedding", "-o", "out")
    (line,) = [json.loads(text) for text in (tmp_path / "out" / "explanations.jsonl").read_text().splitlines()]
    assert line["prediction"] is None
    assert line["target"]["function"] == "embedding"
