"""Target functions: what each scores, against hand-computed values, plain autograd and the peers; what is refused."""

import copy
import functools

import pytest
import pytorch_grad_cam as pgc
import torch
import torch.nn.functional as F
import torchcam.methods as tc
from pytorch_grad_cam.utils.model_targets import (
    FasterRCNNBoxScoreTarget,
    FinerWeightedTarget,
    SemanticSegmentationTarget,
)
from torch import nn
from torchvision.models import detection, segmentation

import zoo
from camkit import CamkitError, Explainer, Target
from camkit.adapter import Adapter
from camkit.cut import Forward
from camkit.registry import registry
from camkit.testing import relative_error

AGREE = 1e-5
CLASSES = [3, 7]
SIZE = (64, 96)
LOGITS = torch.tensor([[2.0, 1.0, -1.0, 4.0], [0.5, 3.0, 2.0, -2.0]])


def score(
    name, class_index, *, output=LOGITS, logits=None, dense_logits=None, inputs=None, probability="softmax", **options
):
    """The scores that a target function gives for an output, without a model."""
    logits = output if logits is None else logits
    forward = Forward(torch.zeros(len(logits), 3, 4, 4), output, logits, {}, dense_logits)
    target = Target(name, torch.as_tensor(class_index), inputs or {})
    return target.question(forward, options, probability).scores(forward)


def assert_same(found, expected, tolerance=AGREE):
    flat = expected.flatten(1)
    assert bool((flat.amax(dim=1) - flat.amin(dim=1) > 0.1 * flat.abs().amax(dim=1)).all()), "the expected map is flat"
    assert relative_error(found, expected).max() <= tolerance


def autograd(model, layer, images, function):
    """Grad-CAM's raw maps of any function of the output, by plain hooks and one backward pass over all of the model."""
    kept = []
    model = copy.deepcopy(model)
    model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    scores = function(model(images.clone().requires_grad_()))
    (gradients,) = torch.autograd.grad(scores.sum(), kept[0])
    return (kept[0] * gradients.mean(dim=(2, 3), keepdim=True)).sum(dim=1).detach(), scores.detach()


def grad_cam(model, layer, images, targets, extractor=pgc.GradCAM, **options):
    """Raw maps by grad-cam, on a copy of the model."""
    model = copy.deepcopy(model)
    module = model.get_submodule(layer)
    given = extractor(model, [module])
    given(images, targets, **options)
    base = getattr(given, "base_cam", given)
    activations = base.activations_and_grads.activations[0].numpy()
    gradients = base.activations_and_grads.gradients[0].numpy()
    return torch.from_numpy(base.get_cam_image(images, module, targets, activations, gradients))


# probability


def test_probability_is_the_softmax_of_the_class():
    assert torch.equal(score("probability", [3, 1]), LOGITS.softmax(dim=1)[[0, 1], [3, 1]])


def test_probability_is_the_sigmoid_where_the_model_has_that():
    assert torch.equal(score("probability", [3, 1], probability="sigmoid"), torch.tensor([4.0, 3.0]).sigmoid())


def test_probability_of_a_single_logit_is_its_sigmoid():
    assert torch.equal(score("probability", [0, 0], output=LOGITS[:, :1]), LOGITS[:, 0].sigmoid())


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_probability_is_explained(random_model, kind):
    model, images = copy.deepcopy(random_model("torchvision:resnet18")), zoo.images(2, SIZE)
    with torch.no_grad():
        # a random model is so certain that nothing is left of the gradient
        model.fc.weight.mul_(0.02)
    adapter = Adapter(name="own", targets={"last": "layer4"}, layout="NCHW", probability=kind)
    found = Explainer(model, adapter=adapter)(images, target=Target("probability", torch.tensor(CLASSES)), relu=False)
    probabilities = {"softmax": lambda logits: logits.softmax(dim=1), "sigmoid": torch.sigmoid}[kind]
    expected, scores = autograd(model, "layer4", images, lambda logits: probabilities(logits)[[0, 1], CLASSES])
    assert_same(found.maps, expected)
    torch.testing.assert_close(found.scores, scores)
    assert found.targets.tolist() == CLASSES


