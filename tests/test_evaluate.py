"""`camkit evaluate`: lines as they come, the table, going on after an interruption, and what is written at the end."""

import csv
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import camkit
from camkit import plugin, study_table
from camkit.cli.recording import INTERRUPTED
from camkit.datasets import Pictures
from camkit.errors import CamkitError
from camkit.evaluate import Sample
from camkit.journal import Journal
from camkit.registry import registry
from camkit.statistics import bootstrap
from camkit.study import Study, begin, read_preset
from camkit.study_run import run
from camkit_adapters.demo.scenes import generate
from commandline import SCRIPT, succeed
from commandline import run as command

SMALL = ("--models", "demo:resnet", "--methods", "gradcam,layercam", "--metrics", "box_iou,pointing_game")
SCENES = ("--data", "digit_scenes", "--images", "6", "--batch-size", "4")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


def settings(**changes) -> Study:
    base = {"models": ["demo:resnet"], "methods": ["gradcam"], "metrics": ["box_iou"], "data": "digit_scenes"}
    return Study.of({**base, "images": 4, **changes})


def load(spec: str) -> camkit.Explainer:
    return camkit.Explainer(camkit.load_model(spec))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A study of two models, with everything that is written at its end."""
    folder = tmp_path_factory.mktemp("done") / "study"
    out = succeed(
        *("evaluate", "--models", "demo:resnet,demo:vgg", *SMALL[2:], *SCENES),
        *("--targets", "top,last,true", "--fewer", "layercam=3", "--output", folder),
    )
    (folder / "printed.txt").write_text(out)
    return folder


# --- what is written


def test_one_line_for_each_image_model_and_method(done):
    keys = [(line["model"], line["method"], line["image"], line["label"]) for line in lines(done)]
    assert len(keys) == len(set(keys)) == 2 * (12 + 6)  # two digits in each of six scenes, layercam sees three
    scenes = generate(6, "test", 0, digit_counts=(2,))
    for line in lines(done):
        scene = scenes[int(line["image"].rpartition("-")[2])]
        shown = {digit.label for digit in scene.digits}
        assert line["label"] in shown
        assert line["right"] is (line["predicted"] in shown)
        assert line["targets"]["top"]["class"] == line["predicted"]
        assert line["targets"]["true"]["class"] == line["label"]
        assert line["targets"]["last"]["probability"] <= line["targets"]["true"]["probability"] <= line["confidence"]
        assert line["targets"]["top"]["probability"] == line["confidence"]
        assert set(line["targets"]["top"]["values"]) == {"box_iou", "pointing_game"}


def test_the_lines_say_what_measure_says(done):
    found = camkit.measure(load("demo:resnet"), "box_iou", method="gradcam", data_options={"count": 6})
    own = [one for one in lines(done) if (one["model"], one["method"]) == ("demo:resnet", "gradcam")]
    written = [one["targets"]["true"]["values"]["box_iou"] for one in own]
    torch.testing.assert_close(
        torch.tensor([np.nan if one is None else one for one in written]), found.values, equal_nan=True
    )
    assert len(set(written)) > 3


def test_the_predicted_class_is_judged_by_its_own_box(done):
    own = [one for one in lines(done) if (one["model"], one["method"]) == ("demo:resnet", "gradcam")]
    pairs = [(a, b) for a in own for b in own if a["image"] == b["image"] and a["label"] != b["label"]]
    assert pairs
    for one, other in pairs:
        # whichever digit was asked for
        assert one["targets"]["top"] == other["targets"]["top"]


def test_the_table_is_the_mean_of_the_lines_with_its_bootstrap_interval(done):
    rows = table(done)
    assert len(rows) == len({tuple(row.values()) for row in rows})
    for target, unique in (("true", False), ("top", True)):
        for metric in ("box_iou", "pointing_game"):
            own = [one for one in lines(done) if (one["model"], one["method"]) == ("demo:vgg", "gradcam")]
            if unique:  # what is predicted of a picture counts once
                own = list({one["image"]: one for one in reversed(own)}.values())[::-1]
            own.sort(key=lambda one: (one["image"], one["label"]))
            values = [one["targets"][target]["values"][metric] for one in own]
            expected = bootstrap([np.nan if value is None else value for value in values], seed=0)
            (row,) = (
                row
                for row in rows
                if (row["model"], row["method"], row["metric"], row["target"], row["prediction"])
                == ("demo:vgg", "gradcam", metric, target, "all")
            )
            found = [float(row[key]) for key in ("value", "low", "high")]
            assert found == pytest.approx([expected.value, expected.low, expected.high], abs=1e-6)
            assert int(row["n"]) == expected.count


def test_a_method_may_see_fewer_pictures(done):
    counts = {(row["method"], row["target"]): int(row["n"]) for row in table(done) if row["prediction"] == "all"}
    assert counts["gradcam", "true"] == 12
    assert counts["layercam", "true"] == 6
    assert counts["layercam", "top"] == 3


def test_parquet_holds_the_same_table(done):
    parquet = pytest.importorskip("pyarrow.parquet")
    read = parquet.read_table(done / "table.parquet").to_pylist()
    assert [row["method"] for row in read] == [row["method"] for row in table(done)]
    assert [row["n"] for row in read] == [int(row["n"]) for row in table(done)]


def test_everything_is_printed_and_drawn(done):
    printed = (done / "printed.txt").read_text()
    assert all(word in printed for word in ("demo:resnet", "layercam", "box_iou", "95 %", "report.html"))
    pictures = {path.name for path in done.glob("*.png")}
    assert {"intervals-box_iou-top.png", "scatter-box_iou-demo_vgg.png", "grid-demo_resnet-right.png"} <= pictures
    for name in pictures:
        assert np.asarray(Image.open(done / name).convert("L")).std() > 5, name
    page = (done / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 2 * 2 * 4
    assert all(word in page for word in ("best and worst", "Intervals", "Right and wrong", "Made by: camkit evaluate"))
    assert "://" not in page.replace("http://www.w3.org", "")


def test_two_runs_give_the_same_lines(done, tmp_path):
    planned = Study.of(json.loads((done / "study.json").read_text()) | {"models": ["demo:vgg"]})
    list(run(planned, load, begin(planned, tmp_path)))
    assert lines(tmp_path) == [line for line in lines(done) if line["model"] == "demo:vgg"]


# --- what was done is not done again


def test_a_study_goes_on_where_it_stopped(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    planned = settings(methods=["gradcam", "random"], batch_size=3)
    list(run(planned, load, begin(planned, whole)))
    content = (whole / "results.jsonl").read_bytes()
    # two whole lines and a half, as a killed process leaves them
    kept = content.split(b"\n")
    begin(planned, cut)
    (cut / "results.jsonl").write_bytes(b"\n".join(kept[:2]) + b"\n" + kept[2][:40])
    journal = begin(planned, cut)
    assert len(journal.lines) == 2
    list(run(planned, load, journal))
    assert sorted(map(json.dumps, lines(cut))) == sorted(map(json.dumps, lines(whole)))
    (studied,) = run(planned, load, journal)
    one = study_table.table(planned, studied, lines(cut))
    assert one == study_table.table(planned, studied, lines(whole))


def test_methods_and_models_may_be_added(tmp_path):
    list(run(settings(), load, begin(settings(), tmp_path)))
    before = lines(tmp_path)
    more = settings(models=["demo:resnet", "demo:vgg"], methods=["random", "gradcam"])
    list(run(more, load, begin(more, tmp_path)))
    assert lines(tmp_path)[: len(before)] == before
    assert len(lines(tmp_path)) == 4 * len(before)


def test_another_study_is_not_mixed_in(tmp_path):
    begin(settings(), tmp_path)
    with pytest.raises(CamkitError, match=r"another 'seed' \(0, now 1\); choose another --output"):
        begin(settings(seed=1), tmp_path)


def test_nothing_is_computed_that_is_there(tmp_path):
    list(run(settings(), load, begin(settings(), tmp_path)))
    size = (tmp_path / "results.jsonl").stat().st_size
    journal = begin(settings(), tmp_path)
    list(run(settings(), load, journal))
    assert (tmp_path / "results.jsonl").stat().st_size == size


def test_an_interruption_keeps_what_is_done_and_says_how_to_go_on(tmp_path):
    arguments = ["evaluate", *SMALL, "--data", "digit_scenes", "--images", "4000", "--batch-size", "2", "-o", "out"]

    def listen() -> None:
        """Tests that run in the background were told to ignore interruptions, and so would their children be."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        [SCRIPT, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen,
    ) as running:
        try:
            written, deadline = tmp_path / "out" / "results.jsonl", time.monotonic() + 120
            while not (written.exists() and written.stat().st_size > 500) and time.monotonic() < deadline:
                time.sleep(0.1)
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == INTERRUPTED
    assert "Traceback" not in err
    kept = lines(tmp_path / "out")
    assert f"Interrupted: {len(kept)} lines are kept" in err
    assert f"camkit {' '.join(arguments)}" in err
    assert len(kept) > 0


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    planned = settings(batch_size=1)
    list(run(planned, load, begin(planned, tmp_path)))
    journal = begin(planned, tmp_path)
    size = journal.path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # what the system says when it may write no more
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
        with pytest.raises(CamkitError, match=r"cannot be written: file too large; 8 lines are kept in it\.$"):
            journal.add([{"a": "x" * 80}, {"b": "y" * 80}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    # no half line
    assert journal.path.stat().st_size == size
    assert len(Journal(journal.path).lines) == len(journal.lines) == 8


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"a": 1}\n[2]\n')
    with pytest.raises(CamkitError, match=r"Line 2 of .* is not a JSON object"):
        Journal(tmp_path / "results.jsonl")


# --- data sets in files, with what is broken in them


def test_pictures_without_labels_and_a_broken_one(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number, scene in enumerate(generate(3, "test", 3)):
        Image.fromarray(scene.image).save(tmp_path / "pictures" / f"{number}.png")
    whole = (tmp_path / "pictures" / "0.png").read_bytes()
    (tmp_path / "pictures" / "broken.png").write_bytes(whole[: len(whole) // 2])
    result = command(
        *("evaluate", "--models", "demo:resnet", "--methods", "gradcam", "--metrics", "average_drop"),
        *("--data", f"folder:{tmp_path / 'pictures'}", "-o", tmp_path / "out"),
    )
    assert result.code == 0
    assert "1 files could not be read" in result.err
    assert "broken.png" in result.err
    found = lines(tmp_path / "out")
    assert [(line["image"], line["label"], line["right"]) for line in found] == [
        (f"{number}.png", -1, None) for number in range(3)
    ]
    assert all(line["targets"]["true"]["class"] == line["predicted"] for line in found)
    assert {row["prediction"] for row in table(tmp_path / "out")} == {"all"}


def test_folders_of_classes_give_right_and_wrong_predictions(tmp_path):
    for number, scene in enumerate(generate(6, "test", 5, digit_counts=(1,))):
        label = scene.digits[0].label if number else (scene.digits[0].label + 1) % 10
        folder = tmp_path / "pictures" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(folder / f"{number}.png")
    succeed(
        *("evaluate", "--models", "demo:vgg", "--methods", "gradcam", "--metrics", "average_drop"),
        *("--data", f"folder:{tmp_path / 'pictures'}", "--targets", "top,true", "-o", tmp_path / "out"),
    )
    wrong = [line for line in lines(tmp_path / "out") if not line["right"]]
    assert any(line["image"].endswith("/0.png") for line in wrong)
    counts = {row["prediction"]: int(row["n"]) for row in table(tmp_path / "out") if row["target"] == "top"}
    assert counts["right"] + counts["wrong"] == counts["all"] == 6
    assert counts["wrong"] == len(wrong)
    assert (tmp_path / "out" / "grid-demo_vgg-predicted-and-true.png").exists()


def test_what_cannot_be_read_is_not_tried_again_and_a_resumed_study_knows_it(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number, scene in enumerate(generate(3, "test", 3)):
        Image.fromarray(scene.image).save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "1.png").write_bytes(b"no picture")
    planned = settings(metrics=["average_drop"], data=f"folder:{tmp_path / 'pictures'}", batch_size=2)
    for expected in (0, 2):
        journal = begin(planned, tmp_path)
        assert len(journal.lines) == expected
        (studied,) = run(planned, load, journal)
        assert [("1.png" in problem) for problem in studied.problems] == [True]
        assert [(line["place"], line["image"]) for line in lines(tmp_path)] == [(0, "0.png"), (2, "2.png")]
    # it has been mended
    Image.fromarray(generate(4, "test", 3)[3].image).save(tmp_path / "pictures" / "1.png")
    (tmp_path / "problems.jsonl").unlink()
    (studied,) = run(planned, load, begin(planned, tmp_path))
    assert studied.problems == []
    assert sorted(line["image"] for line in lines(tmp_path)) == ["0.png", "1.png", "2.png"]


def test_pictures_of_any_iterable_are_samples_in_a_row_with_one_name():
    blank = Image.new("RGB", (4, 4))
    given = [Sample(blank, label, name=name) for name, label in (("a", 1), ("a", 2), ("b", 1), ("", 1), ("a", 1))]
    pictures = Pictures(lambda: iter(given))
    assert len(pictures) == 4
    expected = {0: ["a", "a"], 1: ["b"], 2: ["image-000002"], 3: ["a#2"]}
    for start, stop in ((0, 4), (2, 4), (0, 2), (3, 9), (1, 1)):
        read = pictures.read(start, stop)
        assert [(place, one.name) for place, one in read.samples] == [
            (place, name) for place in range(start, min(stop, 4)) for name in expected[place]
        ]
    assert len(Pictures(lambda: iter(given), 3)) == 3
    assert [place for place, _ in Pictures(lambda: iter(given), 3).read(1, 9).samples] == [1, 2]


# --- metrics of third parties


def test_metrics_with_several_values_and_those_that_compare_methods(tmp_path, monkeypatch):
    @plugin.metric("several", paper="none", higher_is_better=True)
    def several(heatmaps: Tensor) -> Tensor:
        return heatmaps.flatten(1)[:, :3]

    @plugin.metric("versus", paper="none", higher_is_better=True, reduce=lambda v: v.mean(axis=1), least_methods=2)
    def versus(heatmaps: Tensor) -> Tensor:
        return heatmaps.mean(dim=(1, 2))

    known = registry()
    parsed = {one.__camkit__[0].name: camkit.metrics.as_metric(one) for one in (several, versus)}
    get = type(known).get
    monkeypatch.setattr(type(known), "get", lambda self, kind, name: parsed.get(name) or get(self, kind, name))
    planned = settings(metrics=["several", "versus"], methods=["gradcam", "random"], fewer={"random": 2}, images=3)
    (studied,) = run(planned, load, begin(planned, tmp_path))
    written = lines(tmp_path)
    assert len(written) == 6 + 4
    assert len(written[0]["targets"]["true"]["values"]["several"]) == 3
    entries = study_table.table(planned, studied, written)
    assert {(one.method, one.metric): one.n for one in entries if one.prediction == "all"} == {
        ("gradcam", "several"): 6,
        ("gradcam", "versus"): 6,
        ("random", "several"): 4,
        ("random", "versus"): 4,
    }


# --- presets


def test_table8_is_data():
    preset = read_preset("table8")
    assert preset["models"] == ["demo:resnet", "demo:vgg", "demo:vit"]
    assert preset["methods"][:5] == ["gradcam", "gradcam++", "smoothgradcam++", "xgradcam", "layercam"]
    assert preset["images"] == 500
    assert {"box_iou", "average_drop", "increase_in_confidence"} <= set(preset["metrics"])


def test_a_preset_of_ones_own_and_options_that_win(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'models = ["demo:resnet"]\nmethods = ["gradcam"]\nmetrics = ["box_iou"]\ndata = "digit_scenes"\nimages = 500\n'
        "[data_options]\ndigits = 1\n[metric_options]\n'box_iou.threshold' = 0.5\n"
    )
    succeed(
        "evaluate", "--preset", tmp_path / "mine.toml", "--images", 2, "--methods", "random", "-o", tmp_path / "out"
    )
    written = json.loads((tmp_path / "out" / "study.json").read_text())
    assert (written["images"], written["methods"], written["data_options"]) == (2, ["random"], {"digits": 1})
    assert len(lines(tmp_path / "out")) == 2


@pytest.mark.slow
def test_table8_runs(tmp_path):
    succeed_with_notes = command("evaluate", "--preset", "table8", "--images", 2, "-o", tmp_path / "out")
    assert succeed_with_notes.code == 0
    rows = table(tmp_path / "out")
    assert {row["model"] for row in rows} == {"demo:resnet", "demo:vgg", "demo:vit"}
    assert len({row["method"] for row in rows}) >= 20
    assert (tmp_path / "out" / "scatter-box_iou-demo_vit.png").exists()


# --- what is wrong with what was given


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--models", "demo:resnet"], "Say which methods"),
        ([*SMALL], "Say which data"),
        ([*SMALL, "--data", "digit_scene"], "did you mean 'digit_scenes'"),
        ([*SMALL[:4], "--data", "digit_scenes", "--metrics", "box_iu"], "There is no metric 'box_iu'"),
        ([*SMALL[:2], "--methods", "gradcm", "--metrics", "box_iou", *SCENES], "did you mean 'gradcam"),
        ([*SMALL, *SCENES, "--targets", "first"], "setting 'targets.0' is wrong"),
        ([*SMALL, *SCENES, "--option", "color=3"], "write method.name=value"),
        ([*SMALL, *SCENES, "--data-option", "color"], "name=value is expected"),
        ([*SMALL, *SCENES, "--data-option", "color=3"], "no option 'color'"),
        ([*SMALL, *SCENES, "--preset", "table9"], "did you mean 'table8'"),
        ([*SMALL, *SCENES, "--fewer", "gradcam=none"], "setting 'fewer.gradcam' is wrong"),
        ([*SMALL[:2], "--methods", "rollout", "--metrics", "box_iou", *SCENES], "explained by none of the methods"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_one_sentence(tmp_path, given, sentence):
    result = command("evaluate", *given, "-o", tmp_path / "out")
    assert result.code == 2
    assert sentence in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_without_boxes_a_metric_of_boxes_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.fromarray(generate(1, "test", 3)[0].image).save(tmp_path / "pictures" / "a.png")
    result = command("evaluate", *SMALL, "--data", f"folder:{tmp_path / 'pictures'}", "-o", tmp_path / "out")
    assert (result.code, "needs boxes" in result.err) == (2, True)
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_without_pyarrow_parquet_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CamkitError, match=r"pip install 'camkit\[parquet\]'"):
        study_table.write_parquet(tmp_path / "table.parquet", [])


def test_samples_without_names_are_told_apart():
    pictures = [Image.fromarray(scene.image) for scene in generate(3, "test", 0)]
    read = Pictures(lambda: (Sample(one, 3) for one in pictures)).read(0, 5)
    assert [(place, one.name) for place, one in read.samples] == [(n, f"image-{n:06}") for n in range(3)]
