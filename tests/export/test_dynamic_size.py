"""Graphs whose images may have any height and width."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import camkit
import zoo
from camkit import CamkitError, Explainer
from camkit.testing import relative_error
from camkit_export.triton import config

SIZES = [(96, 96), (61, 133)]

# noise speaks for no digit
pytestmark = pytest.mark.filterwarnings("ignore::camkit.errors.MapWarning")


@pytest.fixture(scope="module")
def explainer():
    return Explainer(camkit.load_model("demo:resnet"))


@pytest.fixture(scope="module", params=[".onnx", ".pt", pytest.param(".pt2", marks=pytest.mark.slow)])
def session(request, explainer, tmp_path_factory):
    path = tmp_path_factory.mktemp("sizes") / f"any{request.param}"
    report = camkit.export(explainer, path, dynamic_size=True)
    compared = [check.name for check in report.checks]
    assert "map on 144x48 images against the oracle" in compared
    assert "map on 192x96 images against the oracle" in compared
    return camkit.load(path)


@pytest.mark.parametrize("size", SIZES)
def test_any_size_is_explained_as_the_model_explains_it(session, explainer, size):
    images = zoo.images(2, size)
    found, expected = session(images.numpy(), [1, -1]), explainer(images, target=torch.tensor([1, -1]))
    assert found.heatmaps.shape == (2, *size)
    assert float(expected.maps.std()) > 0
    assert float(relative_error(torch.from_numpy(found.maps), expected.maps).max()) <= 1e-4
    assert np.abs(found.heatmaps - expected.heatmaps.numpy()).max() <= 1e-3


def test_what_is_open_is_told(session):
    assert session.dynamic_size
    assert session.open_shape("image", session.blank()) == (3, -1, -1)
    if session.path.suffix != ".pt2":
        assert config(session, "any").count("dims: [3, -1, -1]") == 1
        assert config(session, "any").count("dims: [-1, -1]") == 2
    with pytest.raises(CamkitError, match=r"\[batch, 3, height, width\], not \[1, 1, 96, 96\]"):
        session(np.zeros((1, 1, 96, 96), np.float32))


class Square(nn.Module):
    """A model that takes square images only."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, stride=4)
        self.classifier = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] != images.shape[3]:
            raise ValueError("The image is not square.")
        return self.classifier(self.features(images).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("make", "images", "message"),
    [
        pytest.param(
            lambda: Explainer(camkit.load_model("demo:vit")), None, "images of one size only", marks=pytest.mark.slow
        ),
        (lambda: Explainer(Square().eval(), "features"), torch.randn(2, 3, 32, 32), "square images only"),
    ],
)
def test_a_model_that_is_bound_to_a_size_is_refused(make, images, message, tmp_path):
    with pytest.raises(CamkitError, match=message):
        camkit.export(make(), tmp_path / "any.onnx", images=images, dynamic_size=True)
    assert list(tmp_path.iterdir()) == []


def test_pictures_have_one_size(explainer, tmp_path):
    with pytest.raises(CamkitError, match="Pictures that the graph preprocesses have one size"):
        camkit.export(explainer, tmp_path / "any.onnx", frame_size=(96, 96), dynamic_size=True)
