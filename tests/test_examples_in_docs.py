"""The documents tell the truth: their Python runs, their commands parse, their plugins and adapters are sound."""

import re
import shlex
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from PIL import Image

import camkit
from camkit import plugin
from camkit.adapter_files import load_adapters
from camkit.attacks import Attack
from camkit.cli import app
from camkit.engines import Engine
from camkit.evaluate import DataSet
from camkit.methods import Method
from camkit.metrics import Metric
from camkit.registry import registry
from camkit.targets import TargetFunction
from camkit_adapters import demo

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCENE = Path(demo.__file__).with_name("images") / "scene-01.png"
PARSERS = {
    "method": Method,
    "target": TargetFunction,
    "attack": Attack,
    "metric": Metric,
    "dataset": DataSet,
    "engine": Engine,
}


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


def blocks(document: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a document in these languages."""
    text = document.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1) for match in found if match[1] in languages
    ]


def commands(document: Path) -> list[list[str]]:
    """The words of each line that starts with ``camkit``, without the prompt and comments."""
    joined = "\n".join(block.text for block in blocks(document, "console", "bash", "sh")).replace("\\\n", " ")
    lines = [shlex.split(line.removeprefix("$ "), comments=True) for line in joined.splitlines()]
    return [words for words in lines if words[:1] == ["camkit"]]


def execute(document: Path) -> dict[str, object]:
    """Runs a document's Python from top to bottom; what it defined."""
    names: dict[str, object] = {"__name__": document.stem}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", camkit.CamkitWarning)
        for block in blocks(document, "python"):
            # empty lines before it, so that an error names the document's own line
            exec(compile("\n" * (block.line - 1) + block.text, document, "exec"), names)  # noqa: S102
    return names


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the documents speak of."""
    shutil.copy(SCENE, tmp_path / "scene.png")
    Image.open(SCENE).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python(document: Path, workplace: Path):
    defined = execute(document)
    for item in list(defined.values()):
        for mark in plugin.marks(item):
            PARSERS[mark.kind].parse(item, mark, registry())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands(document: Path):
    group = typer.main.get_command(app)
    for words in commands(document):
        with group.make_context("camkit", words[1:]) as context:
            command = group.get_command(context, words[1]) if not words[1].startswith("-") else None
            if command is not None:
                command.make_context(words[1], words[2:], parent=context)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_adapters(document: Path, tmp_path: Path):
    for block in blocks(document, "toml"):
        if "[[adapter]]" in block.text:
            (tmp_path / "adapter.toml").write_text(block.text, encoding="utf-8")
            assert load_adapters(tmp_path / "adapter.toml")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links(document: Path):
    for target in re.findall(r"\]\((?!\w+:)([^)#\s]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_there_is_something_to_test():
    readme, contributing = DOCUMENTS[:2]
    assert len(blocks(readme, "python")) >= 3
    assert {"explain", "export", "verify", "doctor", "summary", "plugins"} <= {words[1] for words in commands(readme)}
    assert len(blocks(contributing, "python")) >= 4
    assert any("[[adapter]]" in block.text for block in blocks(contributing, "toml"))


def test_contributing_shows_each_kind_of_plugin(workplace: Path):
    defined = execute(ROOT / "CONTRIBUTING.md")
    assert {mark.kind for item in defined.values() for mark in plugin.marks(item)} == set(PARSERS)
