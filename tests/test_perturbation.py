"""Methods that perturb activations or images: by hand, against loops over the whole model, by their properties."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
import reference_perturbation as plain
import zoo
from camkit import Explainer
from camkit.cut import find_module
from camkit.registry import registry
from camkit.targets import Target
from camkit.testing import relative_error

CLASS = 3


class Head:
    """A head that is a plain function of the activations, behind given ones."""

    def __init__(self, function, activations=None):
        self.function, self.activations = function, activations

    def __call__(self, activations):
        return self.function(activations)

    def masked(self, mask, n):
        return torch.stack([self.function(self.activations * mask(torch.tensor([i]))) for i in range(n)], dim=1)


class Scores:
    """The scores of a model that is a plain function of the images."""

    def __init__(self, function):
        self.function = function

    def map(self, make, n):
        return torch.stack([self.function(make(i)) for i in range(n)], dim=1)


def samples_of(trunk, head):
    """Activations and gradients of a model made of two plain functions."""

    def run(make, n):
        for i in range(n):
            activations = trunk(make(i))
            with torch.enable_grad():
                leaf = activations.clone().requires_grad_()
                yield activations, torch.autograd.grad(head(leaf).sum(), leaf)[0]

    return run


def call(method, options=None, **quantities):
    """The registered method on bare quantities."""
    found = registry().get("method", method)
    quantities.setdefault("note", lambda affected, sentence: None)
    with torch.no_grad():
        result = found.function(
            *(quantities[name] for name in found.signature.asks), **found.signature.options(options or {})
        )
    return result.sum(dim=1) if result.ndim == 4 else result


def tensor(*channels):
    return torch.tensor([channels], dtype=torch.float64)


# Two channels, the second one signed; sums 10 and 4, sums of squares 30 and 14.
#     A1 = 1 2   A2 = 2 -1
#          3 4        0  3
A = tensor([[1.0, 2.0], [3.0, 4.0]], [[2.0, -1.0], [0.0, 3.0]])


def assert_close(found, expected):
    torch.testing.assert_close(found[0], torch.as_tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def linear(activations):
    """2 mean(A1) - mean(A2): 4 with both channels, -1 without the first, 5 without the second."""
    means = activations.mean(dim=(2, 3))
    return 2 * means[:, 0] - means[:, 1]


@pytest.mark.parametrize(("offset", "whole"), [(0, 4), (-10, 6), (-4, 1)])
def test_ablationcam_weighs_by_the_share_of_the_score_that_a_channel_makes(offset, whole):
    """Drops of 5 and -1 over |y|; a negative score does not turn the map around, and a score of 0 leaves the drops."""
    found = call("ablationcam", activations=A, head=Head(lambda a: linear(a) + offset, A))
    # 5 A1 - A2
    assert_close(found, torch.tensor([[3.0, 11.0], [15.0, 17.0]], dtype=torch.float64) / whole)


def test_ablationcam_by_slope_divides_by_the_length_of_the_channel():
    found = call("ablationcam", {"weights": "slope"}, activations=A, head=Head(linear, A))
    assert_close(found, 5 / math.sqrt(30) * A[0, 0] - 1 / math.sqrt(14) * A[0, 1])


def test_reciprocam_is_the_score_of_each_position_alone():
    head = Head(lambda a: 2 * a[:, 0].sum(dim=(1, 2)) - a[:, 1].sum(dim=(1, 2)), A)
    # 2 A1 - A2 = [0, 5; 6, 5]
    assert_close(call("reciprocam", activations=A, head=head), [[0.0, 5.0], [6.0, 5.0]])
    # in sixteenths: 4 of the position itself, 2 of those beside it, 1 of those across
    by_kernel = [[27 / 16, 36 / 16], [39 / 16, 42 / 16]]
    assert_close(call("reciprocam", {"gaussian": True}, activations=A, head=head), by_kernel)
    assert_close(call("vit-reciprocam", activations=A, head=head), by_kernel)
    assert_close(call("vit-reciprocam", {"gaussian": False}, activations=A, head=head), [[0.0, 5.0], [6.0, 5.0]])


def test_shapleycam_shares_a_product_between_its_factors():
    """The score sum(A1) sum(A2) = 40 has gradients 4 and 10, and H A = 4 and 10: weights 2 and 5, each makes 20."""
    head = Head(lambda a: a[:, 0].sum(dim=(1, 2)) * a[:, 1].sum(dim=(1, 2)))
    found = call("shapleycam", activations=A, head=head)
    assert_close(found, [[12.0, -1.0], [6.0, 23.0]])
    assert float(found.sum()) == pytest.approx(40)


def test_shapleycam_of_a_linear_head_is_gradcam():
    # gradients 2/4 and -1/4: A1 / 2 - A2 / 4
    assert_close(call("shapleycam", activations=A, head=Head(linear)), [[0.0, 1.25], [1.5, 1.25]])


# The image is as large as the activations, and all ones, so that the masked image is the mask:
#     (A1 - 1) / 3 = 0  1/3   (A2 + 1) / 4 = 3/4 0      the score is   x1 + 2 x2
#                   2/3  1                   1/4 1                          + x4   + 7
# so that the masks score 5/3 and 7/4 more than a black image.
ONES = torch.ones(1, 1, 2, 2, dtype=torch.float64)


def pixels(images):
    return (images * torch.tensor([[1.0, 2.0], [0.0, 1.0]])).sum(dim=(1, 2, 3)) + 7


def weighted_by(first, second):
    return first * A[0, 0] + second * A[0, 1]


def by_softmax(first, second):
    powers = math.exp(first), math.exp(second)
    return weighted_by(powers[0] / sum(powers), powers[1] / sum(powers))


def test_scorecam_weighs_by_the_increase_of_confidence():
    given = {"activations": A, "images": ONES, "model_scores": Scores(pixels)}
    assert_close(call("scorecam", {"weights": "increase"}, **given), weighted_by(5 / 3, 7 / 4))
    assert_close(call("scorecam", **given), by_softmax(5 / 3, 7 / 4))


def test_sscam_without_noise_is_scorecam_and_with_noise_averages_it():
    given = {"activations": A, "images": ONES, "model_scores": Scores(pixels)}
    assert_close(call("sscam", {"std": 0, "samples": 3}, **given), by_softmax(5 / 3, 7 / 4))
    # the score is linear: the mean of the noise under its coefficients is what each channel gains
    noise = [
        np.mean([np.random.default_rng((5, k, n)).standard_normal((2, 2)) for n in range(3)], axis=0) for k in (0, 1)
    ]
    gained = [2 * (one[0, 0] + 2 * one[0, 1] + one[1, 1]) for one in noise]
    found = call("sscam", {"samples": 3, "seed": 5, "weights": "increase"}, **given)
    assert_close(found, weighted_by(5 / 3 + gained[0], 7 / 4 + gained[1]))


def test_iscam_integrates_the_increase():
    given = {"activations": A, "images": ONES, "model_scores": Scores(pixels)}
    # three steps of the sum take 0, 1/3 and 1/3 + 2/3 of the masked image: 4/9 on average
    expected = weighted_by(4 / 9 * 5 / 3, 4 / 9 * 7 / 4)
    assert_close(call("iscam", {"steps": 3, "weights": "increase"}, **given), expected)
    # two steps of the line take 1/2 and 1: 3/4
    expected = weighted_by(3 / 4 * 5 / 3, 3 / 4 * 7 / 4)
    assert_close(call("iscam", {"steps": 2, "path": "line", "weights": "increase"}, **given), expected)
    assert_close(call("iscam", {"steps": 3}, **given), by_softmax(4 / 9 * 5 / 3, 4 / 9 * 7 / 4))


def test_groupcam_weighs_each_groups_mask_by_what_it_adds_to_a_blurred_image():
    """Gradients of 1 and -1: A1, of which 3 and 4 are above the median; and -A2, of which 1 is positive."""
    gradients = torch.tensor([1.0, -1.0], dtype=torch.float64)[None, :, None, None].expand_as(A)
    image = tensor([[3.0, 0.0], [0.0, 0.0]])
    found = call(
        "groupcam",
        {"groups": 2, "percentile": 50},
        activations=A,
        gradients=gradients,
        images=image,
        model_scores=Scores(lambda x: x.sum(dim=(1, 2, 3))),
    )
    # on two pixels the mirrored kernel is e 1 e, and gives a pixel t of itself and u of its neighbour
    e = math.exp(-1 / 5000)
    t, u = 1 / (1 + 2 * e), 2 * e / (1 + 2 * e)
    # masks 0 0; 3/4 1 and 0 1; 0 0 bring the sharp 0 in place of 3 ut and 3 uu, and of 3 tu
    first, second = -0.75 * 3 * u * t - 3 * u * u, -3 * t * u
    assert_close(found, [[0.0, second], [0.75 * first, first]])


def test_rise_with_nothing_masked_is_the_score_everywhere():
    image = torch.arange(12.0, dtype=torch.float64).reshape(1, 1, 3, 4)
    found = call(
        "rise", {"masks": 5, "grid": 2, "keep": 1.0}, images=image, model_scores=Scores(lambda x: x.sum((1, 2, 3)))
    )
    assert_close(found, np.full((3, 4), 66.0))


def test_rise_finds_the_pixel_that_alone_makes_the_score():
    image = torch.ones(1, 1, 21, 28, dtype=torch.float64)
    found = call("rise", {"masks": 600}, images=image, model_scores=Scores(lambda x: x[:, 0, 10, 4]))[0]
    row, column = divmod(int(found.argmax()), 28)
    assert abs(row - 10) <= 2
    assert abs(column - 4) <= 2
    # far away a mask is as likely as not to be there: E[m(p) m(q)] / keep = 1 / 2
    assert float(found[:, 15:].mean()) == pytest.approx(0.5, abs=0.03)


def test_integrated_gradcam_averages_over_the_path():
    image = A[:, :1]
    square = samples_of(lambda x: x, lambda a: a.sum(dim=(1, 2, 3)).square())
    # the gradient is 2 * 10 t at step t = 1/2, 1, the activations t A1: (1/4 + 1) / 2 * 20 A1
    assert_close(call("integrated-gradcam", {"steps": 2}, images=image, samples=square), 12.5 * A[0, 0])
    # activations x + 1 gain x over those of a black image; the gradient is 2 * 14
    shifted = samples_of(lambda x: x + 1, lambda a: a.sum(dim=(1, 2, 3)).square())
    assert_close(call("integrated-gradcam", {"steps": 1}, images=image, samples=shifted), 28 * A[0, 0])
    # from an image of ones they gain x - 1
    options = {"steps": 1, "baseline": 1}
    assert_close(call("integrated-gradcam", options, images=image, samples=shifted), 28 * (A[0, 0] - 1))


def test_smooth_gradcam_plusplus_averages_activations_and_derivatives():
    pairs = [(tensor([[1.0]]), tensor([[2.0]])), (tensor([[3.0]]), tensor([[1.0]]))]
    # A = 2, D1 = 3/2, D2 = 5/2, D3 = 9/2: weight 5/2 / (5 + 2 * 9/2) * 3/2
    found = call(
        "smoothgradcam++", {"count": 2}, images=tensor([[1.0, 2.0]]), samples=lambda make, n: iter([*pairs][:n])
    )
    assert_close(found, [[2 * 2.5 / 14 * 1.5]])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_smooth_gradcam_plusplus_without_noise_is_gradcam_plusplus(scale):
    generator = torch.Generator().manual_seed(1)
    activations, gradients = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    # float32: the cube of 1e-30 is nothing, and that of 1e30 is too large
    activations, gradients = activations / scale, gradients * scale
    found = call(
        "smoothgradcam++",
        {"count": 3, "std": 0},
        images=torch.rand(2, 3, 8, 8, generator=generator),
        samples=lambda make, n: iter([(activations, gradients)] * n),
    )
    expected = call("gradcam++", activations=activations, gradients=gradients)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# The whole method through the engine, against loops over the whole model with a hook in place of the cut.


class Plain:
    """A model in float64 as plain functions of one image: nothing of the engine, no cut, no chunks."""

    def __init__(self, name, layer):
        self.module = copy.deepcopy(zoo.random_model(name)).double()
        self.layer = find_module(self.module, layer)[1]
        self.tokens = "vit" in name

    def maps(self, output):
        if not self.tokens:
            return output[0]
        side = math.isqrt(output.shape[1] - 1)
        return output[0, 1:].T.reshape(-1, side, side)

    def like(self, maps, output):
        if not self.tokens:
            return maps[None]
        return torch.cat([output[:, :1], maps.flatten(1).T[None]], dim=1)

    def model(self, image):
        with torch.no_grad():
            return float(self.module(torch.as_tensor(image)[None])[0, CLASS])

    def score_of(self, image, activations):
        handle = self.layer.register_forward_hook(lambda module, inputs, output: self.like(activations, output))
        try:
            return self.module(torch.as_tensor(image)[None])[0, CLASS]
        finally:
            handle.remove()

    def head(self, image):
        def score(activations):
            with torch.no_grad():
                return float(self.score_of(image, torch.as_tensor(activations)))

        return score

    def derive(self, image):
        kept = []

        def keep(module, inputs, output):
            output.retain_grad()
            kept.append(output)
            return output.clone()

        handle = self.layer.register_forward_hook(keep)
        try:
            self.module(torch.as_tensor(image)[None].clone().requires_grad_())[0, CLASS].backward()
        finally:
            handle.remove()
        return self.maps(kept[0].detach()).numpy(), self.maps(kept[0].grad).numpy()

    def hessian(self, image):
        activations = torch.as_tensor(self.derive(image)[0])
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            found = torch.autograd.functional.hessian(lambda a: self.score_of(image, a), activations)
        return found.reshape(activations.numel(), activations.numel()).numpy()


REFERENCES = {
    "ablationcam": lambda p, x, o: plain.ablationcam(p.derive(x)[0], p.head(x), **o),
    "scorecam": lambda p, x, o: plain.scorecam(p.derive(x)[0], x, p.model, **o),
    "sscam": lambda p, x, o: plain.sscam(p.derive(x)[0], x, p.model, **o),
    "iscam": lambda p, x, o: plain.iscam(p.derive(x)[0], x, p.model, **o),
    "groupcam": lambda p, x, o: plain.groupcam(*p.derive(x), x, p.model, **o),
    "rise": lambda p, x, o: plain.rise(x, p.model, **o),
    "reciprocam": lambda p, x, o: plain.reciprocam(p.derive(x)[0], p.head(x), **{"gaussian": False, **o}),
    "vit-reciprocam": lambda p, x, o: plain.reciprocam(p.derive(x)[0], p.head(x), **{"gaussian": True, **o}),
    "shapleycam": lambda p, x, o: plain.shapleycam(*p.derive(x), p.hessian(x)),
    "integrated-gradcam": lambda p, x, o: plain.integrated_gradcam(x, p.derive, **o),
    "smoothgradcam++": lambda p, x, o: plain.smooth_gradcam_plusplus(x, p.derive, **o),
}
OPTIONS = {
    "ablationcam": [{}, {"weights": "slope"}],
    "scorecam": [{}, {"weights": "increase"}],
    "sscam": [{"samples": 2}, {"samples": 2, "noise": "input", "std": 0.5, "seed": 4, "weights": "increase"}],
    "iscam": [{"steps": 4}, {"steps": 3, "path": "line", "weights": "increase"}],
    "groupcam": [{"groups": 5}, {"groups": 32, "percentile": 40.0}],
    "rise": [{"masks": 40}, {"masks": 20, "grid": 5, "keep": 0.3, "seed": 2}],
    "reciprocam": [{}, {"gaussian": True}],
    "vit-reciprocam": [{}],
    "shapleycam": [{}],
    "integrated-gradcam": [{"steps": 6}, {"steps": 3, "baseline": 0.5}],
    "smoothgradcam++": [{}, {"count": 2, "std": 0.4, "seed": 3}],
}
# The head of the last two is nearly the whole model.
POSITIONS = [
    ("timm:resnet", "layer3", (40, 56)),
    ("timm:vit", "blocks.-1.norm1", (48, 48)),
    ("torchvision:resnet18", "layer1", (32, 32)),
    ("torchvision:vgg11", "features.2", (32, 32)),
]
# What takes hundreds of passes or a large Hessian in a plain loop is left to the small models.
LARGE = {
    "torchvision:resnet18": ("ablationcam", "groupcam", "smoothgradcam++"),
    "torchvision:vgg11": ("scorecam", "groupcam", "integrated-gradcam", "smoothgradcam++"),
}
# Where mean cubes of gradients are negative though the mean gradient is not, a denominator comes close to zero: in
# float64, weights that are moved by 1e-7 of themselves move these maps by 1e-4 and 3e-3.
POLES = {("torchvision:resnet18", "smoothgradcam++"), ("torchvision:vgg11", "smoothgradcam++")}
ROWS = [
    # `make test` runs each method as it is by default on the small models
    pytest.param(name, layer, size, method, options, marks=pytest.mark.slow if name in LARGE or place else ())
    for name, layer, size in POSITIONS
    for method, several in OPTIONS.items()
    for place, options in enumerate(several if name.startswith("timm") else several[:1])
    if method in LARGE.get(name, OPTIONS)
]


def engine(name, layer, images, method, options, *, dtype=torch.float64, **settings):
    """The method's maps through the engine in a model of that dtype, before an Explanation makes them float32."""
    module = copy.deepcopy(zoo.random_model(name)).to(dtype)
    plan = Explainer(module, layer, **settings).plan(images.to(dtype), [method], [layer], options)
    forward = plan.forward(images.to(dtype))
    question = Target(class_index=CLASS).question(forward, {}, "softmax")
    ((_, result),) = plan.results(forward, plan.score(forward, question, last=True))
    return result.maps


