"""The sweep over the families of a library, and the commands that suggest and check an adapter."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import timm
import torch

import zoo
from camkit.adapter_files import json_schema, load_adapters
from camkit.coverage import render_page
from camkit.suggest import suggest
from camkit.sweep import read_results, representatives
from camkit.testing.adapters import LEAST_SIMILARITY
from camkit_adapters import timm_source
from commandline import process, run, succeed

ADAPTERS = Path(timm_source.__file__).parent

MODEL = '''
import torch
from torch import nn


class Patches(nn.Module):
    """A class token and two registers in front of patches of 8 pixels, three blocks."""

    def __init__(self, num_classes=6):
        super().__init__()
        self.num_classes = num_classes
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.first = nn.Parameter(torch.randn(1, 3, 16))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3))
        self.head = nn.Linear(16, num_classes)

    def forward(self, images):
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(images), -1, -1), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


class Zeros(nn.Module):
    """A head of zeros, as many have before they are trained."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.head = nn.Linear(8, 6)
        nn.init.zeros_(self.head.weight)

    def forward(self, images):
        return self.head(self.stage(images).mean(dim=(2, 3)))


def patches():
    torch.manual_seed(0)
    return Patches()


def zeros():
    torch.manual_seed(0)
    return Zeros()
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the models above, which is the current one."""
    (tmp_path / "own_models.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "own_models", raising=False)
    return tmp_path


PATCHES = ("--model", "python:own_models:patches", "--size", "48")


def test_a_suggested_adapter_describes_the_model_and_passes_the_check(own):
    out = succeed("adapters", "suggest", *PATCHES, "--output", "mine.toml")
    text = (own / "mine.toml").read_text()
    assert text in out
    assert "camkit adapters check mine.toml --model python:own_models:patches" in out
    (adapter,) = load_adapters(own / "mine.toml")
    assert (adapter.name, adapter.library, adapter.classes) == ("mine", "own_models", ("Patches",))
    assert (adapter.layout, adapter.prefix, adapter.patch) == ("tokens", 3, 8)
    assert (adapter.classifier, adapter.class_count) == (("head",), "@num_classes")
    assert adapter.targets["last"].path == ("blocks.1",)
    checked = succeed("adapters", "check", "mine.toml", *PATCHES, "--no-exports")
    assert re.search(r"mine: blocks\.1 tokens\(prefix 3, grid 6x6\)", checked)
    assert checked.count("kept ") == 5
    assert "broken" not in checked
    found = json.loads(succeed("adapters", *PATCHES, "--adapter", "mine.toml", "--json"))
    assert (found["adapter"], found["layer"], found["map"]) == ("mine", "blocks.1", "6x6, 16 channels")


def test_a_suggestion_does_not_replace_a_file(own):
    (own / "mine.toml").write_text("# mine\n")
    result = run("adapters", "suggest", *PATCHES, "--output", "mine.toml")
    assert (result.code, result.err) == (
        2,
        "Error: 'mine.toml' exists already; name another file, or replace it with --force.\n",
    )
    assert (own / "mine.toml").read_text() == "# mine\n"
    succeed("adapters", "suggest", *PATCHES, "--output", "mine.toml", "--force", "--name", "other")
    assert load_adapters(own / "mine.toml")[0].name == "other"


# What is wrong with an adapter of `Patches`, the promise that breaks, and what is said.
BROKEN = {
    "behind the last attention": (
        {"last": "blocks.2"},
        "the gradient is not zero",
        "Only 0% of the positions of 'blocks.2'",
    ),
    "a part that never runs": ({"last": "blocks.1.self_attn.out_proj"}, "the layer runs once", "runs 0 times"),
    "a path that leads nowhere": (
        {"last": "layers.-1"},
        "the layer runs once",
        "(mine.toml) puts the target 'last' at layers.-1",
    ),
    "too few prefix tokens": ({"prefix": 1}, "the layout is right", "39 tokens, which 1 prefix tokens"),
    "a grid that does not fit": ({"patch": 16}, "the layout is right", None),
}


@pytest.mark.parametrize("case", [name for name, (_, _, said) in BROKEN.items() if said])
def test_a_broken_promise_is_named_with_its_reason(case, own):
    change, promise, said = BROKEN[case]
    facts = {"last": "blocks.1", "prefix": 3, "patch": 8, **change}
    (own / "mine.toml").write_text(
        f'[[adapter]]\nname = "mine"\nlayout = "tokens"\nprefix = {facts["prefix"]}\npatch = {facts["patch"]}\n'
        f'targets.last = "{facts["last"]}"\n'
    )
    result = run("adapters", "check", "mine.toml", *PATCHES, "--no-exports")
    assert result.code == 1
    assert re.search(rf"broken +{promise}", result.out)
    assert said in " ".join(result.out.split())


def test_a_swapped_grid_is_found_by_the_occluder(own):
    facts = '[[adapter]]\nname = "mine"\nlayout = "tokens"\nprefix = 3\ntargets.last = "blocks.1"\n'
    wide = ("--model", "python:own_models:patches", "--size", "48x96", "--no-exports")
    for grid, code in ((("[6, 12]"), 0), ("[12, 6]", 1)):
        (own / "mine.toml").write_text(facts + f"grid = {grid}\n")
        result = run("adapters", "check", "mine.toml", *wide)
        assert result.code == code, result.out
    said = " ".join(result.out.split())
    assert "Read as tokens(prefix 3, grid 12x6), the change in the activations at 'blocks.1' does not go where" in said


def test_untrained_constants_are_made_random_for_the_check(own):
    (own / "mine.toml").write_text('[[adapter]]\nname = "mine"\ntargets.last = "stage"\n')
    arguments = ("adapters", "check", "mine.toml", "--model", "python:own_models:zeros", "--no-exports")
    succeed(*arguments, "--weights", "none")
    result = run(*arguments, "--weights", "none", "--no-random-constants")
    assert result.code == 1
    assert "Only 0% of the positions" in result.out


@pytest.mark.slow
def test_a_check_exports_to_every_format(own):
    (own / "mine.toml").write_text('[[adapter]]\nname = "mine"\ntargets.last = "stage"\n')
    checked = succeed(
        "adapters", "check", "mine.toml", "--model", "python:own_models:zeros", "--weights", "none", "--size", "32"
    )
    assert re.search(r"kept +exports equal the oracle +onnx, torchscript", checked)


def test_bad_adapter_files_are_told_in_one_sentence(own):
    files = {
        "nowhere.toml": (None, "cannot be read"),
        "huge.toml": ("# " + "x" * 2_000_000, "has 1.9 MiB", "more than 1 MiB is not read"),
        "deep.toml": ("x = " + "[" * 5000 + "]" * 5000, "is not valid TOML"),
        "code.toml": ('[[adapter]]\nname = "a"\nprefix = "@__import__(\'os\')"\n', "adapter.0.prefix"),
        "private.toml": ('[[adapter]]\nname = "a"\ngrid = "@_modules.embed"\n', "adapter.0.grid"),
        "rule.toml": ('[[adapter]]\nname = "a"\ntargets.last = "@trunk_begin"\n', "adapter.0.targets.last"),
        "unknown.toml": ('[[adapter]]\nname = "a"\nlayuot = "NCHW"\n', "adapter.0.layuot"),
        "defaults.toml": ('[defaults]\nlayuot = "NCHW"\n[[adapter]]\nname = "a"\n', "adapter.0.layuot"),
    }
    for name, (text, *words) in files.items():
        if text is not None:
            (own / name).write_text(text)
        result = run("adapters", "check", name, *PATCHES)
        assert (result.code, result.out) == (2, ""), name
        assert result.err.startswith(f"Error: The adapter file '{name}' ")
        assert result.err.count("\n") == 1
        for word in words:
            assert word in result.err


# --- the sweep


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_every_family_has_a_representative(source):
    found = representatives(source)
    assert len({one.name for one in found}) == len(found)
    assert {"timm": 106, "torchvision": 80}[source] == len(found)
    assert {"timm": 106, "torchvision": 17}[source] == len({one.family for one in found})
    if source == "timm":
        assert {one.family.partition(".")[0] for one in found} <= set(timm.list_modules())


@pytest.mark.slow
def test_no_class_of_timm_is_without_a_representative():
    known = {one.family for one in representatives("timm")}
    for name in timm.list_models():
        with torch.device("meta"):
            module = timm.create_model(name)
        defined = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        assert f"{defined}.{type(module).__name__}" in known


def test_a_sweep_measures_writes_and_goes_on_where_it_stopped(tmp_path):
    results, page = tmp_path / "results.jsonl", tmp_path / "coverage.md"
    arguments = (
        "adapters",
        "sweep",
        "--source",
        "timm",
        "--results",
        results,
        "--page",
        page,
        "--jobs",
        2,
        "--no-exports",
    )
    first = process(*arguments, "--family", "test_resnet", "--family", "test_vit")
    assert (first.code, first.err) == (0, "")
    records = read_results(results)
    assert set(records) == {("timm", "test_resnet"), ("timm", "test_vit")}
    resnet = records["timm", "test_resnet"]
    assert (resnet["adapter"], resnet["layer"], resnet["grid"], resnet["follows"] > LEAST_SIMILARITY) == (
        "timm.resnet",
        "layer4",
        [5, 5],
        True,
    )
    assert resnet["error"] < 1e-4
    assert resnet["layers"]["stage3"] == "layer3 10x10"
    written = results.read_bytes()
    again = run(*arguments, "--family", "test_resnet", "--family", "test_vit")
    assert again.code == 0
    assert results.read_bytes() == written
    assert "timm.vit.class-token" in again.out
    text = page.read_text()
    assert "2 models of 2 families: 2 explained in agreement with the oracle" in text
    assert "| test_vit | 160x160 | timm.vit.class-token | blocks.5.norm1 | tokens 1+10x10 | 100% |" in text


def test_a_model_that_takes_too_long_is_a_failure_with_its_cause(tmp_path):
    results = tmp_path / "results.jsonl"
    result = run(
        "adapters", "sweep", "--source", "timm", "--results", results, "--family", "test_resnet", "--time-limit", 1
    )
    assert result.code == 1
    assert "runs: took longer than 1 seconds" in result.out
    (record,) = read_results(results).values()
    page = render_page([record])
    assert "`timm:test_resnet`: **runs** is broken: took longer than 1 seconds" in page
    assert "0 explained" in page


def test_what_cannot_be_swept_is_refused(tmp_path):
    for arguments, words in (
        (("--source", "demo"), "The model source 'demo' lists no families"),
        (("--source", "timn"), "did you mean 'timm'"),
        (("--source", "timm", "--family", "resnett"), "There is no family 'resnett'"),
    ):
        result = run("adapters", "sweep", "--results", tmp_path / "r.jsonl", *arguments)
        assert result.code == 2
        assert words in result.err
    (tmp_path / "r.jsonl").write_text("not results\n")
    result = run("adapters", "sweep", "--results", tmp_path / "r.jsonl", "--source", "timm")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "does not hold the results of a sweep" in result.err


# --- what ships


def test_the_schema_for_editors_is_the_schema():
    shipped = json.loads((ADAPTERS / "adapter.schema.json").read_text())
    assert shipped == json_schema()
    assert json.loads(succeed("adapters", "--schema")) == shipped
    described = shipped["$defs"]["Adapter"]["properties"]
    assert all("description" in facts for facts in described.values())


@pytest.mark.parametrize("path", sorted(ADAPTERS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_files_name_their_schema_and_every_key_in_them_is_in_it(path):
    text = path.read_text()
    assert text.startswith("#:schema ./adapter.schema.json\n")
    known = set(json_schema()["$defs"]["Adapter"]["properties"])
    content = tomllib.loads(text)
    for entry in [content.get("defaults", {}), *content["adapter"]]:
        assert set(entry) <= known


def test_the_page_is_made_of_the_results_that_ship():
    docs = Path(__file__).parents[1] / "docs"
    records = list(read_results(docs / "coverage.jsonl").values())
    assert (docs / "coverage.md").read_text() == render_page(records)


def test_adapters_of_a_model_load_no_weights():
    """The default weights are not on this disk; where a model is cut does not depend on them."""
    found = json.loads(succeed("adapters", "--model", "timm:test_resnet", "--json"))
    assert (found["adapter"], found["layer"], found["layers"]) == (
        "timm.resnet",
        "layer4",
        ["last", "stage1", "stage2", "stage3", "stage4"],
    )


def test_suggestions_read_attributes_where_they_hold_the_measured_value():
    module = zoo.watch(zoo.random_model("timm:vit-average-registers"))
    text = suggest(module, zoo.images(1, 48), "vit")
    (entry,) = tomllib.loads(text)["adapter"]
    assert (entry["prefix"], entry["patch"], entry["classifier"]) == (
        "@num_prefix_tokens",
        "@patch_embed.patch_size",
        "head",
    )
