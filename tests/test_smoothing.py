"""Eigen smoothing and augmentation smoothing, against grad-cam and against plain averages."""

import copy

import pytest
import pytorch_grad_cam as pgc
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import zoo
from camkit import Explainer, Target
from camkit.cut import find_module
from camkit.testing import relative_error

AGREE = 1e-5
CLASSES = [3, 7]
SIZE = (64, 96)
VERSIONS = [(mirrored, factor) for mirrored in (False, True) for factor in (0.9, 1.0, 1.1)]
METHODS = {"gradcam": pgc.GradCAM, "layercam": pgc.LayerCAM, "hirescam": pgc.HiResCAM}


def reshape(tokens):
    patches = tokens[:, 1:]
    return patches.reshape(len(patches), 6, 6, patches.shape[2]).permute(0, 3, 1, 2)


def smoothed_by_grad_cam(model, layer, images, peer, reshape_transform):
    model = copy.deepcopy(model)
    module = find_module(model, layer)[1]
    extractor = peer(model, [module], reshape_transform=reshape_transform)
    targets = [ClassifierOutputTarget(index) for index in CLASSES]
    extractor(images, targets)
    activations = extractor.activations_and_grads.activations[0].numpy()
    gradients = extractor.activations_and_grads.gradients[0].numpy()
    maps = extractor.get_cam_image(images, module, targets, activations, gradients, eigen_smooth=True)
    return torch.from_numpy(maps)


# eigen smoothing


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "layer"),
    [("torchvision:resnet18", "layer4"), ("torchvision:resnet18", "layer3"), ("timm:vit-tiny", "blocks.-1.norm1")],
)
def test_eigen_smoothing_equals_grad_cam_but_for_the_sign(random_model, name, layer, method):
    model, vit = random_model(name), "vit" in name
    images = zoo.images(2, (96, 96) if vit else SIZE)
    expected = smoothed_by_grad_cam(model, layer, images, METHODS[method], reshape if vit else None)
    assert bool((expected.flatten(1).std(dim=1) > 0.1 * expected.flatten(1).abs().amax(dim=1)).all())
    found = Explainer(model)(images, method, torch.tensor(CLASSES), layer, relu=False, eigen_smooth=True)
    # a singular vector has no sign; camkit's makes the largest value positive
    sign = (found.maps * expected).sum(dim=(1, 2), keepdim=True).sign()
    assert relative_error(found.maps, sign * expected).max() <= AGREE
    flat = found.maps.flatten(1)
    assert torch.equal(flat.amax(dim=1), flat.abs().amax(dim=1))


def test_eigen_smoothing_changes_the_map(random_model):
    explain, images = Explainer(random_model("timm:resnet")), zoo.images(2, 64)
    plain, smooth = (explain(images, target=3, relu=False, eigen_smooth=smooth) for smooth in (False, True))
    assert smooth.maps.shape == plain.maps.shape
    assert relative_error(smooth.maps, plain.maps).min() > 0.1


def test_eigen_smoothing_of_a_batch_is_that_of_single_images(random_model):
    explain, images = Explainer(random_model("timm:resnet")), zoo.images(3, 64)
    batch = explain(images, target=3, relu=False, eigen_smooth=True)
    for index in range(3):
        one = explain(images[index : index + 1], target=3, relu=False, eigen_smooth=True)
        assert relative_error(one.maps, batch.maps[index : index + 1]).max() <= AGREE


@pytest.mark.parametrize("method", ["eigencam", "dff"])
def test_what_weighs_no_channels_is_not_eigen_smoothed(random_model, method):
    with zoo.refused(f"'{method}'", "eigen smoothing"):
        Explainer(random_model("timm:resnet"))(zoo.images(1, 64), method, eigen_smooth=True)


