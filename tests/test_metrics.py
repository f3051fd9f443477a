"""Metrics: hand-computed cases, formulas step by step, variants, real effects, bad input, the conformance kit."""

import copy
import json
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import camkit
import reference_metrics as reference
import zoo
from camkit import Explainer, Sample, plugin
from camkit.evaluate import Evaluation
from camkit.judging import Batch, Judged
from camkit.methods import as_method
from camkit.metrics import KNOWN, Answers, Explain, as_metric
from camkit.preprocessing import Preprocessing
from camkit.registry import registry
from camkit.testing import check_metric
from camkit.testing.models import SmallConvNet, random_images
from camkit.testing.oracle import in_double
from commandline import succeed

NAMES = registry().names("metric")
NAN = math.nan
# fewer steps than a user would take
QUICK: dict[str, dict[str, Any]] = {
    "best_iou": {"thresholds": 10},
    "deletion": {"steps": 7},
    "infidelity": {"samples": 5},
    "insertion": {"steps": 7},
    "max_box_acc": {"thresholds": 10},
    "max_box_acc_v2": {"thresholds": 10},
    "max_sensitivity": {"samples": 2},
    "road": {"shares": (0.2, 0.6), "noise": 0.0},
    "road_lerf": {"shares": (0.2, 0.6), "noise": 0.0},
    "road_morf": {"shares": (0.2, 0.6), "noise": 0.0},
    "sanity_cascade": {"stages": 2},
    "sanity_independent": {"stages": 2},
}


def function(name: str) -> Callable[..., Tensor]:
    return as_metric(name).function


