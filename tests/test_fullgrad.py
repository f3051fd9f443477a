"""Full-Grad: completeness, a plain reference, hand-computed values, grad-cam's implementation, models of all kinds."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_grad_cam as pgc
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference_pixels as reference
import zoo
from camkit import Explainer, plugin
from camkit.adapter import Adapter
from camkit.registry import registry
from camkit.testing import Oracle, relative_error

CLASSES = [3, 7]
NETWORKS = ["torchvision:resnet18", "torchvision:vgg11", "torchvision:densenet"]
SIZE = (64, 96)


def quantities(model, images, target=None, layer=None):
    """What the two quantities hold for a model, and the explanation of a method that asks for them."""
    found = SimpleNamespace()

    @plugin.method("look", paper="none", kind="pixels")
    def look(image_gradients: Tensor, bias_gradients: tuple[Tensor, ...]) -> Tensor:
        found.images, found.biases = image_gradients, bias_gradients
        return image_gradients

    found.explanation = Explainer(model, layer)(images, look, torch.tensor(CLASSES) if target is None else target)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_image_and_all_biases_add_up_to_the_score(name, random_model):
    """What is in no map, the classifier's biases, comes from the reference."""
    model, images = random_model(name), zoo.images(2, SIZE)
    found = quantities(model, images)
    total = (found.images * images).double().sum(dim=(1, 2, 3))
    for term in found.biases:
        total += term.double().sum(dim=(2, 3)).sum(dim=1)
    _, terms = reference.gradients_at_biases(model, images, CLASSES)
    in_no_map = sum((bias * gradient).sum(dim=1) for _, bias, gradient in terms if gradient.ndim == 2)
    scores = found.explanation.scores.double()
    assert bool((in_no_map.abs() > 1e-3 * scores.abs()).all())
    assert bool(((total - scores).abs() > 1e-3 * scores.abs()).all())
    assert float(((total + in_no_map - scores) / scores).abs().max()) < 1e-4


@pytest.mark.parametrize("name", [*NETWORKS, "timm:resnet", "timm:vit", "timm:vit-registers", "timm:vit-average"])
def test_each_term_is_gradient_times_bias(name, random_model):
    size = 48 if "vit" in name else SIZE
    model, images = random_model(name), zoo.images(2, size)
    prefix = getattr(model, "num_prefix_tokens", 0)
    # of float64, where no pixel is so near a ReLU's kink that rounding moves it
    found = quantities(copy.deepcopy(model).double(), images.double())
    image_gradients, terms = reference.gradients_at_biases(model, images, CLASSES)
    assert relative_error(found.images, image_gradients).max() < 1e-10
    expected = []
    for _, bias, gradient in terms:
        if gradient.ndim == 3:
            gradient = gradient[:, prefix:] if gradient.shape[1] == 36 + prefix else gradient
            gradient = gradient.transpose(1, 2).unflatten(2, (6, 6))
        if gradient.ndim == 4:
            expected.append(gradient * bias[:, None, None])
    assert len(found.biases) == len(expected) > 4
    # behind the last attention patches have no influence on a class token
    assert sum(bool(term.abs().max() > 0) for term in expected) >= 2 / 3 * len(expected)
    left = list(found.biases)
    for term in expected:
        match = [n for n, one in enumerate(left) if one.shape == term.shape and torch.allclose(one, term, rtol=1e-9)]
        assert match
        left.pop(match[0])


@pytest.mark.parametrize("rescale", ["channel", "layer"])
@pytest.mark.parametrize("name", ["timm:resnet", "timm:vit-dynamic"])
def test_map_equals_the_plain_reference(name, rescale, random_model):
    model, images = random_model(name), zoo.images(2, (24, 32) if "vit" in name else (32, 48))
    found = quantities(model, images)
    explanation = Explainer(model)(images, "fullgrad", torch.tensor(CLASSES), options={"rescale": rescale})
    assert explanation.layer is None
    terms = [term[1].numpy() for term in found.biases]
    expected = reference.fullgrad(images[1].numpy(), found.images[1].numpy(), terms, jointly=rescale == "layer")
    assert expected.max() - expected.min() > 0.1 * expected.max()
    np.testing.assert_allclose(explanation.maps[1].numpy(), expected, rtol=1e-4)


