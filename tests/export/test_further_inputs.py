"""Targets that need more than a class: what they need becomes an input of the graph."""

import json

import numpy as np
import pytest
import torch

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
            session(images.numpy(), [2, 8], other_class=np.array([wrong, wrong]))


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
