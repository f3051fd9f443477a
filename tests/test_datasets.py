"""Data sets in files: trees of the real layouts, with what is missing and broken in real ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import camkit
from camkit import datasets
from camkit.classes import match_classes
from camkit.datasets import UNKNOWN_CLASS, present
from camkit.errors import CamkitError
from camkit.registry import registry

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GOLDFISH, SHARK = "n01443537", "n01484850"  # classes 1 and 2 of ImageNet


def photo(path: Path, *, size=(60, 40), broken=False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    if broken:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def voc(path: Path, objects, size=(60, 40)) -> Path:
    """As ILSVRC writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, (left, top, right, bottom) in objects
    )
    path.write_text(
        f"<annotation><folder>val</folder><filename>{path.stem}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size><segmented>0</segmented>{written}</annotation>"
    )
    return path


def samples(spec, **options):
    data, given = datasets.find(spec, options)
    return data.samples(given)


# --- which class a label means


def test_labels_are_found_by_name_synonym_alias_and_number():
    names = ("tabby, tabby cat", "Egyptian cat", "7", "crane")
    labels = ["Tabby_Cat", "egyptian cat", "3", "7", "n02"]
    assert match_classes(labels, names, where="x", aliases={"n02": 1}) == dict(
        zip(labels, (0, 1, 3, 2, 1), strict=True)
    )


def test_without_names_numbers_are_understood():
    assert match_classes(["12"], None, where="x") == {"12": 12}
    with pytest.raises(CamkitError, match=r"class names are not known.*--labels"):
        match_classes(["cat"], None, where="x")


def test_labels_that_do_not_fit_are_one_sentence():
    with pytest.raises(CamkitError, match=r"'x' do not fit the model, which lacks 1 of 2.*did you mean 'seven'"):
        match_classes(["six", "sevne"], NAMES, where="x")
    assert match_classes(["six", "sevne"], NAMES, where="x", skip_unknown=True) == {"six": 6}
    with pytest.raises(CamkitError, match="lacks 2 of 2"):
        match_classes(["cat", "dog"], NAMES, where="x", skip_unknown=True)
    with pytest.raises(CamkitError, match="lacks 1 of 1"):
        match_classes(["10"], NAMES, where="x")


# --- image folders


def test_a_folder_of_classes(tmp_path):
    for name in ("seven/a.jpg", "seven/b.jpeg", "3/c.JPG"):
        photo(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".cache").mkdir()
    photo(tmp_path / ".cache" / "hidden.jpg")
    found = samples(f"folder:{tmp_path}", class_names=NAMES)
    assert [(one.name, one.class_index) for one in found] == [("3/c.JPG", 3), ("seven/a.jpg", 7), ("seven/b.jpeg", 7)]
    assert found.problems == []
    assert present(next(iter(found))) == {3}


def test_a_folder_without_classes(tmp_path):
    photo(tmp_path / "a.jpg")
    (only,) = samples(f"folder:{tmp_path}", class_names=NAMES)
    assert (only.class_index, present(only), only.name) == (UNKNOWN_CLASS, frozenset(), "a.jpg")


def test_synsets_name_folders_of_imagenet(tmp_path):
    photo(tmp_path / GOLDFISH / "a.jpg")
    imagenet = tuple(f"class {index}" for index in range(1000))
    assert [one.class_index for one in samples(f"folder:{tmp_path}", class_names=imagenet)] == [1]
    with pytest.raises(CamkitError, match="do not fit the model"):
        samples(f"folder:{tmp_path}", class_names=NAMES)


def test_broken_files_are_noted_and_left_out(tmp_path):
    photo(tmp_path / "six" / "a.jpg")
    broken = photo(tmp_path / "six" / "b.jpg", broken=True)
    (tmp_path / "six" / "c.jpg").write_text("not a picture")
    found = samples(f"folder:{tmp_path}", class_names=NAMES)
    for _ in range(2):
        assert [one.name for one in found] == ["six/a.jpg"]
        assert len(found.problems) == 2
        assert str(broken) in found.problems[0]
        assert "damaged" in found.problems[0]


def test_a_seed_draws_the_same_images_of_all_classes(tmp_path):
    for number in range(20):
        photo(tmp_path / ("six" if number < 10 else "two") / f"{number}.jpg")
    drawn = [one.name for one in samples(f"folder:{tmp_path}", class_names=NAMES, count=8, seed=1)]
    assert drawn == [one.name for one in samples(f"folder:{tmp_path}", class_names=NAMES, count=8, seed=1)]
    assert drawn != [one.name for one in samples(f"folder:{tmp_path}", class_names=NAMES, count=8, seed=2)]
    assert len(drawn) == 8
    assert {name.partition("/")[0] for name in drawn} == {"six", "two"}
    assert drawn == sorted(drawn)


