"""Raw maps of the methods that perturb against grad-cam and torchcam: where they agree, on what, and where they do not.

As in `test_peers`, each peer runs on a copy of the model, and signed low-resolution maps before ReLU are compared. What
a peer does otherwise than the paper is exchanged in the peer, one thing at a time; the rest must then give our map.
"""

import copy

import numpy as np
import pytest
import pytorch_grad_cam as pgc
import torch
import torch.nn.functional as F
import torchcam.methods as tc
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import zoo
from camkit import Explainer
from camkit.cut import find_module
from camkit.testing import relative_error

CLASSES = [3, 7]
SIZE = (48, 64)
AGREE = 1e-5
POSITIONS = [
    ("torchvision:resnet18", "layer2"),
    pytest.param("torchvision:vgg11", "features.5", marks=pytest.mark.slow),
    ("timm:resnet", "layer3"),
]
DEEP = [
    ("torchvision:resnet18", "layer4"),
    pytest.param("torchvision:vgg11", "features.-2", marks=pytest.mark.slow),
]


def images():
    return zoo.images(2, SIZE)


def ours(name, layer, method, **options):
    explainer = Explainer(zoo.watch(zoo.random_model(name)))
    return explainer(images(), method, torch.tensor(CLASSES), layer, relu=False, options=options).maps


def exact(name, layer, method):
    """Our maps in a model of float64."""
    explainer = Explainer(copy.deepcopy(zoo.random_model(name)).double())
    return explainer(images().double(), method, torch.tensor(CLASSES), layer, relu=False).maps


def scores(name):
    return zoo.random_model(name)(images()).detach()[range(2), CLASSES]


def gradcam_package(peer, name, layer):
    """The raw maps of a grad-cam object on a copy of the model, and the activations that it weighed."""
    model = copy.deepcopy(zoo.random_model(name))
    module = find_module(model, layer)[1]
    extractor, targets = peer(model, [module]), [ClassifierOutputTarget(index) for index in CLASSES]
    given = images().requires_grad_()
    outputs = extractor.activations_and_grads(given)
    activations, gradients = extractor.activations_and_grads.activations[0], None
    if extractor.uses_gradients:
        score = sum(target(output) for target, output in zip(targets, outputs, strict=True))
        torch.autograd.grad(score, given, retain_graph=True, create_graph=True)
        gradients = extractor.activations_and_grads.gradients[0]
    else:
        activations = activations.numpy()
    maps = extractor.get_cam_image(given.detach(), module, targets, activations, gradients, eigen_smooth=False)
    return torch.as_tensor(maps), torch.as_tensor(activations).detach()


def torchcam_package(peer, name, layer, *, change=lambda extractor: None, **options):
    """The raw maps of a torchcam object on a copy of the model, after `change` to the object."""
    model = copy.deepcopy(zoo.random_model(name))
    extractor = peer(model, find_module(model, layer)[0], **options)
    extractor._relu = False
    change(extractor)
    (maps,) = extractor(CLASSES, model(images()), normalized=False)
    return maps.detach()


def assert_informative(maps):
    flat = maps.flatten(1)
    assert bool((flat.amax(dim=1) - flat.amin(dim=1) > 0.05 * flat.abs().amax(dim=1)).all()), "the peer's map is flat"


def assert_same(found, expected, allowed=AGREE):
    assert_informative(expected)
    assert relative_error(found, expected).max() <= allowed


def to_one(maps):
    """Maps of which only the shape counts: a dead channel dilutes a peer's softmax, which scales its whole map."""
    return maps / maps.flatten(1).abs().amax(dim=1)[:, None, None]


@pytest.mark.parametrize(("name", "layer"), [pytest.param(*DEEP[0], marks=pytest.mark.slow), *DEEP[1:], POSITIONS[-1]])
def test_ablationcam_equals_grad_cam_up_to_the_sign_of_the_score(name, layer):
    """Where features begin at 0 grad-cam fills with 0, and divides by the score instead of its size.

    A drop is a small difference of two scores, so the peer is as exact as its rounding; ours is nearer to float64.
    """
    peers, activations = gradcam_package(pgc.AblationCAM, name, layer)
    assert bool((activations.flatten(1).amin(dim=1) == 0).all())
    reference = exact(name, layer, "ablationcam")
    assert_same(peers * scores(name).sign()[:, None, None], reference, 1e-3)
    assert_same(ours(name, layer, "ablationcam"), reference, 1e-4)


def test_ablationcam_meets_scores_of_both_signs():
    """So that the sign by which grad-cam turns its map around was seen."""
    assert scores("torchvision:vgg11").sign().tolist() == [1, -1]


def test_ablationcam_destroys_signed_features_in_grad_cam():
    """It fills them with about -1e7, so its weights are those of another network."""
    name, layer = "torchvision:resnet18", "layer4.1.conv2"
    peers, activations = gradcam_package(pgc.AblationCAM, name, layer)
    assert float(activations.min()) < 0
    assert relative_error(ours(name, layer, "ablationcam"), peers).min() > 0.5


