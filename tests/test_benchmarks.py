"""The benchmarks run, and compare equal things. How long anything takes is for a quiet machine to say, not a test."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def page(folder: Path, script: str, *given: str) -> str:
    """The page that a benchmark writes, in which no folder of this machine is named."""
    made = folder / "page.md"
    command = [sys.executable, str(BENCHMARKS / script), *given, "--write", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    text = made.read_text()
    assert str(folder) not in text
    assert str(BENCHMARKS.parent) not in text
    return text


@pytest.mark.slow
def test_a_quick_run_fills_every_table(tmp_path: Path) -> None:
    text = page(tmp_path, "explain.py", "--quick")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "Time, batch 2",
        "Peak memory, batch 2",
        "Exported, in ONNX Runtime",
        "Aims",
    ]
    cells = {
        name: cell
        for name, cell in re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
        if re.search(r"\d", cell)
    }
    contestants = {"hand-written floor", "camkit Grad-CAM", "grad-cam", "torchcam", "captum LayerGradCam"}
    assert contestants | {"camkit Grad-CAM, ONNX", "plain forward, PyTorch"} <= set(cells)
    for name, cell in cells.items():
        numbers = [float(number) for number in re.findall(r"\d+\.?\d*(?:e-?\d+)?", cell)]
        assert all(math.isfinite(number) and number > 0 for number in numbers), (name, cell)


@pytest.mark.parametrize(("model", "size"), [("resnet18", 64), pytest.param("vit_b_16", 224, marks=pytest.mark.slow)])
def test_the_contestants_make_the_same_map(model: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import contestants

    case = contestants.CASES[model]
    module, images = case.build(), contestants.make_images(2, size)

    def heatmaps(name: str) -> torch.Tensor:
        with contestants.ready(name, module, case, images) as call:
            return torch.as_tensor(call())

    floor = heatmaps(contestants.FLOOR)
    assert floor.shape == (2, size, size)
    torch.testing.assert_close(heatmaps(contestants.CAMKIT), floor, rtol=1e-4, atol=1e-5)
    # grad-cam resizes with OpenCV, which weighs pixels by fractions of 1/2048
    torch.testing.assert_close(heatmaps(contestants.GRAD_CAM), floor, rtol=0, atol=5e-3)
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.slow
def test_a_quick_run_of_the_methods_fills_every_row(tmp_path: Path) -> None:
    text = page(tmp_path, "methods.py", "--quick")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["resnet18", "Aims"]
    times = text[text.index("| time |") : text.index("**CPU-time ratio**")]
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in times.splitlines()}
    for title in ("Grad-CAM", "Full-Grad", "Recipro-CAM", "Ablation-CAM", "all single-pass methods, one call"):
        assert re.search(r"\*\*\d+\.\d\d\*\*", rows[title]), rows[title]
    # two libraries were stopped early, and what they cost as a whole was worked out
    assert text.count("at least ") >= 2
    assert re.search(r"grad-cam, Ablation-CAM: 32 of 512", text)
    assert not re.search(r"\bnan\b|\binf\b", text)


@pytest.mark.parametrize(("model", "size"), [("resnet18", 64), ("vgg16", 64), ("vit_b_16", 224)])
def test_the_hand_written_heads_are_the_models_own(model: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import contestants
    import rows

    case = contestants.CASES[model]
    module = case.build()
    seen = rows.Seen.of(module, case, contestants.make_images(1, size))
    with torch.inference_mode():
        found = rows.head(module, case)(seen.output, seen.residual)
    assert found.std() > 0
    torch.testing.assert_close(found, seen.logits, rtol=1e-4, atol=1e-5)


def test_the_hand_written_ablation_is_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import camkit
    import contestants
    import rows

    case = contestants.CASES["resnet18"]
    module, images = case.build(), contestants.make_images(1, 96)
    with rows.ready(rows.ablation_by_hand, module, case, images) as call:
        expected = call()
    explanation = camkit.Explainer(module, layer=case.layer)(images, method="ablationcam", target=contestants.CLASS)
    assert expected.std() > 0
    torch.testing.assert_close(explanation.maps, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["grad-cam, Ablation-CAM", "grad-cam, Score-CAM", "torchcam, Score-CAM"])
def test_who_is_stopped_early_leaves_the_model_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    import contestants
    import rows

    case = contestants.CASES["resnet18"]
    module, images = case.build(), contestants.make_images(1, 64)
    layer, before = module.get_submodule(case.layer), module(images)
    subset = rows.SUBSETS[name]
    counted = []
    for beginning in (subset.before, subset.partial, subset.partial):
        with rows.ready(beginning, module, case, images) as call:
            call()
        counted.append(beginning.images)
    chunk = 16 if name == "grad-cam, Score-CAM" else 32
    assert counted == [0, chunk, chunk]
    assert module.get_submodule(case.layer) is layer
    torch.testing.assert_close(module(images), before, rtol=0, atol=0)


def test_costs_are_extrapolated_from_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import rows
    from timing import Cost

    before, partial = [Cost(2.0, 1.0), Cost(4.0, 2.0)], [Cost(5.0, 2.5), Cost(6.0, 4.0)]
    assert rows.extrapolated(before, partial, 1) == partial
    assert rows.extrapolated(before, partial, 16) == [Cost(50.0, 25.0), Cost(36.0, 34.0)]


@pytest.mark.slow
def test_a_quick_run_of_the_server_fills_every_row(tmp_path: Path) -> None:
    text = page(tmp_path, "serve.py", "--quick", "--model", "demo:resnet")
    rows = [line.split(" | ") for line in text.splitlines() if re.match(r"\| (tensor|photo)", line)]
    assert [row[2] for row in rows] == ["one by one", "batched"] * 3
    assert all(float(cell.strip(" |")) > 0 for row in rows for cell in row[3:])


@pytest.mark.slow
def test_a_quick_run_of_the_exports_fills_every_row(tmp_path: Path) -> None:
    text = page(tmp_path, "export.py", "--quick")
    cells = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE))
    for name in ("plain forward, ONNX", "camkit Grad-CAM, ONNX", "plain forward, PyTorch"):
        assert re.match(r"\*\*\d+\.\d\d\*\*", cells[name]), cells[name]
    plain, cam = map(int, cells["operators, plain and Grad-CAM"].split(", "))
    assert 0 < plain < cam
    assert all(float(part) > 0 for part in cells["peak memory, MiB"].split(", "))


@pytest.mark.slow
def test_a_short_matrix_of_exports_says_what_agrees_and_what_is_refused(tmp_path: Path) -> None:
    given = ["--families", "ViT", "--formats", "torchscript", "--methods", "gradcam", "cam", "scorecam"]
    text = page(tmp_path, "export_matrix.py", *given)
    assert re.search(r"^\| `gradcam` \| \de-0[5-8] \|$", text, re.MULTILINE)
    assert re.search(r"^\* `cam`: .*global average", text, re.MULTILINE)
    assert re.search(r"^\* `scorecam`: .*model_scores cannot be traced", text, re.MULTILINE)


@pytest.mark.slow
def test_a_quick_run_of_the_attacks_fills_every_row(tmp_path: Path) -> None:
    text = page(tmp_path, "attacks.py", "--quick")
    rows = re.findall(r"^\| (\S+) \| ([^|]+) \| [\d.]+ \| \*\*[\d.]+\*\* \([^|]+\) \| (\d+)% \| (\d+)% \|$", text, re.M)
    assert [name for _, name, _, _ in rows] == ["torchattacks", "captum", "camkit", "camkit, early stop"] * 3
    near, far = rows[:4], rows[-4:]
    assert {fooled for _, _, fooled, _ in near} == {"0"}
    assert {taken for *_, taken in near} == {"100"}
    assert {fooled for _, _, fooled, _ in far} == {"100"}
    assert int(far[-1][3]) < 100
    assert text.count("early stop saves what the stopped images save") == 2
