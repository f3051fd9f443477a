"""Each part computes what it says, by hand; and all of them hold camkit's contract."""

import math

import pytest
import torch
from camkit_robust.decompositions import median_dim
from camkit_robust.median_gradcam import median_gradcam
from camkit_robust.random_signs import random_signs
from camkit_robust.spread import spread

import camkit
from camkit.testing import check_method, check_metric

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def explainer() -> camkit.Explainer:
    return camkit.Explainer(camkit.load_model("demo:resnet"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def test_the_method():
    activations = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    found = median_gradcam(activations, torch.tensor([[2.0, -1.0]]))
    torch.testing.assert_close(found, torch.tensor([[[[2.0, 4.0]], [[-3.0, -4.0]]]]))
    positive = median_gradcam(activations, torch.tensor([[2.0, -1.0]]), positive=True)
    torch.testing.assert_close(positive, torch.tensor([[[[2.0, 4.0]], [[0.0, 0.0]]]]))


def test_the_contract():
    check_method(median_gradcam)
    check_metric(spread)


def test_where_all_gradients_of_a_channel_are_equal_it_is_gradcam(explainer: camkit.Explainer, images: torch.Tensor):
    methods = ["median-gradcam", "gradcam"]
    for layer, same in (("last", True), ("stage3", False)):
        found, expected = (
            explanation.maps for explanation in explainer(images, methods, target=6, layer=layer, relu=False)
        )
        assert expected.std() > 0
        assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max())) is same


@pytest.mark.parametrize("size", [1, 4, 5])
def test_the_rule(size: int):
    values = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(size))
    for dim, keepdim in ((2, False), (-1, True), (1, False)):
        expected = torch.median(values, dim, keepdim)
        found = median_dim(values, dim, keepdim)
        assert torch.equal(found[0], expected.values)
        assert torch.equal(found[1], expected.indices)


def test_the_attack(explainer: camkit.Explainer, images: torch.Tensor):
    pixels = explainer.preprocessing.pixels(images).clamp(0.2, 0.8)
    moved = random_signs(pixels, 0.1, seed=3) - pixels
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.1))
    assert 0.4 < (moved > 0).float().mean() < 0.6
    torch.testing.assert_close(random_signs(pixels[1:], 0.1, seed=3), (pixels + moved)[1:])
    assert not torch.equal(random_signs(pixels, 0.1), pixels + moved)

    result = camkit.attack(explainer, explainer.preprocessing.normalise(pixels), "random-signs", epsilon=0.1)
    torch.testing.assert_close(result.distance, torch.tensor([0.1, 0.1]))


def test_the_metric():
    heatmaps = torch.zeros(4, 3, 4)
    heatmaps[0, 1, 2] = 0.5  # a point
    heatmaps[1, 0, 0] = heatmaps[1, 0, 2] = 1.0  # two points at distance 2: each is 1 from the centre
    heatmaps[2] = 1.0  # even; [3] is blank
    even = math.sqrt((3**2 - 1 + 4**2 - 1) / 12) / 5
    torch.testing.assert_close(spread(heatmaps), torch.tensor([0.0, 1 / 5, even, math.nan]), equal_nan=True)