# difference


def test_difference_to_the_mean_of_the_nearest_classes():
    # nearest to 2.0 are 1.0 and 4.0; nearest to 3.0 are 2.0 and 0.5
    found = score("difference", [0, 1], weights="mean", comparisons=2, alpha=0.6)
    torch.testing.assert_close(found, torch.tensor([2.0 - 0.6 * 2.5, 3.0 - 0.6 * 1.25]))


def test_difference_weighted_by_probability():
    chances = LOGITS.softmax(dim=1)
    (first, second), (third, fourth) = chances[0, [1, 3]], chances[1, [2, 0]]
    found = score("difference", [0, 1], comparisons=2, alpha=0.5)
    means = torch.stack([(first + 4 * second) / (first + second), (2 * third + 0.5 * fourth) / (third + fourth)])
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0]) - 0.5 * means)


def test_the_weights_of_a_difference_are_differentiated():
    found, expected = LOGITS[:1].clone().requires_grad_(), LOGITS[0].clone().requires_grad_()
    score("difference", [0], output=found, comparisons=2, alpha=0.5).sum().backward()
    FinerWeightedTarget(0, [1, 3], 0.5)(expected).backward()
    torch.testing.assert_close(found.grad[0], expected.grad)


def test_difference_to_named_classes_leaves_out_the_explained_one():
    found = score("difference", [0, 1], weights="mean", others=(1, 3))
    torch.testing.assert_close(found, torch.tensor([2.0 - 2.5, 3.0 + 2.0]))
    torch.testing.assert_close(score("difference", [3, 1], others=(3,)), torch.tensor([4.0, 3.0 + 2.0]))


def test_difference_takes_all_classes_where_there_are_fewer():
    torch.testing.assert_close(
        score("difference", [0, 1], weights="mean", comparisons=9), score("difference", [0, 1], weights="mean")
    )
    assert score("difference", [0, 0], output=LOGITS[:, :2]).tolist() == [1.0, -2.5]


def test_difference_of_logits_far_apart_stays_finite():
    logits = torch.tensor([[500.0, 0.0, -500.0, -400.0]])
    found = score("difference", [0], output=logits, comparisons=3)
    assert found.tolist() == [500.0]


def test_difference_of_nothing_is_the_class(random_model):
    explain = Explainer(random_model("torchvision:resnet18"))
    images = zoo.images(2, SIZE)
    plain, none = explain(images, target=[3, Target("difference", 3)], options={"difference.alpha": 0.0})
    assert torch.equal(none.maps, plain.maps)


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_difference_equals_finer_cam_of_grad_cam(random_model, alpha):
    model, images = random_model("torchvision:resnet18"), zoo.images(2, SIZE)
    expected = grad_cam(model, "layer4", images, None, pgc.FinerCAM, target_idx=3, alpha=alpha)
    found = Explainer(model)(images, target="difference:3", options={"difference.alpha": alpha})
    assert_same(found.maps, expected)
    assert relative_error(Explainer(model)(images, target=3).maps, expected).min() > 0.1


@pytest.mark.parametrize(("method", "peer"), [("gradcam", tc.GradCAM), ("layercam", tc.LayerCAM)])
@pytest.mark.parametrize("named", [None, [1, 2, 5]])
def test_difference_equals_finer_cam_of_torchcam(random_model, method, peer, named):
    model, images = random_model("torchvision:resnet18"), zoo.images(2, SIZE)
    extractor = tc.FinerCAM(copy.deepcopy(model), "layer4", base_method=peer)
    extractor.base_cam._relu = False
    (expected,) = extractor(CLASSES, extractor.model(images), comparison_idx=named, normalized=False)
    target = Target("difference", torch.tensor(CLASSES))
    options = {"difference.alpha": 0.6, "difference.weights": "mean", "difference.others": named or ()}
    assert_same(Explainer(model)(images, method, target, options=options).maps, expected.detach())


