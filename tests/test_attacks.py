"""Attacks: hand-computed cases, budgets, early stop, seeds, bad input, and what the conformance kit finds."""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from annotated_types import Ge
from PIL import Image
from torch import Tensor, nn

import camkit
import zoo
from camkit import Explainer, plugin
from camkit.attacks import Explain, Goal, Loss, Threat, attack
from camkit.errors import CamkitWarning
from camkit.registry import registry
from camkit.steerable import overlap
from camkit.testing import check_attack
from camkit.testing.models import SmallConvNet, random_images
from camkit_adapters import demo as demo_models
from camkit_attacks.apgd import checkpoints, logits_ratio
from camkit_attacks.tifgsm import gaussian
from commandline import run as run_command
from commandline import succeed

# fewer steps than a user would take
QUICK: dict[str, dict[str, Any]] = {
    "apgd": {"steps": 5},
    "bim": {"steps": 4},
    "cw": {"steps": 5, "searches": 2},
    "deepfool": {"steps": 8},
    "difgsm": {"steps": 3},
    "fragile-map": {"steps": 3},
    "mifgsm": {"steps": 4},
    "one-pixel": {"steps": 4, "population": 8},
    "patch": {"steps": 6},
    "pgd": {"steps": 3, "restarts": 2},
    "square": {"steps": 10},
    "steered-map": {"steps": 3},
    "tifgsm": {"steps": 4, "side": 5},
}
EPSILON = 5 / 255
NAMES = registry().names("attack")
PAIRS = [(name, norm) for name in NAMES for norm in registry().get("attack", name).norms]


def linear(weights: Tensor, bias: Tensor | None = None, probability: str = "softmax") -> Explainer:
    """Logits [B, n] that are weighted sums of the pixels, weights [n, 3, H, W]: the nearest border is known."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Flatten(), nn.Linear(weights[0].numel(), len(weights)))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3)[:, :, None, None])
        model[2].weight.copy_(weights.flatten(1))
        model[2].bias.copy_(torch.zeros(len(weights)) if bias is None else bias)
    adapter = camkit.Adapter(name="linear", targets={"last": {"path": "0"}}, probability=probability)
    return Explainer(zoo.watch(model.eval()), adapter=adapter)


def random_linear(classes: int = 3, probability: str = "softmax") -> tuple[Explainer, Tensor, Tensor]:
    """A linear model that predicts class 0 by a known margin everywhere near grey; its weights, and grey images."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(classes, 3, 4, 4, generator=generator)
    grey = torch.full((2, 3, 4, 4), 0.5)
    bias = -(weights.flatten(1) * 0.5).sum(dim=1) - torch.arange(classes) * 0.2
    bias[0] += 0.3
    return linear(weights, bias, probability), weights, grey


@pytest.fixture(scope="module")
def demo() -> Explainer:
    return Explainer(camkit.load_model("demo:vgg"))


def lengths(change: Tensor) -> Tensor:
    return change.flatten(1).norm(dim=1)


# --- by hand


@pytest.mark.parametrize("overshoot", [0.0, 0.02])
def test_deepfool_finds_the_nearest_border_of_a_linear_model(overshoot):
    """Softmax: min over k of |f_k - f_0| / |w_k - w_0|, passed by the overshoot."""
    explainer, weights, grey = random_linear()
    apart = (weights[1:] - weights[0]).flatten(1).norm(dim=1)
    nearest = float(((0.3 + torch.tensor([0.2, 0.4])) / apart).min())
    result = attack(explainer, grey, "deepfool", options={"overshoot": overshoot + 1e-4})
    assert result.distance.tolist() == pytest.approx([nearest * (1 + overshoot + 1e-4)] * 2, rel=1e-4)
    assert result.success.tolist() == [True, True]
    assert result.queries.tolist() == [2, 2]


def test_deepfool_of_a_sigmoid_model_has_one_border():
    explainer, weights, grey = random_linear(probability="sigmoid")
    result = attack(explainer, grey, "deepfool")
    nearest = 0.3 / float(weights[0].norm())
    assert result.distance.tolist() == pytest.approx([1.02 * nearest] * 2, rel=1e-4)
    # class 2 has the logit -0.4, which is to become positive
    towards = attack(explainer, grey, "deepfool", target=2)
    assert towards.distance.tolist() == pytest.approx([1.02 * 0.4 / float(weights[2].norm())] * 2, rel=1e-4)