# --- ImageNet


def ilsvrc(root: Path) -> Path:
    """A small tree as in Kaggle's archive; one XML is missing, one is broken, one picture is truncated."""
    images, boxes = root / "Data/CLS-LOC/val", root / "Annotations/CLS-LOC/val"
    name = "ILSVRC2012_val_{:08}".format
    for number in (1, 2, 3, 4, 5):
        photo(images / f"{name(number)}.JPEG", broken=number == 4)
    voc(boxes / f"{name(1)}.xml", [(GOLDFISH, (10, 5, 30, 25)), (GOLDFISH, (40, 5, 50, 25)), (SHARK, (0, 0, 5, 5))])
    voc(boxes / f"{name(2)}.xml", [(SHARK, (100, 50, 300, 250))], size=(600, 400))
    voc(boxes / f"{name(4)}.xml", [(SHARK, (0, 0, 5, 5))])
    (boxes / f"{name(5)}.xml").write_text("<annotation><object><name>n01")
    return root


@pytest.mark.parametrize("inside", [False, True], ids=["archive", "parent"])
def test_imagenet(tmp_path, inside):
    ilsvrc(tmp_path / "ILSVRC" if inside else tmp_path)
    found = samples(f"imagenet:{tmp_path}", class_names=tuple(map(str, range(1000))))
    first, second = found
    assert (first.class_index, first.boxes, present(first)) == (1, ((10, 5, 30, 25), (40, 5, 50, 25)), {1, 2})
    assert first.other_boxes == ((0, 0, 5, 5),)
    # the file's boxes are those of a picture ten times as large
    assert (second.class_index, second.boxes) == (2, ((10, 5, 30, 25),))
    assert ["no file" in found.problems[0], "damaged" in found.problems[1], "damaged" in found.problems[2]] == [
        True
    ] * 3
    assert ["0003" in found.problems[0], "0004" in found.problems[1], "0005" in found.problems[2]] == [True] * 3


def test_imagenet_in_folders_of_synsets_needs_no_boxes(tmp_path):
    photo(tmp_path / "val" / SHARK / "ILSVRC2012_val_00000001.JPEG")
    photo(tmp_path / "val" / SHARK / "ILSVRC2012_val_00000002.JPEG")
    voc(tmp_path / "bbox_val" / "ILSVRC2012_val_00000002.xml", [(SHARK, (1, 2, 3, 4))])
    found = samples(f"imagenet:{tmp_path}")
    assert [(one.class_index, one.boxes) for one in found] == [(2, ()), (2, ((1, 2, 3, 4),))]
    assert len(found.problems) == 1
    assert "without boxes" in found.problems[0]


def test_the_list_of_synsets_maps_to_models_with_fewer_classes(tmp_path):
    ilsvrc(tmp_path)
    (tmp_path / "LOC_synset_mapping.txt").write_text(
        f"{GOLDFISH} goldfish, Carassius auratus\n{SHARK} great white shark, white shark\n"
    )
    names = ("great white shark", "cat", "goldfish")
    assert [one.class_index for one in samples(f"imagenet:{tmp_path}", class_names=names)] == [2, 0]
    with pytest.raises(CamkitError, match="do not fit the model"):
        samples(f"imagenet:{tmp_path}", class_names=NAMES)


def test_imagenet_needs_a_model_of_its_classes(tmp_path):
    ilsvrc(tmp_path)
    with pytest.raises(CamkitError, match="10 classes and not ImageNet's 1000"):
        samples(f"imagenet:{tmp_path}", class_names=NAMES)


# --- COCO


