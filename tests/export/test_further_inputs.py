"""Targets that need more than a class: what they need becomes an input of the graph."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import camkit
import zoo
from camkit import CamkitError, Explainer, Target
from camkit_export.serve.protocol import parse
from camkit_export.triton import config

EMBEDDINGS = torch.randn(2, 10, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def explainer():
    return Explainer(camkit.load_model("demo:resnet"))


@pytest.fixture(scope="module")
def session(explainer, tmp_path_factory):
    path = tmp_path_factory.mktemp("further") / "similarity.onnx"
    camkit.export(explainer, path, target=Target("similarity", inputs={"embedding": EMBEDDINGS}))
    return camkit.load(path)


def test_an_embedding_is_an_input(session, explainer):
    images = zoo.scenes(2)
    assert session.inputs == ("image", "class_index", "embedding")
    found = session(images.numpy(), embedding=EMBEDDINGS.numpy())
    expected = explainer(images, target=Target("similarity", inputs={"embedding": EMBEDDINGS}))
    torch.testing.assert_close(torch.from_numpy(found.maps), expected.maps, rtol=1e-4, atol=1e-6)
    other = session(images.numpy(), embedding=EMBEDDINGS[:1].numpy())  # one for both images
    assert np.abs(other.maps[0] - found.maps[0]).max() <= 1e-6
    assert np.abs(other.maps[1] - found.maps[1]).max() > 0.1 * np.abs(found.maps[1]).max()


def test_servers_know_the_input(session):
    assert 'name: "embedding"\n  data_type: TYPE_FP32\n  dims: [10]' in config(session, "similarity")
    tensors = {"image": zoo.scenes(2).numpy(), "embedding": EMBEDDINGS.numpy()}
    described = [
        {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}
        for name, array in tensors.items()
    ]
    asked = parse(json.dumps({"inputs": described}).encode(), None, session)
    assert [array.shape for array in asked.inputs] == [tensors["image"].shape, (2,), (2, 10)]
    np.testing.assert_array_equal(asked.inputs[2], tensors["embedding"])


class Dense(nn.Module):
    """Logits at every position of the image, [B, 3, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.classifier = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))


def test_a_mask_is_an_input_that_servers_take(tmp_path):
    adapter = camkit.Adapter(name="dense", targets={"last": {"path": "features"}})
    explainer, images = Explainer(zoo.randomised(Dense()), adapter=adapter), zoo.images(2, 16)
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, :8], masks[1, :, 5:] = True, True
    camkit.export(explainer, tmp_path / "region.onnx", images=images, target=Target("region", 1, {"mask": masks}))
    session = camkit.load(tmp_path / "region.onnx")
    expected = explainer(images, target=Target("region", torch.tensor([2, 0]), {"mask": masks}))
    assert 'name: "mask"\n  data_type: TYPE_BOOL' in config(session, "region")
    described = [
        {"name": "image", "shape": [2, 3, 16, 16], "datatype": "FP32", "data": images.flatten().tolist()},
        {"name": "class_index", "shape": [2], "datatype": "INT64", "data": [2, 0]},
        {"name": "mask", "shape": [2, 16, 16], "datatype": "BOOL", "data": masks.flatten().tolist()},
    ]
    asked = parse(json.dumps({"inputs": described}).encode(), None, session)
    found = session(*asked.inputs[:2], mask=asked.inputs[2])
    torch.testing.assert_close(torch.from_numpy(found.maps), expected.maps, rtol=1e-4, atol=1e-5)

    head = json.dumps(
        {"inputs": [*described[:2], {**described[2], "data": None, "parameters": {"binary_data_size": 512}}]}
    )
    for value, message in ((1, ""), (2, "must be 0 or 1")):
        body = head.encode() + (masks.numpy().astype(np.uint8) * value).tobytes()
        with pytest.raises(CamkitError, match=message) if message else nullcontext():
            np.testing.assert_array_equal(parse(body, str(len(head)), session).inputs[2], masks.numpy())
    with pytest.raises(CamkitError, match="a list of true and false"):
        parse(json.dumps({"inputs": [*described[:2], {**described[2], "data": [1] * 512}]}).encode(), None, session)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"'embedding' is missing; a numpy array of float32 and shape \[batch, 10\]"),
        ({"embedding": np.zeros((2, 9), np.float32)}, r"float32 of shape \[2, 9\]"),
        ({"embedding": np.zeros((3, 10), np.float32)}, r"shape \[3, 10\]"),
        ({"embedding": np.zeros((2, 10), np.int64)}, "int64"),
        ({"embeding": np.zeros((2, 10), np.float32)}, "'embedding'"),
    ],
)
def test_what_does_not_fit_is_refused(session, given, message):
    with pytest.raises(CamkitError, match=message):
        session(zoo.scenes(2).numpy(), **given)


def test_another_class_is_an_input(explainer, tmp_path):
    path, others = tmp_path / "contrast.pt", torch.tensor([4, 1])
    camkit.export(explainer, path, target=Target("contrast", inputs={"other_class": others}))
    session, images = camkit.load(path), zoo.scenes(2)
    found = session(images.numpy(), [2, 8], other_class=others.numpy())
    expected = explainer(images, target=Target("contrast", torch.tensor([2, 8]), {"other_class": others}))
    torch.testing.assert_close(torch.from_numpy(found.maps), expected.maps, rtol=1e-4, atol=1e-5)
    for wrong in (-1, 10):
        with pytest.raises(CamkitError, match=f"classes, from 0 to 9, not {wrong}"):
            session(images.numpy(), [2, 8], other_class=np.array([5, wrong]))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("similarity", "needs 'embedding', which becomes an input"),
        (Target("class", inputs={"mask": torch.zeros(1, 2)}), "has no input 'mask'"),
        (Target(lambda output: output[:, 0]), "a registered function"),
    ],
    ids=["no example", "no such input", "a callable"],
)
def test_a_target_without_what_it_needs_is_refused(explainer, tmp_path, target, message):
    with pytest.raises(CamkitError, match=message):
        camkit.export(explainer, tmp_path / "none.onnx", target=target)
    assert list(tmp_path.iterdir()) == []
