"""Methods that run the head many times, in a graph: in chunks, and what is refused."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import camkit
import zoo
from camkit import CamkitError, Explainer, plugin
from camkit.contracts import Head
from camkit_quantities import head as heads

SIZE = 32


class Small(nn.Module):
    """Two convolutions, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 12, 3, stride=4)
        self.mixed = nn.Conv2d(12, 6, 3)
        self.classifier = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.mixed(self.features(images).relu()).relu().mean(dim=(2, 3)))


@plugin.method("one-by-one", paper="none")
def one_by_one(activations: Tensor, head: Head) -> Tensor:
    """Ablation-CAM's drops, each channel by itself."""

    def make(channel: int) -> Tensor:
        changed = activations.clone()
        changed[:, channel] = 0
        return changed

    count = activations.shape[1]
    return activations * (head(activations)[:, None] - head.map(make, count))[:, :, None, None]


@pytest.fixture
def explainer():
    torch.manual_seed(0)
    return Explainer(Small().eval(), "features")


def test_chunks_give_what_the_whole_gives(explainer, tmp_path, monkeypatch):
    images, nodes, maps = zoo.images(2, SIZE), [], []
    for memory in (heads.TRACED_MEMORY, 4 * 12 * 8 * 8 * 5):  # five copies at a time
        monkeypatch.setattr(heads, "TRACED_MEMORY", memory)
        path = tmp_path / "ablation.pt"
        nodes.append(camkit.export(explainer, path, "ablationcam", images=images).nodes)
        maps.append(camkit.load(path)(images.numpy(), [1, 3]).maps)
    assert nodes[1] > nodes[0]
    assert np.abs(maps[0] - maps[1]).max() <= 1e-6 * np.abs(maps[0]).max()


class Pooled(nn.Module):
    """Its head pools tokens, as a Swin of transformers, or what lies channels last, as in a ConvNeXt of timm."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3, stride=4)
        self.pool = pool
        self.classifier = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        activations = self.features(images).to(memory_format=torch.channels_last).sin()
        if isinstance(self.pool, nn.AdaptiveAvgPool1d):
            activations = activations.flatten(2)
        return self.classifier(self.pool(activations).flatten(1))


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool1d(1), nn.AdaptiveAvgPool2d(1)], ids=str)
def test_heads_that_pool_channels_last(pool, tmp_path):
    torch.manual_seed(0)
    report = camkit.export(
        Explainer(Pooled(pool).eval(), "features"), tmp_path / "pooled.onnx", "reciprocam", images=zoo.images(2, SIZE)
    )
    assert any(check.name == "map against the oracle" and check.images for check in report.checks)


def test_more_chunks_than_a_graph_holds_are_refused(explainer, tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "TRACED_MEMORY", 1)
    monkeypatch.setattr(heads, "MOST_CHUNKS", 12)
    with pytest.raises(CamkitError, match="in 13 chunks, of which a graph holds at most 12"):
        camkit.export(explainer, tmp_path / "ablation.onnx", "ablationcam", images=zoo.images(2, SIZE))
    assert list(tmp_path.iterdir()) == []


def test_perturbations_made_one_by_one_are_refused(explainer, tmp_path):
    with pytest.raises(CamkitError, match=r"head\.masked\(mask, n\) can"):
        camkit.export(explainer, tmp_path / "own.onnx", one_by_one, images=zoo.images(2, SIZE))


def test_masks_that_change_nothing_have_the_score_of_the_whole(explainer):
    with torch.no_grad():
        explainer.module.features.weight[3:6] = 0
        explainer.module.features.bias[3:6] = 0
    explainer = Explainer(explainer.module, "features")
    images = zoo.images(2, SIZE)
    found = explainer(images, "ablationcam", 2, relu=False).maps
    expected = explainer(images, one_by_one, 2, relu=False).maps / explainer.logits(images)[:, 2].abs()[:, None, None]
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)