@pytest.mark.parametrize(("name", "layer", "size", "method", "options"), ROWS)
def test_equals_a_loop_over_the_whole_model(name, layer, size, method, options):
    images = zoo.images(2, size).double()
    whole = Plain(name, layer)
    expected = torch.from_numpy(np.stack([REFERENCES[method](whole, image.numpy(), options) for image in images]))
    flat = expected.flatten(1)
    spread = flat.amax(dim=1) - flat.amin(dim=1)
    assert bool((spread > 1e-3 * flat.abs().amax(dim=1)).all()), "the reference is flat"
    error = (engine(name, layer, images, method, options) - expected).flatten(1).abs().amax(dim=1)
    assert bool((error <= 1e-9 * spread).all())
    if (name, method) not in POLES:
        single = engine(name, layer, images, method, options, dtype=torch.float32)
        assert relative_error(single, expected).max() <= 1e-4


EVERY = [(method, OPTIONS[method][0]) for method in REFERENCES]


@pytest.mark.parametrize(("method", "options"), EVERY)
@pytest.mark.parametrize("name", ["timm:resnet", "timm:vit"])
def test_a_batch_gives_what_single_images_give(name, method, options, random_model):
    # of these images none has an Integrated Grad-CAM that the ReLU inside it makes zero
    explainer, images = Explainer(random_model(name)), zoo.images(3, 48, seed=3)
    together = explainer(images, method, CLASS, relu=False, options=options).maps
    alone = [explainer(image[None], method, CLASS, relu=False, options=options).maps for image in images]
    assert relative_error(together, torch.cat(alone)).max() <= 1e-4
    assert relative_error(together[:1], together[1:2]).max() > 1e-2, "the images must have different maps"