def close(found: Tensor, expected: Any, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(
        found.double(), torch.as_tensor(expected).double(), atol=tolerance, rtol=tolerance, equal_nan=True
    )


# --- by hand: places

# two components: three pixels upper left (with a peak of 0.8), five in the right column
HEAT = torch.tensor(
    [
        [0.8, 0.5, 0.0, 0.0, 0.3],
        [0.5, 0.0, 0.0, 0.0, 1.0],
        [0.0, 0.0, 0.0, 0.0, 0.6],
        [0.0, 0.0, 0.0, 0.0, 0.6],
        [0.0, 0.0, 0.0, 0.0, 0.6],
    ]
)
UPPER_LEFT = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
RIGHT = torch.tensor([[4.0, 0.0, 5.0, 5.0]])
NOWHERE = torch.zeros(0, 4)


@pytest.mark.parametrize(
    ("boxes", "options", "expected"),
    [
        (RIGHT, {}, 1.0),  # above 0.2 the right column is the largest
        (UPPER_LEFT, {}, 0.0),
        (UPPER_LEFT, {"around": "each"}, 1.0),
        (RIGHT, {"around": "all"}, 5 / 25),  # the whole image
        (RIGHT, {"threshold": 0.3}, 4 / 5),  # 0.3 itself is not above 0.3
        (UPPER_LEFT, {"threshold": 0.7, "around": "each"}, 1 / 4),  # the peak of 0.8 alone
        (torch.cat([UPPER_LEFT, RIGHT]), {}, 1.0),  # the best of the object's boxes
        (torch.tensor([[3.0, 0.0, 5.0, 10.0]]), {}, 5 / 20),
        (NOWHERE, {}, NAN),
    ],
)
def test_box_iou_by_hand(boxes, options, expected):
    close(function("box_iou")(HEAT[None], [boxes], **options), [expected])


def test_a_threshold_that_nothing_passes_gives_an_empty_box_and_no_error():
    assert function("box_iou")(HEAT[None] * 0.5, [RIGHT], threshold=0.6).tolist() == [0.0]


def test_max_box_acc_by_hand():
    """With t = 0, 1/4, 2/4, 3/4 the largest component is the right column to 1/4, then four of it, then the peak."""
    values = function("max_box_acc")(HEAT[None].expand(2, -1, -1), [RIGHT, UPPER_LEFT], thresholds=4)
    assert values.tolist() == [[1.0, 1.0, 1.0, 0.0], [0.0] * 4]
    assert as_metric("max_box_acc").reduce(values[None].double().numpy()).tolist() == [0.5]
    # each component by itself: upper left is [0, 0, 2, 2] up to 2/4 (0.5 is not above 0.5: the peak alone, 1/4)
    values = function("max_box_acc_v2")(HEAT[None].expand(2, -1, -1), [RIGHT, UPPER_LEFT], thresholds=4)
    assert values[1].tolist() == [[1.0, 1.0, 0.0, 0.0]] * 3
    assert values[0].tolist() == [[1.0, 1.0, 1.0, 0.0]] * 3
    assert as_metric("max_box_acc_v2").reduce(values[None].double().numpy()).tolist() == [1.0]


def test_the_threshold_is_chosen_over_the_data_set_and_not_for_each_sample():
    """Two samples that like different thresholds: 1 and 0 against 0 and 0.6 have the best mean 0.5."""
    curves = np.array([[[1.0, 0.0], [0.0, 0.6]]])
    assert as_metric("best_iou").reduce(curves).tolist() == [0.5]
    unjudged = np.concatenate([curves, np.full_like(curves[:, :1], NAN)], axis=1)
    assert as_metric("best_iou").reduce(unjudged).tolist() == [0.5]


def test_energy_and_pointing_by_hand():
    regions = torch.zeros(4, 5, 5, dtype=torch.bool)
    regions[0, :, 4] = True
    regions[1, :2, :2] = True
    regions[2] = True
    heat = HEAT[None].expand(4, -1, -1)
    close(function("energy_pointing_game")(heat, regions), [3.1 / 4.9, 1.8 / 4.9, 1.0, NAN])
    close(function("pointing_game")(heat, regions), [1.0, 0.0, 1.0, NAN])


def test_class_discrimination_by_hand():
    column, corner = torch.zeros(2, 1, 5, 5, dtype=torch.bool)
    column[:, :, 4], corner[:, :2, :2] = True, True
    discriminate, nowhere = function("class_discrimination"), torch.zeros_like(column)
    assert discriminate(HEAT[None], column, corner).tolist() == [1.0]
    assert discriminate(HEAT[None], corner, column).tolist() == [0.0]
    assert discriminate((HEAT > 0.7).float()[None], corner, column).tolist() == [0.5]
    # the peak of 1 is in both: what each has for itself counts, 0.8 and 0.6
    rows = torch.zeros_like(column)
    rows[:, :2] = True
    assert discriminate(HEAT[None], rows, column).tolist() == [1.0]
    for asked, other in ((nowhere, column), (column, nowhere), (column, column)):
        assert discriminate(HEAT[None], asked, other).isnan().all()


# --- by hand: answers


class Sums(nn.Module):
    """Two logits: the sum of all values, and zero; so the probability of class 0 is known."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 1, 1, bias=False)
        with torch.no_grad():
            self.body.weight.fill_(1)

    def forward(self, images: Tensor) -> Tensor:
        total = self.body(images).sum(dim=(1, 2, 3))
        return torch.stack([total, torch.zeros_like(total)], dim=1)


def sums() -> Explainer:
    adapter = camkit.Adapter(name="sums", targets={"last": {"path": "body"}})
    return Explainer(zoo.watch(Sums().eval()), adapter=adapter)


def judged(
    explainer: Explainer, images: Tensor, heatmaps: Tensor | None = None, target: Any = 0, **places: Any
) -> Judged:
    """What a metric can ask for about images [B, C, H, W] whose heatmaps are given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", camkit.CamkitWarning)
        explanation = explainer(images, target=target)
    if heatmaps is not None:
        object.__setattr__(explanation, "maps", heatmaps)
    return Judged(Batch(explainer, images, **places), explanation, as_method("gradcam").function)


def value(name: str, given: Judged, **options: Any) -> Tensor:
    metric = as_metric(name)
    return metric.values(given, metric.signature.options(options), len(given.images))


def sigma(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


ROW = torch.tensor([[[[0.4, 0.3, 0.2, 0.1]]]])
SLOPE = torch.tensor([[[1.0, 0.5, 0.25, 0.0]]])  # a heatmap with the order of the pixels


def test_confidence_by_hand():
    """Image times heatmap is 0.4 + 0.15 + 0.05 = 0.6, the image 1.0."""
    given = judged(sums(), ROW, SLOPE)
    before, after = sigma(1.0), sigma(0.6)
    close(value("average_drop", given), [(before - after) / before])
    close(value("average_drop", given, score="logit"), [0.4])
    close(value("average_drop", given, score="sigmoid"), [(before - after) / before])
    assert value("increase_in_confidence", given).tolist() == [0.0]
    assert value("average_gain", given).tolist() == [0.0]
    assert value("average_drop", given, score="correct").tolist() == [0.0]  # 0.6 is above 0 as well
    assert value("complexity", given).tolist() == [1.75 / 4]


def test_gain_by_hand():
    """Of class 1 the logits are 0 and the sum: the less is seen, the surer is it."""
    given = judged(sums(), ROW, SLOPE, target=1)
    before, after = sigma(-1.0), sigma(-0.6)
    close(value("average_gain", given), [(after - before) / (1 - before)])
    assert value("increase_in_confidence", given).tolist() == [1.0]
    assert value("average_drop", given).tolist() == [0.0]
    # a logit of 0 cannot drop by a share
    assert value("average_drop", given, score="logit").isnan().all()


def test_where_nothing_can_be_gained_the_gain_is_zero():
    given = judged(sums(), ROW * 1000, SLOPE)
    assert float(given.answers.before()) == 1.0
    assert value("average_gain", given).tolist() == [0.0]


def test_insertion_and_deletion_by_hand():
    """In four steps the logit is 1, 0.6, 0.3, 0.1, 0 as the pixels go, and 0, 0.4, 0.7, 0.9, 1 as they come."""
    given = judged(sums(), ROW, SLOPE)
    gone = sum([0.5, 0.6, 0.3, 0.1, 0.0]) / 4
    close(value("deletion", given, steps=4, score="logit"), [gone])
    close(value("insertion", given, steps=4, start="mean", score="logit"), [(0.4 + 0.7 + 0.9 + 0.5) / 4])
    curve = [sigma(logit) for logit in (1.0, 0.6, 0.3, 0.1, 0.0)]
    close(value("deletion", given, steps=4), [(sum(curve) - (curve[0] + curve[-1]) / 2) / 4])
    # three steps take 2, 3 and 4 pixels
    close(value("deletion", given, steps=3, score="logit"), [(1.3 / 2 * 0.5) + (0.4 / 2 * 0.25) + (0.1 / 2 * 0.25)])
    against = judged(sums(), ROW, SLOPE.flip(2))
    assert value("deletion", against, steps=4) > value("deletion", given, steps=4)


def test_equal_values_go_row_by_row():
    tied = judged(sums(), ROW, torch.tensor([[[0.0, 1.0, 1.0, 0.0]]]))
    # gone: nothing, the second, the third, the first, the fourth
    close(value("deletion", tied, steps=4, score="logit"), [(0.5 + 0.7 + 0.5 + 0.1) / 4])


def test_black_is_not_the_mean_colour():
    """With a mean of 0.5 and a deviation of 1 a black pixel is -0.5, so that four of them make the logit -2."""
    explainer = sums()
    explainer.preprocessing = Preprocessing(size=(1, 4), mean=(0.5,), std=(1.0,), channels=1)
    given = judged(explainer, ROW, SLOPE)
    close(value("deletion", given, steps=1, score="logit"), [(1.0 + 0.0) / 2])
    close(value("deletion", given, steps=1, score="logit", removed="black"), [(1.0 - 2.0) / 2])
    # pixels are the image + 0.5; half of them, seen by the model
    half = judged(explainer, ROW, torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]))
    close(value("average_drop", half, score="logit"), [(1.0 - 0.7) / 1.0])
    close(value("average_drop", half, score="logit", space="pixels"), [(1.0 - (0.7 - 1.0)) / 1.0])


