"""One explanation, four ways: eager, ONNX, TorchScript and torch.export give the same logits, maps and heatmaps.

A new row is one line: model, layer, method, target function, whether heatmaps keep the positive part only.
"""

import numpy as np
import pytest
import torch

import camkit
import zoo
from camkit.testing import relative_error

CASES = [
    ("demo:resnet", "last", "gradcam", "class", True),
    ("demo:resnet", "layer2.0", "layercam", "class", True),
    ("demo:vgg", "last", "cam", "class", False),
    ("demo:vgg", "features.-3", "gradcam++", "class", True),
    ("demo:vit", "last", "gradcam", "class", True),
    ("demo:vit", "blocks.1", "layercam", "class", False),
    ("torchvision:resnet18", "layer3", "gradcam", "counterfactual", True),
    ("torchvision:resnet18", "layer2.0", "xgradcam", "class", True),
    ("torchvision:vit", "last", "hirescam", "class", True),
    ("timm:vit-registers", "last", "layercam", "class", True),
]
CLASSES = [3, -1, 7]


@pytest.mark.parametrize(("name", "layer", "method", "target", "relu"), CASES)
@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")  # a random model's map may speak against a class
@pytest.mark.parametrize("suffix", [".onnx", ".pt", pytest.param(".pt2", marks=pytest.mark.slow)])
def test_eager_and_exported_agree(name, layer, method, target, relu, suffix, random_model, tmp_path):
    explainer = camkit.Explainer(random_model(name), layer)
    images = zoo.inputs(name, 3, size_of(name), seed=5)
    path = tmp_path / f"explained{suffix}"
    report = camkit.export(explainer, path, method, target=target, relu=relu, images=images)
    assert all(check.passed for check in report.checks)

    session = camkit.load(path)
    for batch in (1, 3):
        asked = camkit.Target(target, class_index=torch.tensor(CLASSES[:batch]))
        eager = explainer(images[:batch], method, target=asked, relu=relu)
        served = session(images[:batch].numpy(), CLASSES[:batch])
        assert served.classes.tolist() == eager.targets.tolist()
        for found, expected in ((served.logits, eager.logits), (served.maps, eager.maps)):
            assert float(expected.std()) > 0
            assert float(relative_error(torch.from_numpy(found), expected).max()) <= 1e-4
        assert batch == 1 or float(eager.heatmaps.std()) > 0
        assert np.abs(served.heatmaps - eager.heatmaps.numpy()).max() <= 1e-3


def size_of(name):
    return 48 if "vit" in name else (64, 96)
