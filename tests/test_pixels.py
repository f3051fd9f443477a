"""Guided backpropagation, deconvnet, Guided Grad-CAM: by hand, against captum and grad-cam; how kinds are drawn."""

import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import Deconvolution, GuidedBackprop, GuidedGradCam
from pytorch_grad_cam import GuidedBackpropReLUModel
from torch import nn

import camkit
import zoo
from camkit import Explainer, visualize
from camkit.adapter import Adapter
from camkit.cut import find_module
from camkit.explanation import as_pictures
from camkit.testing import Oracle, relative_error

CLASSES = [3, 7]
NETWORKS = ["torchvision:resnet18", "torchvision:vgg11"]
METHODS = ["guided-backprop", "deconvnet"]
SIZE = (64, 96)


def for_peers(name):
    """A copy that captum can hook: it cannot watch a ReLU that overwrites its input."""
    model = copy.deepcopy(zoo.random_model(name))
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def assert_same(found, expected):
    flat = expected.flatten(1)
    assert bool((flat.std(dim=1) > 0.01 * flat.abs().amax(dim=1)).all())
    assert bool((flat.abs().amax(dim=1) > 0).all())
    assert relative_error(found, expected).max() <= 1e-6


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize(("method", "peer"), [("guided-backprop", GuidedBackprop), ("deconvnet", Deconvolution)])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_captum(name, method, peer, random_model):
    images = zoo.images(2, SIZE)
    explanation = Explainer(random_model(name))(images, method, torch.tensor(CLASSES))
    assert (explanation.kind, explanation.layer, explanation.maps.shape) == ("pixels", None, images.shape)
    assert_same(explanation.maps, peer(for_peers(name)).attribute(images.clone().requires_grad_(), CLASSES).detach())


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_grad_cam_on_the_only_image_that_it_explains(name, random_model):
    images = zoo.images(2, SIZE)
    found = Explainer(random_model(name))(images, "guided-backprop", 3).maps[:1]
    theirs = GuidedBackpropReLUModel(for_peers(name), "cpu")(images.clone(), target_category=3)
    assert_same(found, torch.from_numpy(theirs).permute(2, 0, 1)[None])


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize(("name", "layer"), [("torchvision:resnet18", "layer4"), ("torchvision:vgg11", "features.-2")])
def test_guided_gradcam_equals_captum_with_its_upsampling(name, layer, random_model):
    images, model = zoo.images(2, SIZE), for_peers(name)
    explainer, target = Explainer(random_model(name)), torch.tensor(CLASSES)
    peer = GuidedGradCam(model, find_module(model, layer)[1])
    theirs = peer.attribute(images.clone().requires_grad_(), CLASSES).detach()
    found = explainer(images, "guided-gradcam", target, layer, {"upsampling": "nearest"})
    assert found.layer == find_module(model, layer)[0]
    assert_same(found.maps, theirs)
    assert relative_error(explainer(images, "guided-gradcam", target, layer).maps, theirs).min() > 0.05


def test_guided_gradcam_is_the_product_with_the_upsampled_map(random_model):
    explainer, images = Explainer(random_model("torchvision:vgg11")), zoo.images(2, SIZE)
    methods = ["guided-gradcam", "guided-backprop", "gradcam"]
    found, guided, gradcam = explainer(images, methods, torch.tensor(CLASSES))
    shown = F.interpolate(gradcam.maps.clamp(min=0)[:, None], size=SIZE, mode="bilinear")
    assert bool((shown.flatten(1).amax(dim=1) > 0).all())
    assert bool((shown == 0).any())
    assert_same(found.maps, guided.maps * shown)


class Small(nn.Module):
    """score = w . f(x) for a picture of 1 x 4 pixels, as the sum over positions of a 1x1 convolution behind f.

    With the input 2, -1, 3, -2 and the weights 5, 7, -4, -6 there is one pixel for each pair of signs of input and
    gradient.
    """

    def __init__(self, function):
        super().__init__()
        self.first = nn.Conv2d(1, 1, 1, bias=False)
        self.function = function
        self.weights = nn.Parameter(torch.tensor([5.0, 7.0, -4.0, -6.0]))
        self.first.weight.data.fill_(1)

    def forward(self, x):
        return (self.function(self.first(x)) * self.weights).sum(dim=(2, 3))