# one for each quantity that runs in chunks
CHUNKED = ("ablationcam", "scorecam", "smoothgradcam++")


@pytest.mark.parametrize(
    ("method", "options"), [pytest.param(*row, marks=() if row[0] in CHUNKED else pytest.mark.slow) for row in EVERY]
)
def test_chunks_of_one_give_the_same_map(method, options):
    images = zoo.images(2, 48)
    found = engine("timm:resnet", "layer3", images, method, options, memory=1)
    expected = engine("timm:resnet", "layer3", images, method, options)
    assert relative_error(found, expected).max() <= 1e-9


@pytest.mark.parametrize("method", ["sscam", "rise", "smoothgradcam++"])
def test_draws_hang_on_the_seed_alone(method, random_model):
    explainer, images, options = Explainer(random_model("timm:resnet")), zoo.images(2, 48), OPTIONS[method][0]
    maps = []
    for seed in (0, 0, 1):
        torch.rand(5)
        np.random.rand(5)
        maps.append(explainer(images, method, CLASS, relu=False, options={**options, "seed": seed}).maps)
    assert torch.equal(maps[0], maps[1])
    assert relative_error(maps[2], maps[0]).max() > 1e-3


@pytest.mark.parametrize("kind", ["zero", "constant", "one constant channel"])
@pytest.mark.parametrize("method", REFERENCES)
def test_activations_without_a_shape_give_finite_maps(method, kind):
    activations = torch.zeros(2, 4, 3, 3) if kind == "zero" else torch.full((2, 4, 3, 3), 2.0)
    if kind == "one constant channel":
        activations[:, 1:] += zoo.images(2, 3)
    images, options = zoo.images(2, 12), {"masks": 3} if method == "rise" else {}

    def head(given: Tensor) -> Tensor:
        return given.mean(dim=(2, 3)).square().sum(dim=1)

    found = call(
        method,
        options,
        activations=activations,
        gradients=torch.zeros_like(activations),
        images=images,
        head=Head(head, activations),
        model_scores=Scores(lambda x: x.mean(dim=(1, 2, 3))),
        samples=samples_of(lambda x: activations, head),
    )
    assert bool(found.isfinite().all())
    if method in ("scorecam", "sscam", "iscam") and kind == "constant":
        assert bool(found.eq(0).all()), "there was nothing to mask with"


