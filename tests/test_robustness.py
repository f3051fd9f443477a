"""camkit robustness: the formulas by hand and by other libraries, the study against its parts, the command."""

import csv
import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from PIL import Image

import camkit
from camkit import drift, robustness
from camkit.attacks import as_attack
from camkit.curves import Panel, draw_curves
from camkit.errors import CamkitError
from camkit.explain import Explainer
from camkit.registry import registry
from camkit.robustness import Cell, Design, Row, one_per_picture, ranking, summarise
from camkit.robustness_report import Findings, as_csv
from camkit.samples import Sample
from camkit.statistics import Interval
from camkit_adapters import demo as demo_models
from commandline import run, succeed

SCENES = Path(demo_models.__file__).with_name("images")


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(camkit.load_model("demo:vgg"))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return one_per_picture(registry().get("dataset", "digit_scenes").samples({"count": 3, "seed": 1}))


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# the formulas


def test_iou_by_hand():
    before = torch.arange(10.0).reshape(1, 2, 5)
    # the strongest fifth are the two largest: positions 8 and 9 before, 9 and 0 after
    after = before.clone()
    after[0, 0, 0] = 20.0
    assert drift.iou(before, after).tolist() == pytest.approx([1 / 3])
    assert drift.iou(before, before).tolist() == [1.0]
    assert drift.iou(before, -before).tolist() == [0.0]
    assert drift.iou(before, torch.zeros(1, 2, 5)).isnan().all()


def test_rank_correlation_is_that_of_scipy_also_with_ties():
    before, after = random_maps(4, 6, 5), random_maps(4, 6, 5, seed=1)
    after[1] = before[1] ** 3
    # many positions of equal value, as after a ReLU
    before[2], after[2] = before[2].clamp(min=0.7), (before[2] + 0.2 * after[2]).clamp(min=0.6)
    expected = [
        scipy.stats.spearmanr(one.flatten(), other.flatten()).statistic
        for one, other in zip(before, after, strict=True)
    ]
    found = drift.rank_correlation(before, after)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert found[1] == pytest.approx(1.0, abs=1e-5)
    assert drift.rank_correlation(before, -before).tolist() == pytest.approx([-1.0] * 4, abs=1e-5)
    # one image is as good as many
    assert drift.rank_correlation(before[:1], after[:1]).tolist() == pytest.approx(expected[:1], abs=1e-5)
    after[3] = 0.5
    assert drift.rank_correlation(before, after).isnan().tolist() == [False, False, False, True]


def ssim_of_wang(one: np.ndarray, other: np.ndarray) -> float:
    """Equation 13 with an 11x11 Gaussian window, written with scipy, as scikit-image has it."""

    def blurred(image: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(image, 1.5, truncate=3.5)

    c1, c2 = 0.01**2, 0.03**2
    mean_one, mean_other = blurred(one), blurred(other)
    var_one, var_other = blurred(one * one) - mean_one**2, blurred(other * other) - mean_other**2
    covariance = blurred(one * other) - mean_one * mean_other
    similarity = ((2 * mean_one * mean_other + c1) * (2 * covariance + c2)) / (
        (mean_one**2 + mean_other**2 + c1) * (var_one + var_other + c2)
    )
    return float(similarity[5:-5, 5:-5].mean())


def test_structural_similarity_is_that_of_the_paper():
    before, after = random_maps(3, 32, 40), random_maps(3, 32, 40, seed=1)
    after[1] = (before[1] + 0.1 * after[1]).clamp(max=1)
    after[2] = before[2]
    expected = [
        ssim_of_wang(one.double().numpy(), other.double().numpy()) for one, other in zip(before, after, strict=True)
    ]
    assert drift.structural_similarity(before, after).tolist() == pytest.approx(expected, abs=1e-4)
    assert expected[0] < 0.2 < expected[1] < expected[2] == pytest.approx(1.0)
    assert drift.structural_similarity(before[:1], after[:1]).shape == (1,)
    assert drift.structural_similarity(before[:, :8], after[:, :8]).isnan().all()


def test_centre_shift_by_hand():
    before, after = torch.zeros(3, 30, 40), torch.zeros(3, 30, 40)
    before[0, 10, 10] = after[0, 13, 14] = 0.5
    # from column 0 to the middle of columns 0 and 8
    before[1, 5, 0] = after[1, 5, 0] = after[1, 5, 8] = 1.0
    before[2, 0, 0] = 1.0
    shift = drift.centre_shift(before, after)
    assert shift[:2].tolist() == pytest.approx([5 / 50, 4 / 50])
    assert shift[2].isnan()


def test_energy_inside_by_hand():
    heatmaps = torch.zeros(3, 4, 4)
    heatmaps[0, 0, 0], heatmaps[0, 3, 3] = 0.25, 0.75
    heatmaps[1] = 1.0
    regions = torch.zeros(3, 4, 4, dtype=torch.bool)
    regions[0, :2, :2] = regions[2] = True
    found = drift.energy_inside(heatmaps, regions)
    assert found[0] == pytest.approx(0.25)
    assert found[1:].isnan().all()  # no region; no energy


def test_detection_is_the_area_under_the_curve():
    random = np.random.default_rng(0)
    clean, attacked = random.normal(size=40).round(1), random.normal(0.7, size=40).round(1)
    expected = scipy.stats.mannwhitneyu(attacked, clean).statistic / 40**2
    found = drift.detection(clean, attacked)
    assert found.value == pytest.approx(expected)
    assert 0.5 < found.low < expected < found.high < 1
    assert found.count == 40
    # by hand: 2 beats 1, ties with 2 and loses to 4
    assert drift.detection([1, 2, 4], [2, 2, 2]).value == pytest.approx(0.5)
    assert drift.detection([0, 0], [1, 1]) == Interval(1.0, 1.0, 1.0, 2)
    assert drift.detection([0, math.nan, 0], [1, 1, math.nan]) == Interval(1.0, 1.0, 1.0, 1)
    assert drift.detection([math.nan], [0.0]).count == 0


def test_the_interval_of_the_area_is_a_bootstrap_over_pairs():
    random = np.random.default_rng(1)
    clean, attacked = random.normal(size=15), random.normal(1.0, size=15)
    drawn = np.random.default_rng(2).integers(0, 15, (4000, 15))
    areas = [(attacked[one][:, None] > clean[one]).mean() for one in drawn]
    found = drift.detection(clean, attacked)
    assert (found.low, found.high) == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.015)