def test_road_by_hand():
    """The upper half of a pixel column is gone: each missing one is the mean of what is left around it."""
    image = torch.tensor([[[[9.0, 5.0, 1.0]]]])
    heat = torch.tensor([[[0.5, 1.0, 0.0]]])
    given = judged(sums(), image, heat)
    # the middle goes first and becomes (9 + 1) / 2 = 5; last goes the right one, which becomes its neighbour's 5
    close(value("road_morf", given, shares=(1 / 3,), noise=0, score="logit"), [15.0])
    close(value("road_lerf", given, shares=(1 / 3,), noise=0, score="logit"), [19.0])
    close(value("road", given, shares=(1 / 3,), noise=0, score="logit"), [2.0])
    # two are gone, the left and the middle: both become 1
    close(value("road_morf", given, shares=(2 / 3,), noise=0, score="logit"), [3.0])


def test_noise_of_road_is_the_same_for_all_samples_and_follows_its_seed():
    images = random_images(2)
    explainer = Explainer(SmallConvNet(), adapter=SmallConvNet.adapter)
    options = {"shares": (0.5,), "noise": 0.3}
    one, again, other = (
        value("road_morf", judged(explainer, images, images[:, 0]), seed=seed, **options) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    swapped = value("road_morf", judged(explainer, images.flip(0), images.flip(0)[:, 0]), seed=1, **options)
    close(swapped.flip(0), one, 1e-5)


def test_wins_are_shared_by_those_who_tie():
    drops = np.array([[0.1, 0.5, 0.2, 0.3], [0.2, 0.5, 0.1, NAN]])
    assert as_metric("win_rate").reduce(drops).tolist() == pytest.approx([1.5 / 3, 1.5 / 3])
    assert as_metric("win_rate").reduce(np.array([[0.1, 0.2], [0.0, 0.2]])).tolist() == [0.25, 0.75]


def test_infidelity_by_hand():
    """The gradient of a linear answer has an infidelity of 0, whatever the changes; here it is 1 at every pixel."""
    given = judged(sums(), ROW, torch.ones(1, 1, 4))
    # a flat map is not judged by the metric, so the formula is asked directly
    ask = function("infidelity")
    nearly = torch.tensor([[[1.0, 1.0, 1.0, 1.0 - 1e-6]]])
    for moved in ("square", "noise"):
        options = {"moved": moved, "samples": 9, "score": "logit", "rescale": False, "size": 0.5}
        close(ask(nearly, ROW, given.answers, **options), [0.0], 1e-9)
        # twice the map tells twice the change: the mean of squared changes is left, if it may not be rescaled
        assert float(ask(2 * nearly, ROW, given.answers, **options)) > 1e-2
        close(ask(2 * nearly, ROW, given.answers, **{**options, "rescale": True}), [0.0], 1e-9)


# --- step by step, on demo models


@dataclass(frozen=True)
class Setting:
    """Small pictures of a demo model in double precision, with heatmaps that are neither flat nor tied."""

    explainer: Explainer
    given: Judged
    heatmaps: Tensor

    def ask(self, place: int, score: str = "probability") -> Callable[[np.ndarray], float]:
        index = int(self.given.class_index[place])

        def answer(image: np.ndarray) -> float:
            with torch.no_grad():
                logits = self.explainer.module(torch.from_numpy(image)[None])[0]
            if score == "logit":
                return float(logits[index])
            chances = logits.sigmoid() if self.explainer.probability == "sigmoid" else logits.softmax(dim=0)
            return float(chances[index])

        return answer

    def explain(self, place: int) -> Callable[[np.ndarray], np.ndarray]:
        index = int(self.given.class_index[place])
        return lambda image: self.explainer(torch.from_numpy(image)[None], target=index).heatmaps[0].double().numpy()


def setting(model: str = "demo:vgg", count: int = 2) -> Setting:
    explainer = in_double(Explainer(camkit.load_model(model)))
    images = zoo.scenes(count).double()
    given = judged(explainer, images, target="top")
    assert bool((given.heatmaps.flatten(1).amax(dim=1) == 1).all())
    return Setting(explainer, given, given.heatmaps)


@pytest.fixture(scope="module", params=["demo:vgg", pytest.param("demo:resnet", marks=pytest.mark.slow)])
def demo(request) -> Setting:
    return setting(request.param)


def compared(
    demo: Setting, name: str, expected: Callable[[int, np.ndarray, np.ndarray], Any], **options: Any
) -> Tensor:
    found = value(name, demo.given, **options)
    images = demo.given.images.numpy()
    heatmaps = demo.heatmaps.double().numpy()
    close(found, [expected(place, heatmaps[place], images[place]) for place in range(len(images))], 2e-5)
    return found


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_confidence_step_by_step(demo, score):
    def under(formula):
        return lambda place, heat, image: formula(heat, image, demo.ask(place, score))

    compared(demo, "average_drop", under(reference.average_drop), score=score)
    compared(demo, "increase_in_confidence", under(reference.increase), score=score)
    if score == "probability":
        compared(demo, "average_gain", under(reference.average_gain))


def test_curves_step_by_step(demo):
    def run(formula, ground):
        return lambda place, heat, image: formula(heat, image, demo.ask(place), 5, ground(image))

    gone = compared(demo, "deletion", run(reference.deletion, np.zeros_like), steps=5)
    there = compared(demo, "insertion", run(reference.insertion, np.zeros_like), steps=5, start="mean")
    assert bool((there > gone).all())


def test_the_blur_of_insertion_step_by_step(demo):
    small = demo.given.images[:, :, 30:46, 40:58]
    from camkit_metrics._removal import scene

    _, hidden, _ = scene("blurred", small, small)
    close(hidden[0], reference.blurred(small[0].numpy()), 1e-9)


def test_road_step_by_step():
    """On an image so small that elimination by hand is quick."""
    explainer = in_double(Explainer(SmallConvNet(), adapter=SmallConvNet.adapter))
    images = random_images(2, 12).double()
    heatmaps = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(4)).double()
    demo = Setting(explainer, judged(explainer, images, heatmaps), judged(explainer, images, heatmaps).heatmaps)
    shares = (0.1, 0.45, 0.9)
    for number, name in enumerate(("road_morf", "road_lerf", "road")):
        compared(
            demo,
            name,
            lambda place, heat, image, number=number: reference.road(heat, image, demo.ask(place), shares)[number],
            shares=shares,
            noise=0,
        )


