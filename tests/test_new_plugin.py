"""`camkit new-plugin` and the guide to plugins: what they write and show works as it stands."""

import json
import os
import re
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from camkit import hookspecs
from camkit import plugin as marks_of_plugins
from camkit.registry import registry
from camkit_adapters import demo
from commandline import run, succeed
from environments import Environment

SCENE = Path(demo.__file__).with_name("images") / "scene-01.png"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment.create(tmp_path_factory.mktemp("environment") / "env")


@dataclass(frozen=True)
class Followed:
    """The guide, followed from top to bottom: the folder that it ends in, and what its commands printed."""

    folder: Path
    printed: str


@pytest.fixture(scope="module")
def followed(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Followed:
    start = tmp_path_factory.mktemp("guide")
    shutil.copy(SCENE, start / "scene.png")
    here, printed = start, ""
    for file, language, text in blocks():
        if language == "console":
            script = f"set -e\n{text}\npwd > {start / 'here'}\n"
            printed += environment.succeed("bash", "-c", script, cwd=here)
            here = Path((start / "here").read_text().strip())
        elif file.endswith("methods.py"):
            assert text == (here / file).read_text()
        elif file:
            (here / file).write_text(text)
    assert here == start / "camkit-sharp"
    return Followed(here, printed)


def test_what_is_written(tmp_path: Path):
    printed = succeed("new-plugin", "camkit-very-sharp", "--directory", tmp_path)
    made = tmp_path / "camkit-very-sharp"
    assert printed.splitlines()[0] == f"Wrote {made}: the method 'very-sharp' and its tests."
    assert os.listdir(tmp_path) == ["camkit-very-sharp"]
    sources = {str(path.relative_to(made)): path.read_text() for path in made.rglob("*") if path.is_file()}
    package = {"src/camkit_very_sharp/__init__.py", "src/camkit_very_sharp/methods.py"}
    assert set(sources) == {"pyproject.toml", "README.md", ".gitignore", "tests/test_methods.py", *package}
    project = tomllib.loads(sources["pyproject.toml"])["project"]
    assert project["name"] == "camkit-very-sharp"
    assert project["entry-points"] == {"camkit": {"very-sharp": "camkit_very_sharp"}}
    assert not [path for path, source in sources.items() if "{{" in source or not source.endswith("\n")]
    assert "def very_sharp_map(" in sources["src/camkit_very_sharp/methods.py"]
    assert len(sources["src/camkit_very_sharp/methods.py"].splitlines()) <= 15
    # as any folder that is made here, though it was a temporary one
    (tmp_path / "other").mkdir()
    assert made.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.slow
def test_its_tests_pass_at_once(followed: Followed):
    # the first is the skeleton's own, as it was written
    assert re.findall(r"=+ (.*) in .*s.* =+", followed.printed)[0] == "3 passed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "right", "wrong", "failed"),
    [
        ("methods.py", "weights.abs() ** power", "weights.abs()", "test_values_computed_by_hand"),
        ("methods.py", "gradients.mean(dim=(2, 3))", "gradients.mean(dim=(0, 2, 3))[None]", "test_the_contract"),
        ("__init__.py", '(__name__, "method")', '(__name__, "metric")', "test_it_is_found_by_its_name"),
    ],
    ids=["formula", "batch", "hook"],
)
def test_its_tests_fail_where_the_method_is_broken(
    followed: Followed, environment: Environment, part: str, right: str, wrong: str, failed: str
):
    path = followed.folder / "src" / "camkit_sharp" / part
    sound = path.read_text()
    assert sound.count(right) == 1
    path.write_text(sound.replace(right, wrong))
    try:
        asked = ("-q", "-p", "no:cacheprovider", f"tests/test_methods.py::{failed}")
        result = environment.run("python", "-m", "pytest", *asked, cwd=followed.folder)
    finally:
        path.write_text(sound)
    assert result.code == 1
    assert "1 failed" in result.out


# --- what is refused


