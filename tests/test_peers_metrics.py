"""Metrics beside torchcam's, grad-cam's, captum's and Quantus': the same heatmaps and answers, the same numbers."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import camkit
import zoo
from camkit import Explainer
from camkit.judging import Batch, Judged
from camkit.methods import as_method
from camkit.metrics import as_metric

SIDE = 96


@dataclass(frozen=True)
class Setting:
    """A demo model taken as a softmax model, which is what the peers take it for, and heatmaps without equal values."""

    explainer: Explainer
    given: Judged

    @property
    def model(self) -> nn.Module:
        return self.explainer.module

    @property
    def images(self) -> Tensor:
        return self.given.images

    @property
    def heatmaps(self) -> Tensor:
        return self.given.heatmaps

    @property
    def classes(self) -> list[int]:
        return self.given.class_index.tolist()

    def ours(self, name: str, **options: Any) -> list[float]:
        metric = as_metric(name)
        return metric.values(self.given, metric.signature.options(options), len(self.images)).tolist()

    def targets(self) -> list[Callable[[Tensor], Tensor]]:
        """One function for each image, from its logits to the probability of its class."""
        return [lambda logits, index=index: logits.softmax(dim=0)[index] for index in self.classes]


@pytest.fixture(scope="module")
def setting() -> Setting:
    module = camkit.load_model("demo:vgg").module
    explainer = Explainer(module)
    assert explainer.probability == "softmax"
    explainer.preprocessing = camkit.load_model("demo:vgg").preprocessing
    images = zoo.scenes(3)
    explanation = explainer(images, "gradcam")
    # a little of each pixel's own, so that what ties do does not matter
    own = 0.05 * torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    right, wrong, nothing = explanation.heatmaps[0], 1 - explanation.heatmaps[1], torch.zeros(SIDE, SIDE)
    explanation = replace(explanation, maps=torch.stack([right, wrong, nothing]) + own)
    return Setting(explainer, Judged(Batch(explainer, images), explanation, as_method("gradcam").function))


# --- torchcam


def extractor(setting: Setting) -> Any:
    """What torchcam's metrics need of a method: a model, and maps."""

    class Maps:
        model = setting.model

        def __call__(self, class_index: Any, scores: Any, *_: Any) -> list[Tensor]:
            return [setting.heatmaps]

        def fuse_cams(self, maps: list[Tensor]) -> Tensor:
            return maps[0]

        def _hooks_off(self) -> Any:
            return nullcontext()

    return Maps()


def test_torchcams_average_drop_and_increase(setting):
    metrics = pytest.importorskip("torchcam.metrics")
    peer = metrics.ClassificationMetric(extractor(setting), partial(torch.softmax, dim=-1))
    peer.update(setting.images, setting.classes)
    found = peer.summary()
    drops = setting.ours("average_drop")
    assert 0.001 < np.mean(drops) < 1
    assert np.std(drops) > 0.01
    assert np.mean(drops) == pytest.approx(found["avg_drop"], abs=1e-6)
    assert np.mean(setting.ours("increase_in_confidence")) == found["conf_increase"]


# 9216 pixels in equal parts, and in parts of which the last is smaller
@pytest.mark.parametrize("steps", [16, pytest.param(10, marks=pytest.mark.slow)])
def test_torchcams_insertion_and_deletion(setting, steps):
    metrics = pytest.importorskip("torchcam.metrics")
    peer = metrics.DeletionInsertionMetric(extractor(setting), partial(torch.softmax, dim=-1), steps=steps)
    peer.update(setting.images, setting.classes)
    found = peer.summary()
    tolerance = 1e-6 if SIDE**2 % steps == 0 else 5e-3
    assert np.mean(setting.ours("deletion", steps=steps)) == pytest.approx(found["deletion_auc"], abs=tolerance)
    inserted = np.mean(setting.ours("insertion", steps=steps, start="mean"))
    assert inserted == pytest.approx(found["insertion_auc"], abs=tolerance)
    assert np.std(setting.ours("deletion", steps=steps)) > 0.05


# --- grad-cam


def test_grad_cams_road(setting):
    """Without noise, which is drawn differently, and at percentiles that mean the same number of pixels."""
    perturbation = pytest.importorskip("pytorch_grad_cam.metrics.perturbation_confidence")
    imputer = pytest.importorskip("pytorch_grad_cam.metrics.road").NoisyLinearImputer(noise=0)
    percentiles = (50, 90)
    shares = tuple((100 - percentile) / 100 for percentile in percentiles)
    cams = setting.heatmaps.double().numpy()
    found = {}
    for name, order in (
        ("road_morf", perturbation.RemoveMostRelevantFirst),
        ("road_lerf", perturbation.RemoveLeastRelevantFirst),
    ):
        answers = [
            perturbation.PerturbationConfidenceMetric(order(percentile, imputer))(
                setting.images, cams, setting.targets(), setting.model, return_diff=False
            )
            for percentile in percentiles
        ]
        found[name] = np.mean(answers, axis=0)
        assert setting.ours(name, shares=shares, noise=0) == pytest.approx(found[name].tolist(), abs=2e-4)
    combined = (found["road_lerf"] - found["road_morf"]) / 2
    assert setting.ours("road", shares=shares, noise=0) == pytest.approx(combined.tolist(), abs=2e-4)
    assert combined[0] > 0.05 > combined[1]


