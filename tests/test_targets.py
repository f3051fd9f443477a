"""What a user can write as a target, what it means, and what is said when it means nothing."""

import pytest
import torch

import zoo
from camkit import Explainer, Target
from camkit.registry import registry
from camkit.targets import Rank, parse_targets

NAMES = ("tench, Tinca tinca", "tabby, tabby cat", "crane", "sports car", "crane: machine", "7")
FUNCTIONS = ["class", "counterfactual"]
LOGITS = torch.tensor([[0.1, 3.0, -1.0, 2.0, 0.0, -5.0], [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]])


def parsed(given, names=NAMES):
    return parse_targets(given, names, FUNCTIONS)


# What is written: target function, class of each of the two images of LOGITS, label.
ONE = {
    "top": ("class", [1, 0], "top"),
    " top ": ("class", [1, 0], "top"),
    "last": ("class", [5, 5], "last"),
    3: ("class", [3, 3], "sports car"),
    "3": ("class", [3, 3], "sports car"),
    -1: ("class", [1, 0], "top"),
    "-7": ("class", [1, 0], "top"),
    "crane": ("class", [2, 2], "crane"),
    "CRANE": ("class", [2, 2], "crane"),
    "tabby cat": ("class", [1, 1], "tabby, tabby cat"),
    "Tinca tinca": ("class", [0, 0], "tench, Tinca tinca"),
    "tabby, tabby cat": ("class", [1, 1], "tabby, tabby cat"),
    "crane: machine": ("class", [4, 4], "crane: machine"),
    "class:crane": ("class", [2, 2], "class crane"),
    "counterfactual:top": ("counterfactual", [1, 0], "counterfactual top"),
    "counterfactual:tabby": ("counterfactual", [1, 1], "counterfactual tabby, tabby cat"),
    "counterfactual:2": ("counterfactual", [2, 2], "counterfactual crane"),
    "counterfactual:crane: machine": ("counterfactual", [4, 4], "counterfactual crane: machine"),
}


@pytest.mark.parametrize("given", ONE, ids=repr)
def test_one_target(given):
    function, classes, label = ONE[given]
    (target,), several = parsed(given)
    assert (target.function, target.label, several) == (function, label, False)
    assert target.resolve(LOGITS).tolist() == classes
    assert target.resolve(LOGITS).dtype == torch.int64


def test_top_three_is_three_targets_in_order():
    targets, several = parsed("top-3")
    assert several
    assert [target.label for target in targets] == ["top 1", "top 2", "top 3"]
    assert [target.resolve(LOGITS).tolist() for target in targets] == [[1, 0], [3, 1], [0, 2]]


def test_counterfactual_of_the_top_two():
    targets, several = parsed("counterfactual:top-2")
    assert several
    assert [target.function for target in targets] == ["counterfactual"] * 2
    assert [target.resolve(LOGITS).tolist() for target in targets] == [[1, 0], [3, 1]]


def test_a_tensor_gives_each_image_its_class_and_negative_numbers_the_top():
    for dtype in (torch.int64, torch.int32, torch.uint8):
        (target,), several = parsed(torch.tensor([2, 5], dtype=dtype))
        assert not several
        assert target.resolve(LOGITS).tolist() == [2, 5]
    assert parsed(torch.tensor([-1, 4]))[0][0].resolve(LOGITS).tolist() == [1, 4]
    assert parsed(torch.tensor(-1))[0][0].resolve(LOGITS).tolist() == [1, 0]


def test_a_list_mixes_everything_and_keeps_the_order():
    own = Target("counterfactual", 2, label="own")
    targets, several = parsed(["last", 3, "top-2", torch.tensor([0, 1]), own])
    assert several
    assert [target.label for target in targets] == ["last", "sports car", "top 1", "top 2", "given", "own"]
    assert targets[-1] is own
    assert parsed([3])[1]
    assert parsed(("top",))[1]


def test_equal_logits_are_ranked_by_number():
    assert Target(class_index=Rank(0)).resolve(torch.zeros(1, 4)).tolist() == [0]
    assert Target(class_index=Rank(1)).resolve(torch.zeros(1, 4)).tolist() == [1]


def test_numbers_are_labels_where_names_are_not_known():
    assert parsed(3, None)[0][0].label == "3"
    assert parsed("3", None)[0][0].label == "3"


REFUSED = {
    "an unknown class": ("tabbi", NAMES, ["There is no class 'tabbi'", "did you mean 'tabby'"]),
    "an unknown name without names": ("tabby", None, ["no class 'tabby'", "labels file"]),
    "an unknown function": ("counterfactul:top", NAMES, ["no target function 'counterfactul'", "'counterfactual'"]),
    "top-0": ("top-0", NAMES, ["no class 'top-0'"]),
    "no target": ([], NAMES, ["No target was given"]),
    "a fraction": (1.5, NAMES, ["1.5"]),
    "a truth value": (True, NAMES, ["True"]),
    "nothing": (None, NAMES, ["None"]),
    "an unknown class in a list": (["top", "tabbi"], NAMES, ["no class 'tabbi'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_target_is_refused(case):
    given, names, words = REFUSED[case]
    with zoo.refused(*words):
        parsed(given, names)


UNRESOLVABLE = {
    "a class that the model does not have": (Target(class_index=6), ["Class 6 was asked for", "6 classes: 0 to 5"]),
    "one such class of several": (Target(class_index=torch.tensor([0, 6])), ["Class 6 was asked for"]),
    "more ranks than classes": (Target(class_index=Rank(6), label="top 7"), ["'top 7'", "more classes"]),
    "a class for another number of images": (Target(class_index=torch.tensor([1, 2, 3])), ["[3]", "2 images"]),
    "fractions": (Target(class_index=torch.tensor([1.0, 2.0])), ["float32"]),
    "a matrix": (Target(class_index=torch.zeros(2, 2, dtype=torch.int64)), ["[2, 2]"]),
}


@pytest.mark.parametrize("case", UNRESOLVABLE)
def test_what_the_model_has_no_class_for_is_refused(case):
    target, words = UNRESOLVABLE[case]
    with zoo.refused(*words):
        target.resolve(LOGITS)


def test_top_eleven_of_ten_classes_is_refused_by_the_explainer(random_model):
    with zoo.refused("more classes than the model has (10)"):
        Explainer(random_model("timm:resnet"))(zoo.images(1, 64), target="top-11", relu=False)


def test_target_functions_give_the_logit_and_its_negative():
    given = {"logits": LOGITS, "output": LOGITS, "class_index": torch.tensor([3, 1])}
    score = {name: registry().get("target", name).scores(given, 2, {}) for name in ("class", "counterfactual")}
    assert score["class"].tolist() == [2.0, 8.0]
    assert score["counterfactual"].tolist() == [-2.0, -8.0]
    with zoo.refused("needs the input 'class_index'"):
        registry().get("target", "class").scores({"logits": LOGITS}, 2, {})
