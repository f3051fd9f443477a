"""The example of an adapter for a model of one's own: what its README says happens, and how mistakes are answered."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import camkit
from camkit import Explainer
from camkit.adapter_files import load_adapters
from camkit.testing.adapters import AdapterReport, check_adapter
from camkit_adapters import demo
from commandline import Result, process, run

EXAMPLE = Path(__file__).parents[1] / "examples" / "adapter_config"
SCENE = Path(demo.__file__).with_name("images") / "scene-01.png"
MODEL = ("--model", "python:my_model:build")
CONFIG = "my_adapter.toml"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, and a picture; a copy, so that what is written there leaves nothing behind."""
    folder = tmp_path_factory.mktemp("example") / "adapter_config"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    Image.open(SCENE).save(folder / "photo.jpg")
    return folder


@pytest.fixture
def folder(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader of the README is."""
    monkeypatch.syspath_prepend(copied)
    monkeypatch.chdir(copied)
    return copied


@pytest.fixture
def model(folder: Path) -> camkit.LoadedModel:
    return camkit.load_model("python:my_model:build")


def images() -> torch.Tensor:
    return torch.randn(2, 3, 96, 192, generator=torch.Generator().manual_seed(0))


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in one language."""
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The words behind ``camkit`` of the commands of the README."""
    lines = "".join(blocks("console")).splitlines()
    assert all(line.startswith("camkit ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def joined(text: str) -> str:
    """Text without the breaks of its lines."""
    return " ".join(text.split())


def test_without_the_adapter_the_model_is_probed_and_the_grid_is_a_wrong_guess(model: camkit.LoadedModel, watch):
    watch(model.module)
    explainer = Explainer(model)
    resolved = explainer.resolve(images())
    assert (resolved.adapter.name, resolved.adapter.targets["last"].path) == ("probed", ("blocks.2",))
    assert "no adapter describes a SignTransformer; 'blocks.2' is the last layer" in resolved.rule
    # a map comes out, of the picture's own proportions, and nothing tells that it is not the model's grid
    assert explainer(images(), target=1, relu=False).maps.shape == (2, 8, 18)
    report = check_adapter(explainer, images(), exports=False)
    assert list(report.failures) == ["the layout is right"]
    assert "tokens(prefix 3, grid 8x18)" in report.failures["the layout is right"]
    assert "read as tokens(prefix 3, grid 6x24) it does" in report.failures["the layout is right"]


@pytest.mark.parametrize("grid", ["18, 8", "3, 48", "24, 6"])
def test_any_other_grid_of_as_many_tokens_is_found_out(grid: str, model: camkit.LoadedModel, tmp_path: Path):
    config = tmp_path / "wrong.toml"
    written = Path(CONFIG).read_text()
    (stated,) = [line for line in written.splitlines() if line.startswith("patch")]
    config.write_text(written.replace(stated, f"grid = [{grid}]"))
    report = check_adapter(Explainer(model, adapter=str(config)), images(), exports=False)
    assert list(report.failures) == ["the layout is right"]
    assert "read as tokens(prefix 3, grid 6x24) it does" in report.failures["the layout is right"]


def test_with_the_adapter_every_promise_is_kept(model: camkit.LoadedModel, watch):
    """By the README's own lines, exports included."""
    (program,) = blocks("python")
    defined: dict[str, object] = {}
    torch.manual_seed(0)
    exec(program, defined)  # noqa: S102
    report = defined["report"]
    assert isinstance(report, AdapterReport)
    assert (report.passed, report.remarks) == (True, [])
    assert (report.adapter, report.rule) == ("my.sign-transformer", "given in my_adapter.toml")
    assert (report.layer, report.layout) == ("blocks.3.norm1", "tokens(prefix 3, grid 6x24)")
    assert (report.grid, report.channels) == ((6, 24), 48)
    assert report.follows > 0.9
    assert report.gradient_share == 1
    assert report.error < 1e-4
    assert report.layers == {"middle": "blocks.1 6x24", "stem": "stem 24x48"}
    assert set(report.exports) == {"onnx", "torchscript"}
    assert not any(report.exports.values())


def test_the_adapter_says_how_many_classes_there_are_and_what_makes_them(model: camkit.LoadedModel):
    (adapter,) = load_adapters(Path(CONFIG))
    assert adapter.find_classifier(model.module) is model.module.head
    assert adapter.reader(model.module).classes
    assert model.class_names is not None
    assert len(model.class_names) == model.module.head.out_features
    explainer = Explainer(model, adapter=CONFIG)
    assert explainer(images(), target="hotel", relu=False).targets.tolist() == [5, 5]


WRONG = {
    "the sides of the grid exchanged": (
        'patch = "@patch_size"',
        "grid = [24, 6]",
        "the layout is right",
        ["Read as tokens(prefix 3, grid 24x6)", "Correct layout, prefix, patch or grid."],
    ),
    "the sides of a patch exchanged": (
        'patch = "@patch_size"',
        "patch = [8, 16]",
        "the layout is right",
        ["Read as tokens(prefix 3, grid 12x12)", "Correct layout, prefix, patch or grid."],
    ),
    "the grid of a guess": (
        'patch = "@patch_size"',
        "grid = [8, 18]",
        "the layout is right",
        ["Read as tokens(prefix 3, grid 8x18)", "Correct layout, prefix, patch or grid."],
    ),
    "the registers forgotten": (
        'prefix = "@num_prefix_tokens"',
        "prefix = 1",
        "the layout is right",
        ["147 tokens", "1 prefix tokens and a grid of 6x24", "state prefix and grid", "(wrong.toml)"],
    ),
    "a layer that is not there": (
        "blocks.-1.norm1",
        "blocks.-1.norm3",
        "the layer runs once",
        ["'my.sign-transformer' (wrong.toml)", "blocks.-1.norm3", "correct targets.last"],
    ),
    "a layer behind the last attention": (
        "blocks.-1.norm1",
        "norm",
        "the gradient is not zero",
        ["Only 0% of the positions of 'norm' have a gradient; choose a layer further from the output"],
    ),
    "another output": (
        'output = "logits"',
        'output = "scores"',
        "the gradient is not zero",
        ["no entry 'scores', which the adapter names as the logits"],
    ),
    "an attribute that the model lacks": (
        "@num_prefix_tokens",
        "@num_tokens",
        "the layout is right",
        ["prefix, reads @num_tokens, which a SignTransformer does not have; write @num_tokens? if it may be missing"],
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_in_the_adapter_is_found(mistake: str, model: camkit.LoadedModel, tmp_path: Path):
    right, wrong, promise, words = WRONG[mistake]
    text = Path(CONFIG).read_text(encoding="utf-8")
    assert text.count(right) == 1
    path = tmp_path / "wrong.toml"
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    report = check_adapter(Explainer(model, adapter=path), images(), exports=False)
    assert list(report.failures) == [promise]
    sentence = report.failures[promise]
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    for word in words:
        assert word in sentence


def test_an_adapter_for_another_class_is_refused_at_once(folder: Path, tmp_path: Path):
    path = tmp_path / "other.toml"
    path.write_text(Path(CONFIG).read_text(encoding="utf-8").replace('"SignTransformer"', '"Other"'), encoding="utf-8")
    result = run("adapters", "check", path, *MODEL)
    assert result.code == 2
    assert "describes a SignTransformer" in joined(result.err)
    assert "the model's class is not one of Other" in joined(result.err)


def test_the_commands_of_the_readme_do_what_it_says(folder: Path):
    results: dict[str, list[Result]] = {}
    for words in commands():
        # the exports are those of the test above
        more = ["--no-exports"] if words[:2] == ["adapters", "check"] else []
        name = " ".join(words[:2]) if words[0] == "adapters" and not words[1].startswith("-") else words[0]
        results.setdefault(name, []).append(run(*words, *more))
    (doctor,), (shown,), (suggested,), (explained,) = (
        results.pop(name) for name in ("doctor", "adapters", "adapters suggest", "explain")
    )
    of_suggestion, of_example = results.pop("adapters check")
    assert results == {}
    assert [one.code for one in (doctor, shown, suggested, of_suggestion, of_example, explained)] == [0, 0, 0, 1, 0, 0]
    for words in ("prefix only", "blocks: Never runs itself", "tokens 3+8x18"):
        assert words in joined(doctor.out)
    for words in ("probed", "blocks.2", "tokens(prefix 3, grid 8x18)"):
        assert words in joined(shown.out)
    assert (folder / "my.toml").is_file()
    (report,) = blocks("text")
    for part in report.split("…"):
        assert joined(part) in joined(of_suggestion.out)
    assert "broken" not in of_example.out
    lines = [json.loads(line) for line in (folder / "camkit-output" / "explanations.jsonl").read_text().splitlines()]
    assert [line["layer"] for line in lines] == ["blocks.3.norm1", "stem"]


def test_the_corrections_of_the_readme_make_the_suggestion_right(model: camkit.LoadedModel, tmp_path: Path):
    path = tmp_path / "mine.toml"
    assert run("adapters", "suggest", *MODEL, "--output", path).code == 0
    patch, target = (block.strip() for block in blocks("toml"))
    text = path.read_text(encoding="utf-8")
    for start, correct in (("grid = ", patch), ("targets.last = ", target)):
        (line,) = [line for line in text.splitlines() if line.startswith(start)]
        text = text.replace(line, correct)
    path.write_text(text, encoding="utf-8")
    report = check_adapter(Explainer(model, adapter=path), images(), exports=False)
    assert (report.failures, report.layer, report.grid) == ({}, "blocks.3.norm1", (6, 24))


def test_explain_as_a_process(copied: Path, tmp_path: Path):
    asked = ("--weights", "none", "--adapter", CONFIG, "--variant", "signed", "--layer", "last,middle,stem")
    result = process("explain", "photo.jpg", *MODEL, *asked, "--output", tmp_path / "out", cwd=copied)
    assert (result.code, result.err) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "out" / "explanations.jsonl").read_text().splitlines()]
    assert [line["layer"] for line in lines] == ["blocks.3.norm1", "blocks.1", "stem"]
    for line in lines:
        assert line["map"]["minimum"] < line["map"]["maximum"]
        with Image.open(tmp_path / "out" / line["picture"]) as picture:
            assert picture.width == 2 * picture.height
