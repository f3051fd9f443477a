"""The commands that write the methods' table and gallery run, and leave no method out."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkit.registry import registry

# both commands run every method
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "digit_scenes"
# the model that refuses one method and lets all the others be seen
MODEL = "demo:vit"
REFUSED = {"cam"}


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(*kinds: str) -> set[str]:
    found = registry()
    return {name for name in found.names("method") if found.get("method", name).kind in kinds}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    page = tmp_path_factory.mktemp("methods") / "methods.md"
    small = ["--scenes", "2", "--rise-masks", "20", "--sscam-samples", "1", "--workers", "1"]
    shown = run("compare_methods.py", "--models", MODEL, *small, "--write", str(page))
    return page.read_text(encoding="utf-8"), shown


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("gallery") / "gallery.md"
    run("gallery.py", "--models", MODEL, "--rise-masks", "20", "--sscam-samples", "1", "--write", str(page))
    return page


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each method's row of a table, by the method's name."""
    found = re.findall(r"^\| `([^`]+)`[^|]*\|(.+)\|$", text, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


def test_table_has_every_map_method(table: tuple[str, str]):
    text, _ = table
    found = rows(text)
    assert found.keys() == names("map")
    assert {name for name, cells in found.items() if "refused" in cells} == REFUSED
    for name in REFUSED:
        assert re.search(rf"`{name}`.* on {MODEL}: \w", text)
    for name in found.keys() - REFUSED:
        _, scene_count, asked, other = found[name]
        assert scene_count == "2"
        assert re.fullmatch(r"(\d+%( \(\d blank\))?|blank)", asked), name
        assert re.fullmatch(r"(\d+%|blank)", other), name


def test_table_says_kinds_and_floors(table: tuple[str, str]):
    kinds = {name: cells[0] for name, cells in rows(table[0]).items()}
    expected = {
        "gradcam": "gradient",
        "fullgrad": "gradient",
        "integrated-gradcam": "gradient",
        "cam": "activation",
        "eigencam": "activation",
        "rise": "perturbation",
        "reciprocam": "perturbation",
        "rollout": "transformer",
        "legrad": "transformer",
        "random": "baseline",
        "sobel": "baseline",
    }
    assert {name: kinds[name] for name in expected} == expected
    marked = set(re.findall(r"^\| `([^`]+)` \(\*\*floor\*\*\)", table[0], re.MULTILINE))
    assert marked == {"random", "sobel"}


def test_class_agnostic_maps_point_at_both_digits_alike(table: tuple[str, str]):
    found = rows(table[0])
    for name in ("eigencam", "fem", "rollout", "random", "sobel"):
        asked, other = found[name][2:]
        assert asked == other
    assert any(cells[2] != cells[3] for cells in found.values())


def test_table_is_shown(table: tuple[str, str]):
    assert all(name in table[1] for name in names("map"))


def test_gallery_lists_everything(gallery: Path):
    lines = re.findall(r"^\* `([^`]+)`", gallery.read_text(encoding="utf-8"), re.MULTILINE)
    smoothed = {"plain", "eigen_smooth", "aug_smooth"}
    assert sorted(lines) == sorted(names("map", "pixels", "concepts") | set(registry().names("fusion")) | smoothed)


def test_gallery_pictures_are_not_blank(gallery: Path):
    shown = re.findall(r"!\[[^]]*\]\((images/[^)]+)\)", gallery.read_text(encoding="utf-8"))
    written = {f"images/{path.name}" for path in (gallery.parent / "images").iterdir()}
    assert set(shown) == written
    assert len(shown) == 9
    for name in shown:
        path = gallery.parent / name
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
        # each row of pictures, seen through its columns, has colours and not only white paper
        cells = pixels[len(pixels) // 3 :, -150:]
        assert cells.std() > 20, name


@pytest.mark.parametrize("page", ["methods.md", "gallery.md"])
def test_shipped_pages_are_up_to_date(page: str):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    listed = set(rows(text)) if page == "methods.md" else set(re.findall(r"^\* `([^`]+)`", text, re.MULTILINE))
    assert listed >= names("map")


def test_shipped_pictures_are_small():
    pictures = sorted((ROOT / "docs" / "images").glob("gallery-*.jpg"))
    assert len(pictures) == 9
    assert all(path.stat().st_size < 400_000 for path in pictures)
