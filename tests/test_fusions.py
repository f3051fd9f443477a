"""The maps of several layers as one: each fusion's formula, the peers', and several layers in the engine."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_grad_cam as pgc
import torch
import torchcam.methods as tc
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

import camkit
import zoo
from camkit import Explainer, plugin
from camkit.contracts import Note
from camkit.errors import CamkitWarning
from camkit.heatmap import scale
from camkit.registry import registry
from camkit_adapters import demo
from commandline import run, succeed

AGREE = 1e-5
CLASSES = [3, 7]
SIZE = (64, 96)
SCENE = Path(demo.__file__).with_name("images") / "scene-01.png"
# their maps have positive values at every layer, which those of a class by Grad-CAM on a random model may lack
METHODS = ["layercam", "gradcam-elementwise"]
FIRST, SECOND = torch.tensor([[[0.0, 0.5], [1.0, 0.2]]]), torch.tensor([[[0.4, 0.0], [0.5, 1.0]]])


def fused(name, *maps, relu=True, **options):
    fusion = registry().get("fusion", name)
    return fusion.fuse(maps, fusion.signature.options(options), relu=relu)


def assert_equal(found, expected, tolerance=AGREE):
    spread = expected.flatten(1).amax(dim=1) - expected.flatten(1).amin(dim=1)
    assert bool((spread > 0.1).all()), "the expected maps are flat"
    assert float((found - expected).abs().max()) <= tolerance


# the formulas

FORMULAS = {
    "mean": [[0.2, 0.25], [0.75, 0.6]],
    "max": [[0.4, 0.5], [1.0, 1.0]],
    "product": [[0.0, 0.0], [0.5, 0.2]],
    # tanh of 0.8, 1, 2 and 2
    "tanh-max": [[0.6640367702678489, 0.7615941559557649], [0.9640275800758169, 0.9640275800758169]],
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name):
    torch.testing.assert_close(fused(name, FIRST, SECOND), torch.tensor([FORMULAS[name]]))


def test_the_scale_of_tanh_max_is_an_option():
    expected = (3 * torch.maximum(FIRST, SECOND)).tanh()
    torch.testing.assert_close(fused("tanh-max", FIRST, SECOND, scale=3.0), expected)
    assert registry().names("fusion") == ["max", "mean", "product", "tanh-max"]


@pytest.mark.parametrize("name", FORMULAS)
def test_the_unit_of_a_layer_does_not_matter(name):
    torch.testing.assert_close(fused(name, FIRST * 1e-12, SECOND * 1e6), fused(name, FIRST, SECOND))


def test_negative_values_count_only_without_relu():
    signed = FIRST - torch.tensor([[[3.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(fused("mean", signed, SECOND), fused("mean", FIRST, SECOND))
    torch.testing.assert_close(fused("mean", signed, SECOND, relu=False), (signed / 3 + SECOND) / 2)
    with zoo.refused("'product'", "negative", "relu"):
        fused("product", signed, SECOND, relu=False)


def test_maps_come_at_the_size_of_the_largest():
    small, large = torch.rand(2, 2, 3), torch.rand(2, 8, 6)
    assert fused("mean", small, large).shape == (2, 8, 6)
    torch.testing.assert_close(fused("max", torch.zeros(2, 2, 3), large), scale(large, relu=True))


def test_images_of_a_batch_are_scaled_each_by_itself():
    first, second = torch.rand(3, 4, 4) * torch.tensor([1.0, 10, 100])[:, None, None], torch.rand(3, 2, 2)
    batch = fused("mean", first, second)
    for index in range(3):
        torch.testing.assert_close(batch[index], fused("mean", first[index : index + 1], second[index : index + 1])[0])


# the peers: where layers have one size all formulas are the same, elsewhere the order of scaling and resizing tells

SAME_SIZE, SIZES = ("layer3.0", "layer3.1"), ("layer2", "layer3", "layer4")


def test_mean_of_layers_of_one_size_equals_grad_cam(random_model):
    model, images = random_model("torchvision:resnet18"), zoo.images(2, SIZE)
    peer = copy.deepcopy(model)
    extractor = pgc.LayerCAM(peer, [peer.get_submodule(layer) for layer in SAME_SIZE])
    expected = torch.from_numpy(extractor(images, [ClassifierOutputTarget(index) for index in CLASSES]))
    found = Explainer(model, SAME_SIZE)(images, "layercam", torch.tensor(CLASSES), fuse="mean")
    # grad-cam scales once more before it resizes than after, and adds 1e-7 to what it divides by
    assert_equal(found.heatmaps, expected, 1e-4)


def test_mean_of_layers_of_several_sizes_is_close_to_grad_cam(random_model):
    """grad-cam resizes each map from its own size to the image's, here the small ones take a step in between."""
    model, images = random_model("torchvision:resnet18"), zoo.images(2, SIZE)
    peer = copy.deepcopy(model)
    extractor = pgc.LayerCAM(peer, [peer.get_submodule(layer) for layer in SIZES])
    expected = torch.from_numpy(extractor(images, [ClassifierOutputTarget(index) for index in CLASSES]))
    found = Explainer(model, SIZES)(images, "layercam", torch.tensor(CLASSES), fuse="mean")
    both = torch.stack([found.heatmaps.flatten(), expected.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.99


TORCHCAM = {"max": tc.GradCAM, "tanh-max": tc.LayerCAM}


@pytest.mark.parametrize("layers", [SAME_SIZE, SIZES])
@pytest.mark.parametrize("name", TORCHCAM)
def test_maximum_equals_torchcam(random_model, name, layers):
    model, images = random_model("torchvision:resnet18"), zoo.images(2, SIZE)
    extractor = tc.LayerCAM(copy.deepcopy(model), list(layers))
    maps = [one.detach() for one in extractor(CLASSES, extractor.model(images))]
    found = Explainer(model, layers)(images, "layercam", torch.tensor(CLASSES), fuse=name)
    expected = TORCHCAM[name].fuse_cams(maps)
    if name == "tanh-max" and layers == SIZES:
        # torchcam resizes what the tanh has raised
        assert float((found.maps - expected).abs().max()) > 1e-3
        expected = torch.tanh(2 * torch.stack([resized(one, expected.shape[1:]) for one in maps])).amax(dim=0)
    assert_equal(found.maps, expected)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


@pytest.mark.parametrize("layers", [SAME_SIZE, SIZES])
def test_product_equals_refine_cam_of_torchcam(random_model, layers):
    model, images = random_model("torchvision:resnet18"), zoo.images(2, SIZE)
    extractor = tc.RefineCAM(copy.deepcopy(model), list(layers), base_method=tc.LayerCAM)
    (expected,) = extractor(CLASSES, extractor.model(images))
    found = Explainer(model, layers)(images, "layercam", torch.tensor(CLASSES), fuse="product")
    assert_equal(scale(found.maps, relu=True), expected.detach())


def test_product_of_layers_of_the_images_size_equals_refine_cam_of_grad_cam(random_model):
    """grad-cam multiplies at the size of the image; where a layer has that size, camkit does too."""
    model, images = random_model("timm:resnet"), zoo.images(2, 64)
    peer, layers = copy.deepcopy(model), ("conv1", "bn1")
    found = Explainer(model, layers)(images, "layercam", torch.tensor(CLASSES), fuse="product")
    height, width = found.maps.shape[1:]
    # the first convolution halves the image, so grad-cam is told of half its size
    extractor = pgc.RefineCAM(peer, [peer.get_submodule(layer) for layer in layers], base_method=pgc.LayerCAM)
    for base in extractor.base_cam_per_layer:
        base.get_target_width_height = lambda images: (width, height)
    expected = torch.from_numpy(extractor(images, [ClassifierOutputTarget(index) for index in CLASSES]))
    assert_equal(scale(found.maps, relu=True), expected, 1e-4)


# several layers in the engine


@plugin.method("brightness", paper="none")
def brightness(images: Tensor) -> Tensor:
    """A method without a layer."""
    return images.mean(dim=1)


@plugin.method("activity", paper="none")
def activity(activations: Tensor, note: Note, *, power: float = 1.0) -> Tensor:
    """A method that says something about the second image."""
    maps = activations.abs().pow(power)
    note(torch.arange(len(maps)) == 1, "The map is of the second image.")
    return maps


@pytest.fixture
def explain(random_model):
    return Explainer(random_model("timm:resnet"), ["layer3", "layer4"])


def test_fused_layers_are_one_explanation_for_each_method_and_target(explain):
    images = zoo.images(2, 64)
    found = explain(images, METHODS, [3, 7], fuse="mean")
    plain = explain(images, METHODS, [3, 7])
    assert [(one.method, one.layer, one.target.label) for one in found] == [
        (method, "layer3 + layer4", target) for method in METHODS for target in ("3", "7")
    ]
    assert [(one.method, one.layer, one.target.label) for one in plain] == [
        (method, layer, target) for method in METHODS for layer in ("layer3", "layer4") for target in ("3", "7")
    ]
    for index, one in enumerate(found):
        layers = [plain[4 * (index // 2) + 2 * layer + index % 2] for layer in range(2)]
        torch.testing.assert_close(one.maps, fused("mean", *(each.maps for each in layers)))
        assert {each.fusion for each in layers} == {None}
    assert {one.fusion for one in found} == {"mean"}
    assert found[0].record(0)["fusion"] == "mean"


def test_one_fused_explanation_is_not_a_list(explain):
    images = zoo.images(2, 64)
    found = explain(images, fuse="max")
    assert (found.layer, found.maps.shape) == ("layer3 + layer4", (2, 4, 4))
    assert found.heatmaps.shape == (2, 64, 64)
    assert [one.layer for one in explain(images)] == ["layer3", "layer4"]


def test_a_single_layer_can_be_fused_too(explain):
    found = explain(zoo.images(2, 64), layer="layer4", fuse="mean")
    plain = explain(zoo.images(2, 64), layer="layer4")
    torch.testing.assert_close(found.maps, scale(plain.maps.clamp(min=0), relu=True))


def test_a_fusion_without_relu_stays_signed(explain):
    found = explain(zoo.images(2, 64), target=3, fuse="mean", relu=False)
    assert float(found.maps.min()) < 0
    assert not found.relu


def test_a_method_without_a_layer_gives_one_explanation(explain):
    images = zoo.images(2, 64)
    found = explain(images, ["layercam", brightness], 3)
    assert [(one.method, one.layer) for one in found] == [
        ("layercam", "layer3"),
        ("layercam", "layer4"),
        ("brightness", None),
    ]
    assert torch.equal(found[2].maps, images.mean(dim=1))
    (alone,) = explain(images, [brightness], 3)
    assert torch.equal(alone.maps, found[2].maps)


def test_a_method_without_a_layer_is_scaled_but_not_joined_by_a_fusion(explain):
    images = zoo.images(2, 64)
    layered, own = explain(images, ["layercam", brightness], 3, fuse="mean")
    assert (layered.layer, own.layer) == ("layer3 + layer4", None)
    torch.testing.assert_close(own.maps, scale(images.mean(dim=1), relu=True))


def test_notes_of_a_method_are_kept_and_warned_of(explain):
    with pytest.warns(CamkitWarning) as caught:
        first, _ = explain(zoo.images(2, 64), activity, 3)
    assert first.notes == ("", "The map is of the second image.")
    assert first.record(1)["note"] == "The map is of the second image."
    assert [str(one.message) for one in caught] == [
        "The map by activity at 'layer3' of image 1 is of the second image.",
        "The map by activity at 'layer4' of image 1 is of the second image.",
    ]
    with pytest.warns(CamkitWarning):
        assert explain(zoo.images(2, 64), activity, 3, fuse="mean").notes == first.notes


def test_notes_are_of_one_method_only(explain):
    with pytest.warns(CamkitWarning):
        found = explain(zoo.images(2, 64), [activity, "gradcam"], 3, relu=False)
    assert [bool(one.remarks) for one in found] == [True, True, False, False]


def test_a_marked_function_takes_its_options(explain):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamkitWarning)
        plain, squared = (explain(zoo.images(2, 64), activity, options={"power": power})[0] for power in (1, 2.0))
        named, _ = explain(zoo.images(2, 64), activity, options={"activity.power": 2})
    assert not torch.equal(plain.maps, squared.maps)
    assert torch.equal(named.maps, squared.maps)
    assert squared.options == {"power": 2.0}


def test_one_method_twice_is_explained_twice(explain):
    found = explain(zoo.images(2, 64), ["layercam", "layercam"], [3, 3], fuse="mean")
    assert [one.layer for one in found] == ["layer3 + layer4"] * 4
    assert torch.equal(found[0].maps, found[3].maps)


def unmarked(activations: Tensor) -> Tensor:
    return activations


REFUSED = {
    "an unknown fusion": ({"fuse": "meen"}, ["meen", "did you mean 'mean'"]),
    "an option of a fusion that was not asked for": ({"options": {"tanh-max.scale": 3.0}}, ["'tanh-max'", "not asked"]),
    "an option of another fusion": ({"fuse": "mean", "options": {"tanh-max.scale": 3.0}}, ["'tanh-max'", "not asked"]),
    "an unknown option of the fusion": ({"fuse": "tanh-max", "options": {"tanh-max.scal": 3.0}}, ["'scal'", "'scale'"]),
    "a value that is no number": ({"fuse": "tanh-max", "options": {"tanh-max.scale": "much"}}, ["'scale'", "'much'"]),
    "a short option with several methods": ({"method": ["gradcam", "layercam"], "options": {"a": 1}}, ["'method.a'"]),
    "a function that is no method": ({"method": unmarked}, ["'unmarked'", "@plugin.method"]),
    "concepts": ({"method": "dff", "fuse": "mean"}, ["'dff'", "concepts", "cannot be fused"]),
    "no layer": ({"layer": []}, ["one layer"]),
    "no method": ({"method": []}, ["one method"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_fused_is_refused(explain, case):
    given, words = REFUSED[case]
    with zoo.refused(*words):
        explain(zoo.images(2, 64), **given)


def told(folder: Path, *given: str) -> list[dict[str, Any]]:
    """The lines that the command writes about one scene at two layers."""
    succeed("explain", SCENE, "--model", "demo:resnet", "--layer", "stage3,stage4", "-o", folder, *given)
    return [json.loads(line) for line in (folder / "explanations.jsonl").read_text().splitlines()]


def test_the_command_fuses_layers(tmp_path):
    given = ["--fuse", "tanh-max", "--option", "tanh-max.scale=3", "--variant", "relu,signed"]
    lines = told(tmp_path, *given, "--target", "difference:top", "--option", "difference.alpha=0.5")
    assert [(line["layer"], line["fusion"], line["variant"], line["target"]["function"]) for line in lines] == [
        ("layer3 + layer4", "tanh-max", variant, "difference") for variant in ("relu", "signed")
    ]
    model = camkit.load_model("demo:resnet")
    images, _ = model.read([SCENE])
    options = {"tanh-max.scale": 3, "difference.alpha": 0.5}
    for line, relu in zip(lines, (True, False), strict=True):
        expected = Explainer(model, ["stage3", "stage4"])(
            images, target="difference:top", options=options, relu=relu, fuse="tanh-max"
        )
        facts = expected.record(0)["map"]
        assert line["map"]["peak"] == facts["peak"]
        for name in ("minimum", "maximum", "mean", "positive_share"):
            assert line["map"][name] == pytest.approx(facts[name], abs=1e-6)
        assert line["target"]["score"] == pytest.approx(float(expected.scores[0]))
    assert lines[0]["map"]["minimum"] == 0 > lines[1]["map"]["minimum"]


def test_the_command_smooths(tmp_path):
    for flag, option in (("--eigen-smooth", "eigen_smooth"), ("--aug-smooth", "aug_smooth")):
        lines = told(tmp_path / option, flag)
        model = camkit.load_model("demo:resnet")
        found = Explainer(model, ["stage3", "stage4"])(model.read([SCENE])[0], **{option: True})
        for line, expected in zip(lines, found, strict=True):
            assert line["map"]["maximum"] == pytest.approx(expected.record(0)["map"]["maximum"])
    assert told(tmp_path / "plain")[0]["map"]["maximum"] != pytest.approx(lines[0]["map"]["maximum"])


COMMANDS = {
    "an unknown fusion": (["--fuse", "meen"], "no fusion 'meen'; did you mean 'mean'?"),
    "an option of a fusion": (["--option", "tanh-max.scale=3"], "'tanh-max', which was not asked for"),
    "an option of a target function": (["--option", "difference.alpha=1"], "'difference', which was not asked for"),
    "a misspelt option": (["--fuse", "tanh-max", "--option", "tanh-max.scal=3"], "did you mean 'scale'?"),
    "an option of no number": (
        ["--target", "difference:top", "--option", "difference.alpha=x"],
        "Option 'alpha' of the target 'difference' was 'x'",
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_refuses(tmp_path, case):
    given, words = COMMANDS[case]
    result = run("explain", SCENE, "--model", "demo:resnet", "-o", tmp_path / "none", *given)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert not (tmp_path / "none").exists()


def test_options_reach_the_fusion(explain):
    images = zoo.images(2, 64)
    two, three = (explain(images, fuse="tanh-max", options={"tanh-max.scale": scale}) for scale in (2, 3))
    assert torch.equal(two.maps, explain(images, fuse="tanh-max").maps)
    assert not torch.equal(two.maps, three.maps)