def test_hand_computed_value():
    """Each channel scaled by itself or with its neighbour, a flat one gives nothing, and upsampling comes last."""
    function = registry().get("method", "fullgrad").function
    image = torch.tensor([[[[1.0, -1.0, 2.0, 0.0]] * 2]])
    gradient = torch.tensor([[[[1.0, 3.0, 1.0, 5.0]] * 2]])
    # |gradient * image| = 1 3 2 0, scaled 1/3 1 2/3 0
    by_image = [1 / 3, 1, 2 / 3, 0]
    # |2 -4| and |8 8|: by channel 0 1 and nothing; together 0 1/3 and 1 1; two places become four: a, .75a+.25b, ...
    bias = torch.tensor([[[[2.0, -4.0]], [[8.0, 8.0]]]])
    by_channel, together = [0, 0.25, 0.75, 1], [1, 1 + 1 / 12, 1 + 0.25, 1 + 1 / 3]
    for rescale, by_bias in (("channel", by_channel), ("layer", together)):
        expected = torch.tensor([[[a + b for a, b in zip(by_image, by_bias, strict=True)]] * 2])
        torch.testing.assert_close(function(image, gradient, (bias,), rescale=rescale), expected)
    assert bool((function(image * 0, gradient, (bias[:, 1:],)) == 0).all())


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_grad_cam_where_its_constant_does_not_count(name, random_model):
    """grad-cam adds 1e-7 to every channel's maximum, which can be as small; larger scores make the constant harmless.

    It knows the biases of Conv2d and BatchNorm2d, which are all that these networks have in maps, treats the image term
    like a layer, and ends with one min-max of the sum, which is what makes a heatmap of our map.
    """
    model, images = random_model(name), zoo.images(2, SIZE)

    def theirs(factor):
        targets = [lambda output, index=index: factor * output[index] for index in CLASSES]
        return pgc.FullGrad(copy.deepcopy(model).double(), [])(images.double(), targets)

    # in float64, as a single ReLU that rounding tips over would count more than all the rest
    explainer = Explainer(copy.deepcopy(model).double())
    scaled = explainer(images.double(), "fullgrad", torch.tensor(CLASSES), options={"rescale": "channel"})
    ours = scaled.heatmaps.numpy()
    assert all(one.std() > 0.05 for one in ours)
    # the peer computes its pictures in float32
    assert abs(ours - theirs(1e4)).max() < 1e-5
    assert abs(ours - theirs(1)).max() > 1e-3


def test_float32_equals_the_oracle(random_model):
    for name in ("timm:resnet", "timm:vit", "torchvision:resnet18"):
        explainer, images = Explainer(random_model(name)), zoo.images(2, 48)
        expected = Oracle(explainer, images, "fullgrad")(images, torch.tensor(CLASSES))
        found = explainer(images, "fullgrad", torch.tensor(CLASSES))
        assert relative_error(found.maps, expected.maps).max() < 1e-4