def test_coherency_and_adcc_step_by_step(demo):
    compared(demo, "coherency", lambda place, heat, image: reference.coherency(heat, image, demo.explain(place)))
    compared(demo, "complexity", lambda place, heat, image: reference.complexity(heat))
    compared(demo, "adcc", lambda place, heat, image: reference.adcc(heat, image, demo.ask(place), demo.explain(place)))


def test_sensitivity_and_infidelity_step_by_step(demo):
    generator = torch.Generator().manual_seed(7)
    shape = demo.given.images.shape[1:]
    changes = [0.05 * (2 * torch.rand(shape, generator=generator).double() - 1).numpy() for _ in range(3)]
    compared(
        demo,
        "max_sensitivity",
        lambda place, heat, image: reference.max_sensitivity(heat, image, demo.explain(place), changes),
        radius=0.05,
        samples=3,
        seed=7,
    )
    generator = torch.Generator().manual_seed(7)
    noise = [0.2 * torch.randn(shape, generator=generator).double().numpy() for _ in range(6)]
    compared(
        demo,
        "infidelity",
        lambda place, heat, image: reference.infidelity(heat, image, demo.ask(place), noise),
        moved="noise",
        samples=6,
        seed=7,
    )


def test_boxes_step_by_step():
    generator = torch.Generator().manual_seed(2)
    heatmaps = torch.nn.functional.avg_pool2d(torch.rand(6, 1, 22, 26, generator=generator), 3, stride=1)[:, 0]
    heatmaps = (heatmaps - heatmaps.amin(dim=(1, 2), keepdim=True)) / (
        heatmaps.amax(dim=(1, 2), keepdim=True) - heatmaps.amin(dim=(1, 2), keepdim=True)
    )
    boxes = [torch.tensor([[2.0, 3, 11, 12], [12, 1, 20, 9]])] * 6
    plain = [[tuple(box) for box in own.tolist()] for own in boxes]
    count = 8
    curves = {
        around: [
            reference.iou_curve(heat, own, count, around) for heat, own in zip(heatmaps.numpy(), plain, strict=True)
        ]
        for around in ("largest", "all", "each")
    }
    for around, expected in curves.items():
        assert np.std(expected) > 0.03
        close(function("best_iou")(heatmaps, boxes, thresholds=count, around=around), expected)
    for name, expected in [
        ("best_iou", reference.best_iou(curves["largest"])),
        ("max_box_acc", reference.max_box_acc(curves["largest"], 0.5)),
        ("max_box_acc_v2", reference.max_box_acc_v2(curves["each"])),
    ]:
        values = function(name)(heatmaps, boxes, thresholds=count)
        assert as_metric(name).reduce(values[None].double().numpy()).tolist() == pytest.approx([expected])


def test_rank_correlation_step_by_step():
    from camkit_metrics._similarity import pearson, spearman

    one, other = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    one[0, 0, :3] = 0.5  # ties share their rank
    close(spearman(one, other), [reference.spearman(a.numpy(), b.numpy()) for a, b in zip(one, other, strict=True)])
    close(pearson(one, other), [reference.pearson(a.numpy(), b.numpy()) for a, b in zip(one, other, strict=True)])
    assert pearson(torch.ones(1, 2, 2), other[:1, :2, :2].float()).isnan().all()


# --- real effects


@pytest.fixture(scope="module")
def resnet() -> Explainer:
    return Explainer(camkit.load_model("demo:resnet"))


def test_a_class_agnostic_map_loses_where_classes_are_to_be_told_apart(resnet):
    """Each of two digits is asked for in turn: a map that is the same for both gets exactly one half."""
    found = camkit.measure(resnet, "class_discrimination", method=["gradcam", "eigencam"], data_options={"count": 12})
    assert found[0].value > 0.9
    assert found[1].value == 0.5
    assert [one.count for one in found] == [24, 24]
    assert found[0].low > found[1].value


