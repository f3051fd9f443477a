"""The methods' formulas: against values worked out by hand, against the plain reference, and by their properties."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import reference
import zoo
from camkit import Explainer, heatmap
from camkit.components import positive_peak, principal_component
from camkit.registry import registry

GIVEN = {"activations", "gradients", "classifier_weights", "images", "note"}
GRADIENT_METHODS = [name for name in reference.METHODS if "gradients" in registry().get("method", name).signature.asks]
HOMOGENEOUS = [name for name in GRADIENT_METHODS if name != "gradcam++"]


def raw(method: str, activations: Tensor, second: Tensor, **options: object) -> Tensor:
    """The registered method on bare tensors; `second` is the gradients, or the classifier's weights for CAM."""
    found = registry().get("method", method)
    given = {
        "activations": activations,
        "gradients": second,
        "classifier_weights": second,
        "images": activations,
        "note": lambda affected, sentence: None,
    }
    result = found.function(*(given[name] for name in found.signature.asks), **found.signature.options(options))
    return result.sum(dim=1) if result.ndim == 4 and found.kind == "map" else result


def random_pair(batch=3, channels=5, height=3, width=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, channels, height, width, generator=generator, dtype=dtype) for _ in range(2)]


def tensor(*channels):
    return torch.tensor([channels], dtype=torch.float64)


# Two channels, the second one signed:
#     A1 = 1 2   A2 = 2 -1      G1 =  1 0   G2 = -2  1
#          3 4        0  3           -1 2         0 -1
# Sums: A1 10, A2 4, G1 2, G2 -2.
A = tensor([[1.0, 2.0], [3.0, 4.0]], [[2.0, -1.0], [0.0, 3.0]])
G = tensor([[1.0, 0.0], [-1.0, 2.0]], [[-2.0, 1.0], [0.0, -1.0]])
W = torch.tensor([[2.0, -1.0]], dtype=torch.float64)