def test_a_constant_channel_takes_no_part_in_the_softmax():
    """A dead channel would otherwise take a share with the score of a black image, and the others would lose it."""
    dead = torch.cat([A, torch.full_like(A[:, :1], 0)], dim=1)
    given = {"images": ONES, "model_scores": Scores(pixels)}
    assert_close(call("scorecam", activations=dead, **given), by_softmax(5 / 3, 7 / 4))
    constant = torch.cat([A, torch.full_like(A[:, :1], 9)], dim=1)
    assert_close(call("scorecam", activations=constant, **given), by_softmax(5 / 3, 7 / 4))


def test_behind_pooling_and_a_linear_layer_there_are_closed_forms(random_model):
    """There the score is sum over k of w_k mean(A_k) + b."""
    model = random_model("torchvision:resnet18")
    images = zoo.images(2, (64, 96))
    methods = ["cam", "gradcam", "reciprocam", "shapleycam"]
    cam, gradcam, reciprocam, shapleycam = Explainer(model)(images, methods, CLASS, relu=False)
    positions = cam.maps[0].numel()
    bias = float(model.fc.bias[CLASS].detach())
    assert relative_error(reciprocam.maps - bias, cam.maps / positions).max() <= 1e-4
    assert relative_error(shapleycam.maps, gradcam.maps).max() <= 1e-5