# what rows come to


def row(image: str, method: str, iou: float, *, epsilon: float = 0.1, attack: str = "a", **given: object) -> Row:
    facts = {"moves": "prediction", "label": 0, "already_wrong": False, "success": 1.0, "distance": 0.1}
    drifts = {"iou": iou, "rank_correlation": iou, "ssim": iou, "centre_shift": 0.0}
    tremors = {"tremor_before": 0.1, "tremor_after": 0.2}
    return Row(image, attack, "linf", epsilon, method, **{**facts, **drifts, **tremors, **given})


def test_a_summary_by_hand():
    rows = [row("x", "m", 0.5), row("y", "m", 0.7, success=0.0), row("x", "m", 0.1, epsilon=0.2)]
    rows.append(Row("z", "a", "linf", 0.1, "m", "prediction", 0, already_wrong=True))
    first, second = summarise(rows)
    assert (first.epsilon, first.measures["iou"].value, first.measures["success"].value) == (0.1, 0.6, 0.5)
    assert (first.measures["iou"].count, first.measures["energy_after"].count) == (2, 0)
    assert first.measures["detection"].value == 1.0
    assert (second.epsilon, second.measures["iou"].value) == (0.2, 0.1)


def test_the_ranking_compares_image_by_image():
    # m is 0.1 ahead on each image, though the images differ by more than that
    values = {f"image-{index}": 0.2 + 0.05 * index for index in range(12)}
    rows = [row(image, name, iou + ahead) for image, iou in values.items() for name, ahead in (("n", 0), ("m", 0.1))]
    first, second = ranking(rows)
    assert (first.method, second.method, second.lead) == ("m", "n", None)
    assert (first.lead.low, first.lead.high) == pytest.approx((0.1, 0.1))
    assert robustness.verdict_on_stability([first, second]).startswith("m is the most stable: ")
    # an attack on the map of one method says nothing of the others
    aimed = [row(image, "m", 0.0, attack="b", moves="explanation") for image in values]
    assert ranking([*rows, *aimed]) == [first, second]
    assert ranking(aimed)[0].iou.value == 0.0
    mixed = [
        row(f"image-{index}", name, 0.5 + 0.1 * (index % 2 == place))
        for index in range(9)
        for place, name in enumerate("mn")
    ]
    assert robustness.verdict_on_stability(ranking(mixed)).startswith("No method is clearly the most stable: m ")


