"""One explanation, four ways: eager, ONNX, TorchScript and torch.export give the same logits, maps and heatmaps.

A new row is one line: model, layer, method, target function, whether heatmaps keep the positive part only, and the
formats that `make test` writes; `make test-all` writes every row in every format.
"""

import numpy as np
import pytest
import torch

import camkit
import zoo
from camkit.testing import relative_error

CASES = [
    ("demo:resnet", "last", "gradcam", "class", True, "onnx pt"),
    ("demo:resnet", "layer2.0", "layercam", "class", True, ""),
    ("demo:resnet", "last", "reciprocam", "class", False, ""),
    ("demo:resnet", "last", "smoothgradcam++", "class", True, ""),
    ("demo:vgg", "last", "cam", "class", False, ""),
    ("demo:vgg", "features.-3", "gradcam++", "class", True, "onnx"),
    ("demo:vgg", "last", "ablationcam", "counterfactual", True, "pt"),
    ("demo:vit", "last", "gradcam", "class", True, "pt"),
    ("demo:vit", "blocks.1", "layercam", "class", False, ""),
    ("demo:vit", "last", "ablationcam", "class", True, ""),
    ("demo:vit", "last", "shapleycam", "class", True, ""),
    ("torchvision:resnet18", "layer3", "gradcam", "counterfactual", True, "pt"),
    ("torchvision:resnet18", "layer2.0", "xgradcam", "class", True, ""),
    ("torchvision:resnet18", "last", "integrated-gradcam", "class", True, ""),
    ("torchvision:vit", "last", "hirescam", "class", True, ""),
    ("timm:vit", "last", "vit-reciprocam", "class", True, ""),
    ("timm:vit-registers", "last", "layercam", "class", True, ""),
]
FORMATS = ("onnx", "pt", "pt2")
ROWS = [
    pytest.param(*case, suffix, marks=() if suffix in quick.split() else pytest.mark.slow)
    for *case, quick in CASES
    for suffix in FORMATS
]
CLASSES = [3, -1, 7]


@pytest.mark.parametrize(("name", "layer", "method", "target", "relu", "suffix"), ROWS)
@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")  # a random model's map may speak against a class
def test_eager_and_exported_agree(name, layer, method, target, relu, suffix, random_model, tmp_path):
    explainer = camkit.Explainer(random_model(name), layer)
    images = zoo.inputs(name, 3, size_of(name), seed=5)
    path = tmp_path / f"explained.{suffix}"
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