def test_sanity_checks_tell_maps_of_the_model_from_maps_of_the_image(resnet):
    """Grad-CAM changes when the last layer does; a map of the image alone never does."""

    @plugin.method("brightness", paper="none")
    def brightness(images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.mean(dim=1), 12)

    measured = camkit.measure(
        resnet,
        ["sanity_cascade", "sanity_independent"],
        method=["gradcam", brightness],
        data_options={"count": 3},
        metric_options={"sanity_cascade.stages": 3, "sanity_independent.stages": 3},
    )
    found = {(one.metric, one.method): one for one in measured}
    for metric in ("sanity_cascade", "sanity_independent"):
        assert found[metric, "brightness"].value == pytest.approx(1)
        assert found[metric, "gradcam"].value < 0.6
        assert found[metric, "gradcam"].values.shape == (6, 3)
    # EigenCAM never asks the head: what is randomised behind the layer does not matter to it
    explainer, images = resnet, zoo.scenes(2)
    explain = Judged(
        Batch(explainer, images), explainer(images, "eigencam", relu=True), as_method("eigencam").function
    ).explain
    assert explain.layers[-1] == "fc"
    changed = explain.randomised(("fc",), 0)
    torch.testing.assert_close(changed.maps(images), explain.maps(images))
    gradcam = judged(explainer, images, target="top").explain
    assert not torch.allclose(gradcam.randomised(("fc",), 0).maps(images), gradcam.maps(images))


def test_a_randomised_layer_keeps_mean_and_deviation_and_nothing_else(resnet):
    zoo.watch(resnet.module)
    before = {name: parameter.clone() for name, parameter in resnet.module.named_parameters()}
    explain = judged(resnet, zoo.scenes(1), target="top").explain
    twin = explain.randomised(("fc", "layer4.0.conv1"), 3).explainer.module
    for name, parameter in twin.named_parameters():
        same = torch.equal(parameter, before[name])
        assert same != (name.startswith(("fc.", "layer4.0.conv1")))
    weight, drawn = before["layer4.0.conv1.weight"], twin.layer4[0].conv1.weight
    assert float(drawn.std()) == pytest.approx(float(weight.std()), rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([weight.flatten(), drawn.flatten()]))[0, 1])) < 0.03
    # a layer's draw does not depend on which others are drawn
    alone = explain.randomised(("fc",), 3).explainer.module
    assert torch.equal(alone.fc.weight, twin.fc.weight)
    assert not torch.equal(explain.randomised(("fc",), 4).explainer.module.fc.weight, twin.fc.weight)
    assert all(torch.equal(parameter, before[name]) for name, parameter in resnet.module.named_parameters())


def test_maps_of_the_model_beat_noise_by_every_measure_of_faithfulness(resnet):
    @plugin.method("speckle", paper="none")
    def speckle(images: Tensor) -> Tensor:
        drawn = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
        return drawn.expand(len(images), 6, 6)

    metrics = ["average_drop", "insertion", "deletion", "road", "energy_pointing_game", "adcc", "best_iou"]
    measured = camkit.measure(
        resnet,
        metrics,
        method=["gradcam", speckle],
        data_options={"count": 3},
        metric_options={
            "insertion.steps": 6,
            "deletion.steps": 6,
            "road.shares": (0.3,),
            "best_iou.thresholds": 10,
        },
    )
    assert [one.metric for one in measured] == [name for name in metrics for _ in range(2)]
    for right, wrong in zip(measured[::2], measured[1::2], strict=True):
        assert (right.value > wrong.value) == right.higher_is_better, right.metric


def test_variants_differ_by_tens_of_points_and_the_models_own_is_the_default(resnet):
    """The demo model is a sigmoid model: by softmax its confidence in two digits at once means nothing."""
    given = samples(2)
    found = {
        score: camkit.measure(resnet, "average_drop", given, metric_options={"score": score})
        for score in ("probability", "sigmoid", "softmax")
    }
    assert found["probability"].value == found["sigmoid"].value
    assert abs(found["sigmoid"].value - found["softmax"].value) > 0.2


def test_models_in_half_precision_are_measured_alike(resnet):
    half = Explainer(copy.deepcopy(resnet.module).bfloat16(), preprocessing=resnet.preprocessing)
    whole = Explainer(resnet.module, preprocessing=resnet.preprocessing)
    settings = {"metric": ["insertion", "coherency", "box_iou"], "metric_options": {"insertion.steps": 5}}
    for one, other in zip(*(camkit.measure(own, data=samples(2), **settings) for own in (half, whole)), strict=True):
        assert one.value == pytest.approx(other.value, abs=0.02)


# --- the evaluation


def samples(count: int = 4) -> list[Sample]:
    return list(registry().get("dataset", "digit_scenes").samples({"count": count}))


METRICS = ["pointing_game", "average_drop", "win_rate", "max_box_acc"]


def evaluation(explainer: Explainer, **settings: Any) -> Evaluation:
    given = {"method": ["gradcam", "eigencam"], "metric_options": {"max_box_acc.thresholds": 5}, **settings}
    return Evaluation(explainer, METRICS, **given)


def test_rows_may_come_in_any_batches_and_go_through_json(resnet):
    run, given = evaluation(resnet), samples()
    whole = run(given)
    pieces = [row for start in (0, 1, 4) for row in run(given[start : {0: 1, 1: 4, 4: 8}[start]])]
    read = [json.loads(json.dumps(row)) for row in pieces]
    assert [row["name"] for row in read] == [sample.name for sample in given]
    for one, other in zip(run.reduce(whole), evaluation(resnet).reduce(iter(read)), strict=True):
        assert (one.metric, one.method, one.count) == (other.metric, other.method, other.count)
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-5)
        torch.testing.assert_close(one.values, other.values, equal_nan=True, atol=1e-5, rtol=1e-5)
    row = whole[0]
    assert row["label"] == row["explained"] == given[0].class_index
    assert set(row["values"]) == {"gradcam", "eigencam"}
    assert list(row["values"]["gradcam"]) == METRICS
    assert len(row["values"]["gradcam"]["max_box_acc"]) == 5
    images = resnet.preprocessing(given[0].picture)[None]
    assert row["predicted"] == int(resnet.logits(images).argmax())
    assert row["probability"] == pytest.approx(float(resnet.logits(images).sigmoid()[0, row["label"]]), abs=1e-5)