def test_the_verdict_on_detection_is_that_of_the_intervals():
    def cells(*intervals: tuple[float, float, float]) -> list[Cell]:
        return [Cell("pgd", "linf", 8 / 255, "m", {"detection": Interval(*one, 9)}) for one in intervals]

    verdict = robustness.verdict_on_detection
    assert verdict(cells((0.95, 0.92, 0.98))).startswith("Drift under noise gives attacks away: AUC from 0.950")
    partly = verdict(cells((0.95, 0.92, 0.98), (0.6, 0.4, 0.8)))
    assert partly.startswith("Drift under noise gives attacks away in part")
    nothing = verdict(cells((0.6, 0.4, 0.8), (0.5, 0.5, 0.5)))
    assert nothing.startswith("Drift under noise does not give attacks away: ")
    less = verdict(cells((0.6, 0.4, 0.8), (0.3, 0.2, 0.4)))
    assert less.startswith("Attacked images drift less under noise than clean ones")
    assert "above 0.5 in 0 of 2 cases, below it in 1, and holds it in 1" in less
    assert "pgd 8/255, m" in less
    unknown = Cell("pgd", "linf", 1.0, "m", {"detection": Interval(math.nan, math.nan, math.nan, 0)})
    assert verdict([unknown]).startswith("Detection could not")


def test_one_sample_for_each_picture():
    first, second = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4))
    given = [Sample(first, 1), Sample(first, 2), Sample(second, 3), Sample(second, 4)]
    assert [sample.class_index for sample in one_per_picture(given)] == [1, 3]
    assert [sample.class_index for sample in one_per_picture(iter(given), 1)] == [1]
    # pictures that are made as they are asked for, so that one may lie where another lay
    made = (Sample(Image.new("RGB", (4, 4)), index) for index in range(20))
    assert [sample.class_index for sample in one_per_picture(made)] == list(range(20))
    with pytest.raises(CamkitError, match="no samples"):
        one_per_picture([])


def test_a_table_for_other_programs():
    cells = summarise([row("x", "m", 0.5, energy_before=0.25, energy_after=0.2), row("y", "m", 0.7)])
    (line,) = csv.DictReader(as_csv(cells, ["iou", "energy_after"]).splitlines())
    assert line["attack"] == "a"
    assert [float(line[name]) for name in ("epsilon", "iou", "iou_n", "energy_after")] == [0.1, 0.6, 2, 0.2]
    assert float(line["iou_low"]) <= 0.6 <= float(line["iou_high"])


def test_curves_are_drawn_also_where_little_is_known(tmp_path: Path):
    known, unknown = Interval(0.5, 0.4, 0.6, 3), Interval(math.nan, math.nan, math.nan, 0)
    panels = [Panel("a", ["1", "2"], {"m": [known, None], "n": [unknown, known]}), Panel("b", ["1"], {"m": [known]})]
    picture = np.asarray(Image.open(draw_curves(tmp_path / "c.png", panels * 3, across="x", up="y", level=0.5)))
    assert picture.std() > 10


# the study against its parts


def test_the_study_is_its_parts(explainer: Explainer, samples: list[Sample], monkeypatch: pytest.MonkeyPatch):
    design = Design(
        ["fgsm", "noise"], ["gradcam", "layercam"], [2 / 255, 8 / 255], options={"noise.draws": 2}, draws=1, seed=5
    )
    calls: Counter[tuple[str, float]] = Counter()
    whole = robustness.attack

    def counted(explainer: Explainer, images: torch.Tensor, name: str, **given: object) -> object:
        calls[name, given["epsilon"]] += len(images)
        return whole(explainer, images, name, **given)

    monkeypatch.setattr(robustness, "attack", counted)
    steps = list(robustness.study(explainer, samples, design, batch_size=2))
    assert calls == dict.fromkeys([(name, eps) for name in design.attacks for eps in design.epsilons], len(samples))
    assert len(steps) == 2 * design.steps == 8
    rows = [row for step in steps for row in step.rows]
    assert len({(row.image, row.attack, row.epsilon, row.method) for row in rows}) == len(rows) == 3 * 4 * 2
    assert {step.result.options["seed"] for step in steps if step.result.attack == "noise"} == {5}

    images = torch.stack([explainer.preprocessing(sample.picture) for sample in samples])
    labels = torch.tensor([sample.class_index for sample in samples])
    result = camkit.attack(explainer, images, "fgsm", epsilon=8 / 255, labels=labels, early_stop=False)
    before, after = (explainer(shown, "layercam", target=labels) for shown in (images, result.images))
    expected = {
        "success": result.success.float(),
        "distance": result.distance,
        "iou": drift.iou(before.maps, after.maps),
        "rank_correlation": drift.rank_correlation(before.maps, after.maps),
        "ssim": drift.structural_similarity(before.heatmaps, after.heatmaps),
        "centre_shift": drift.centre_shift(before.heatmaps, after.heatmaps),
    }
    found = [row for row in rows if (row.attack, row.epsilon, row.method) == ("fgsm", 8 / 255, "layercam")]
    assert [row.image for row in found] == [sample.name for sample in samples]
    for name, values in expected.items():
        assert [getattr(row, name) for row in found] == pytest.approx(values.tolist(), abs=1e-4), name
    for row, sample, heatmap in zip(found, samples, before.heatmaps, strict=True):
        left, top, right, bottom = sample.boxes[0]
        inside = float(heatmap[top:bottom, left:right].sum() / heatmap.sum())
        assert row.energy_before == pytest.approx(inside, abs=1e-4)

    noise = 4 / 255 * torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(5))
    for shown, name in ((result.images, "tremor_after"), (images, "tremor_before")):
        still = explainer(shown, "layercam")
        trembling = explainer.preprocessing.normalise((explainer.preprocessing.pixels(shown) + noise).clamp(0, 1))
        moved = explainer(trembling, "layercam", target=still.targets)
        tremor = 1 - drift.rank_correlation(still.maps, moved.maps)
        assert [getattr(row, name) for row in found] == pytest.approx(tremor.tolist(), abs=1e-4)