def coco(root: Path, **changes) -> Path:
    for name in ("one.jpg", "two.jpg"):
        photo(root / name)
    photo(root / "broken.jpg", broken=True)
    content = {
        "info": {"year": 2017},
        "images": [
            {"id": 7, "file_name": "two.jpg", "width": 60, "height": 40},
            {"id": 9, "file_name": "one.jpg", "width": 60, "height": 40},
            {"id": 11, "file_name": "missing.jpg", "width": 60, "height": 40},
            {"id": 12, "file_name": "broken.jpg", "width": 60, "height": 40},
            {"id": 13, "file_name": "empty.jpg", "width": 60, "height": 40},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 18, "bbox": [10.5, 5, 20, 30], "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 44, "bbox": [0, 0, 5, 6], "iscrowd": 0},
            {"id": 3, "image_id": 9, "category_id": 18, "bbox": [40, 0, 5, 6], "iscrowd": 0},
            {"id": 4, "image_id": 9, "category_id": 44, "bbox": [0, 0, 60, 40], "iscrowd": 1},
            {"id": 5, "image_id": 7, "category_id": 44, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"id": 6, "image_id": 11, "category_id": 44, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"id": 7, "image_id": 12, "category_id": 44, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"id": 8, "image_id": 99, "category_id": 44, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        ],
        "categories": [{"id": 18, "name": "three"}, {"id": 44, "name": "nine"}, {"id": 50, "name": "unused"}],
    }
    path = root / "annotations.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_coco(tmp_path):
    found = samples(f"coco:{coco(tmp_path)}", class_names=NAMES)
    two, three, nine = found
    assert (two.name, two.class_index, two.boxes) == ("two.jpg", 9, ((1, 2, 4, 6),))
    assert (three.name, three.class_index, three.boxes) == ("one.jpg", 3, ((10.5, 5, 30.5, 35), (40, 0, 45, 6)))
    # the crowd is no object
    assert (nine.name, nine.class_index, nine.boxes) == ("one.jpg", 9, ((0, 0, 5, 6),))
    assert present(three) == present(nine) == {3, 9}
    assert three.other_boxes == nine.boxes
    listed = " ".join(found.problems)
    assert len(found.problems) == 3
    assert all(word in listed for word in ("99", "missing.jpg", "broken.jpg"))


def test_cocos_images_may_lie_elsewhere(tmp_path):
    path = coco(tmp_path / "val2017")
    moved = path.rename(tmp_path / "instances.json")
    assert len(list(samples(f"coco:{moved}", images=tmp_path / "val2017", class_names=NAMES))) == 3


def test_categories_that_the_model_lacks(tmp_path):
    names = tuple("three" if name == "nine" else "x" for name in NAMES)
    with pytest.raises(CamkitError, match="lacks 1 of 2"):
        samples(f"coco:{coco(tmp_path)}", class_names=names)
    assert [one.name for one in samples(f"coco:{coco(tmp_path)}", class_names=names, skip_unknown=True)] == ["one.jpg"]


# --- what is wrong with what was given


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("folder", "Say which folder"),
        ("folder:nowhere", "no folder 'nowhere'"),
        ("folder:empty", "'empty' holds no image"),
        ("imagenet", "Say where"),
        ("imagenet:nowhere", "no folder 'nowhere'"),
        ("imagenet:empty", "neither Data/CLS-LOC/val nor val"),
        ("imagenet:hollow", "holds no image"),
        ("coco", "Say which annotations"),
        ("coco:nowhere.json", "no file of annotations 'nowhere.json'"),
        ("coco:list.json", "as COCO's do"),
        ("coco:text.json", "cannot be read"),
        ("coco:wrong.json", "as COCO's do"),
        ("coco:blank.json", "marks no object"),
        ("digit_scenes:here", "takes no path"),
        ("foldr:x", "did you mean 'folder'"),
    ],
)
def test_one_sentence(tmp_path, monkeypatch, spec, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "six").mkdir(parents=True)
    (tmp_path / "hollow" / "val").mkdir(parents=True)
    Path("list.json").write_text("[]")
    Path("text.json").write_text("{")
    Path("wrong.json").write_text('{"images": [], "annotations": [{"bbox": 3}], "categories": []}')
    Path("blank.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(CamkitError, match=sentence) as caught:
        samples(spec)
    assert str(caught.value).count("\n") == 0


def test_a_data_set_may_be_named_by_its_distribution(tmp_path):
    photo(tmp_path / "a.jpg")
    assert len(list(samples(f"camkit:folder:{tmp_path}"))) == 1


def test_measure_takes_them(tmp_path):
    coco(tmp_path)
    explainer = camkit.Explainer(camkit.load_model("demo:resnet"))
    options = {"path": tmp_path / "annotations.json", "class_names": explainer.class_names}
    assert camkit.measure(explainer, "pointing_game", "coco", data_options=options).values.shape == (3,)


def test_scenes_tell_their_objects():
    first, second = registry().get("dataset", "digit_scenes").samples({"count": 1})
    assert first.name == second.name
    assert first.objects == ((first.class_index, first.boxes[0]), (second.class_index, second.boxes[0]))
    (alone,) = registry().get("dataset", "digit_scenes").samples({"count": 1, "digits": 1})
    assert len(alone.objects) == 1
