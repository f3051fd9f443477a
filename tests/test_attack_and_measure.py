"""FGSM and the pointing game, through `camkit.attack` and `camkit.measure`: hand values, bounds, and a real effect."""

import math

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import camkit
import zoo
from camkit import Explainer, Sample, plugin
from camkit.attacks import Goal, Loss, Threat
from camkit.preprocessing import Preprocessing
from camkit.registry import registry

EPSILON = 8 / 255


def linear_model(weights):
    """Logits that are weighted sums of the pixels: the worst image in the ball is known."""
    count = weights[0].numel()
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Flatten(), nn.Linear(count, len(weights), bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3)[:, :, None, None])
        model[2].weight.copy_(torch.stack(weights).flatten(1))
    return Explainer(model.eval(), adapter=camkit.Adapter(name="linear", targets={"last": {"path": "0"}}))


@pytest.fixture
def demo():
    loaded = camkit.load_model("demo:resnet")
    zoo.watch(loaded.module)
    return Explainer(loaded)


# --- the attack


def test_fgsm_reaches_the_optimum_of_a_linear_model():
    # Two classes with scores s0 = w0 x and s1 = w1 x: cross-entropy of class 0 grows with (w1 - w0) x alone, so the
    # worst image in the ball moves every pixel by epsilon along the sign of w1 - w0.
    w0 = torch.tensor([[[1.0, -2.0]], [[3.0, 0.5]], [[-1.0, 0.0]]])
    w1 = torch.tensor([[[2.0, -3.0]], [[0.0, 1.0]], [[-1.5, 0.0]]])
    # w1 - w0 = [[1, -1]], [[-3, 0.5]], [[-0.5, 0]]: the last pixel does not matter and stays
    sign = torch.tensor([[[[1.0, -1.0]], [[-1.0, 1.0]], [[-1.0, 0.0]]]])
    images = torch.full((1, 3, 1, 2), 0.5)
    result = camkit.attack(linear_model([w0, w1]), images, epsilon=0.1, labels=0)
    torch.testing.assert_close(result.pixels, images + 0.1 * sign)
    # (w1 - w0) x rises by epsilon |w1 - w0|_1 = 0.1 * (1 + 1 + 3 + 0.5 + 0.5)
    margin = [logits[0, 1] - logits[0, 0] for logits in (result.logits_before, result.logits_after)]
    assert float(margin[1] - margin[0]) == pytest.approx(0.6, abs=1e-5)
    # before: 0.5 * (1 - 1 - 3 + 0.5 - 0.5) = -1.5, class 0; after -0.9, still class 0
    assert float(margin[0]) == pytest.approx(-1.5, abs=1e-5)
    assert result.success.tolist() == [False]
    assert result.distance.tolist() == pytest.approx([0.1])


def test_fgsm_succeeds_where_the_ball_holds_another_class_and_is_cut_off_at_black_and_white():
    w0 = torch.tensor([[[1.0, -1.0]], [[1.0, -1.0]], [[1.0, -1.0]]])
    images = torch.tensor([0.9, 0.8])[None, None, None].expand(1, 3, 1, 2)
    # s0 = 3 * 0.1 = 0.3, s1 = -0.3; the attack makes [0.9, 0.8] to [0.6, 1.1], cut off to [0.6, 1.0]
    result = camkit.attack(linear_model([w0, -w0]), images, epsilon=0.3)
    torch.testing.assert_close(result.pixels, torch.tensor([0.6, 1.0])[None, None, None].expand(1, 3, 1, 2))
    assert result.labels.tolist() == [0]
    assert result.success.tolist() == [True]
    torch.testing.assert_close(result.logits_after, torch.tensor([[-1.2, 1.2]]))