@pytest.mark.parametrize("name", ["Sharp", "camkit_sharp", "sharp cam", "3d", "camkit-3d", "-x", "a--b", "", "../up"])
def test_a_name_that_nothing_can_have(name: str, tmp_path: Path):
    refused = run("new-plugin", "--directory", tmp_path, "--", name)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == (
        f"Error: A plugin cannot be called {name!r}; write lower-case words joined by hyphens, such as camkit-sharp.\n"
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("torch", "A package 'torch' is there already"),
        ("camkit-methods", "A package 'camkit_methods' is there already"),
        ("secrets", "A package 'secrets' is there already"),
        ("camkit-gradcam", "A method 'gradcam' is there already"),
        ("lambda", "'lambda' is a word of Python's own"),
    ],
)
def test_a_name_that_is_taken(name: str, sentence: str, tmp_path: Path):
    refused = run("new-plugin", name, "--directory", tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(f"Error: {sentence}; choose another name")
    assert refused.err.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_left_alone(kind: str, tmp_path: Path):
    there = tmp_path / "camkit-sharp"
    if kind == "folder":
        there.mkdir()
    elif kind == "file":
        there.write_text("mine")
    else:
        there.symlink_to("nowhere")
    refused = run("new-plugin", "camkit-sharp", "--directory", tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"Error: '{there}' exists already; choose another name or another --directory.\n"
    assert os.listdir(tmp_path) == ["camkit-sharp"]
    if kind == "folder":
        assert os.listdir(there) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    refused = run("new-plugin", "camkit-sharp", "--directory", tmp_path / "file")
    assert (refused.code, refused.out) == (2, "")
    assert re.fullmatch(r"Error: '.*/file/camkit-sharp' cannot be written: .*\.\n", refused.err)
    assert os.listdir(tmp_path) == ["file"]


def test_nothing_half_written_stays(tmp_path: Path):
    # nothing is wrong with the temporary folder, only with the names that it and the package are to have
    refused = run("new-plugin", "x" * 300, "--directory", tmp_path)
    assert refused.code == 2
    assert "cannot be written: file name too long" in refused.err
    assert os.listdir(tmp_path) == []


def test_folders_above_it_are_made(tmp_path: Path):
    made = run("new-plugin", "camkit-lambda", "--directory", tmp_path / "a" / "b")
    assert made.code == 0, made.err
    # a method may have the name of one of Python's own words; its function has another
    source = (tmp_path / "a" / "b" / "camkit-lambda" / "src" / "camkit_lambda" / "methods.py").read_text()
    compile(source, "methods.py", "exec")


# --- the guide

GUIDE = Path(__file__).parents[1] / "docs" / "plugins.md"
EXAMPLE = Path(__file__).parents[1] / "examples" / "third_party_plugin"
# a fenced block, and the file that the sentence before it names for it
BLOCK = re.compile(r"(?:`([\w./]+)`[^`\n]*:\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str, str]]:
    """File (or nothing), language and text of each block of the guide."""
    return [match.groups(default="") for match in BLOCK.finditer(GUIDE.read_text(encoding="utf-8"))]


def rows_of(heading: str) -> list[list[str]]:
    """The rows of the guide's table with that first column, without the marks of code."""
    text = GUIDE.read_text(encoding="utf-8").split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in text.splitlines()[2:]]


def written(annotation: object) -> str:
    """A type as an author writes it."""
    plain = isinstance(annotation, type) and not get_args(annotation)
    return annotation.__name__ if plain else str(annotation).replace("torch.", "")


@pytest.mark.slow
def test_the_guide_works_from_top_to_bottom(followed: Followed):
    assert "method from camkit-sharp" in followed.printed
    assert "asks for: activations, scores, head" in followed.printed
    # the last command prints a map's shape, whether the attack succeeded, and the metric for two methods
    assert re.search(r"^torch.Size\(\[1, \d+, \d+\]\) \[\w+\] \[0\.\d+, 0\.\d+\]$", followed.printed, re.MULTILINE)
    (line,) = (followed.folder / "explained" / "explanations.jsonl").read_text().splitlines()
    assert json.loads(line)["method"] == "leave-one-out"
    assert (followed.folder / "sharp.onnx").is_file()


def test_what_the_guide_shows_of_the_example_is_there():
    sources = [path.read_text() for path in (EXAMPLE / "src").rglob("*.py")]
    shown = [text for file, language, text in blocks() if language != "console" and not file]
    assert len(shown) == 3
    for text in shown:
        assert any(text in source for source in sources), text


def test_the_guide_lists_every_quantity_with_its_type():
    quantities = [item.value for item in registry().items("quantity")]
    known = {each.name: [written(each.type), "yes" if each.traceable else "no"] for each in quantities}
    assert {name: facts for name, *facts, _ in rows_of("quantity")} == known


def test_the_guide_lists_every_hook():
    rows = rows_of("kind | mark")
    assert {kind for kind, _, _ in rows} == set(registry().kinds())
    for _, marks, hook in rows:
        assert hasattr(hookspecs, hook)
        assert all(hasattr(marks_of_plugins, mark.strip().removeprefix("plugin.")) for mark in marks.split(","))