def test_what_the_model_gets_wrong_counts_nowhere(explainer: Explainer, samples: list[Sample], tmp_path: Path):
    first, second = samples[:2]
    absent = next(index for index in range(10) if index not in [label for label, _ in first.objects])
    given = [dataclasses.replace(first, class_index=absent), dataclasses.replace(second, class_index=-1)]
    (step,) = robustness.study(explainer, given, Design(["fgsm"], ["gradcam"], [8 / 255], draws=1))
    wrong, right = step.rows
    assert (wrong.already_wrong, right.already_wrong) == (True, False)
    assert math.isnan(wrong.iou)
    assert math.isnan(wrong.success)
    # a sample without a class is asked for what the model predicts
    assert right.label in [label for label, _ in second.objects]
    findings = Findings(Design(["fgsm"], ["gradcam"], [8 / 255]), "demo:vgg", None)
    findings.add(step)
    assert (findings.images, findings.wrong) == (2, 1)
    assert summarise(findings.rows)[0].measures["iou"].count == 1
    # nothing at all can be said
    findings.rows = [wrong]
    findings.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "No image could be judged" in page
    assert "Detection could not be judged" in page
    assert "nan" not in (tmp_path / "robustness.csv").read_text()
    assert "NaN" not in (tmp_path / "drift.jsonl").read_text()


def test_attacks_on_the_map_and_for_the_smallest_change(explainer: Explainer, samples: list[Sample]):
    design = Design(
        ["fragile-map", "deepfool"], ["gradcam"], [4 / 255, 8 / 255], options={"fragile-map.steps": 2}, draws=1
    )
    assert design.steps == 3
    steps = list(robustness.study(explainer, samples[:1], design))
    assert [(step.rows[0].attack, step.rows[0].epsilon) for step in steps] == [
        ("fragile-map", 4 / 255),
        ("fragile-map", 8 / 255),
        ("deepfool", None),
    ]
    assert [step.rows[0].moves for step in steps] == ["explanation", "explanation", "prediction"]


def test_a_model_without_preprocessing_is_refused(explainer: Explainer, samples: list[Sample]):
    bare = Explainer(explainer.module)
    with pytest.raises(CamkitError, match="give it preprocessing"):
        next(robustness.study(bare, samples, Design(["fgsm"], ["gradcam"], [8 / 255])))


def test_an_attack_that_needs_a_class_is_refused(monkeypatch: pytest.MonkeyPatch):
    aimed = dataclasses.replace(as_attack("fgsm"), goals=("targeted",))
    monkeypatch.setattr(robustness, "as_attack", lambda name: aimed)
    with pytest.raises(CamkitError, match="'fgsm' works towards a class"):
        Design(["fgsm"], ["gradcam"], [8 / 255]).check()


# the command