def test_measure_is_what_the_evaluation_reduces(resnet):
    given = samples()
    run = evaluation(resnet, seed=3)
    expected = run.reduce(run(given))
    found = camkit.measure(
        resnet,
        METRICS,
        iter(given),
        method=["gradcam", "eigencam"],
        metric_options={"max_box_acc.thresholds": 5},
        batch_size=8,
        seed=3,
    )
    for one, other in zip(found, expected, strict=True):
        assert (one.metric, one.method, one.unit, one.count) == (other.metric, other.method, other.unit, other.count)
        assert (one.value, one.low, one.high) == (other.value, other.low, other.high)
        assert one.low <= one.value <= one.high
    single = camkit.measure(resnet, "average_drop", given, batch_size=8)
    assert single.value == found[METRICS.index("average_drop") * 2].value
    assert isinstance(camkit.measure(resnet, ["average_drop"], given), list)


@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
def test_the_class_that_is_explained_can_be_the_predicted_one(resnet):
    given = [Sample(sample.picture, (sample.class_index + 1) % 10) for sample in samples(2)]
    true, top = (Evaluation(resnet, "average_drop", target=target)(given) for target in ("true", "top"))
    assert [row["explained"] for row in true] == [sample.class_index for sample in given]
    assert [row["explained"] for row in top] == [row["predicted"] for row in top]
    unknown = Evaluation(resnet, "average_drop")([Sample(given[0].picture, -1)])[0]
    assert unknown["explained"] == top[0]["predicted"]


def test_only_what_is_asked_for_is_computed(resnet, monkeypatch):
    calls: list[int] = []
    handle = resnet.module.register_forward_hook(lambda *_: calls.append(1))
    try:
        camkit.measure(resnet, ["pointing_game", "complexity"], samples(1), method=["gradcam", "layercam"])
        assert len(calls) == 1
        calls.clear()
        # one more pass for each method, whatever the number of metrics that mask alike
        confidence = ["average_drop", "increase_in_confidence", "average_gain"]
        camkit.measure(resnet, confidence, samples(1), method=["gradcam", "layercam"])
        assert len(calls) == 3
    finally:
        handle.remove()
    resnet.module._forward_hooks.clear()


def test_boxes_reach_the_metric_in_pixels_of_the_models_input():
    """A picture of 40 x 20 that is cut to its middle: what lies outside is gone, the rest moves."""
    seen: list[list[Tensor]] = []

    @plugin.metric("boxes", paper="none", higher_is_better=True)
    def boxes_seen(boxes: list[Tensor], regions: Tensor, other_regions: Tensor) -> Tensor:
        seen.append(boxes)
        return torch.stack([regions.sum(dim=(1, 2)), other_regions.sum(dim=(1, 2))], dim=1).float()

    small = Preprocessing(size=(20, 20), mean=(0, 0, 0), std=(1, 1, 1))
    explainer = Explainer(SmallConvNet(), adapter=SmallConvNet.adapter, preprocessing=small)
    picture = Image.new("RGB", (40, 20), (90, 30, 60))
    own = ((12.0, 3.0, 15.0, 8.0), (14.0, 5.0, 20.0, 9.0), (0.0, 0.0, 5.0, 5.0))
    sample = Sample(picture, 1, own, objects=((1, own[0]), (2, (28.0, 0.0, 40.0, 4.0))))
    measured = camkit.measure(explainer, boxes_seen, [sample])
    assert seen[0][0].tolist() == [[2.0, 3.0, 5.0, 8.0], [4.0, 5.0, 10.0, 9.0]]
    # 15 + 24 - 3 pixels that both cover; of the other class's twelve columns two are left
    assert measured.values.tolist() == [[36.0, 8.0]]


def test_a_seed_reaches_every_metric_that_can_be_seeded(resnet):
    run = Evaluation(resnet, ["road", "infidelity"], metric_options={"infidelity.seed": 5}, seed=9)
    assert run._metric_options["road"]["seed"] == 9
    assert run._metric_options["infidelity"]["seed"] == 5


# --- bad input


@plugin.metric("too-many", paper="none", higher_is_better=True)
def too_many(heatmaps: Tensor) -> Tensor:
    return torch.zeros(len(heatmaps) + 1)


@plugin.metric("endless", paper="none", higher_is_better=True)
def endless(heatmaps: Tensor) -> Tensor:
    return torch.full_like(heatmaps[:, 0, 0], torch.inf)


@plugin.metric("raises", paper="none", higher_is_better=True)
def raises(heatmaps: Tensor) -> Tensor:
    return heatmaps[:, 10_000]