def test_ablationcam_behind_pooling_and_a_linear_layer_is_known(random_model):
    model = random_model("torchvision:resnet18")
    images = zoo.images(2, (64, 96))
    found = Explainer(model)(images, "ablationcam", CLASS, relu=False)
    activations = torch.nn.Sequential(*list(model.children())[:-2])(images).detach()
    shares = model.fc.weight[CLASS].detach() * activations.mean(dim=(2, 3)) / found.scores.abs()[:, None]
    expected = (shares[:, :, None, None] * activations).sum(dim=1)
    assert relative_error(found.maps, expected).max() <= 1e-4


def test_rise_has_no_layer_and_its_map_is_as_large_as_the_image(random_model):
    found = Explainer(random_model("timm:vit"))(zoo.images(1, 48), "rise", CLASS, options={"masks": 4})
    assert found.layer is None
    assert found.maps.shape == (1, 48, 48)


def test_integrated_gradcam_is_never_negative_and_its_steps_converge():
    images = zoo.images(2, 48)
    maps = [engine("timm:resnet", "layer3", images, "integrated-gradcam", {"steps": n}) for n in (4, 32, 256)]
    assert all(bool((one >= 0).all()) for one in maps)
    assert relative_error(maps[1], maps[2]).max() < relative_error(maps[0], maps[2]).min()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("groupcam", {"percentile": 101}),
        ("groupcam", {"groups": 0}),
        ("iscam", {"steps": 1}),
        ("rise", {"keep": 0}),
        ("rise", {"seed": -1}),
        ("sscam", {"std": -1}),
        ("smoothgradcam++", {"count": 0}),
        ("ablationcam", {"weights": "share"}),
    ],
)
def test_options_without_a_meaning_are_refused(method, options, random_model):
    with zoo.refused(f"'{next(iter(options))}'", f"'{method}'"):
        Explainer(random_model("timm:resnet"))(zoo.images(1, 48), method, CLASS, options=options)


def test_the_plain_loops_reproduce_gradcam_plusplus():
    """Without noise the reference of Smooth Grad-CAM++ is that of Grad-CAM++, which was written by itself."""
    generator = np.random.default_rng(0)
    activations, gradients = generator.standard_normal((2, 3, 4, 5))
    found = plain.smooth_gradcam_plusplus(np.zeros((1, 2, 2)), lambda image: (activations, gradients))
    np.testing.assert_allclose(found, reference.gradcam_plusplus(activations, gradients), rtol=1e-12)