# m = 1 0   times 3 and 4: every position's vector is m (3, 4), of length 5 |m|; m's peak is negative, which turns it
#     2 -3
ONE_DIRECTION = tensor([[3.0, 0.0], [6.0, -9.0]], [[4.0, 0.0], [8.0, -12.0]])
# 3 (m + 1) and 2 (m + 1), with gradients 1 and 2: the products are (m + 1) (3, 4), which centring makes m (3, 4)
SHIFTED = tensor([[6.0, 3.0], [9.0, -6.0]], [[4.0, 2.0], [6.0, -4.0]])
ONE_AND_TWO = tensor([[1.0, 1.0], [1.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]])
# one value stands out of nine: mean 1 (2), deviation sqrt(8) (2 sqrt(8)), threshold 1 + 2 sqrt(8) = 6.7 (13.3)
ONE_OF_NINE = tensor(
    [[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]], [[18.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
)
# one channel, 7 + (2, -1, -1)
THREE = tensor([[9.0, 6.0, 6.0]])
# the mean of the channels is a step from 0 to 1
STEP = tensor([[0.0, 0.0, 0.0, 0.0]] * 3, [[0.0, 0.0, 2.0, 2.0]] * 3)

# Method: activations (for sobel the image), gradients or the classifier's weights, and the map.
HAND = {
    # 2 A1 - A2 = [2-2, 4+1; 6-0, 8-3]
    "cam": (A, W, [[0.0, 5.0], [6.0, 5.0]]),
    "eigencam": (ONE_DIRECTION, G, [[-5.0, 0.0], [-10.0, 15.0]]),
    "eigengradcam": (SHIFTED, ONE_AND_TWO, [[-5.0, 0.0], [-10.0, 15.0]]),
    # the channel's mean where it stands out
    "fem": (ONE_OF_NINE, G, [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]),
    # weights 2/4 and -2/4: [0.5-1, 1+0.5; 1.5-0, 2-1.5]
    "gradcam": (A, G, [[-0.5, 1.5], [1.5, 0.5]]),
    # channel 1, 1/(2 + g 10) times g where g > 0: 1/12 + 2/22 = 23/132; channel 2, 1/(2 + g 4): 1/6 = 22/132
    # (23 A1 + 22 A2)/132 = [23+44, 46-22; 69+0, 92+66]/132
    "gradcam++": (A, G, [[67 / 132, 24 / 132], [69 / 132, 158 / 132]]),
    # relu(1) + relu(-4), relu(0) + relu(-1); relu(-3) + relu(0), relu(8) + relu(-3)
    "gradcam-elementwise": (A, G, [[1.0, 0.0], [0.0, 8.0]]),
    # G1 A1 + G2 A2 = [1-4, 0-1; -3+0, 8-3]
    "hirescam": (A, G, [[-3.0, -1.0], [-3.0, 5.0]]),
    # x = (2, -1, -1), gamma 1: with P = k(2, 2), Q = k(2, -1), R = k(-1, -1) the vector (2, -1, -1)/sqrt(6) has the
    # eigenvalue 2 (P - 2Q + R)/3, so the map is (2, -1, -1)/3 sqrt(P - 2Q + R), P = tanh 5, Q = tanh -1, R = tanh 2
    "kpcacam": (THREE, G, [[2 * 0.622461520118, -0.622461520118, -0.622461520118]]),
    # relu(G1) A1 + relu(G2) A2 = [1+0, 0-1; 0+0, 8+0]: the signed activation keeps its sign
    "layercam": (A, G, [[1.0, -1.0], [0.0, 8.0]]),
    "random": (A, G, [[0.6369616873, 0.2697867138], [0.0409735239, 0.0165276355]]),
    # |G| A is the same as G A for positive gradients, and for negative ones
    "segeigencam": (SHIFTED, -ONE_AND_TWO, [[-5.0, 0.0], [-10.0, 15.0]]),
    # (1 + 2 + 1) times the step between the neighbours left and right
    "sobel": (STEP, G, [[0.0, 4.0, 4.0, 0.0]] * 3),
    # weights (1+0-3+8)/10 = 0.6 and (-4-1+0-3)/4 = -2: [0.6-4, 1.2+2; 1.8-0, 2.4-6]
    "xgradcam": (A, G, [[-3.4, 3.2], [1.8, -3.6]]),
}
# On 12 positions few values lie two deviations above the mean.
OPTIONS = {"fem": {"k": 1.0}}


def test_every_method_of_these_quantities_has_a_reference_and_a_hand_computed_value():
    methods = [registry().get("method", name) for name in registry().names("method")]
    of_these = {method.name: method for method in methods if set(method.signature.asks) <= GIVEN}
    assert sorted(of_these) == sorted(reference.METHODS)
    assert sorted(HAND) == sorted(name for name, method in of_these.items() if method.kind == "map")


@pytest.mark.parametrize("method", HAND)
def test_hand_computed_value(method):
    activations, second, expected = HAND[method]
    torch.testing.assert_close(raw(method, activations, second)[0], torch.tensor(expected, dtype=torch.float64))
    np.testing.assert_allclose(
        reference.METHODS[method](activations[0].numpy(), second[0].numpy()), expected, rtol=1e-7, atol=1e-12
    )


@pytest.mark.parametrize("method", reference.METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_method_equals_reference_on_random_signed_tensors(method, dtype):
    activations, gradients = random_pair(dtype=dtype)
    second = gradients.mean(dim=(2, 3)) if method == "cam" else gradients
    options = OPTIONS.get(method, {})
    expected = np.stack(
        [reference.METHODS[method](a, g, **options) for a, g in zip(activations.numpy(), second.numpy(), strict=True)]
    )
    assert all(one.max() - one.min() > 0.1 * np.abs(one).max() for one in expected)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    scale = np.abs(expected).max()
    found = raw(method, activations, second, **options).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("kernel", ["sigmoid", "rbf", "poly", "linear"])
def test_kernels_of_kpca_equal_the_reference(kernel):
    activations, gradients = random_pair()
    expected = [reference.kpcacam(a, None, kernel, 0.3) for a in activations.numpy()]
    found = raw("kpcacam", activations, gradients, kernel=kernel, gamma=0.3)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_kpca_with_the_linear_kernel_is_centred_eigencam():
    activations, gradients = random_pair()
    linear = raw("kpcacam", activations, gradients, kernel="linear")
    torch.testing.assert_close(linear, raw("eigencam", activations, gradients, centred=True))
    assert not torch.allclose(linear, raw("eigencam", activations, gradients), rtol=0.1)


COMPONENTS = ["eigencam", "eigengradcam", "segeigencam", "kpcacam"]
AGNOSTIC = ["eigencam", "kpcacam", "fem", "dff", "random", "sobel"]


@pytest.mark.parametrize("method", AGNOSTIC)
def test_a_class_agnostic_method_gives_each_image_of_a_batch_what_it_gives_it_alone(method):
    assert not registry().get("method", method).class_specific
    activations, gradients = random_pair()
    options = OPTIONS.get(method, {})
    alone = [raw(method, a[None], g[None], **options) for a, g in zip(activations, gradients, strict=True)]
    together = raw(method, activations, gradients, **options)
    torch.testing.assert_close(together, torch.cat(alone))
    assert torch.equal(together, raw(method, activations, -gradients, **options))
    assert torch.equal(together[0], together[1]) == (method == "random")


@pytest.mark.parametrize("seeded", ["random", "dff"])
def test_the_seed_decides_the_draws(seeded):
    activations, gradients = random_pair()
    first, again, other = (raw(seeded, activations, gradients, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("method", [name for name in reference.METHODS if name not in ("cam", "random")])
def test_zeros_give_a_map_of_zeros(method):
    zeros = torch.zeros(2, 5, 3, 4)
    assert raw(method, zeros, zeros).eq(0).all()


@pytest.mark.parametrize("method", COMPONENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_value_of_a_component_is_positive(method, dtype):
    activations, gradients = random_pair(batch=20, dtype=dtype)
    for signed in (activations, -activations):
        maps = raw(method, signed, gradients).flatten(1)
        assert bool((maps.amax(dim=1) >= 0.999 * maps.abs().amax(dim=1)).all())


def test_a_component_as_high_as_it_is_deep_has_the_sign_of_its_first_peak():
    # 1 x 2 positions, centred: +-(1, -1), whichever the rounding
    for sign in (1.0, -1.0):
        found = raw("eigencam", tensor([[sign * 3.0, sign * 1.0]]), G, centred=True)
        torch.testing.assert_close(found, tensor([1.0, -1.0]))


@pytest.mark.parametrize("shape", [(40, 3, 4), (7, 6, 8)])
@pytest.mark.parametrize("gap", [0.5, 0.05, 0.005])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_principal_component_is_that_of_a_singular_value_decomposition(shape, gap, dtype, tolerance):
    channels, height, width = shape
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(3, height * width, channels, generator=generator, dtype=torch.float64)
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    values = torch.cat([values[:, 1:2] / (1 - gap), values[:, 1:]], dim=1)
    maps = (left * values[:, None] @ right).transpose(1, 2).unflatten(2, (height, width))
    component, found_gap = principal_component(maps.to(dtype), centred=False)
    expected = positive_peak(left[:, :, 0] * values[:, :1]).unflatten(1, (height, width))
    torch.testing.assert_close(component.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    torch.testing.assert_close(found_gap.double(), torch.full((3,), gap, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_principal_component_of_small_and_large_values_does_not_underflow_or_overflow(factor):
    maps = random_pair(dtype=torch.float32)[0]
    (small, small_gap), (component, gap) = (principal_component(part, centred=True) for part in (maps * factor, maps))
    torch.testing.assert_close(small / factor, component, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small_gap, gap)


def test_principal_component_is_a_graph_for_any_batch():
    def function(maps: Tensor) -> tuple[Tensor, Tensor]:
        return principal_component(maps, centred=True)

    maps = random_pair(batch=7)[0]
    graph = make_fx(function, tracing_mode="symbolic")(maps[:3])
    torch.testing.assert_close(graph(maps), function(maps))


@pytest.mark.parametrize("method", COMPONENTS)
def test_two_equal_components_are_noted(method):
    """Two directions of the same weight: any turn between the two explains as much."""
    one, two = (
        tensor([[1.0, -1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, -1.0]]),
        tensor([[1.0, -1.0], [0.0, 0.0]]).repeat(1, 2, 1, 1),
    )
    said = []
    found = registry().get("method", method)
    given = {
        "activations": torch.cat([one, two]),
        "gradients": torch.ones_like(torch.cat([one, two])),
        "note": lambda affected, sentence: said.append((affected.tolist(), sentence)),
    }
    found.function(*(given[name] for name in found.signature.asks))
    ((affected, sentence),) = said
    assert affected == [True, False]
    assert sentence.startswith("The map is one of two")


ZERO_DENOMINATORS = {
    # sum(A) = 0: the channel has no weight, although its gradient is not zero
    "xgradcam, features that cancel": (
        "xgradcam",
        [[1.0, -1.0], [2.0, -2.0]],
        [[1.0, 2.0], [3.0, 4.0]],
        [[0, 0], [0, 0]],
    ),
    "xgradcam, dead channel": ("xgradcam", [[0.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]], [[0, 0], [0, 0]]),
    # sum(A) = -2, so 2 + g sum(A) is 0 where g = 1 and 1 where g = 0.5: w = 0 + 0.5/1
    "gradcam++, one position": (
        "gradcam++",
        [[-1.0, -1.0], [0.0, 0.0]],
        [[1.0, 0.0], [0.0, 0.5]],
        [[-0.5, -0.5], [0, 0]],
    ),
    # g = 0 everywhere: 0/0 in the paper's form, no weight here
    "gradcam++, no gradient": ("gradcam++", [[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]], [[0, 0], [0, 0]]),
}


@pytest.mark.parametrize("case", ZERO_DENOMINATORS)
def test_zero_denominator_gives_no_weight(case):
    method, activations, gradients, expected = ZERO_DENOMINATORS[case]
    found = raw(method, tensor(activations), tensor(gradients))[0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_the_order_of_channels_does_not_matter(method):
    activations, gradients = random_pair()
    order = torch.tensor([3, 0, 4, 1, 2])
    found = raw(method, activations[:, order], gradients[:, order])
    torch.testing.assert_close(found, raw(method, activations, gradients))
    assert not torch.allclose(found, raw(method, activations[:, order], gradients))


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_images_of_a_batch_do_not_influence_each_other(method):
    activations, gradients = random_pair()
    alone = [raw(method, a[None], g[None]) for a, g in zip(activations, gradients, strict=True)]
    torch.testing.assert_close(raw(method, activations, gradients), torch.cat(alone))


@pytest.mark.parametrize("method", GRADIENT_METHODS)
@pytest.mark.parametrize("power", [-40, 40])
def test_the_unit_of_a_channel_does_not_matter(method, power):
    """A channel t times as large, whose gradient is 1/t: the same function, the same map; a constant would show."""
    activations, gradients = random_pair()
    units = torch.tensor([0, power, 1, -3, power], dtype=torch.float64).exp2()[None, :, None, None]
    found = raw(method, activations * units, gradients / units)
    torch.testing.assert_close(found, raw(method, activations, gradients), rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", HOMOGENEOUS)
@pytest.mark.parametrize("factor", [1e-12, 3.0, 1e12])
def test_scaling_the_logits_scales_the_map_and_leaves_the_heatmap(method, factor):
    activations, gradients = random_pair()
    maps, scaled = raw(method, activations, gradients), raw(method, activations, gradients * factor)
    torch.testing.assert_close(scaled, maps * factor, rtol=1e-9, atol=0)
    torch.testing.assert_close(heatmap.heatmaps(scaled, (12, 16)), heatmap.heatmaps(maps, (12, 16)))


def test_gradcam_plusplus_depends_on_gradient_times_sum_only():
    """It is not linear in the gradient; as logits shrink, it tends to the map weighted by sum(relu(g)) / 2."""
    activations, gradients = random_pair()
    weights = gradients.clamp(min=0).sum(dim=(2, 3)) / 2
    limit = (activations * weights[:, :, None, None]).sum(dim=1)
    tiny = raw("gradcam++", activations, gradients * 1e-12)
    torch.testing.assert_close(tiny / 1e-12, limit, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(raw("gradcam++", activations, gradients), limit, rtol=0.1)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "xgradcam", "hirescam", "layercam"])
def test_constant_activations_and_gradients_give_a_flat_map_and_an_empty_heatmap(method):
    activations, gradients = (values.mean(dim=(2, 3), keepdim=True).expand(-1, -1, 3, 4) for values in random_pair())
    maps = raw(method, activations, gradients)
    torch.testing.assert_close(maps, maps[:, :1, :1].expand_as(maps))
    flat = torch.full((1, 3, 4), 2.5)
    assert heatmap.heatmaps(flat, (12, 16)).eq(0).all()
    assert heatmap.heatmaps(flat, (12, 16), relu=False).eq(1).all()


def test_heatmap_takes_relu_then_resizes_then_stretches_once():
    # Bilinear from 1x3 to 1x6 (align_corners=False) takes [a, 3/4 a + 1/4 b, 1/4 a + 3/4 b, 3/4 b + 1/4 c, ..., c].
    maps = torch.tensor([[[-4.0, 8.0, 4.0]]])
    # ReLU first: [0, 8, 4] -> [0, 2, 6, 7, 5, 4]; the peak of 8 is lost in between, so 7 becomes 1
    expected = torch.tensor([[[0.0, 2.0, 6.0, 7.0, 5.0, 4.0]]]) / 7
    torch.testing.assert_close(heatmap.heatmaps(maps, (1, 6)), expected)
    # signed: [-4, -1, 5, 7, 5, 4], scaled symmetrically
    expected = torch.tensor([[[-4.0, -1.0, 5.0, 7.0, 5.0, 4.0]]]) / 7
    torch.testing.assert_close(heatmap.heatmaps(maps, (1, 6), relu=False), expected)
    # without a negative value the lowest one is 0 with ReLU: [2, 6] -> [2, 3, 5, 6]
    torch.testing.assert_close(
        heatmap.heatmaps(torch.tensor([[[2.0, 6.0]]]), (1, 4)), torch.tensor([[[0, 0.25, 0.75, 1]]])
    )


# Where the logits are one linear layer on the mean of the activations. The layer None is the adapter's own.
CAM_DEFINED = {
    "torchvision:resnet18": (96, None),
    "timm:resnet": (64, None),
    "timm:resnet-bottleneck": (64, None),
    "timm:vit-linear": (48, None),
    "demo:resnet": (96, None),
    "demo:vgg": (96, None),
}


@pytest.mark.parametrize("target", ["top", 3, "counterfactual:top"])
@pytest.mark.parametrize("name", CAM_DEFINED)
def test_gradcam_is_cam_divided_by_the_number_of_positions(name, target, random_model):
    """The proof in the Grad-CAM paper; in such a model the gradient is w_k / (h w) at every position."""
    size, layer = CAM_DEFINED[name]
    images = zoo.inputs(name, 2, size)
    cam, gradcam = Explainer(random_model(name), layer)(images, ["cam", "gradcam"], target, relu=False)
    positions = cam.maps[0].numel()
    assert positions > 1
    assert bool((cam.maps.flatten(1).std(dim=1) > 1e-3 * cam.maps.flatten(1).abs().amax(dim=1)).all())
    scale = float(cam.maps.abs().max())
    torch.testing.assert_close(gradcam.maps * positions, cam.maps, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(gradcam.heatmaps, cam.heatmaps, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["hirescam", "xgradcam"])
def test_behind_pooling_and_a_linear_layer_these_methods_are_gradcam(method, random_model):
    found, gradcam = Explainer(random_model("torchvision:resnet18"))(zoo.images(2, 96), [method, "gradcam"], 3)
    scale = float(gradcam.maps.abs().max())
    torch.testing.assert_close(found.maps, gradcam.maps, rtol=0, atol=1e-5 * scale)


def test_hirescam_and_cam_sum_up_to_the_score(random_model):
    model = random_model("torchvision:resnet18")
    hirescam, cam = Explainer(model)(zoo.images(3, 96), ["hirescam", "cam"], 3)
    without_bias = hirescam.logits[:, 3] - model.fc.bias[3].detach()
    torch.testing.assert_close(hirescam.maps.sum(dim=(1, 2)), without_bias, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cam.maps.mean(dim=(1, 2)), without_bias, rtol=1e-4, atol=1e-4)


# Where it is not: hidden layers behind the pooling, a class token, a norm behind the pooling, an earlier layer.
CAM_UNDEFINED = [
    ("torchvision:vgg11", None),
    ("torchvision:alexnet", None),
    ("torchvision:vit", None),
    ("timm:vit", None),
    ("timm:vit-average", None),
    ("torchvision:resnet18", "layer3"),
    ("torchvision:resnet18", "layer4.0"),
    ("timm:vit-linear", "blocks.-1"),
]


@pytest.mark.parametrize(("name", "layer"), CAM_UNDEFINED)
def test_cam_is_refused_where_it_is_not_defined(name, layer, random_model):
    size = 96 if name in ("torchvision:alexnet", "torchvision:resnet18") else 48
    explainer = Explainer(random_model(name), layer)
    path = explainer.plan(zoo.images(1, size), ["cam"], [layer]).layers[0].path
    with zoo.refused("CAM needs", "global average", f"'{path}'"):
        explainer(zoo.images(1, size), "cam")
    assert "cam" not in explainer.applicable(zoo.images(1, size), single_pass=True)