@pytest.mark.parametrize("target", [None, 2])
def test_carlini_and_wagner_come_within_five_percent_of_the_nearest_border(target):
    explainer, _, grey = random_linear()
    exact = attack(explainer, grey[:1], "deepfool", target=target, options={"overshoot": 1e-4})
    found = attack(explainer, grey[:1], "cw", target=target, options={"steps": 80, "searches": 6})
    assert found.success.all()
    assert (found.distance >= exact.distance * 0.999).all()
    assert (found.distance <= exact.distance * 1.05).all()


def test_pgd_in_l2_reaches_the_optimum_of_a_linear_model():
    """Two classes: the loss grows along w1 - w0, so the worst image is epsilon along its direction."""
    explainer, weights, grey = random_linear(2)
    along = (weights[1] - weights[0]) / (weights[1] - weights[0]).norm()
    for start in (True, False):
        # each such step halves the angle to the optimum
        options = {"random_start": start, "step_size": 0.02}
        result = attack(explainer, grey, "pgd", norm="l2", epsilon=0.02, options=options)
        torch.testing.assert_close(result.pixels, grey + 0.02 * along, atol=1e-6, rtol=0)
        assert result.success.tolist() == [False, False]


def test_a_targeted_step_goes_down_the_loss_of_the_target():
    explainer, weights, grey = random_linear()
    result = attack(explainer, grey, "fgsm", epsilon=1e-3, target=2)
    probabilities = result.confidence_before[0]
    # the gradient of log p_2 is w_2 - sum of p_k w_k
    gradient = weights[2] - (probabilities[:, None, None, None] * weights).sum(dim=0)
    torch.testing.assert_close(result.pixels[0], grey[0] + 1e-3 * gradient.sign())
    assert result.target.tolist() == [2, 2]
    assert (result.confidence_after[:, 2] > result.confidence_before[:, 2]).all()


def test_small_steps_reach_the_border_where_the_gradient_keeps_its_sign():
    """Of a sigmoid of one linear logit every gradient has the same sign, with momentum and without."""
    explainer, weights, grey = random_linear(probability="sigmoid")
    expected = grey - 0.01 * weights[0].sign()
    for name in ("bim", "mifgsm"):
        torch.testing.assert_close(attack(explainer, grey, name, epsilon=0.01).pixels, expected, atol=1e-6, rtol=0)


def test_the_kernel_of_translations():
    bell = [math.exp(-0.5), 1.0, math.exp(-0.5)]
    kernel = gaussian(3, 1.0)
    assert kernel[1].tolist() == pytest.approx([b / sum(bell) ** 2 for b in bell], rel=1e-6)
    assert kernel[0].tolist() == pytest.approx([math.exp(-0.5) * b / sum(bell) ** 2 for b in bell], rel=1e-6)
    assert gaussian(1, 3.0).tolist() == [[1.0]]


def test_checkpoints_of_apgd_are_the_papers():
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_the_difference_of_logits_ratio():
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 1.0, 3.0, -1.0]])
    goal = Goal(torch.tensor([0, 0]))
    assert logits_ratio(goal, logits).tolist() == pytest.approx([-2 / 3, 3 / 3])
    towards = Goal(torch.tensor([0, 0]), torch.tensor([3, 3]))
    # less than all others by 4, over 3 - (0 - 1) / 2
    assert logits_ratio(towards, logits).tolist() == pytest.approx([-4 / 3.5, -4 / 3.5])


def test_goals_by_hand():
    logits = torch.tensor([[2.0, 1.0, -1.0]])
    top, last = torch.tensor([0]), torch.tensor([2])
    assert Goal(top).margins(logits).tolist() == [[-math.inf, -1.0, -3.0]]
    assert Goal(top, last).margins(logits).tolist() == [[-3.0]]
    assert Goal(top, None, "sigmoid").margins(logits).tolist() == [[-2.0]]
    assert Goal(top, last, "sigmoid").margins(logits).tolist() == [[-1.0]]
    total = math.exp(2) + math.exp(1) + math.exp(-1)
    assert Goal(top).loss(logits).tolist() == pytest.approx([-math.log(math.exp(2) / total)])
    assert Goal(top, last).loss(logits).tolist() == pytest.approx([math.log(math.exp(-1) / total)])
    assert Goal(top, None, "sigmoid").loss(logits).tolist() == pytest.approx([math.log(1 + math.exp(-2))])
    assert Goal(top, last, "sigmoid").loss(logits).tolist() == pytest.approx([-math.log(1 + math.exp(1))])
    # one logit is a sigmoid's, whatever the adapter says
    assert Goal(top).margins(logits[:, :1]).tolist() == [[-2.0]]
    assert [bool(Goal(index).kept(logits)) for index in (top, last)] == [True, False]