# region


@functools.cache
def segmenter(name):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return zoo.randomised(getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5))


SEGMENTERS = {
    "fcn_resnet50": "backbone.layer4",
    "deeplabv3_resnet50": "backbone.layer4",
    "deeplabv3_mobilenet_v3_large": "backbone.16",
    "lraspp_mobilenet_v3_large": "backbone.16",
}


def masks():
    mask = torch.zeros(2, *SIZE)
    mask[0, 8:40, 16:64], mask[1, 30:60, 50:90] = 1, 1
    return mask


@pytest.mark.parametrize("name", SEGMENTERS)
def test_region_of_a_segmentation_model_equals_grad_cam(name):
    model, layer = zoo.watch(segmenter(name)), SEGMENTERS[name]
    images, mask = zoo.images(2, SIZE), masks()
    found = Explainer(model)(images, target=Target("region", 3, {"mask": mask}), relu=False)
    targets = [SemanticSegmentationTarget(3, one.numpy()) for one in mask]
    inside = Unwrapped(copy.deepcopy(model))
    expected = grad_cam(inside, f"model.{layer}", images, targets)
    assert_same(found.maps, expected)
    assert (found.layer, found.target.name, found.targets.tolist()) == (layer, "region", [3, 3])
    with torch.no_grad():
        sums = (model(images)["out"][:, 3] * mask).sum(dim=(1, 2))
    torch.testing.assert_close(found.scores, sums, rtol=1e-4, atol=0)
    assert found.heatmaps.shape == (2, *SIZE)