# augmentation smoothing


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_augmentation_smoothing_is_the_mean_over_six_versions(random_model, method):
    explain, images = Explainer(random_model("timm:resnet")), zoo.images(2, 64)
    found = explain(images, method, relu=False, aug_smooth=True)
    plain = explain(images, method, relu=False)
    # the class is that of the image as it is, also where a version's top class is another
    maps = [
        explain(factor * (images.flip(3) if mirrored else images), method, plain.targets, relu=False).maps
        for mirrored, factor in VERSIONS
    ]
    maps = [one.flip(2) if mirrored else one for one, (mirrored, _) in zip(maps, VERSIONS, strict=True)]
    assert relative_error(found.maps, torch.stack(maps).mean(dim=0)).max() <= 1e-6
    assert relative_error(found.maps, plain.maps).min() > 1e-3
    assert torch.equal(found.targets, plain.targets)
    assert torch.equal(found.logits, plain.logits)
    assert torch.equal(found.scores, plain.scores)


def test_augmentation_smoothing_averages_maps_where_grad_cam_averages_heatmaps(random_model):
    """A version whose map is weak counts little in ours; grad-cam makes all of them reach from 0 to 1 first."""
    model, images = random_model("torchvision:resnet18"), zoo.images(2, SIZE)
    peer = copy.deepcopy(model)
    targets = [ClassifierOutputTarget(index) for index in CLASSES]
    expected = torch.from_numpy(pgc.LayerCAM(peer, [peer.layer4])(images, targets, aug_smooth=True))
    explain = Explainer(model)
    heatmaps = []
    for mirrored, factor in VERSIONS:
        version = factor * (images.flip(3) if mirrored else images)
        heatmap = explain(version, "layercam", torch.tensor(CLASSES)).heatmaps
        heatmaps.append(heatmap.flip(2) if mirrored else heatmap)
    assert float((torch.stack(heatmaps).mean(dim=0) - expected).abs().max()) < 1e-3
    found = explain(images, "layercam", torch.tensor(CLASSES), aug_smooth=True).heatmaps
    both = torch.stack([found.flatten(), expected.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.95


def test_a_mirrored_image_has_the_mirrored_smooth_map(random_model):
    explain, images = Explainer(random_model("timm:resnet")), zoo.images(2, 64)
    smooth, mirrored = (
        explain(given, target=3, relu=False, aug_smooth=True).maps for given in (images, images.flip(3))
    )
    assert relative_error(mirrored.flip(2), smooth).max() <= AGREE


def test_everything_can_be_asked_for_at_once(random_model):
    explain, images = Explainer(random_model("timm:resnet"), ["layer3", "layer4"]), zoo.images(2, 64)
    found = explain(
        images,
        ["gradcam", "layercam"],
        ["top-2", "counterfactual:top"],
        fuse="mean",
        eigen_smooth=True,
        aug_smooth=True,
    )
    assert [(one.method, one.layer, one.target.label) for one in found] == [
        (method, "layer3 + layer4", target)
        for method in ("gradcam", "layercam")
        for target in ("top 1", "top 2", "counterfactual top")
    ]
    assert all(bool(one.maps.isfinite().all()) and float(one.maps.max()) > 0 for one in found)


def test_methods_without_channels_are_augmented_too(random_model):
    explain, images = Explainer(random_model("timm:resnet")), zoo.images(2, 64)
    found = explain(images, "eigencam", aug_smooth=True)
    assert relative_error(found.maps, explain(images, "eigencam").maps).min() > 1e-4


def test_a_callable_is_augmented(random_model):
    explain, images = Explainer(random_model("timm:resnet")), zoo.images(2, 64)
    own = explain(images, target=lambda logits: logits[:, 3], relu=False, aug_smooth=True)
    assert torch.equal(own.maps, explain(images, target=3, relu=False, aug_smooth=True).maps)


def test_inputs_of_a_target_are_not_mirrored(random_model):
    target = Target("similarity", inputs={"embedding": torch.ones(1, zoo.CLASSES)})
    with zoo.refused("Augmentation", "own inputs"):
        Explainer(random_model("timm:resnet"))(zoo.images(1, 64), target=target, aug_smooth=True)


def test_concepts_are_not_averaged(random_model):
    with zoo.refused("Augmentation", "concepts"):
        Explainer(random_model("timm:resnet"))(zoo.images(1, 64), "dff", aug_smooth=True)