def test_sigmoid_models_are_attacked_by_the_labels_own_probability(demo):
    images = zoo.scenes(4)
    pixels, labels = demo.preprocessing.pixels(images), demo(images, relu=False).targets
    logits = demo.logits(images).detach().gather(1, labels[:, None])[:, 0]
    loss = Loss(demo, Goal(labels, None, demo.probability), Threat("linf", EPSILON, pixels))
    torch.testing.assert_close(loss(pixels), -logits.sigmoid().log(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("epsilon", [1 / 255, EPSILON, 0.5])
def test_the_attacked_image_stays_in_the_ball_and_raises_the_loss(demo, epsilon):
    images = zoo.scenes(8)
    before = images.clone()
    result = camkit.attack(demo, images, epsilon=epsilon)
    pixels = demo.preprocessing.pixels(images)
    moved = (result.pixels - pixels).abs().flatten(1).amax(dim=1)
    assert bool((moved <= epsilon + 1e-6).all())
    assert bool((moved > 0.9 * epsilon).all())
    torch.testing.assert_close(result.distance, moved)
    assert float(result.pixels.min()) >= 0
    assert float(result.pixels.max()) <= 1
    torch.testing.assert_close(result.images, demo.preprocessing.normalise(result.pixels))
    torch.testing.assert_close(result.logits_after, demo.logits(result.images).detach())
    assert torch.equal(images, before)
    if epsilon <= EPSILON:  # one step across the whole range may land anywhere
        loss = Loss(demo, Goal(result.labels, None, demo.probability), Threat("linf", epsilon, pixels))
        before = loss(pixels)
        assert bool((loss(result.pixels) > before).all())


def test_a_trained_model_is_fooled_more_by_fgsm_than_by_noise_of_the_same_size(demo):
    images = zoo.scenes(24)
    result = camkit.attack(demo, images, epsilon=EPSILON)
    pixels = demo.preprocessing.pixels(images)
    noisy = (pixels + EPSILON * torch.randn_like(pixels).sign()).clamp(0, 1)
    label = demo.logits(demo.preprocessing.normalise(noisy)).gather(1, result.labels[:, None])[:, 0]
    assert result.success.sum() >= 12
    assert (label < 0).sum() <= 2
    assert torch.equal(result.success, result.logits_after.gather(1, result.labels[:, None])[:, 0] < 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_that_goes_too_far_is_refused(demo, norm):
    """The bounds are the engine's business: here a third party's attack that leaves the ball, though not [0, 1]."""

    @plugin.attack("wild", norm=norm, paper="none")
    def wild(pixels: Tensor) -> Tensor:
        return 1 - pixels

    with zoo.refused("The attack 'wild' moved an image by", f"({norm}), but 0.5 is allowed"):
        camkit.attack(demo, zoo.scenes(2), wild, epsilon=0.5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_under_no_grad_and_inference_mode_attack_alike(demo, mode):
    expected = camkit.attack(demo, zoo.scenes(2)).pixels
    with mode():
        assert torch.equal(camkit.attack(demo, zoo.scenes(2)).pixels, expected)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)


def test_labels_and_targets_can_be_given(demo):
    images = zoo.scenes(2)
    assert camkit.attack(demo, images, labels=torch.tensor([3, 5])).labels.tolist() == [3, 5]
    assert camkit.attack(demo, images, labels="three").labels.tolist() == [3, 3]
    towards = camkit.attack(demo, images, target="three")
    assert towards.target.tolist() == [3, 3]
    assert towards.labels.tolist() == demo.logits(images).argmax(dim=1).tolist()


def test_what_cannot_be_attacked_is_refused(demo):
    images = zoo.scenes(1)
    plain = Explainer(demo.module)
    for call, words in [
        (lambda: camkit.attack(demo, images, "fgms"), "'fgsm'"),
        (lambda: camkit.attack(demo, images, epsilon=0), "Epsilon was 0"),
        (lambda: camkit.attack(demo, images, options={"steps": 3}), "has no option 'steps'"),
        (lambda: camkit.attack(demo, images, labels="top-2"), "one label"),
        (lambda: camkit.attack(demo, images, target=10), "Class 10 was asked for"),
        (lambda: camkit.attack(plain, images), "does not know how they were normalised"),
    ]:
        with zoo.refused(words):
            call()


# --- the pointing game

NAN = math.nan
PEAK = [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]  # at row 1, column 2
HIT = [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
LEFT = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
CORNER = [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
EMPTY = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
FLAT = [[0.5] * 4] * 3
TIE = [[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]  # (0, 3) comes before (1, 0), row by row
TOP_RIGHT = [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]

GAMES = {
    "peak in the region": (PEAK, HIT, 0, 1),
    "peak beside the region": (PEAK, LEFT, 0, 0),
    "one pixel beside, tolerance 1": (PEAK, LEFT, 1, 1),
    "a diagonal step away, tolerance 1": (PEAK, CORNER, 1, 0),
    "within a square of side 5, tolerance 2": (PEAK, CORNER, 2, 1),
    "no region": (PEAK, EMPTY, 0, NAN),
    "no region, tolerance": (PEAK, EMPTY, 2, NAN),
    "flat heatmap": (FLAT, LEFT, 0, NAN),
    "blank heatmap": (EMPTY, LEFT, 0, NAN),
    "tie, the first counts: in": (TIE, TOP_RIGHT, 0, 1),
    "tie, the first counts: out": (TIE, LEFT, 0, 0),
}


def game(cases):
    function = registry().get("metric", "pointing_game").function
    heatmaps = torch.tensor([case[0] for case in cases], dtype=torch.float32)
    regions = torch.tensor([case[1] for case in cases], dtype=torch.bool)
    return function(heatmaps, regions, tolerance=cases[0][2])


@pytest.mark.parametrize("case", GAMES)
def test_pointing_game_by_hand(case):
    assert game([GAMES[case]]).tolist() == pytest.approx([GAMES[case][3]], nan_ok=True)


def test_pointing_game_judges_each_sample_by_itself():
    cases = [case for case in GAMES.values() if case[2] == 0]
    assert game(cases).tolist() == pytest.approx([case[3] for case in cases], nan_ok=True)


# --- measuring


class Bright(nn.Module):
    """Its Grad-CAM at `features` is the picture's brightness; class 1 is the negative of class 0."""

    def __init__(self):
        super().__init__()
        self.features, self.fc = nn.Conv2d(3, 1, 1, bias=False), nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.features.weight.fill_(1 / 3)
            self.fc.weight.copy_(torch.tensor([[1.0], [-1.0]]))

    def forward(self, images):
        return self.fc(self.features(images).mean(dim=(2, 3)))


def bright_explainer():
    plain = Preprocessing(size=(20, 20), resize=(20, 20), resize_mode="exact", mean=(0, 0, 0), std=(1, 1, 1))
    adapter = camkit.Adapter(name="bright", targets={"last": {"path": "features"}}, classifier="fc")
    return Explainer(zoo.watch(Bright().eval()), adapter=adapter, preprocessing=plain)


def spot(column, row, side=20):
    picture = Image.new("RGB", (side, side), (40, 40, 40))
    picture.putpixel((column, row), (255, 255, 255))
    return picture


def test_measure_by_hand():
    """A spot at column 5, row 12: boxes are (left, top, right, bottom), right and bottom exclusive."""
    samples = [
        Sample(spot(5, 12), 0, ((5, 12, 6, 13),)),
        Sample(spot(5, 12), 0, ((6, 12, 9, 15),)),  # begins one column behind the spot
        Sample(spot(5, 12), 0, ((0, 0, 5, 12),)),  # ends at the spot, exclusive
        Sample(spot(5, 12), 0, ((12, 5, 13, 6),)),  # columns and rows exchanged
        Sample(spot(5, 12), 0, ((0, 0, 3, 3), (4, 10, 8, 14))),  # the second of two boxes
        Sample(spot(5, 12), 0, ()),  # cannot be judged
    ]
    for batch_size in (1, 4, 32):
        measured = camkit.measure(bright_explainer(), data=samples, batch_size=batch_size)
        assert measured.values.tolist() == pytest.approx([1, 0, 0, 0, 1, NAN], nan_ok=True)
        assert measured.value == pytest.approx(2 / 5)
        assert measured.judged == 5
    assert measured.higher_is_better
    assert (measured.metric, measured.method) == ("pointing_game", "gradcam")
    widened = camkit.measure(bright_explainer(), data=samples, metric_options={"tolerance": 1})
    assert widened.values.tolist() == pytest.approx([1, 1, 1, 0, 1, NAN], nan_ok=True)


def test_each_sample_is_explained_by_its_own_class():
    """The map of class 1 is negative everywhere: blank, so not judged."""
    samples = [Sample(spot(5, 12), 0, ((5, 12, 6, 13),)), Sample(spot(5, 12), 1, ((5, 12, 6, 13),))]
    with pytest.warns(camkit.CamkitWarning, match="of image 1 has no positive value"):
        measured = camkit.measure(bright_explainer(), data=samples)
    assert measured.values.tolist() == pytest.approx([1, NAN], nan_ok=True)


def test_boxes_follow_the_models_resizing():
    """A picture twice as large: the box is given in its own pixels and halves with it."""
    large = spot(5, 12).resize((40, 40), Image.Resampling.NEAREST)
    hit, missed = Sample(large, 0, ((10, 24, 12, 26),)), Sample(large, 0, ((5, 12, 6, 13),))
    assert camkit.measure(bright_explainer(), data=[hit, missed]).values.tolist()[0] == 1


def test_several_methods_are_measured_in_the_same_passes():
    samples = [Sample(spot(5, 12), 0, ((5, 12, 6, 13),)), Sample(spot(3, 4), 0, ((5, 12, 6, 13),))]
    found = camkit.measure(bright_explainer(), data=samples, method=["gradcam", "hirescam", "cam"])
    assert [one.method for one in found] == ["gradcam", "hirescam", "cam"]
    assert [one.value for one in found] == [0.5] * 3


def test_what_cannot_be_measured_is_refused(demo):
    for call, words in [
        (lambda: camkit.measure(demo, "pointing_gam"), "'pointing_game'"),
        (lambda: camkit.measure(demo, data="digit_scene"), "'digit_scenes'"),
        (lambda: camkit.measure(demo, data=[]), "no samples"),
        (lambda: camkit.measure(demo, metric_options={"tolerances": 1}), "did you mean 'tolerance'"),
        (lambda: camkit.measure(demo, data_options={"digits": 4}), "Option 'digits'"),
        (lambda: camkit.measure(Explainer(demo.module)), "preprocessing="),
    ]:
        with zoo.refused(words):
            call()


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "cam"])
def test_maps_of_the_demo_model_point_at_the_asked_digit_and_not_at_the_other(demo, method):
    asked, other = (
        camkit.measure(demo, method=method, data_options={"count": 40, "boxes": boxes}) for boxes in ("asked", "other")
    )
    assert asked.judged >= 76
    assert asked.value > 0.7
    assert other.value < 0.1