def test_what_makes_no_sense_is_refused_before_work_begins(resnet, monkeypatch):
    no_boxes = [Sample(sample.picture, sample.class_index) for sample in samples(1)]
    one_class = [Sample(sample.picture, sample.class_index, sample.boxes) for sample in samples(1)]
    monkeypatch.setattr(Explainer, "__call__", lambda *_, **__: pytest.fail("work began"))
    for call, words in [
        (lambda: camkit.measure(resnet, "box_iou", no_boxes), "'box_iou' needs boxes, and none of the first 2 samples"),
        (lambda: camkit.measure(resnet, ["complexity", "pointing_game"], no_boxes), "'pointing_game' needs boxes"),
        (lambda: camkit.measure(resnet, "class_discrimination", one_class), "needs pictures of several classes"),
        (lambda: camkit.measure(resnet, "win_rate"), "'win_rate' compares methods; give 2 or more"),
        (lambda: camkit.measure(resnet, ["adcc", "adcc"]), "given twice"),
        (lambda: camkit.measure(resnet, "adcc", method=["gradcam", "gradcam"]), "given twice"),
        (lambda: camkit.measure(resnet, ["adcc", "road"], metric_options={"seed": 1}), "With several metrics"),
        (lambda: camkit.measure(resnet, "adcc", metric_options={"road.seed": 1}), "'road', which was not asked for"),
        (
            lambda: camkit.measure(resnet, "adcc", metric_options={"space": "rgb"}),
            "Option 'space' of the metric 'adcc'",
        ),
        (lambda: camkit.measure(resnet, "average_gain", metric_options={"score": "logit"}), "Option 'score'"),
        (lambda: camkit.measure(resnet, "box_iou", metric_options={"threshold": 1}), "less than 1"),
        (lambda: camkit.measure(resnet, "deletion", metric_options={"steps": 0}), "Option 'steps'"),
        (lambda: camkit.measure(resnet, "road", metric_options={"shares": []}), "Option 'shares'"),
        (lambda: camkit.measure(resnet, "pointing"), "did you mean 'pointing_game'"),
        (lambda: camkit.measure(resnet, torch.sigmoid), "'sigmoid' is not a metric"),
    ]:
        with zoo.refused(words):
            call()


def test_what_a_metric_must_not_return_is_refused(resnet):
    given = samples(1)
    for metric, words in [
        (too_many, "'too-many' returned shape [3]; one value per sample is expected, [2]"),
        (endless, "'endless' returned an infinite value"),
    ]:
        with zoo.refused(words):
            camkit.measure(resnet, metric, given)
    with pytest.raises(camkit.CamkitError, match="The metric 'raises' failed: IndexError"):
        camkit.measure(resnet, raises, given)
    with zoo.refused("names several"):
        camkit.measure(resnet, "complexity", given, target="top-2")
    run = Evaluation(resnet, ["complexity"])
    with zoo.refused("no samples"):
        run.reduce([])
    rows = run(given)
    with zoo.refused("do not hold 'adcc' of gradcam"):
        Evaluation(resnet, "adcc").reduce(rows)


# --- the conformance kit


# what these do differently from a quick one is not in the contract
ALIKE = ("max_box_acc", "max_box_acc_v2", "best_iou", "road_morf", "road_lerf", "sanity_independent", "insertion")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in NAMES]
)
def test_first_party_metrics_keep_the_contract(name):
    check_metric(name, options=QUICK.get(name))


def metric(**facts: Any) -> Callable[[Any], Any]:
    return plugin.metric("broken", **{"paper": "none", "higher_is_better": True, **facts})


@metric()
def judges_flat(heatmaps: Tensor) -> Tensor:
    return heatmaps.mean(dim=(1, 2))


@metric()
def looks_at_neighbours(heatmaps: Tensor) -> Tensor:
    flat = heatmaps.amax(dim=(1, 2)) == heatmaps.amin(dim=(1, 2))
    return (heatmaps.mean(dim=(1, 2)) - heatmaps.mean()).masked_fill(flat, torch.nan)


@metric()
def draws(images: Tensor) -> Tensor:
    return images.mean(dim=(1, 2, 3)) + torch.rand(1)


_count = [0]


@metric()
def counts(images: Tensor) -> Tensor:
    _count[0] += 1
    return images.mean(dim=(1, 2, 3)) + _count[0]


@metric(higher_is_better=False)
def upside_down(heatmaps: Tensor, regions: Tensor) -> Tensor:
    found = (heatmaps * regions).sum(dim=(1, 2)) / heatmaps.sum(dim=(1, 2))
    return found.masked_fill(~regions.flatten(1).any(dim=1), torch.nan)


@metric()
def counts_a_missing_box_as_a_miss(heatmaps: Tensor, regions: Tensor) -> Tensor:
    return (heatmaps * regions).sum(dim=(1, 2)) / heatmaps.sum(dim=(1, 2))


@metric()
def writes_in_place(images: Tensor) -> Tensor:
    return images.mul_(0.5).mean(dim=(1, 2, 3))


@metric()
def writes_into_maps(heatmaps: Tensor, maps: Tensor) -> Tensor:
    flat = heatmaps.amax(dim=(1, 2)) == heatmaps.amin(dim=(1, 2))
    return maps.mul_(0.5).mean(dim=(1, 2)).masked_fill(flat, torch.nan)


@metric()
def changes_the_model(images: Tensor, explain: Explain) -> Tensor:
    explain.explainer.module.requires_grad_(False)
    return images.mean(dim=(1, 2, 3))


@metric()
def infinite(images: Tensor) -> Tensor:
    return images.mean(dim=(1, 2, 3)) / 0


@metric()
def one_for_all(images: Tensor) -> Tensor:
    return images.mean()


@metric()
def without_a_type(images: Tensor, *, power=2) -> Tensor:
    return images.mean(dim=(1, 2, 3)) ** power


@metric(reduce=lambda values: values.mean())
def reduces_to_one(images: Tensor) -> Tensor:
    return images.mean(dim=(1, 2, 3))


@metric(reduce=lambda values: values[:, 0])
def reduces_to_the_first(images: Tensor) -> Tensor:
    return images.mean(dim=(1, 2, 3))


