"""The report is one file that needs no other."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from camkit.errors import CamkitError
from camkit.report import Picture, Pictures, Table, Text, write_report
from camkit.visualize import data_uri


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps elements, attributes and text."""

    VOID = frozenset({"meta", "img", "br", "link", "hr"})

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and "style" not in self.open:
            self.text.append((self.open[-1], data.strip()))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def texts(self, tag):
        return [text for name, text in self.text if name == tag]


def image(seed=0):
    return np.random.RandomState(seed).randint(0, 256, (12, 16, 3)).astype(np.uint8)


@pytest.fixture
def page(tmp_path):
    sections = [
        Text("How to read it", "First paragraph.\n\nSecond <b>paragraph</b>."),
        Table(
            "Peaks",
            ["Method", "Inside", "Share", "Images"],
            [["Grad-CAM", 0.98765, "93 %", 1200], ["CAM", None, "4 %", 7]],
            note="A dash: it does not apply.",
        ),
        Pictures(
            "Scenes",
            ["image", "Grad-CAM"],
            [("digit 3", [image(1), Picture(image(2), "peak inside")]), ("digit 7", [image(3), None])],
        ),
    ]
    path = write_report(tmp_path / "report.html", title="A & B <i>", introduction="What it is.", sections=sections)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_nothing_outside_the_file_is_needed(page):
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    references = [
        value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    assert len(references) == 6  # three contents, three images
    assert all(reference.startswith(("data:image/jpeg;base64,", "#section-")) for reference in references)


def test_style_needs_nothing_outside_and_knows_dark_mode(tmp_path):
    html = write_report(tmp_path / "r.html", title="T", sections=[]).read_text()
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert style.count("{") == style.count("}")


def test_text_is_escaped(page):
    assert page.texts("h1") == ["A & B <i>"]
    assert "Second <b>paragraph</b>." in page.texts("p")
    assert not page.all("b")
    assert not page.all("i")


def test_contents_lead_to_the_sections(page):
    targets = {attributes["href"][1:] for attributes in page.all("a")}
    assert targets == {attributes["id"] for attributes in page.all("section")}
    assert page.texts("a") == page.texts("h2") == ["How to read it", "Peaks", "Scenes"]


def test_numbers_stand_right_and_are_written_alike(page):
    cells = [(attributes.get("class"), text) for attributes, text in zip(page.all("td"), page.texts("td"), strict=True)]
    assert [text for _, text in cells] == ["0.988", "93 %", "1,200", "\N{EN DASH}", "4 %", "7"]
    assert {style for style, _ in cells} == {"number"}
    assert page.texts("th") == ["Method", "Inside", "Share", "Images", "Grad-CAM", "CAM"]
    assert "A dash: it does not apply." in page.texts("p")


def test_a_column_of_names_with_digits_is_no_column_of_numbers(tmp_path):
    table = Table("T", ["Name", "Size"], [["3D model", "7 MB"], ["resnet50", "< 1.5 MB"]])
    page = Page(write_report(tmp_path / "r.html", title="T", sections=[table]).read_text())
    assert [attributes["class"] for attributes in page.all("td")] == ["number", "number"]
    assert [attributes.get("scope") for attributes in page.all("th")] == ["col", "col", "row", "row"]


def test_pictures_carry_pixels_size_caption_and_alternative_text(page):
    images = page.all("img")
    assert [attributes["alt"] for attributes in images] == [
        "digit 3, image",
        "digit 3, Grad-CAM, peak inside",
        "digit 7, image",
    ]
    assert {(attributes["width"], attributes["height"]) for attributes in images} == {("16", "12")}
    for attributes, seed in zip(images, (1, 2, 3), strict=True):
        assert attributes["src"] == data_uri(image(seed))
    assert page.texts("figcaption") == ["image", "Grad-CAM", "image", "Grad-CAM"]
    assert page.texts("span") == ["peak inside"]
    assert page.texts("h3") == ["digit 3", "digit 7"]


@pytest.mark.parametrize(
    "section",
    [Table("Odd", ["a", "b"], [["only one"]]), Pictures("Odd", ["a", "b"], [("row", [image()])])],
)
def test_a_row_that_does_not_fit_is_refused_and_nothing_written(tmp_path, section):
    with pytest.raises(CamkitError, match="Each row of 'Odd' needs 2 cells"):
        write_report(tmp_path / "r.html", title="T", sections=[section])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CamkitError, match="cannot be written"):
        write_report(tmp_path / "file" / "r.html", title="T", sections=[])


def test_pictures_and_pages_need_no_torch():
    code = "import sys, camkit.visualize, camkit.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