class Twice(nn.Module):
    """A layer called twice, a function in place of a module, ReLUs in place, and a normalisation without weights."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.weight = nn.Parameter(torch.zeros(5, 4, 3, 3))
        self.bias = nn.Parameter(torch.zeros(5))
        self.last = nn.Conv2d(5, 6, 1, bias=False)
        self.head = nn.Linear(6, 10, bias=False)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        x = self.shared(F.relu_(self.shared(x)))
        x = F.max_pool2d(x, 2)
        x = F.conv2d(x.relu_(), self.weight, bias=self.bias, stride=2).relu()
        return self.head(self.last(x).mean(dim=(2, 3)))


def test_a_module_called_twice_functions_and_in_place_relus_keep_completeness(watch):
    model, images = zoo.randomised(Twice()), zoo.images(2, (24, 32))
    with torch.no_grad():
        model.bias.normal_(0, 0.5)
    found = quantities(watch(model), images, layer="last")
    assert [term.shape[1] for term in found.biases] == [4, 4, 4, 4, 5]
    parts = [(found.images * images).sum(dim=(1, 2, 3)), *(term.sum(dim=(1, 2, 3)) for term in found.biases)]
    scores = found.explanation.scores
    assert all(float(part.abs().min()) > 0 for part in parts)
    assert float(((sum(parts) - scores) / scores).abs().max()) < 1e-4


def test_the_model_runs_once_more_for_both_quantities(random_model):
    model, images = random_model("timm:resnet"), zoo.images(2)
    runs = []
    handle = model.conv1.register_forward_hook(lambda *_: runs.append(1))
    try:
        Explainer(model)(images, "fullgrad", 3)
    finally:
        handle.remove()
    assert len(runs) == 2


def test_a_batch_equals_single_images_of_different_classes(random_model):
    for name in ("timm:resnet", "timm:vit"):
        explainer, images = Explainer(random_model(name)), zoo.images(3)
        together = explainer(images, "fullgrad", torch.tensor([1, 5, 2])).maps
        alone = [explainer(image[None], "fullgrad", index).maps for image, index in zip(images, (1, 5, 2), strict=True)]
        assert relative_error(together, torch.cat(alone)).max() < 1e-5


def test_frozen_parameters_and_callers_without_gradients_get_the_same_map(random_model, watch):
    model, images = random_model("timm:resnet"), zoo.images(2)
    expected = Explainer(model)(images, "fullgrad", 3).maps
    frozen = watch(copy.deepcopy(model).requires_grad_(False))
    with torch.no_grad():
        assert (Explainer(frozen)(images, "fullgrad", 3).maps == expected).all()
    with torch.inference_mode():
        assert (Explainer(model)(images.clone(), "fullgrad", 3).maps == expected).all()


def test_biases_without_a_place_in_a_map_are_left_out(watch):
    """Squeeze-and-excitation, attention in windows, norms of single heads."""
    images = zoo.images(2, 64)
    squeezed = zoo.randomised(timm.create_model("seresnet18", num_classes=10))
    assert all(term.shape[2] > 1 for term in quantities(watch(squeezed), images).biases)
    swin = timm.models.SwinTransformer(64, 4, embed_dim=12, depths=(2, 2), num_heads=(2, 4), window_size=4)
    found = quantities(watch(zoo.randomised(swin)), images).biases
    widths = [term.shape[1] for term in found]
    assert 36 not in widths, "the qkv of a window has no place"
    assert {48, 96} <= set(widths), "the MLPs of both stages have"
    normed = zoo.timm_vit(qk_norm=True)
    assert 8 not in [term.shape[1] for term in quantities(watch(zoo.randomised(normed)), zoo.images(2)).biases]


def test_a_batch_norm_that_includes_its_activation_keeps_completeness(watch):
    model = zoo.randomised(timm.create_model("mobilenetv2_035", num_classes=10, act_layer="relu"))
    assert any(isinstance(module, timm.layers.BatchNormAct2d) for module in model.modules())
    # float64: with so many layers rounding tips ReLUs over
    images = zoo.images(2, 64).double()
    found = quantities(watch(model.double()), images)
    scores = found.explanation.scores - model.classifier.bias[CLASSES].detach()
    total = (found.images * images).sum(dim=(1, 2, 3)) + sum(term.sum(dim=(1, 2, 3)) for term in found.biases)
    assert float(((total - scores) / scores).abs().max()) < 1e-9


def test_scores_that_do_not_depend_on_the_images_are_refused(watch):
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

        def forward(self, x):
            return self.head(self.conv(x.detach()).mean(dim=(2, 3)))

    with zoo.refused("no gradient with respect to the images"):
        Explainer(watch(Detached().eval()), "conv", Adapter(name="own", layout="NCHW"))(zoo.images(), "fullgrad", 3)
