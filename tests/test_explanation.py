"""What an Explanation offers: overlays, files, facts as JSON, and a picture in a notebook."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import camkit
import zoo
from camkit.explanation import as_pictures


@pytest.fixture
def explained(random_model):
    explainer = camkit.Explainer(random_model("demo:resnet"), class_names=[f"digit <{n}>" for n in range(10)])
    images = zoo.inputs("demo:resnet", 2)
    return explainer(images, target=torch.tensor([3, 7]), relu=False), images


def test_save_writes_an_overlay_and_a_line_for_each_image(explained, tmp_path):
    explanation, images = explained
    pictures = as_pictures(images)
    paths = explanation.save(tmp_path / "maps", pictures)
    drawn = explanation.overlay(pictures)
    for path, expected in zip(paths, drawn, strict=True):
        assert (np.asarray(Image.open(path)) == expected).all()
    lines = [json.loads(line) for line in (tmp_path / "maps" / "explanations.jsonl").read_text().splitlines()]
    assert [line["picture"] for line in lines] == [path.name for path in paths]
    assert [line["target"]["class"] for line in lines] == [3, 7]
    assert [line["layer"] for line in lines] == ["layer4", "layer4"]


def test_saved_again_a_picture_keeps_one_line(explained, tmp_path):
    explanation, images = explained
    explanation.save(tmp_path, images)
    explanation.save(tmp_path, images)
    assert len((tmp_path / "explanations.jsonl").read_text().splitlines()) == 2


def test_record_says_what_the_map_holds(explained):
    explanation, _ = explained
    record, values = explanation.record(1), explanation.maps[1]
    assert record["map"]["maximum"] == pytest.approx(float(values.max()))
    assert record["map"]["shape"] == [12, 12]
    peak = record["map"]["peak"]
    heat = explanation.heatmaps[1]
    assert heat[peak["y"], peak["x"]] == heat.max()
    assert record["target"]["probability"] == pytest.approx(float(explanation.logits[1].softmax(dim=0)[7]))


def test_what_is_not_finite_is_null_in_json(explained):
    explanation, _ = explained
    broken = replace(explanation, maps=torch.full_like(explanation.maps, torch.nan))
    record = broken.record(0)
    assert record["map"]["maximum"] is None
    assert "not finite" in record["note"]
    json.dumps(record, allow_nan=False)


def test_overlays_take_pictures_pil_images_and_normalised_tensors(explained):
    explanation, images = explained
    pictures = as_pictures(images)
    assert (explanation.overlay(images) == explanation.overlay(pictures)).all()
    assert (explanation.overlay([Image.fromarray(one) for one in pictures]) == explanation.overlay(pictures)).all()


@pytest.mark.parametrize("pictures", [np.zeros((1, 96, 96, 3), np.uint8), np.zeros((2, 96, 96, 3), np.float32)])
def test_overlays_refuse_other_pictures(explained, pictures):
    with zoo.refused("ictures were given"):
        explained[0].overlay(pictures)


def test_a_notebook_shows_each_map_under_its_escaped_class_name(explained):
    tags = []

    class Page(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append((tag, dict(attrs)))

    Page().feed(explained[0]._repr_html_())
    shown = [attributes for tag, attributes in tags if tag == "img"]
    assert [attributes["alt"] for attributes in shown] == ["digit <3>", "digit <7>"]
    assert all(attributes["src"].startswith("data:image/") for attributes in shown)
    assert not [tag for tag, _ in tags if tag.isdigit()]


@pytest.mark.filterwarnings("ignore::camkit.CamkitWarning")
def test_a_map_of_one_value_is_blank_and_not_rounding_noise():
    explainer = camkit.Explainer(camkit.load_model("demo:resnet"))
    explanation = explainer(torch.randn(2, 3, 96, 96), "gradcam", 3)
    value = torch.tensor([0.1234567, -0.3])[:, None, None].expand(2, 7, 7)
    even = replace(explanation, maps=value)
    assert not even.heatmaps.any()
    assert [("one value everywhere" in note, "no positive value" in note) for note in even.notes] == [
        (True, False),
        (False, True),
    ]
    signed = replace(even, relu=False)
    assert signed.heatmaps.amin(dim=(1, 2)).tolist() == pytest.approx([1, -1])
    assert not any(signed.notes)
    broken = replace(explanation, maps=value * torch.nan)
    assert bool(broken.heatmaps.isnan().all())