def as_the_paper_resizes(monkeypatch):
    """grad-cam's masks without aligned corners."""
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", lambda size: lambda a: resized(a, size))


def resized(activations, size):
    return F.interpolate(activations, size=tuple(size), mode="bilinear", align_corners=False)


def stretches_after_resizing(extractor):
    """torchcam's masks resized first and then stretched; they are as large as the image, so it resizes no more."""

    def masks(activations, spatial_dims):
        large = resized(activations, SIZE)
        lowest, highest = large.amin(dim=(2, 3), keepdim=True), large.amax(dim=(2, 3), keepdim=True)
        return (large - lowest) / (highest - lowest + 1e-8)

    extractor._normalize = masks


@pytest.mark.parametrize(("name", "layer"), POSITIONS)
def test_scorecam_equals_grad_cam_on_the_papers_masks(name, layer, monkeypatch):
    found = to_one(ours(name, layer, "scorecam"))
    theirs = to_one(gradcam_package(pgc.ScoreCAM, name, layer)[0])
    assert relative_error(found, theirs).max() > AGREE, "aligned corners make other masks"
    as_the_paper_resizes(monkeypatch)
    assert_same(found, to_one(gradcam_package(pgc.ScoreCAM, name, layer)[0]))


@pytest.mark.parametrize(("name", "layer"), POSITIONS)
def test_scorecam_equals_torchcam_on_the_papers_masks(name, layer):
    found = to_one(ours(name, layer, "scorecam"))
    theirs = to_one(torchcam_package(tc.ScoreCAM, name, layer))
    assert relative_error(found, theirs).max() > AGREE, "stretched before they are resized, masks do not reach 1"
    assert_same(found, to_one(torchcam_package(tc.ScoreCAM, name, layer, change=stretches_after_resizing)))


def test_sscam_equals_torchcam_on_the_papers_masks_and_the_same_noise():
    name, layer, samples = "timm:resnet", "layer3", 3

    class Draws:
        """Our draws, in the order in which torchcam asks for them: all channels of one version."""

        version = 0

        def sample(self, shape):
            noise = [
                np.random.default_rng((0, k, self.version)).standard_normal((1, 1, *SIZE)) for k in range(shape[1])
            ]
            self.version += 1
            return 2 * torch.tensor(np.concatenate(noise, axis=1), dtype=torch.float32).expand(shape)

    def change(extractor):
        stretches_after_resizing(extractor)
        extractor._distrib = Draws()

    theirs = torchcam_package(tc.SSCAM, name, layer, change=change, num_samples=samples)
    assert_same(to_one(ours(name, layer, "sscam", samples=samples)), to_one(theirs))


def test_iscam_equals_torchcam_on_the_papers_masks_and_path():
    """torchcam's path of N steps begins with 1 / N, the paper's with 0: N - 1 of its steps are ours, scaled."""
    name, layer, steps = "timm:resnet", "layer3", 4
    share = (steps - 1) / steps

    def change(extractor):
        stretches_after_resizing(extractor)
        masked, score = extractor._masked_input_chunk, extractor._score_input
        # its factors i (i + 1) / 2 / (N - 1) become i (i + 1) / 2 / N, and so does its mean over N - 1 steps
        extractor._masked_input_chunk = lambda *given: masked(*given) * share
        extractor._score_input = lambda *given: score(*given) * share

    found = to_one(ours(name, layer, "iscam", steps=steps))
    theirs = to_one(torchcam_package(tc.ISCAM, name, layer, change=stretches_after_resizing, num_samples=steps))
    assert relative_error(found, theirs).max() > 1e-3, "the paths must be different ones"
    assert_same(found, to_one(torchcam_package(tc.ISCAM, name, layer, change=change, num_samples=steps - 1)))


@pytest.mark.parametrize(("name", "layer"), [*DEEP, *POSITIONS, ("torchvision:resnet18", "layer3")])
def test_shapleycam_equals_grad_cam(name, layer):
    peers, _ = gradcam_package(pgc.ShapleyCAM, name, layer)
    assert_same(ours(name, layer, "shapleycam"), peers)


def test_smooth_gradcam_plusplus_equals_torchcam_where_all_samples_are_one_and_gradients_are_uniform():
    """It weighs by the sum of g^3 A for g^3 times the sum of A: the same where g is, behind pooling and a linear layer.

    With noise it takes gradient and activations of the last sample alone.
    """
    name, layer = "torchvision:resnet18", "layer4"
    still = torchcam_package(tc.SmoothGradCAMpp, name, layer, std=1e-12)
    # 1e-8 in the peer's denominator
    assert_same(ours(name, layer, "smoothgradcam++", std=0.0), still, 1e-4)
    spread = [float(image.max() - image.min()) for image in images()]
    assert spread == pytest.approx([1, 1], abs=1e-3)
    noisy = torchcam_package(tc.SmoothGradCAMpp, name, layer, std=0.3)
    assert relative_error(ours(name, layer, "smoothgradcam++", std=0.3), noisy).min() > 0.01
