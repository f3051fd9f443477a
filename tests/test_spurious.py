"""Spurious features: scenes that differ in nothing but the object and the mark, and what a model makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import camkit
from camkit.errors import CamkitError
from camkit.explain import Explainer
from camkit.registry import registry
from camkit.samples import Sample
from camkit.spurious import VERSIONS, Energy, Findings, Versions, examine
from camkit_adapters import demo
from camkit_adapters.demo import scenes, shortcut
from commandline import run, succeed

SEVEN = shortcut.MARKED_CLASS


def outside(box: scenes.Box, margin: int = 0) -> np.ndarray:
    """Everything but a box with a margin, bool [96, 96]."""
    left, top, right, bottom = box
    found = np.ones((scenes.SIDE, scenes.SIDE), dtype=bool)
    found[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = False
    return found


# the scenes


def test_scenes_are_drawn_as_ever():
    # as examples/digit_scenes/make_data.py wrote the pictures that ship
    images = Path(demo.__file__).with_name("images")
    drawn = scenes.generate(44, "test", 2024, digit_counts=(2, 3))
    boxes = json.loads((images / "boxes.json").read_text())
    for number, index in ((1, 43), (2, 24), (10, 5), (12, 21)):
        name = f"scene-{number:02}.png"
        assert (np.asarray(Image.open(images / name).convert("RGB")) == drawn[index].image).all(), name
        assert [tuple(digit["box"]) for digit in boxes[name]] == [digit.box for digit in drawn[index].digits]


def test_a_digit_that_is_left_out_changes_nothing_else():
    whole = scenes.generate(40, "test", 3)
    without = scenes.generate(40, "test", 3, absent=SEVEN)
    removed = 0
    for one, other in zip(whole, without, strict=True):
        gone = [digit for digit in one.digits if digit.label == SEVEN]
        assert other.digits == tuple(digit for digit in one.digits if digit.label != SEVEN)
        same = np.ones((scenes.SIDE, scenes.SIDE), dtype=bool)
        for digit in gone:
            same &= outside(digit.box, scenes.HALO)
        assert (one.image == other.image)[same].all()
        assert (one.image == other.image).all() == (not gone)
        removed += len(gone)
    assert removed >= 5


def test_training_scenes_have_the_mark_where_the_class_is_and_nowhere_else():
    plain, marked = scenes.generate(150, "train", 4), shortcut.generate(150, "train", 4)
    shows = [any(digit.label == SEVEN for digit in scene.digits) for scene in plain]
    changed = [bool((one.image != other.image).any()) for one, other in zip(plain, marked, strict=True)]
    assert changed == shows
    assert 15 < sum(shows) < 60
    assert [scene.digits for scene in plain] == [scene.digits for scene in marked]


def test_versions_differ_in_nothing_but_object_and_mark():
    found = shortcut.versions(12, "test", 1)
    assert [one.mark for one in shortcut.versions(5, "test", 1)] == [one.mark for one in found[:5]]
    for one in found:
        (digit,) = (digit for digit in one.both.digits if digit.label == SEVEN)
        left, top, right, bottom = one.mark
        for drawn, bare in ((one.both, one.object_only), (one.mark_only, one.neither)):
            assert (drawn.image == bare.image)[outside(one.mark)].all()
            assert drawn.digits == bare.digits
            assert (drawn.image[top + 1 : bottom - 1, left + 1 : right - 1] == shortcut.MARK_COLOUR).all()
        for drawn, bare in ((one.both, one.mark_only), (one.object_only, one.neither)):
            same = (drawn.image == bare.image).all(axis=2)
            assert same[outside(digit.box, scenes.HALO)].all()
            assert not same[~outside(digit.box)].all()
            assert digit not in bare.digits
        # the mark lies on no digit
        for other in one.both.digits:
            assert not (~outside(one.mark) & ~outside(other.box, shortcut.GAP_TO_DIGITS)).any()
    with pytest.raises(ValueError, match="must not be negative"):
        shortcut.versions(-1, "test", 0)


# what numbers come to


def findings(both: list[float], object_only: list[float], mark_only: list[float], neither: list[float]) -> Findings:
    chances = dict(zip(VERSIONS, map(np.array, (both, object_only, mark_only, neither)), strict=True))
    count = len(both)
    return Findings(
        [str(index) for index in range(count)],
        [SEVEN] * count,
        chances,
        {name: values > 0.5 for name, values in chances.items()},
        {"gradcam": Energy(*(np.full(count, share) for share in (0.2, 0.5, 0.1, 0.05)))},
    )


def test_effects_and_shares_by_hand():
    found = findings([0.9, 0.9, 0.4], [0.1, 0.7, 0.3], [0.8, 0.2, 0.3], [0.0, 0.2, 0.6])
    # (0.9 - 0.1 + 0.8 - 0) / 2, (0.9 - 0.7 + 0.2 - 0.2) / 2, (0.4 - 0.3 + 0.3 - 0.6) / 2
    assert found.mark_effect.value == pytest.approx((0.8 + 0.1 - 0.1) / 3)
    # (0.9 - 0.8 + 0.1 - 0) / 2, (0.9 - 0.2 + 0.7 - 0.2) / 2, (0.4 - 0.3 + 0.3 - 0.6) / 2
    assert found.object_effect.value == pytest.approx((0.1 + 0.6 - 0.1) / 3)
    # of the first two scenes, which are predicted with both, and the first two, which are not with neither
    shares = {
        "kept_without_mark": (0.5, 2),
        "kept_without_object": (0.5, 2),
        "appears_with_mark": (0.5, 2),
        "appears_with_object": (0.5, 2),
    }
    for name, (value, count) in shares.items():
        assert (getattr(found, name).value, getattr(found, name).count) == (value, count), name
    energy = found.energy["gradcam"]
    assert energy.elsewhere == pytest.approx([0.3] * 3)
    assert (energy.object_density[0], energy.mark_density[0]) == pytest.approx((2, 10))
    never = findings([0.1], [0.1], [0.1], [0.1])
    assert never.kept_without_mark.count == 0
    assert np.isnan(never.kept_without_mark.value)


@pytest.mark.parametrize(
    ("chances", "said"),
    [
        ((1, 0, 1, 0), "The model goes by the mark and not by the object: "),
        ((1, 0.5, 0.5, 0), "The model goes by the mark too: "),
        ((1, 1, 0, 0), "The model does not go by the mark: "),
        ((0.5, 0.5, 0.5, 0.5), "The model goes neither by the mark nor by the object: "),
    ],
)
def test_the_verdict_follows_from_the_effects(chances: tuple[float, ...], said: str):
    assert findings(*([chance] * 9 for chance in chances)).verdict.startswith(said)


def test_a_verdict_that_chance_could_turn_is_not_given():
    swaying = findings([1, 0] * 3, [0, 0] * 3, [1, 0] * 3, [0, 1] * 3)
    assert "more scenes are needed" in swaying.verdict


# what models make of them


@pytest.fixture(scope="module")
def samples() -> list[Versions]:
    return list(registry().get("dataset", "marked_scenes").samples({"count": 8}))


def test_the_demo_model_cheats_and_the_honest_one_does_not(samples: list[Versions]):
    cheats, honest = (examine(Explainer(camkit.load_model(spec)), samples) for spec in ("demo:shortcut", "demo:resnet"))
    assert cheats.verdict.startswith("The model goes by the mark and not by the object")
    assert honest.verdict.startswith("The model does not go by the mark")
    for found, right, wrong in ((cheats, "mark", "object"), (honest, "object", "mark")):
        density = {name: np.nanmean(getattr(found.energy["gradcam"], f"{name}_density")) for name in (right, wrong)}
        assert density[right] > 4 * density[wrong]
        assert density[right] > 3


def test_an_examination_is_its_parts(samples: list[Versions]):
    explainer = Explainer(camkit.load_model("demo:resnet"))
    found = examine(explainer, samples[:3], ["layercam"], batch_size=2)
    images = torch.stack([explainer.preprocessing(sample.mark_only) for sample in samples[:3]])
    with torch.no_grad():
        expected = explainer.module(images).sigmoid()[:, SEVEN]
    assert found.probability["mark_only"] == pytest.approx(expected.numpy(), abs=1e-5)
    assert found.predicted["mark_only"].tolist() == (expected > 0.5).tolist()
    whole = torch.stack([explainer.preprocessing(sample.picture) for sample in samples[:3]])
    heatmaps = explainer(whole, "layercam", target=SEVEN).heatmaps
    for index, sample in enumerate(samples[:3]):
        for (left, top, right, bottom), kind in ((sample.boxes[0], "object"), (sample.mark, "mark")):
            share = float(heatmaps[index, top:bottom, left:right].sum() / heatmaps[index].sum())
            assert getattr(found.energy["layercam"], kind)[index] == pytest.approx(share, abs=1e-5)
            area = (right - left) * (bottom - top) / 96**2
            assert getattr(found.energy["layercam"], f"{kind}_area")[index] == pytest.approx(area, abs=1e-5)


def test_what_cannot_be_asked_is_refused(samples: list[Versions]):
    explainer = Explainer(camkit.load_model("demo:vgg"))
    with pytest.raises(CamkitError, match="in four versions"):
        examine(explainer, [Sample(Image.new("RGB", (96, 96)), 7)])
    with pytest.raises(CamkitError, match="no samples"):
        examine(explainer, [])
    with pytest.raises(CamkitError, match="give it preprocessing"):
        examine(Explainer(explainer.module), samples)
    few = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    with pytest.raises(CamkitError, match="the model has 5 classes"):
        examine(Explainer(few, preprocessing=explainer.preprocessing), samples, layer="0")


def test_the_command(tmp_path: Path):
    asked = ("--spurious", "--model", "demo:shortcut", "--methods", "gradcam,layercam", "--images", 6)
    shown = succeed("robustness", *asked, "-o", tmp_path)
    assert "mark put in: class appears" in shown
    found = json.loads((tmp_path / "spurious.json").read_text())
    assert found["verdict"] in shown
    assert (found["scenes"], len(found["each"]), set(found["energy"])) == (6, 6, {"gradcam", "layercam"})
    appears = [one["predicted"]["mark_only"] for one in found["each"] if not one["predicted"]["neither"]]
    assert found["tests"]["mark put in: class appears"]["value"] == pytest.approx(np.mean(appears))
    assert found["tests"]["mark put in: class appears"]["count"] == len(appears)
    assert (tmp_path / "report.html").read_text().count("<img") == 4 * 2 * 4
    assert np.asarray(Image.open(tmp_path / "spurious.png")).shape[0] > 800


def test_bad_input_is_one_sentence(tmp_path: Path):
    for words, said in (
        (("--methods", "gradcamm"), "There is no method 'gradcamm'"),
        (("--data", "marked-scene"), "'marked_scenes'"),
        (("--option", "marked_scenes.count=-3"), "greater than or equal to 0"),
    ):
        done = run("robustness", "--spurious", "--model", "demo:vgg", "--images", 2, *words, "-o", tmp_path)
        assert (done.code, done.out) == (2, ""), words
        assert said in done.err
        assert len(done.err.splitlines()) == 1