@pytest.mark.parametrize("name", ["fgsm", "pgd", "deepfool", "square"])
def test_a_model_with_one_logit_is_attacked_both_ways(name):
    explainer, weights, grey = random_linear(1)
    options = {"steps": 60} if name == "square" else {}
    smallest = name == "deepfool"
    away = attack(explainer, grey, name, epsilon=None if smallest else 0.05, options=options)
    assert (away.logits_before[0, 0] > 0, away.success.tolist()) == (True, [True, True])
    below = linear(weights, -(weights.flatten(1) * 0.5).sum(dim=1) - 0.3)
    towards = attack(below, grey, name, epsilon=None if smallest else 0.05, target=0, options=options)
    assert (towards.logits_before[0, 0] < 0, towards.success.tolist()) == (True, [True, True])
    assert attack(below, grey, name).already_wrong.all()


# --- threat models


def test_sizes_of_changes():
    original = torch.full((1, 3, 4, 5), 0.5)
    change = torch.zeros_like(original)
    change[0, 1, 1, 1], change[0, 0, 2, 4] = 0.3, -0.4
    sizes = {
        norm: float(Threat.checked(norm, None, original).distance(original + change))
        for norm in ("linf", "l2", "l0", "patch", "smallest")
    }
    # the rectangle goes over rows 1 to 2 and columns 1 to 4
    assert sizes == pytest.approx({"linf": 0.4, "l2": 0.5, "l0": 2, "patch": 2 * 4 / 20, "smallest": 0.5}, abs=1e-6)
    assert float(Threat.checked("patch", None, original).distance(original)) == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_projection_is_within_the_budget_and_leaves_alone_what_is(norm):
    original = torch.rand(3, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    threat = Threat.checked(norm, {"linf": 0.1, "l2": 0.5, "l0": 4}[norm], original)
    far = original + torch.randn(original.shape, generator=torch.Generator().manual_seed(1))
    near = threat.project(far)
    assert threat.contains(near).all()
    assert not threat.contains(far).any()
    torch.testing.assert_close(threat.project(near), near)
    assert (threat.distance(near) > 0.5 * threat.epsilon).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_points_fill_the_ball(norm):
    original = torch.full((2, 3, 20, 20), 0.5)
    threat = Threat.checked(norm, 0.1, original)
    drawn = threat.random(torch.Generator().manual_seed(0))
    assert threat.contains(drawn).all()
    assert (threat.distance(drawn) > 0.09).all()
    torch.testing.assert_close(drawn[0], drawn[1])
    assert not torch.equal(drawn, threat.random(torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("epsilon", [8 / 255, 7.5 / 255, 0.4 / 255])
def test_rounding_to_eight_bits_stays_in_the_ball(epsilon):
    original = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    threat = Threat.checked("linf", epsilon, original, eight_bit=True)
    generator = torch.Generator().manual_seed(1)
    settled = threat.settle(threat.original + epsilon * (torch.rand(original.shape, generator=generator) * 2 - 1))
    assert threat.contains(settled).all()
    levels = settled * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert (settled != threat.original).any() == (epsilon > 1 / 255)


# --- every attack


@pytest.mark.parametrize("name", NAMES)
def test_every_attack_keeps_the_contract(name):
    check_attack(name, options=QUICK.get(name))


@dataclass(frozen=True)
class Run:
    """An attack on a demo model as `test_attacks_on_trained_models` makes it."""

    name: str
    norm: str
    model: str = "demo:vgg"
    options: dict[str, Any] = field(default_factory=dict)


RUNS = [Run(name, norm, options=QUICK.get(name, {})) for name, norm in PAIRS]
LONG = [
    Run(name, norm, model)
    for name, norm in PAIRS
    if name not in ("one-pixel", "cw")
    for model in ("demo:resnet", "demo:vit")
]


def check_run(run: Run, count: int) -> camkit.AttackResult:
    explainer = Explainer(camkit.load_model(run.model))
    zoo.watch(explainer.module)
    images = zoo.scenes(count)
    epsilon = {"linf": 4 / 255, "l2": 0.5, "l0": 3, "patch": 0.04}.get(run.norm)
    result = attack(explainer, images, run.name, norm=run.norm, epsilon=epsilon, options=run.options)
    assert (result.distance <= (epsilon or math.inf) + 1e-6).all()
    moved = result.distance > 0
    torch.testing.assert_close(result.original, explainer.preprocessing.pixels(images))
    torch.testing.assert_close(result.images, explainer.preprocessing.normalise(result.pixels))
    torch.testing.assert_close(result.logits_after, explainer.logits(result.images).detach())
    fooled = result.logits_after.gather(1, result.labels[:, None])[:, 0] < 0
    if result.overlap is None:
        assert moved[~result.already_wrong].all()
        assert torch.equal(result.success, fooled)
        loss = Loss(explainer, Goal(result.labels, None, "sigmoid"), Threat("smallest", math.inf, result.original))
        if run.name not in ("noise", "tifgsm", "one-pixel"):
            assert loss(result.pixels).mean() > loss(result.original).mean()
    else:
        assert torch.equal(result.success, ~fooled & (result.overlap < 0.5))
        # of the steps of an attack on the map the best counts, which may be none
        assert moved.any()
        assert torch.equal(result.overlap < 1, moved)
    return result


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.name}-{run.norm}")
def test_attacks_on_trained_models(run):
    check_run(run, 2)


@pytest.mark.slow
@pytest.mark.parametrize("run", LONG, ids=lambda run: f"{run.name}-{run.norm}-{run.model}")
def test_attacks_on_trained_models_at_full_length(run):
    result = check_run(run, 6)
    if run.norm == "smallest":
        assert result.success_rate == 1
    elif run.name in ("pgd", "apgd"):
        assert (
            result.success_rate
            >= attack(
                Explainer(camkit.load_model(run.model)), zoo.scenes(6), "noise", norm=run.norm, epsilon=result.epsilon
            ).success_rate
        )


# --- early stop, seeds, batches


def test_early_stop_does_not_change_results(demo):
    images = zoo.scenes(6)
    settings = {"epsilon": EPSILON, "options": {"steps": 12, "random_start": False}}
    stopped, full = (attack(demo, images, "pgd", early_stop=stop, **settings) for stop in (True, False))
    assert 0 < stopped.success.sum() < 6
    # whoever is fooled in the end was fooled on the way; whoever is not went the whole way, and the same
    assert (stopped.success | ~full.success).all()
    torch.testing.assert_close(stopped.pixels[~stopped.success], full.pixels[~stopped.success], atol=1e-5, rtol=0)
    assert stopped.queries.min() < 12
    assert (full.queries == 12).all()
    # an image that stopped early is the one that a shorter attack ends with
    quick = int(stopped.queries.argmin())
    short = {"steps": int(stopped.queries[quick]) - 1, "step_size": 2.5 * EPSILON / 12, "random_start": False}
    alone = attack(demo, images[quick : quick + 1], "pgd", epsilon=EPSILON, options=short, early_stop=False)
    torch.testing.assert_close(alone.pixels[0], stopped.pixels[quick], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["pgd", "square", "noise", "difgsm", "apgd", "patch", "one-pixel"])
def test_a_seed_repeats_a_run_and_another_does_not(demo, name):
    images = zoo.scenes(2)
    epsilon = {"patch": 0.02, "one-pixel": 1}.get(name, 2 / 255)
    first, second, other = (
        attack(demo, images, name, epsilon=epsilon, options={**QUICK.get(name, {}), "seed": seed}).pixels
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_images_that_are_wrong_already_are_said_so_and_left_alone(demo):
    images = zoo.scenes(3)
    right = attack(demo, images, "noise").labels
    absent = demo.logits(images).argmin(dim=1)
    given = torch.stack([right[0], absent[1], right[2]])
    result = attack(demo, images, "pgd", labels=given, epsilon=0.2, options={"steps": 10})
    assert result.already_wrong.tolist() == [False, True, False]
    assert result.success.tolist() == [True, False, True]
    assert result.queries.tolist()[1] == 0
    assert torch.equal(result.pixels[1], result.original[1])
    assert result.success_rate == 1
    assert result.robust_accuracy == 0
    everything = attack(demo, images, "pgd", labels=absent)
    assert everything.already_wrong.all()
    assert math.isnan(everything.success_rate)


@pytest.mark.parametrize(("name", "norm"), [("pgd", "linf"), ("deepfool", "smallest"), ("cw", "smallest")])
def test_eight_bit_pictures_are_adversarial_when_read_back(demo, name, norm):
    options = {"steps": 30, "searches": 2} if name == "cw" else {}
    epsilon = 16 / 255 if norm == "linf" else None
    result = attack(demo, zoo.scenes(2), name, epsilon=epsilon, options=options, eight_bit=True)
    saved = (result.pixels * 255).round().to(torch.uint8)
    read = demo.preprocessing.normalise(saved.float() / 255)
    label = demo.logits(read).gather(1, result.labels[:, None])[:, 0]
    assert result.success.all()
    assert (label < 0).all()
    torch.testing.assert_close(result.pixels, saved / 255, atol=1e-6, rtol=0)


def test_half_precision_models_are_attacked_in_single_precision():
    explainer = Explainer(camkit.load_model("demo:vgg", dtype="bfloat16"))
    result = attack(explainer, zoo.scenes(2).bfloat16(), "pgd", epsilon=0.1, options={"steps": 4})
    assert (result.pixels.dtype, result.images.dtype) == (torch.float32, torch.bfloat16)
    assert result.distance.max() <= 0.1 + 1e-6


# --- explanations


def test_overlap_by_hand():
    before = torch.tensor([[[9.0, 8.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]])
    after = torch.tensor([[[9.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]])
    assert overlap(before, after).tolist() == [0.5]
    assert overlap(before, before).tolist() == [1]


@pytest.mark.parametrize("method", ["gradcam", "layercam", "hirescam"])
def test_the_gradient_of_a_map_is_the_quotient_of_differences(method):
    """A model that is smooth behind its layer, so that its map has a derivative."""
    network = SmallConvNet().double()
    for index in (2, 4, 6):
        network.features[index] = nn.Softplus(beta=3).eval()
    explainer = Explainer(zoo.watch(network), adapter=SmallConvNet.adapter)
    pixels = random_images(1).double() * 0.8 + 0.1
    explain = Explain(explainer, torch.tensor([1]), method)
    chosen = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def of(maps: Tensor, logits: Tensor) -> Tensor:
        return (maps * chosen).sum(dim=(1, 2)) + logits[:, 2]

    found = explain.gradient(pixels, of)
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ends = [explain._maps(pixels + sign * 1e-5 * direction) for sign in (1, -1)]
    values = [float(of(maps, forward.logits).detach()) for maps, forward in ends]
    assert float((found * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)
    torch.testing.assert_close(ends[0][0].detach().float(), explain(pixels + 1e-5 * direction).float())


def test_softplus_stands_in_for_relu_in_the_gradient_alone():
    """A dead ReLU has no gradient; of softplus with beta 1 at -2 it is sigmoid(-2)."""
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(1, 2, 2), nn.Flatten())
    with torch.no_grad():
        model[0].weight.fill_(0)
        model[0].weight[0, 0] = 1
        model[0].bias.fill_(-2.5)
        model[2].weight.fill_(1)
        model[2].bias.fill_(0)
    adapter = camkit.Adapter(name="dead", targets={"last": {"path": "1"}})
    explain = Explain(Explainer(zoo.watch(model.eval()), adapter=adapter), torch.tensor([0]), "gradcam")
    grey = torch.full((1, 3, 2, 2), 0.5)
    assert float(explain(grey).abs().max()) == 0

    def first(maps: Tensor, logits: Tensor) -> Tensor:
        return maps[:, 0, 0]

    assert float(explain.gradient(grey, first).abs().max()) == 0
    soft = explain.gradient(grey, first, softplus=1.0)
    assert float(soft[0, 0, 0, 0]) == pytest.approx(1 / (1 + math.exp(2)), rel=1e-5)
    assert float(soft[0, 1:].abs().max()) == 0


@pytest.mark.parametrize("name", ["fragile-map", "steered-map"])
def test_the_map_moves_and_the_prediction_stays(name):
    explainer = Explainer(camkit.load_model("demo:resnet"))
    result = attack(explainer, zoo.scenes(2), name, epsilon=16 / 255, options={"steps": 12})
    assert result.success.any()
    assert (result.logits_after.gather(1, result.labels[:, None]) > 0).all()
    maps = [explainer(images, target=result.labels, relu=False).maps for images in (zoo.scenes(2), result.images)]
    torch.testing.assert_close(result.overlap, overlap(*maps))


def test_maps_that_cannot_be_steered_are_refused(demo):
    for method, words in (("ablationcam", "because it asks for head"), ("guided-backprop", "guided_gradients")):
        with zoo.refused(words):
            attack(demo, zoo.scenes(1), "fragile-map", method=method)


# --- bad input


class Rounds(nn.Module):
    """A model with a step in it: through `rounded` no gradient passes, through `detached` none is recorded."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.how = nn.Conv2d(3, 2, 4), how

    def forward(self, images: Tensor) -> Tensor:
        seen = images.detach() if self.how == "detached" else (images * 255).round() / 255
        return self.body(seen).mean(dim=(2, 3))


def stepped(how: str) -> Explainer:
    adapter = camkit.Adapter(name="steps", targets={"last": {"path": "body"}})
    return Explainer(Rounds(how).eval(), adapter=adapter)


def test_a_model_without_gradients_is_refused_by_gradient_attacks_and_not_by_others():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with zoo.refused("passes no gradient from its logits to the image"):
        attack(stepped("detached"), images, "pgd")
    assert attack(stepped("detached"), images, "square", options={"steps": 3}).queries.max() > 0
    with pytest.warns(CamkitWarning, match="'fgsm' found a gradient of zero at image 0, 1"):
        attack(stepped("rounded"), images, "fgsm", epsilon=1e-3)


@plugin.attack("targeted-only", norm="linf", paper="none", goals=("targeted",))
def targeted_only(pixels: Tensor) -> Tensor:
    return pixels


def test_what_makes_no_sense_is_refused(demo):
    images = zoo.scenes(1)
    for call, words in [
        (lambda: attack(demo, images, "pgd", epsilon=-0.1), "Epsilon was -0.1; a change of pixels in [0, 1]"),
        (lambda: attack(demo, images, "pgd", epsilon=8), "above 0 and at most 1, such as 8/255"),
        (lambda: attack(demo, images, "pgd", epsilon=math.nan), "Epsilon was nan"),
        (lambda: attack(demo, images, "pgd", norm="l2", epsilon=math.inf), "Epsilon was inf"),
        (lambda: attack(demo, images, "one-pixel", epsilon=1.5), "a whole number of positions, 1 to 9216"),
        (lambda: attack(demo, images, "patch", epsilon=2), "the share of the image"),
        (lambda: attack(demo, images, "deepfool", epsilon=0.1), "looks for the smallest change and takes none"),
        (lambda: attack(demo, images, "square", norm="l2"), "'square' does not work in the threat model 'l2'"),
        (lambda: attack(demo, images, targeted_only), "works towards a class; say which with target="),
        (lambda: attack(demo, images, "fragile-map", target=3), "has no target class"),
        (lambda: attack(demo, images, "pgd", target="top-2"), "one target for each image"),
        (lambda: attack(demo, images, "pgd", labels="counterfactual:top"), "one label for each image"),
        (lambda: attack(demo, images, "pgd", target="eleven"), "eleven"),
        (lambda: attack(demo, images, "pgd", options={"steps": 0}), "Option 'steps' of the attack 'pgd' was 0"),
        (lambda: attack(demo, images[0], "pgd"), "[batch, channels, height, width] is expected"),
        (lambda: attack(demo, images, torch.sigmoid), "'sigmoid' is not an attack"),
        (
            lambda: attack(
                linear(torch.ones(2, 3, 2, 2)), torch.rand(1, 3, 2, 2), "apgd", options={"objective": "dlr"}
            ),
            "dlr needs 3 classes, the model has 2",
        ),
    ]:
        with zoo.refused(words):
            call()


# --- the conformance kit finds what is broken


def broken(**facts: Any) -> Any:
    return plugin.attack("broken", paper="none", **{"norm": "linf", **facts})


@broken()
def goes_too_far(pixels: Tensor, epsilon: float) -> Tensor:
    return pixels * 0 + pixels.flip(3).clamp(0, 1)


@broken()
def gives_nan(pixels: Tensor, loss: Loss) -> Tensor:
    return pixels / 0 - pixels / 0


@broken()
def gives_another_shape(pixels: Tensor) -> Tensor:
    return pixels[:, :, ::2]


@broken()
def draws_globally(pixels: Tensor, epsilon: float) -> Tensor:
    return pixels + epsilon * (torch.rand(pixels.shape).to(pixels) - 0.5)


CALLS: list[int] = []


@broken()
def remembers(pixels: Tensor, epsilon: float) -> Tensor:
    CALLS.append(1)
    return pixels + epsilon / (1 + len(CALLS))


@broken()
def trains_the_model(pixels: Tensor, loss: Loss) -> Tensor:
    with torch.no_grad():
        loss.explainer.module.get_parameter("classifier.bias").add_(1)
    return pixels


@broken()
def leaves_a_hook(pixels: Tensor, loss: Loss) -> Tensor:
    loss.explainer.module.register_forward_hook(lambda *_: None)
    return pixels


@broken()
def mixes_the_batch(pixels: Tensor, epsilon: float) -> Tensor:
    return pixels + epsilon * (pixels.mean(dim=0) - pixels).sign()


@broken(black_box=True)
def looks_into_the_box(pixels: Tensor, loss: Loss, epsilon: float) -> Tensor:
    return pixels + epsilon * loss.gradient(pixels).sign()


@broken()
def has_an_untyped_option(pixels: Tensor, *, power=2) -> Tensor:
    return pixels


@broken()
def stumbles(pixels: Tensor) -> Tensor:
    raise ValueError("of its own")


@broken(norm="l0")
def changes_every_pixel(pixels: Tensor) -> Tensor:
    return 1 - pixels


BROKEN = {
    goes_too_far: "but 0.03137 is allowed",
    gives_nan: "'broken' returned images that are not finite",
    gives_another_shape: "'broken' returned shape [3, 3, 12, 24]",
    draws_globally: "a generator of their own",
    remembers: "gave two results for one question",
    trains_the_model: "left the model changed",
    leaves_a_hook: "left the model changed",
    mixes_the_batch: "lets the images of a batch influence each other",
    looks_into_the_box: "marked with black_box=True but asks for gradients",
    has_an_untyped_option: "has no type",
    stumbles: "failed: ValueError: of its own",
    changes_every_pixel: "but 1 is allowed",
}


@pytest.mark.parametrize("function", BROKEN, ids=lambda function: function.__name__)
def test_the_kit_finds_what_is_broken(function):
    with pytest.raises(AssertionError) as caught:
        check_attack(function)
    assert BROKEN[function] in str(caught.value)


def test_the_kit_takes_a_sound_function_and_any_model():
    @plugin.attack("halfway", norm=("linf", "l2"), paper="none")
    def halfway(pixels: Tensor, loss: Loss, threat: Threat, *, share: Annotated[float, Ge(0)] = 0.5) -> Tensor:
        return threat.project(pixels + share * threat.epsilon * threat.steepest(loss.gradient(pixels)))

    check_attack(halfway)
    check_attack(halfway, Explainer(camkit.load_model("demo:vgg")), zoo.scenes(2), norm="l2", epsilon=0.5)
    with zoo.refused("at least two images"):
        check_attack(halfway, Explainer(camkit.load_model("demo:vgg")), zoo.scenes(1))


def test_an_unknown_threat_model_is_refused():
    def still(pixels: Tensor) -> Tensor:
        return pixels

    with zoo.refused("threat model 'l3'", "'l2'"):
        check_attack(plugin.attack("odd", norm="l3", paper="none")(still))


def test_progress_is_shown_where_somebody_watches(demo):
    """One task for each run of steps, in the display of whoever called."""
    from rich.console import Console
    from rich.progress import Progress

    from camkit.progress import shown_in

    seen: list[str] = []

    class Watched(Progress):
        def add_task(self, description: str, *args: Any, **kwargs: Any) -> Any:
            seen.append(description)
            return super().add_task(description, *args, **kwargs)

    with Watched(console=Console(quiet=True)) as display, shown_in(display):
        attack(demo, zoo.scenes(1), "bim", epsilon=1e-4, options={"steps": 2})
    assert seen == ["bim"]


# --- documentation

PAGE = Path(__file__).parents[1] / "docs" / "attacks.md"
BEGIN, END = "<!-- attacks: written by tests/test_attacks.py -->\n", "<!-- end -->"


def table() -> str:
    """The attacks as a Markdown table, from what they say of themselves."""
    lines = ["| attack | threat models | goals | sees | paper | what it does |", "|---|---|---|---|---|---|"]
    # the baseline first, attacks on the explanation last
    attacks = [registry().get("attack", name) for name in NAMES]
    for one in sorted(attacks, key=lambda one: (one.moves != "prediction", one.paper[:4] != "none", one.name)):
        summary = one.function.__doc__.splitlines()[0].removesuffix(".")
        goals = "both" if len(one.goals) == 2 else "the map" if one.moves == "explanation" else one.goals[0]
        sees = "answers" if one.black_box else "gradients"
        lines.append(f"| `{one.name}` | {', '.join(one.norms)} | {goals} | {sees} | {one.paper} | {summary} |")
    return "\n".join(lines) + "\n"


def test_the_page_lists_the_attacks_as_they_are():
    """With CAMKIT_WRITE=1 the table is written anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    expected = before + BEGIN + table() + END + after
    if os.environ.get("CAMKIT_WRITE"):
        PAGE.write_text(expected, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == expected


# --- the command

SCENES = Path(demo_models.__file__).with_name("images")


def command_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "attacks.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_command_writes_adversarial_pictures_panels_and_lines(tmp_path):
    asked = ("--model", "demo:vgg", "--attack", "pgd", "--eps", "12/255", "--option", "pgd.steps=10")
    said = succeed("attack", SCENES / "scene-01.png", SCENES / "scene-02.png", *asked, "-o", tmp_path)
    assert "2 of 2 images that the model got right were attacked with success." in said
    loaded = camkit.load_model("demo:vgg")
    for number, record in enumerate(command_lines(tmp_path), 1):
        assert record["image"].endswith(f"scene-0{number}.png")
        assert (record["success"], record["already_wrong"]) == (True, False)
        assert record["read_back"] == {"as_saved": True, "resized": True}
        assert record["options"]["steps"] == 10
        adversarial, _ = loaded.read(tmp_path / record["picture"])
        before, _ = loaded.read(record["image"])
        label = record["label"]["class"]
        assert loaded.module(adversarial)[0, label] < 0 < loaded.module(before)[0, label]
        change = loaded.preprocessing.pixels(adversarial) - loaded.preprocessing.pixels(before)
        assert float(change.abs().max()) == pytest.approx(record["distance"], abs=1e-6)
        assert record["distance"] <= 12 / 255 + 1e-6
        probability = loaded.module(adversarial).detach().sigmoid()[0, label]
        assert record["prediction"]["after"]["label_probability"] == pytest.approx(float(probability), abs=1e-4)
        with Image.open(tmp_path / record["panel"]) as panel:
            assert min(panel.size) > 500


def test_the_command_towards_a_class_with_another_method(tmp_path):
    asked = ("--model", "demo:vgg", "--attack", "deepfool", "--to", "nine", "--method", "layercam")
    succeed("attack", SCENES / "scene-01.png", *asked, "-o", tmp_path)
    (record,) = command_lines(tmp_path)
    assert record["target"]["name"] == "nine"
    assert (record["epsilon"], record["norm"], record["map"]["method"]) == (None, "smallest", "layercam")
    again = succeed("attack", tmp_path / record["picture"], *asked, "-o", tmp_path)
    assert "0 of 0 images" in again
    assert "1 were wrong already" in again


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--eps", "a/b"), "--eps was 'a/b'; a number is expected, such as 8/255"),
        (("--eps", "8"), "Epsilon was 8.0; a change of pixels in [0, 1]"),
        (("--attack", "pdg"), "did you mean 'pgd'"),
        (("--to", "eleven"), "eleven"),
        (("--option", "steps=3"), "write method.option=value"),
        (("--attack", "square", "--norm", "l2"), "does not work in the threat model 'l2'"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(tmp_path, asked, words):
    done = run_command("attack", SCENES / "scene-01.png", "--model", "demo:vgg", *asked, "-o", tmp_path)
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "attacks.jsonl").exists()