@metric(reduce=lambda values: np.nan_to_num(values).mean(axis=1))
def lets_nan_count(images: Tensor) -> Tensor:
    return images.mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (judges_flat, "judged a flat map"),
        (looks_at_neighbours, "lets the samples of a batch influence each other"),
        (draws, "drew from the global random generator"),
        (counts, "gave two values for one question"),
        (upside_down, "lower is better, as higher_is_better says"),
        (counts_a_missing_box_as_a_miss, "judged samples without boxes"),
        (writes_in_place, "changed in place what it was given"),
        (writes_into_maps, "changed in place what it was given"),
        (changes_the_model, "left the model changed"),
        (infinite, "returned an infinite value"),
        (one_for_all, "one value per sample is expected"),
        (without_a_type, "The option 'power' of the metric 'broken' has no type"),
        (reduces_to_one, "reduced two methods' values"),
        (reduces_to_the_first, "reduced other values when samples changed places"),
        (lets_nan_count, "let a sample count whose values are NaN"),
    ],
)
def test_the_conformance_kit_finds_what_is_broken(broken, words):
    with pytest.raises(AssertionError) as caught:
        check_metric(broken)
    assert words in str(caught.value)


def test_a_documented_value_of_flat_maps_is_accepted():
    @metric(higher_is_better=False)
    def mass(heatmaps: Tensor) -> Tensor:
        return heatmaps.mean(dim=(1, 2))

    check_metric(mass, flat=0.0)


def test_the_kit_takes_a_model_of_ones_own(resnet):
    check_metric("average_drop", resnet, zoo.scenes(2))
    with zoo.refused("at least two images"):
        check_metric("average_drop", resnet, zoo.scenes(1))


# --- what can be asked for, and the documents


def test_everything_that_can_be_asked_for_is_there(resnet):
    masks = [torch.ones(1, 96, 96, dtype=torch.bool)] * 2
    given = judged(resnet, zoo.scenes(2), target="top", objects=masks, others=masks)
    for name, kind in KNOWN.items():
        found = given[name]
        if kind is Tensor:
            assert len(found) == 2, name
    assert float(given["pixels"].min()) >= 0
    assert float(given["pixels"].max()) <= 1
    close(given["probabilities"], given["logits"].sigmoid())
    answers: Answers = given["answers"]
    close(answers.before("logit"), given["logits"].gather(1, given["class_index"][:, None])[:, 0])
    # asked about the images themselves, in either space, the model says what it said
    for space in ("images", "pixels"):
        again = answers.map(lambda place, space=space: given[space], 3, score="logit", space=space)
        assert again.shape == (2, 3)
        close(again, answers.before("logit")[:, None].expand(2, 3), 1e-3)


def test_correct_is_the_top_class_by_softmax_and_a_positive_logit_by_sigmoid():
    for probability, expected in (("softmax", [0.0, 1.0]), ("sigmoid", [1.0, 1.0])):
        network = SmallConvNet()
        adapter = SmallConvNet.adapter.model_copy(update={"probability": probability})
        explainer = Explainer(network, adapter=adapter)
        given = judged(explainer, random_images(2), target=0)
        logits = torch.tensor([[1.0, 2.0, 0, 0, 0], [3.0, 2.0, 0, 0, 0]])
        given.answers.logits = logits
        assert given.answers.before("correct").tolist() == expected


PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics: written by tests/test_metrics.py -->\n", "<!-- end -->"


def table() -> str:
    """The metrics as docs/metrics.md lists them."""
    lines = ["| metric | what it says | unit | better | asks for | paper |", "|---|---|---|---|---|---|"]
    for item in registry().items("metric"):
        if item.distribution != "camkit":
            continue
        found = item.value
        what = " ".join(found.function.__doc__.split("\n\n")[0].split()).rstrip(".")
        asks = ", ".join(f"`{ask}`" for ask in found.signature.asks)
        lines.append(f"| `{found.name}` | {what} | {found.unit} | {found.facts['better']} | {asks} | {found.paper} |")
    return "\n".join(lines) + "\n"


def test_the_page_lists_the_metrics_as_they_are():
    """With CAMKIT_WRITE=1 the table is written anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    expected = before + BEGIN + table() + END + after
    if os.environ.get("CAMKIT_WRITE"):
        PAGE.write_text(expected, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == expected
    assert all(f"`{name}`" in after for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_says_its_definition_and_what_is_nan(name):
    text = " ".join(registry().get("metric", name).function.__doc__.split())
    assert f"Definition ``{name.replace('_', '-')}/1``" in text
    assert "NaN" in text


def test_the_command_line_shows_a_metric():
    shown = succeed("plugins", "average_drop")
    assert "better: lower" in shown
    assert "option: average_drop.space" in shown


def test_the_masked_images_of_all_methods_go_through_the_model_together():
    explainer = camkit.Explainer(camkit.load_model("demo:resnet"))
    shown: list[int] = []
    explainer.module.register_forward_pre_hook(lambda module, given: shown.append(len(given[0])))
    methods = ["gradcam", "layercam", "random"]
    metrics = ["average_drop", "increase_in_confidence", "average_gain", "win_rate"]
    together = camkit.measure(explainer, metrics, method=methods, target="top", data_options={"count": 2})
    # four samples: explained once, and masked by each of three maps, of which the first tells how many fit
    assert shown == [4, 4, 8]
    alone = [
        camkit.measure(explainer, metrics[:3], method=one, target="top", data_options={"count": 2}) for one in methods
    ]
    for place, one in enumerate(together[: 3 * len(methods)]):
        torch.testing.assert_close(one.values, alone[place % 3][place // 3].values, equal_nan=True)