def test_the_command(tmp_path: Path):
    asked = ("--attacks", "noise,fgsm", "--methods", "gradcam,layercam", "--eps", "2/255,8/255", "--images", 3)
    shown = succeed("robustness", "--model", "demo:vgg", "--data", "digit-scenes", *asked, "-o", tmp_path)
    assert "Drift under noise" in shown
    assert "energy in" in shown
    lines = [json.loads(line) for line in (tmp_path / "drift.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * 2 * 2 * 2
    table = list(csv.DictReader((tmp_path / "robustness.csv").read_text().splitlines()))
    assert [(line["attack"], line["method"]) for line in table[:2]] == [("noise", "gradcam"), ("noise", "layercam")]
    for line in table:
        own = [
            one
            for one in lines
            if (one["attack"], one["method"]) == (line["attack"], line["method"])
            and math.isclose(one["epsilon"], float(line["epsilon"]), rel_tol=1e-4)
        ]
        judged = [one["iou"] for one in own if not one["already_wrong"]]
        assert float(line["iou"]) == pytest.approx(np.mean(judged), abs=1e-5)
        assert int(line["iou_n"]) == len(judged)
    assert (tmp_path / "report.html").read_text().count("<img") >= 7 + 2 * 6 * 3
    names = {path.name for path in tmp_path.iterdir()}
    measures = ("success", "iou", "rank-correlation", "ssim", "centre-shift", "energy-after", "detection")
    curves = {f"curves-{name}.png" for name in measures}
    assert names == {"drift.jsonl", "robustness.csv", "report.html"} | curves


def test_a_broken_file_of_a_data_set_is_left_out(tmp_path: Path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.open(SCENES / "scene-01.png").save(folder / "good.png")
    (folder / "broken.png").write_bytes(b"no picture")
    asked = ("--attacks", "fgsm", "--methods", "gradcam", "--eps", "8/255", "-o", tmp_path / "out")
    done = run("robustness", "--model", "demo:vgg", "--data", f"folder:{folder}", *asked)
    assert done.code == 0
    assert "broken.png" in done.err
    assert "1 of 1 images are attacked" in done.out
    # a folder that is given as such is what the user wants to be seen whole
    done = run("robustness", "--model", "demo:vgg", "--data", folder, *asked)
    assert (done.code, "broken.png" in done.err) == (2, True)


def test_a_folder_has_no_boxes(tmp_path: Path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in (1, 2):
        Image.open(SCENES / f"scene-0{number}.png").save(folder / f"{number}.png")
    asked = ("--attacks", "fgsm", "--methods", "gradcam", "--eps", "8/255", "-o", tmp_path / "out")
    shown = succeed("robustness", "--model", "demo:vgg", "--data", folder, *asked)
    assert "no boxes, so the energy inside them is left out" in shown
    assert "energy in box" not in shown
    assert "energy" not in (tmp_path / "out" / "robustness.csv").read_text()
    assert not (tmp_path / "out" / "curves-energy-after.png").exists()


def test_what_was_done_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = robustness.study

    def interrupted(*given: object, **named: object):
        yield next(whole(*given, **named))
        raise KeyboardInterrupt

    monkeypatch.setattr(robustness, "study", interrupted)
    asked = ("--attacks", "fgsm,noise", "--methods", "gradcam", "--eps", "8/255", "--images", 2)
    done = run("robustness", "--model", "demo:vgg", *asked, "-o", tmp_path)
    assert done.code == 130
    assert "Interrupted" in done.err
    lines = (tmp_path / "drift.jsonl").read_text().splitlines()
    assert [json.loads(line)["attack"] for line in lines] == ["fgsm", "fgsm"]
    assert "was interrupted" in (tmp_path / "report.html").read_text()
    assert [path for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--eps", "8/255,5"), "Epsilon was 5.0; "),
        (("--eps", "0"), "Epsilon was 0.0; "),
        (("--eps", "much"), "--eps was 'much'"),
        (("--eps", ","), "At least one attack, one method and one epsilon"),
        (("--attacks", "pgdd"), "There is no attack 'pgdd'; did you mean 'pgd'"),
        (("--methods", "gradcamm"), "There is no method 'gradcamm'; did you mean 'gradcam'"),
        (("--methods", "guided-backprop"), "The method 'guided-backprop' gives pixels"),
        (("--attacks", "square", "--norm", "l2"), "does not work in the threat model 'l2'"),
        (("--noise", "2"), "The noise was 2; "),
        (("--data", "digit-scene"), "There is no data set or folder 'digit-scene'; did you mean 'digit_scenes'"),
        (("--data", "EMPTY"), "no image"),
        (("--option", "pgd.stepps=3"), "stepps"),
        (("--option", "fgsm.steps=3"), "which was not asked for"),
        (("--layer", "nowhere"), "nowhere"),
        (("--spurious", "--data", "digit-scenes"), "in four versions"),
    ],
)
def test_bad_input_is_one_sentence(asked: tuple[str, ...], said: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / "empty") if word == "EMPTY" else word for word in asked]
    defaults = {"--attacks": "pgd", "--methods": "gradcam", "--eps": "8/255"}
    for name, value in defaults.items():
        if name not in words:
            words += [name, value]
    done = run("robustness", "--model", "demo:vgg", "--images", 2, *words, "-o", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.startswith("Error: ")
    assert len(done.err.splitlines()) == 1