IMAGE = torch.tensor([[[[2.0, -1.0, 3.0, -2.0]]]])
GUIDED, DECONVNET = [5.0, 0.0, 0.0, 0.0], [5.0, 7.0, 0.0, 0.0]


def gradients(function, method, images=IMAGE):
    explainer = Explainer(zoo.watch(Small(function).eval()), "first", Adapter(name="own", layout="NCHW"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", camkit.errors.CamkitWarning)
        return explainer(images, method, 0).maps[:, 0, 0]


def overwriting(x):
    F.relu_(x)
    return x


def overwriting_by_method(x):
    x.relu_()
    return x


def overwriting_by_module(x):
    nn.ReLU(inplace=True)(x)
    return x


def overwriting_a_part(x):
    x[:, :, :, :2].relu_()
    F.relu(x[:, :, :, 2:], inplace=True)
    return x


FORMS = {
    "module": nn.ReLU(),
    "functional": F.relu,
    "torch": torch.relu,
    "method": lambda x: x.relu(),
    "keyword": lambda x: F.relu(input=x),
    "relu6": nn.ReLU6(),
    "functional relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, min_val=0, max_val=9),
    "in-place module": nn.ReLU(inplace=True),
    "in-place relu6": nn.ReLU6(inplace=True),
    "in-place function, result ignored": overwriting,
    "in-place method, result ignored": overwriting_by_method,
    "in-place module, result ignored": overwriting_by_module,
    "in-place on parts": overwriting_a_part,
    "out of place beside its input": lambda x: F.relu(x) + 0 * x,
}


@pytest.mark.parametrize("form", FORMS)
def test_hand_computed_values_for_every_form_of_relu(form):
    assert gradients(FORMS[form], "guided-backprop").tolist() == [GUIDED]
    assert gradients(FORMS[form], "deconvnet").tolist() == [DECONVNET]
    # the forward pass is the same, or the score would not be
    explainer = Explainer(Small(FORMS[form]).eval(), "first", Adapter(name="own", layout="NCHW"))
    assert float(explainer(IMAGE, "guided-backprop", 0).scores) == 5 * 2 - 4 * 3


def test_relu6_stops_the_guided_gradient_where_it_is_flat():
    images = torch.tensor([[[[7.0, -1.0, 3.0, 5.0]]]])
    assert gradients(nn.ReLU6(), "guided-backprop", images).tolist() == [[0.0, 0.0, 0.0, 0.0]]
    assert gradients(nn.ReLU6(), "guided-backprop", images - 2).tolist() == [[5.0, 0.0, 0.0, 0.0]]


def normal(x):
    return 0.5 * (1 + math.erf(x / 2**0.5)), math.exp(-x * x / 2) / (2 * math.pi) ** 0.5


def logistic(x):
    return 1 / (1 + math.exp(-x))


GELU_SLOPE = normal(2.0)[0] + 2.0 * normal(2.0)[1]
SILU_SLOPE = logistic(2.0) * (1 + 2.0 * (1 - logistic(2.0)))
RELATIVES = {
    "gelu": (nn.GELU(), GELU_SLOPE),
    "functional gelu": (F.gelu, GELU_SLOPE),
    "silu": (nn.SiLU(), SILU_SLOPE),
    "in-place silu": (nn.SiLU(inplace=True), SILU_SLOPE),
    # x (x + 3) / 6, with the slope (2 x + 3) / 6
    "hard swish": (nn.Hardswish(inplace=True), 7 / 6),
    "leaky relu": (nn.LeakyReLU(0.3), 1.0),
    "elu": (nn.ELU(), 1.0),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_keep_their_slope_where_the_input_is_positive(name):
    function, slope = RELATIVES[name]
    expected = torch.tensor([[5 * slope, 0, 0, 0]])
    torch.testing.assert_close(gradients(function, "guided-backprop"), expected, rtol=1e-5, atol=0)
    assert gradients(function, "deconvnet").tolist() == [DECONVNET]


def test_a_relu_called_twice_is_guided_twice():
    shared = nn.ReLU(inplace=True)
    # 4 - relu(x) is 2, 4, 1, 4. Of 5, 7, -4, -6 the outer ReLU lets 5, 7 pass, which the minus makes negative, so the
    # inner one stops them; guided at the outer one alone it would be -5, 0, 0, 0, at the inner one alone 0, 0, 4, 0.
    for method in METHODS:
        assert gradients(lambda x: shared(4 - shared(x)), method).tolist() == [[0.0, 0.0, 0.0, 0.0]]
    assert gradients(lambda x: shared(shared(x) + 1), "guided-backprop").tolist() == [GUIDED]
    assert gradients(lambda x: shared(shared(x) + 1), "deconvnet").tolist() == [DECONVNET]


@pytest.mark.parametrize("method", [*METHODS, "guided-gradcam"])
def test_a_model_without_rectifiers_is_refused(method):
    with zoo.refused("No ReLU", "plain gradient"):
        gradients(torch.tanh, method)


def test_a_rectifier_beside_the_way_from_the_images_does_not_count():
    constant = torch.tensor([1.0, -1.0, 1.0, -1.0])
    with zoo.refused("No ReLU"):
        gradients(lambda x: x * F.relu(constant), "guided-backprop")
    # a tanh that ends elsewhere is no rectifier
    with zoo.refused("No ReLU"):
        gradients(nn.Hardtanh(), "guided-backprop")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm:resnet", "timm:vit"])
def test_float32_equals_the_oracle(name, method, random_model):
    explainer, images = Explainer(random_model(name)), zoo.images(2)
    expected = Oracle(explainer, images, method)(images, torch.tensor(CLASSES))
    assert float(expected.maps.std()) > 0
    assert relative_error(explainer(images, method, torch.tensor(CLASSES)).maps, expected.maps).max() < 1e-4


@pytest.mark.parametrize("method", [*METHODS, "guided-gradcam"])
def test_a_batch_equals_single_images_of_different_classes(method, random_model):
    explainer, images = Explainer(random_model("timm:resnet")), zoo.images(3, SIZE)
    together = explainer(images, method, torch.tensor([1, 5, 2])).maps
    alone = [explainer(image[None], method, index).maps for image, index in zip(images, (1, 5, 2), strict=True)]
    assert relative_error(together, torch.cat(alone)).max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parameters_and_callers_without_gradients_get_the_same_map(method, random_model, watch):
    model, images = random_model("timm:resnet"), zoo.images(2)
    expected = Explainer(model)(images, method, 3).maps
    frozen = watch(copy.deepcopy(model).requires_grad_(False))
    with torch.no_grad():
        assert (Explainer(frozen)(images, method, 3).maps == expected).all()
    with torch.inference_mode():
        assert (Explainer(model)(images.clone(), method, 3).maps == expected).all()
    plain = copy.deepcopy(images).requires_grad_()
    model(plain)[:, 3].sum().backward(inputs=[plain])
    assert relative_error(expected, plain.grad).min() > 0.1, "afterwards the model's own gradient is the plain one"


def test_without_a_layer_one_explanation_serves_all_layers(random_model):
    explainer, images = Explainer(random_model("timm:resnet"), ["layer3", "layer4"]), zoo.images(2, SIZE)
    found = explainer(images, ["guided-backprop", "guided-gradcam"], 3)
    assert [one.layer for one in found] == [None, "layer3", "layer4"]


@pytest.fixture
def explained(random_model):
    images = zoo.inputs("demo:resnet", 2)
    explainer = Explainer(random_model("demo:resnet"))
    return dict(
        zip(("pixels", "concepts", "map"), explainer(images, ["guided-backprop", "dff", "gradcam"]), strict=True)
    ), images


def test_pixels_are_drawn_around_grey_whatever_the_picture(explained):
    found, images = explained
    explanation = found["pixels"]
    drawn = explanation.overlay(images).astype(int)
    assert (drawn == explanation.overlay()).all()
    values = explanation.maps.permute(0, 2, 3, 1).numpy()
    for one, shown in zip(values, drawn, strict=True):
        strong = abs(one) > 0.02 * np.percentile(abs(one), 99.5)
        assert (np.sign(shown - 127.5)[strong] == np.sign(one)[strong]).all()
        assert abs(shown[one == 0] - 127.5).max(initial=0.5) <= 0.5
        assert shown.max() == 255
        assert shown.min() == 0


def test_pixels_keep_their_signs_and_scale_and_a_blank_map_is_grey():
    values = np.zeros((3, 20, 20), np.float32)
    values[0, 0, 0], values[1, 0, 1], values[2, 3, 3] = 1e-9, -1e-9, np.nan
    drawn = visualize.signed_pixels(values)
    assert drawn[0, 0].tolist() == [255, 128, 128]
    assert drawn[0, 1].tolist() == [128, 0, 128]
    assert (drawn[1:] == 128).all()
    assert (visualize.signed_pixels(values * 0 + 0.0)[5:] == 128).all()
    # one channel, and more than three, are grey
    for channels in (1, 5):
        grey = visualize.signed_pixels(np.random.RandomState(0).randn(channels, 8, 8))
        assert (grey == grey[..., :1]).all()
        assert grey.std() > 20
    with zoo.refused("[channels, height, width]"):
        visualize.signed_pixels(np.zeros((8, 8)))


def test_concepts_have_each_a_colour_as_opaque_as_they_are_strong():
    image = np.full((1, 4, 3), 100, np.uint8)
    # the first is strongest, then weaker, then the second, then neither
    strengths = np.array([[[4.0, 1.0, 0.0, -3.0]], [[0.0, 0.0, 2.0, -1.0]]])
    drawn = visualize.concepts(image, strengths, alpha=0.5).astype(float)
    first, second = visualize._colours(visualize.QUALITATIVE, 2)
    np.testing.assert_allclose(drawn[0, 0], 100 + 0.5 * (first - 100), atol=0.5)
    np.testing.assert_allclose(drawn[0, 1], 100 + 0.125 * (first - 100), atol=0.5)
    np.testing.assert_allclose(drawn[0, 2], 100 + 0.25 * (second - 100), atol=0.5)
    assert drawn[0, 3].tolist() == [100, 100, 100]
    red = np.zeros((1, 4, 3), np.uint8)
    red[..., 0] = 255
    left = visualize.concepts(red, strengths)[0, 3]
    assert left[0] == left[1] == left[2] > 0


@pytest.mark.parametrize("colormap", [None, "tab10", "Set1", "viridis"])
def test_concepts_are_told_apart_in_every_colormap(colormap):
    strengths = np.eye(6).reshape(6, 1, 6)
    drawn = visualize.concepts(np.zeros((1, 6, 3), np.uint8), strengths, colormap=colormap, alpha=1.0)
    assert len({tuple(colour) for colour in drawn[0].tolist()}) == 6


@pytest.mark.parametrize(
    ("strengths", "options", "words"),
    [
        (np.zeros((2, 7, 7)), {}, "cannot be drawn on an image"),
        (np.zeros((8, 8)), {}, "cannot be drawn on an image"),
        (np.zeros((2, 8, 8)), {"alpha": -1}, "between 0 and 1"),
        (np.zeros((2, 8, 8)), {"colormap": "virdis"}, "did you mean 'viridis'"),
    ],
)
def test_concepts_refuse_what_they_cannot_draw(strengths, options, words):
    with pytest.raises(camkit.errors.CamkitError, match=words):
        visualize.concepts(np.zeros((8, 8, 3), np.uint8), strengths, **options)


@pytest.mark.parametrize("kind", ["map", "pixels", "concepts"])
def test_an_explanation_is_drawn_on_enlarged_pictures_too(explained, kind):
    found, images = explained
    pictures = as_pictures(images)
    plain = found[kind].overlay(pictures)
    large = found[kind].draw(1, visualize.upscale(pictures[1], 3))
    assert plain.shape == (2, 96, 96, 3)
    assert large.shape == (288, 288, 3)
    shrunk = large.reshape(96, 3, 96, 3, 3).mean(axis=(1, 3))
    assert abs(shrunk - plain[1]).mean() < 0.5 * abs(shrunk - plain[0]).mean()


def test_kinds_are_drawn_differently(explained):
    found, images = explained
    drawn = {kind: one.overlay(images) for kind, one in found.items()}
    as_map = replace(found["pixels"], kind="map", maps=found["pixels"].maps.sum(dim=1)).overlay(images)
    assert (drawn["pixels"] != as_map).any()
    assert (drawn["concepts"] != drawn["map"]).any()
    assert (replace(found["pixels"], relu=False).overlay(images) == drawn["pixels"]).all()
