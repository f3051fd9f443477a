"""The methods of activations and of their products with gradients, against grad-cam and scikit-learn.

Singular vectors have no sign. grad-cam shows the one that its library returns, here the value of largest magnitude is
positive; so its map is turned that way before the two are compared. As in test_peers, compared are raw maps.
"""

import copy

import numpy as np
import pytest
import pytorch_grad_cam as pgc
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.optimize import nnls
from sklearn.decomposition import NMF, KernelPCA

import reference
import zoo
from camkit import Explainer
from camkit.components import positive_peak
from camkit.cut import find_module
from camkit.registry import registry
from camkit.testing import relative_error
from test_peers import CLASSES, POSITIONS, RESHAPE, SIZES, assert_same, ours

# at some of these places the first two components are within a few per cent of each other, and a warning says so
pytestmark = pytest.mark.filterwarnings("ignore:The map by .*nearly equally well")


def peers_map(name, peer, layer):
    """What grad-cam makes of a copy of the model: its raw map, and the activations that it saw."""
    model = copy.deepcopy(zoo.random_model(name))
    module = find_module(model, layer)[1]
    extractor = peer(model, [module], reshape_transform=RESHAPE.get(name))
    images, targets = zoo.images(2, SIZES[name]), [ClassifierOutputTarget(index) for index in CLASSES]
    extractor(images, targets)
    kept = extractor.activations_and_grads
    activations = kept.activations[0].numpy()
    gradients = kept.gradients[0].numpy() if kept.gradients else None  # it records none for a class-agnostic method
    maps = extractor.get_cam_image(images, module, targets, activations, gradients, eigen_smooth=False)
    return torch.from_numpy(np.asarray(maps)), activations


def with_options(name, method, layer, **options):
    explainer = Explainer(zoo.watch(zoo.random_model(name)))
    images = zoo.images(2, SIZES[name])
    return explainer(images, method, torch.tensor(CLASSES), layer, options, relu=False).maps


@pytest.mark.parametrize(("name", "layer"), POSITIONS)
def test_centred_eigencam_is_grad_cams_up_to_sign(name, layer):
    theirs, _ = peers_map(name, pgc.EigenCAM, layer)
    assert_same(with_options(name, "eigencam", layer, centred=True), positive_peak(theirs))


# in front of a LayerNorm the paper's map is nearly one value everywhere, which leaves too little to compare
@pytest.mark.parametrize(("name", "layer"), [row for row in POSITIONS if row[1] != "layers.2.blocks.1"])
def test_eigencam_of_the_paper_does_not_centre(name, layer):
    theirs, activations = peers_map(name, pgc.EigenCAM, layer)
    found = ours(name, "eigencam", layer)
    paper = torch.from_numpy(np.stack([reference.eigencam(one, None) for one in activations]))
    # what all tokens have in common is most of an uncentred map, so its own spread is the measure
    spread = float((paper.amax(dim=(1, 2)) - paper.amin(dim=(1, 2))).min())
    assert spread > 0.02 * float(paper.abs().max())
    assert float((found - paper).abs().max()) <= 1e-4 * spread
    assert relative_error(found, positive_peak(theirs)).min() > 0.05


@pytest.mark.parametrize(("name", "layer"), POSITIONS)
def test_eigengradcam_is_grad_cams_up_to_sign(name, layer):
    theirs, _ = peers_map(name, pgc.EigenGradCAM, layer)
    assert_same(ours(name, "eigengradcam", layer), positive_peak(theirs))


@pytest.mark.parametrize(("name", "layer"), POSITIONS)
def test_segeigencam_is_grad_cams_with_its_sign(name, layer):
    theirs, _ = peers_map(name, pgc.SegEigenCAM, layer)
    assert_same(ours(name, "segeigencam", layer), theirs)


# there two components are so nearly equal that either library's rounding turns them
@pytest.mark.parametrize(("name", "layer"), [row for row in POSITIONS if row[1] != "layers.2.blocks.1"])
def test_kpcacam_is_grad_cams_up_to_sign(name, layer):
    theirs, _ = peers_map(name, pgc.KPCA_CAM, layer)
    assert_same(ours(name, "kpcacam", layer), positive_peak(theirs))


@pytest.mark.parametrize("kernel", ["sigmoid", "rbf", "poly", "linear"])
@pytest.mark.parametrize("gamma", [None, 0.05])
def test_kpcacam_is_scikit_learns_kernel_pca_up_to_sign(kernel, gamma):
    activations = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    method = registry().get("method", "kpcacam").function
    found = method(activations, lambda affected, sentence: None, kernel=kernel, gamma=gamma)
    rows = activations.flatten(2).transpose(1, 2)
    rows = (rows - rows.mean(dim=1, keepdim=True)).numpy()
    theirs = [KernelPCA(1, kernel=kernel, gamma=gamma, eigen_solver="dense").fit_transform(one) for one in rows]
    expected = positive_peak(torch.from_numpy(np.stack(theirs)).reshape(2, 4, 5))
    assert relative_error(found, expected).max() <= 1e-8


@pytest.mark.parametrize(("name", "layer"), POSITIONS)
def test_gradcam_elementwise_is_grad_cams(name, layer):
    theirs, _ = peers_map(name, pgc.GradCAMElementWise, layer)
    assert_same(ours(name, "gradcam-elementwise", layer), theirs)


@pytest.mark.parametrize(("name", "layer"), POSITIONS)
def test_fem_is_grad_cams_in_its_variant_and_the_papers_otherwise(name, layer):
    theirs, activations = peers_map(name, pgc.FEM, layer)
    assert_same(with_options(name, "fem", layer, variant="grad-cam"), theirs)
    found = ours(name, "fem", layer)
    assert_same(found, torch.from_numpy(np.stack([reference.fem(one, None) for one in activations])))
    # not a matter of scale only
    assert relative_error(found / found.amax(), theirs / theirs.amax()).max() > 0.05


# signed features are cut at zero first; what is left of tokens has no low rank, and no factorisation is any good
@pytest.mark.parametrize(("name", "layer"), [row for row in POSITIONS if row[0] not in RESHAPE])
@pytest.mark.parametrize("count", [2, 4])
def test_concepts_rebuild_the_activations_as_well_as_scikit_learns(name, layer, count):
    """Both descend from random starts to a local optimum; the maps given, the best vectors are least squares."""
    _, activations = peers_map(name, pgc.FEM, layer)
    maps = registry().get("method", "dff").function(torch.from_numpy(activations), concepts=count)
    assert maps.shape == (2, count, *activations.shape[2:])
    assert bool((maps >= 0).all())
    energy = maps.flatten(2).norm(dim=2)
    assert bool((energy[:, :-1] >= energy[:, 1:]).all())
    assert bool((energy > 0).all())
    for matrix, own in zip(np.maximum(activations, 0), maps.numpy(), strict=True):
        rows, own = matrix.reshape(len(matrix), -1).T.astype(np.float64), own.reshape(count, -1).T.astype(np.float64)
        error = np.linalg.norm([nnls(own, channel)[1] for channel in rows.T])
        theirs = NMF(count, init="nndsvda", max_iter=2000)
        expected = np.linalg.norm(rows - theirs.fit_transform(rows) @ theirs.components_)
        assert error <= 1.04 * expected
        assert expected < 0.7 * np.linalg.norm(rows)