def test_grad_cams_coherency_and_complexity(setting):
    arcc = pytest.importorskip("pytorch_grad_cam.metrics.arcc")
    cams = setting.heatmaps.numpy()

    def method(input_tensor: Tensor, targets: Any) -> Any:
        return setting.explainer(input_tensor, "gradcam", setting.given.class_index).heatmaps.numpy()

    coherent = arcc.Coherency()(setting.images, cams, setting.targets(), setting.model, method)
    assert setting.ours("coherency") == pytest.approx(coherent.tolist(), abs=1e-5)
    assert setting.ours("complexity") == pytest.approx(arcc.Complexity()(cams).tolist(), abs=1e-6)


def test_grad_cams_increase_in_confidence(setting):
    multiplied = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    cams = setting.heatmaps.numpy()
    found = multiplied.IncreaseInConfidence()(setting.images, cams, setting.targets(), setting.model)
    assert setting.ours("increase_in_confidence") == np.float32(found).tolist()


# --- captum


def test_captums_infidelity(setting):
    captum = pytest.importorskip("captum.metrics")
    generator = torch.Generator().manual_seed(3)
    noise = torch.stack([0.2 * torch.randn(3, SIDE, SIDE, generator=generator) for _ in range(8)])
    for place, expected in enumerate(setting.ours("infidelity", moved="noise", samples=8, seed=3)):
        found = captum.infidelity(
            lambda images, index=setting.classes[place]: setting.model(images).softmax(dim=1)[:, index],
            lambda images: (noise, images - noise),
            setting.images[place : place + 1],
            setting.heatmaps[place].expand(1, 3, -1, -1),
            n_perturb_samples=8,
            normalize=True,
        )
        assert float(found) == pytest.approx(expected, rel=1e-3)
        assert expected > 0


def test_captums_sensitivity(setting):
    captum = pytest.importorskip("captum.metrics")
    generator = torch.Generator().manual_seed(3)
    moves = torch.stack([0.1 * (2 * torch.rand(3, SIDE, SIDE, generator=generator) - 1) for _ in range(4)])
    explanation = setting.explainer(setting.images, "gradcam")
    plain = Judged(setting.given.batch, explanation, as_method("gradcam").function)
    ours = Setting(setting.explainer, plain).ours("max_sensitivity", radius=0.1, samples=4, seed=3)
    for place, expected in enumerate(ours):
        index = setting.classes[place]

        def explained(images: Any, index: int = index) -> tuple[Tensor]:
            (given,) = images if isinstance(images, tuple) else (images,)
            # of a bare tensor captum 0.9 subtracts each copy from all: the square root of their number too much
            return (setting.explainer(given, "gradcam", index).heatmaps.unsqueeze(1),)

        found = captum.sensitivity_max(
            explained,
            setting.images[place : place + 1],
            lambda images, _: images + moves,
            n_perturb_samples=4,
        )
        assert float(found) == pytest.approx(expected, rel=1e-3)
        assert expected > 0.001


# --- Quantus


def test_quantus_relevance_mass_is_the_energy_based_pointing_game(setting):
    quantus = pytest.importorskip("quantus")
    regions = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    regions[0, 10:40, 20:50], regions[1, :48], regions[2, 60:, 60:] = True, True, True
    shared = {"model": None, "x_batch": setting.images.numpy(), "y_batch": np.array(setting.classes)}
    shared |= {"a_batch": setting.heatmaps.unsqueeze(1).numpy(), "s_batch": regions.unsqueeze(1).numpy()}
    quiet = {"abs": False, "normalise": False, "disable_warnings": True}
    mass = quantus.RelevanceMassAccuracy(**quiet)(**shared)
    ours = as_metric("energy_pointing_game").function(setting.heatmaps, regions)
    assert ours.tolist() == pytest.approx(mass, abs=1e-5)
    hits = quantus.PointingGame(**quiet)(**shared)
    assert as_metric("pointing_game").function(setting.heatmaps, regions).tolist() == [float(hit) for hit in hits]


def test_the_setting_says_something(setting):
    assert [len(heat.unique()) > 9000 for heat in setting.heatmaps] == [True] * 3