class Unwrapped(nn.Module):
    """What grad-cam's user has to write around a segmentation model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images)["out"]


def test_predicted_region_is_the_region_of_the_prediction():
    model, images = zoo.watch(segmenter("lraspp_mobilenet_v3_large")), zoo.images(2, SIZE)
    with torch.no_grad():
        predicted = model(images)["out"].argmax(dim=1)
    common = int(predicted.flatten().mode().values)
    assert 0 < int((predicted == common).sum()) < predicted.numel()
    mask = {"mask": (predicted == common)}
    named, own = Explainer(model)(images, target=[f"predicted-region:{common}", Target("region", common, mask)])
    assert_same(named.maps, own.maps)


def test_predicted_region_of_one_class_is_where_its_logit_is_positive():
    dense = torch.tensor([[[[1.0, -2.0], [3.0, -4.0]]], [[[-1.0, -2.0], [-3.0, -4.0]]]])
    assert score("predicted-region", [0, 0], logits=dense.mean(dim=(2, 3)), dense_logits=dense).tolist() == [4.0, 0.0]


def test_a_mask_is_resized_without_interpolation():
    dense = torch.arange(32.0).reshape(1, 2, 4, 4)
    mask = torch.tensor([[[0, 1], [0, 0]]], dtype=torch.bool)
    scored = functools.partial(score, "region", [1], logits=dense.mean(dim=(2, 3)), dense_logits=dense)
    assert scored(inputs={"mask": mask}).tolist() == [18.0 + 19 + 22 + 23]
    finer = mask.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    assert torch.equal(scored(inputs={"mask": finer}), scored(inputs={"mask": mask}))
    assert torch.equal(scored(inputs={"mask": mask * 0.5}), scored(inputs={"mask": mask}) / 2)


def test_a_region_is_summed_in_single_precision():
    dense = torch.full((1, 2, 16, 16), 500.0, dtype=torch.float16)
    mask = {"mask": torch.ones(1, 16, 16)}
    found = score("region", [1], logits=dense.mean(dim=(2, 3)), dense_logits=dense, inputs=mask)
    assert found.tolist() == [128000.0]


def test_one_mask_serves_all_images_and_the_class_target_explains_the_mean():
    model, images = zoo.watch(segmenter("deeplabv3_mobilenet_v3_large")), zoo.images(2, SIZE)
    everywhere = Target("region", 3, {"mask": torch.ones(1, *SIZE)})
    region, mean = Explainer(model)(images, target=[everywhere, 3], relu=False)
    assert_same(region.maps / (SIZE[0] * SIZE[1]), mean.maps)
    assert mean.logits.shape == (2, 5)


# similarity


def test_similarity_is_the_cosine():
    assert score("similarity", [0, 0], inputs={"embedding": LOGITS * 7}).tolist() == pytest.approx([1, 1])
    assert score("similarity", [0, 0], inputs={"embedding": -LOGITS}).tolist() == pytest.approx([-1, -1])
    expected = [(2 * 3 + 4 * 4) / (22**0.5 * 5), (0.5 * 3 - 2 * 4) / (17.25**0.5 * 5)]
    other = torch.tensor([[3.0, 0.0, 0.0, 4.0]])
    assert score("similarity", [0, 0], inputs={"embedding": other}).tolist() == pytest.approx(expected)


def test_similarity_to_another_image_is_explained(watch):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = zoo.randomised(zoo.timm_resnet())
    model.reset_classifier(0)
    watch(model)
    images, others = zoo.images(2, 64), zoo.images(2, 64, seed=5)
    with torch.no_grad():
        embedding = model(others)
    assert embedding.shape == (2, 24)
    found = Explainer(model)(images, target=Target("similarity", inputs={"embedding": embedding}))
    expected, scores = autograd(model, "layer4", images, lambda output: F.cosine_similarity(output, embedding))
    assert_same(found.maps, expected)
    torch.testing.assert_close(found.scores, scores)


def test_an_embedding_may_come_from_inference_mode_or_with_a_graph_of_its_own(random_model):
    model, images = random_model("timm:resnet"), zoo.images(2, 64)
    others = zoo.images(2, 64, seed=5)

    def explained(embedding):
        return Explainer(model)(images, target=Target("similarity", inputs={"embedding": embedding}), relu=False).maps

    with torch.no_grad():
        expected = explained(model(others))
    with torch.inference_mode():
        embedding = model(others)
        assert torch.equal(explained(embedding), expected)
    assert torch.equal(explained(embedding), expected)
    recorded = model(others)
    assert recorded.requires_grad
    assert torch.equal(explained(recorded), expected)
    assert recorded.grad_fn is not None


# box-score

OUTPUT = [
    {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]]),
        "labels": torch.tensor([1, 2, 2]),
        "scores": torch.tensor([0.9, 0.4, 0.8]),
    },
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)},
]
BOX = torch.tensor([[0.0, 0, 10, 10]])


def box_scores(classes, box=BOX, **options):
    return score("box-score", classes, output=OUTPUT, logits=torch.empty(2, 0), inputs={"box": box}, **options).tolist()


def test_box_score_is_that_of_the_best_overlapping_detection_of_the_class():
    assert box_scores([1, 1]) == pytest.approx([0.9, 0])
    assert box_scores([2, 1]) == pytest.approx([0.4, 0])
    assert box_scores([3, 1]) == [0, 0]
    assert box_scores([2, 1], torch.tensor([[49.0, 50, 60, 60], [0, 0, 1, 1]])) == pytest.approx([0.8, 0])


def test_box_score_needs_enough_overlap():
    half = torch.tensor([[0.0, 0, 10, 4]])
    assert box_scores([1, 1], half) == [0, 0]
    assert box_scores([1, 1], half, minimum_overlap=0.3) == pytest.approx([0.9, 0])
    assert box_scores([1, 1], half + 30, minimum_overlap=0.0) == [0, 0]


def test_box_score_with_its_overlap():
    assert box_scores([2, 1], add_overlap=True) == pytest.approx([0.4 + 0.8, 0])


@functools.cache
def detector(name="fasterrcnn_resnet50_fpn"):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        build = getattr(detection, name)
        sizes = {"min_size": 64, "max_size": 128, "num_classes": 4}
        threshold = {"box_score_thresh" if "rcnn" in name else "score_thresh": 0.0}
        return build(weights=None, weights_backbone=None, **sizes, **threshold).eval()


def detected(model, images, place=0):
    """For each image the box and the label of one detection, the box moved a little."""
    with torch.no_grad():
        output = model(images)
    boxes = torch.stack([one["boxes"][place] for one in output])
    return boxes + torch.tensor([0.6, -0.4, 0.8, 0.5]), torch.stack([one["labels"][place] for one in output])


def test_box_score_of_faster_rcnn_equals_grad_cam():
    model, images = zoo.watch(detector()), zoo.images(2, SIZE)
    boxes, labels = detected(model, images)
    found = Explainer(model)(
        images, target=Target("box-score", labels, {"box": boxes}), relu=False, options={"box-score.add_overlap": True}
    )
    targets = [
        FasterRCNNBoxScoreTarget([label], box[None].numpy()) for box, label in zip(boxes, labels.tolist(), strict=True)
    ]
    assert_same(found.maps, grad_cam(model, "backbone.body.layer4", images, targets))
    assert found.layer == "backbone.body.layer4"
    assert bool((found.scores > 0.5).all())
    assert found.logits.shape == (2, 0)
    assert found.targets.tolist() == labels.tolist()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("fasterrcnn_resnet50_fpn", marks=pytest.mark.slow),
        "retinanet_resnet50_fpn",
        pytest.param("fcos_resnet50_fpn", marks=pytest.mark.slow),
    ],
)
def test_box_score_is_the_score_that_the_detector_gave(name):
    model, images = zoo.watch(detector(name)), zoo.images(2, SIZE)
    with torch.no_grad():
        output = model(images)
    boxes, labels = detected(model, images)
    target = Target("box-score", labels, {"box": boxes - torch.tensor([0.6, -0.4, 0.8, 0.5])})
    found = Explainer(model)(images, target=target, relu=False)
    torch.testing.assert_close(found.scores, torch.stack([one["scores"][0] for one in output]))

    def scores(given):
        return torch.stack([one["scores"][0] for one in given])

    assert_same(found.maps, autograd(model, found.layer, images, scores)[0], 1e-4)


def test_an_image_without_the_object_does_not_harm_its_neighbour():
    model, images = zoo.watch(detector()), zoo.images(2, SIZE)
    boxes, labels = detected(model, images)
    target = Target("box-score", labels, {"box": boxes})
    nowhere = Target("box-score", labels, {"box": torch.stack([boxes[0], torch.tensor([900.0, 900, 910, 910])])})
    with pytest.warns(UserWarning, match="image 1 is zero everywhere"):
        both, one = Explainer(model)(images, target=[target, nowhere], relu=False)
    assert_same(one.maps[:1], both.maps[:1])
    assert float(one.maps[1].abs().max()) == 0
    assert one.scores[1] == 0


# any callable


def test_a_callable_sees_the_output_as_it_is():
    model, images = zoo.watch(segmenter("lraspp_mobilenet_v3_large")), zoo.images(2, SIZE)

    def corner(output):
        return output["out"][:, 2, :8, :8].sum(dim=(1, 2))

    mask = torch.zeros(1, *SIZE)
    mask[:, :8, :8] = 1
    own, region = Explainer(model)(images, target=[corner, Target("region", 2, {"mask": mask})], relu=False)
    assert_same(own.maps, region.maps)
    assert (own.target.label, own.target.name, own.record(0)["target"]["function"]) == ("corner", "corner", "corner")


def test_a_callable_explains_a_detector():
    model, images = zoo.watch(detector()), zoo.images(2, SIZE)
    found = Explainer(model)(images, target=lambda output: torch.stack([one["scores"].sum() for one in output]))
    assert found.maps.abs().amax(dim=(1, 2)).min() > 0
    assert found.record(1)["prediction"] is None


def test_any_object_that_can_be_called_is_a_target(random_model):
    model, images = random_model("torchvision:resnet18"), zoo.images(2, SIZE)
    plain, own = Explainer(model)(images, target=[3, nn.Sequential(Column(3))])
    assert torch.equal(own.maps, plain.maps)
    assert own.target.name == "Sequential"


class Column(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, logits):
        return logits[:, self.index]


# a batch, and what is refused


@pytest.mark.parametrize("name", ["probability", "difference", "similarity"])
def test_a_batch_gives_what_single_images_give(random_model, name):
    model, images = random_model("timm:resnet"), zoo.images(3, 64)
    inputs = {"embedding": torch.randn(3, zoo.CLASSES)} if name == "similarity" else {}
    classes = torch.tensor([3, 7, 0])
    batch = Explainer(model)(images, target=Target(name, classes, inputs), relu=False)
    for index in range(3):
        own = {key: value[index : index + 1] for key, value in inputs.items()}
        one = Explainer(model)(images[index : index + 1], target=Target(name, classes[index : index + 1], own))
        assert_same(one.maps, batch.maps[index : index + 1])


@pytest.mark.parametrize("name", ["probability", "difference"])
def test_a_class_agnostic_method_has_no_use_for_a_target_function(random_model, name):
    with zoo.refused("eigencam", "same map for every class", f"'{name} top'"):
        Explainer(random_model("timm:resnet"))(zoo.images(1, 64), "eigencam", f"{name}:top")


def test_a_class_agnostic_method_has_no_use_for_a_callable(random_model):
    with zoo.refused("eigencam", "same map for every class", "'own'"):
        Explainer(random_model("timm:resnet"))(zoo.images(1, 64), "eigencam", Target(Column(3), label="own"))


REFUSED = {
    "a region of a classifier": (Target("region", 3, {"mask": torch.ones(2, 4, 4)}), {}, ["logits for every pixel"]),
    "similarity to nothing": (Target("similarity"), {}, ["'similarity'", "input 'embedding'"]),
    "another embedding": (Target("similarity", inputs={"embedding": torch.ones(2, 3)}), {}, ["[2, 3]", "[2, 10]"]),
    "too many embeddings": (Target("similarity", inputs={"embedding": torch.ones(3, 10)}), {}, ["[3, 10]", "2 images"]),
    "an embedding as a list": (Target("similarity", inputs={"embedding": [1.0] * 10}), {}, ["list"]),
    "boxes of a classifier": (Target("box-score", 3, {"box": torch.ones(2, 4)}), {}, ["needs a detector"]),
    "a box of three": (Target("box-score", 3, {"box": torch.ones(2, 3)}), {}, ["[2, 3]", "[batch, 4]"]),
    "no comparison": ("difference:top", {"difference.comparisons": 0}, ["'comparisons'", "greater than or equal to 1"]),
    "unknown weights": ("difference:top", {"difference.weights": "max"}, ["'weights'", "'probability' or 'mean'"]),
    "a class too many": ("difference:top", {"difference.others": (1, 10)}, ["class 10", "0 to 9"]),
    "a class twice": ("difference:top", {"difference.others": (1, 1)}, ["class 1", "different classes"]),
    "an unknown option": ("difference:top", {"difference.alpah": 1}, ["'alpah'", "did you mean 'alpha'"]),
    "another's option": ("top", {"difference.alpha": 1}, ["'difference'", "was not asked for"]),
    "an option of a function without any": ("probability:top", {"probability.alpha": 1}, ["takes no options"]),
    "an option of a callable": (Column(3), {"Column.index": 1}, ["'Column'", "takes no options"]),
    "a mask for a class": (Target("class", 3, {"mask": torch.ones(2, 4, 4)}), {}, ["no input 'mask'", "takes none"]),
    "a class as an input": (Target("class", inputs={"class_index": torch.ones(2)}), {}, ["no input 'class_index'"]),
    "a misspelt input": (Target("box-score", 3, {"boxes": torch.ones(2, 4)}), {}, ["'boxes'", "did you mean 'box'"]),
    "an input of a callable": (Target(Column(3), inputs={"a": torch.ones(2)}), {}, ["'Column' has no input 'a'"]),
    "one score for all": (lambda output: output.sum(), {}, ["returned shape []", "[2]"]),
    "no tensor": (lambda output: 1.0, {}, ["returned float", "[2]"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_refused(random_model, case):
    target, options, words = REFUSED[case]
    with zoo.refused(*words):
        Explainer(random_model("timm:resnet"))(zoo.images(2, 64), target=target, options=options)


def test_a_model_of_one_class_has_nothing_to_differ_from():
    with zoo.refused("only one"):
        score("difference", [0, 0], output=LOGITS[:, :1])


def test_a_region_without_its_mask_is_refused():
    with zoo.refused("'region'", "input 'mask'"):
        score("region", [1, 1], logits=LOGITS, dense_logits=torch.zeros(2, 2, 4, 4))


def test_a_mask_is_one_number_for_each_pixel():
    dense = torch.zeros(2, 2, 4, 4)
    with zoo.refused("'mask'", "[2, 1, 4, 4]"):
        score("region", [1, 1], logits=LOGITS, dense_logits=dense, inputs={"mask": torch.ones(2, 1, 4, 4)})


def test_the_top_class_of_a_detector_is_refused():
    model, images = zoo.watch(detector()), zoo.images(1, SIZE)
    for target in ("top", "class:3", Target("box-score", inputs={"box": BOX})):
        with zoo.refused("logits"):
            Explainer(model)(images, target=target)


def test_a_detector_needs_a_class_for_each_image():
    model, images = zoo.watch(detector()), zoo.images(2, SIZE)
    for classes, words in (([1, 2, 3], ["[3]", "2 images"]), ([1.0, 2.0], ["float32"])):
        with zoo.refused(*words):
            Explainer(model)(images, target=Target("box-score", torch.tensor(classes), {"box": BOX}))


def test_a_score_that_does_not_hang_on_the_layer_is_refused(random_model):
    with zoo.refused("do not depend on the layer 'layer4'"):
        Explainer(random_model("timm:resnet"))(zoo.images(1, 64), target=lambda output: torch.zeros(1))


def test_every_target_function_is_registered_and_says_what_it_needs():
    functions = {name: registry().get("target", name).inputs for name in registry().names("target")}
    assert functions == {
        "embedding": (),
        "class": ("class_index",),
        "counterfactual": ("class_index",),
        "probability": ("class_index",),
        "difference": ("class_index",),
        "contrast": ("class_index", "other_class"),
        "region": ("class_index", "mask"),
        "predicted-region": ("class_index",),
        "similarity": ("embedding",),
        "box-score": ("class_index", "box"),
    }


# contrast


def test_contrast_is_the_difference_of_two_logits():
    assert score("contrast", [3, 1], inputs={"other_class": torch.tensor([0, 2])}).tolist() == [2.0, 1.0]


def test_contrast_is_explained(random_model):
    model, images = random_model("torchvision:resnet18"), zoo.images(2, SIZE)
    target = Target("contrast", torch.tensor(CLASSES), {"other_class": torch.tensor([1, 2])})
    found = Explainer(model)(images, target=target, relu=False)
    expected, scores = autograd(
        model, "layer4", images, lambda logits: logits[[0, 1], CLASSES] - logits[[0, 1], [1, 2]]
    )
    assert_same(found.maps, expected)
    torch.testing.assert_close(found.scores, scores)


@pytest.mark.parametrize("wrong", [7, -1])
def test_a_class_that_there_is_not_is_refused_as_in_an_exported_graph(wrong):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
    target = Target("contrast", 2, {"other_class": torch.tensor([wrong])})
    with pytest.raises(CamkitError, match=f"input 'other_class' holds classes, from 0 to 6, not {wrong}"):
        Explainer(model.eval(), "0")(zoo.images(2, SIZE), target=target)
