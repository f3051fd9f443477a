"""The same ONNX file in other engines than the one it is verified in, and the operators that they differed on."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn
from torchvision.models.vgg import VGG, make_layers

from camkit_export.onnx import export_onnx
from camkit_export.operators.onnx import FORMS
from camkit_export.session import OnnxSession
from standin import images, make_request
from test_architectures import resnet, swin, transformer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUNTIME, OPENVINO, REFERENCE = ENGINES = ("ONNX Runtime", "OpenVINO", "onnx's reference")


def plain() -> nn.Module:
    """Convolutions that keep their channels, without normalisation, so that engines see one weight used both ways."""
    features = make_layers([8, "M", 32, 32, "M", 40, 40, "M"])
    model = VGG(features, num_classes=9, init_weights=False)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(40, 9)
    return model


def strided() -> nn.Module:
    """The same with strides, groups and a dilation."""
    layers = [
        nn.Conv2d(3, 32, 3, 2),
        nn.SiLU(),
        nn.Conv2d(32, 32, 3, 2, 1),
        nn.SiLU(),
        nn.Conv2d(32, 32, 3, 1, 2, 2, groups=2),
        nn.SiLU(),
        nn.Conv2d(32, 32, (1, 3), padding=(1, 3)),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 9))


ROWS = {
    "through two max-pools": lambda: make_request(plain(), "features.4", 36),
    "strides and groups": lambda: make_request(strided(), "1", (37, 42)),
    "attention": lambda: make_request(transformer(), "blocks.1.norm1", 64, layout="tokens", prefix=1, grid=(4, 4)),
    "batch normalisation": lambda: make_request(resnet(), "layer2.0", 64),
    "layer norm and depthwise convolution": lambda: make_request(
        ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), num_classes=9), "stages.2", 96
    ),
    "windows": lambda: make_request(swin(), "layers.0", 64, layout="nhwc"),
}
LONG = ("batch normalisation", "layer norm and depthwise convolution", "windows")


@pytest.fixture(scope="module")
def engines() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("engines")


@pytest.fixture(scope="module", params=[pytest.param(row, marks=[pytest.mark.slow] * (row in LONG)) for row in ROWS])
def exported(request, tmp_path_factory):
    torch.manual_seed(0)
    made = ROWS[request.param]()
    return made, export_onnx(made, tmp_path_factory.mktemp("engines") / "file.onnx").path


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_agrees_with_the_oracle(engine, exported, engines):
    made, path = exported
    pytest.importorskip("openvino" if engine == OPENVINO else "onnx")
    checks = engines.checks(engine, path, made)
    assert [check for check in checks if not check.passed] == []
    assert min(check.images for check in checks if check.name.startswith("map")) >= 2


def test_what_they_agree_on_is_not_constant(exported):
    made, path = exported
    found = OnnxSession(path)(images(2, made.image_shape), [3, 3])
    for values in (found.maps, found.heatmaps):
        assert np.ptp(values, axis=(1, 2)).min() > 1e-2 * np.abs(values).max()
        assert np.abs(values[0] - values[1]).max() > 1e-2 * np.abs(values).max()


POOLS = [
    ((2, 2), (2, 2), (0, 0), (1, 1), False),
    ((3, 3), (2, 2), (1, 1), (1, 1), False),
    ((3, 3), (2, 2), (0, 0), (1, 1), True),
    ((2, 3), (3, 2), (1, 0), (1, 1), False),
    ((2, 2), (2, 2), (1, 1), (2, 2), False),
    ((3, 3), (1, 1), (1, 1), (1, 1), False),
]


class Pools(nn.Module):
    """Indices of many max-pools of one image."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(F.max_pool2d(image, *pool, return_indices=True)[1] for pool in POOLS)


TRANSPOSED = [
    # stride, padding, output padding, dilation, groups
    (1, 1, 0, 1, 1),
    (1, (0, 2), 0, 1, 1),
    (1, 1, 0, 2, 2),
    (1, 1, 0, 1, 8),
    (1, 4, 0, 1, 1),
    (2, 1, 1, 1, 1),
    ((1, 2), 1, (0, 1), 1, 2),
]


class Transposed(nn.Module):
    """Convolutions and transposed ones that share a weight, as many channels out as in."""

    def __init__(self, rows: Sequence[Any]) -> None:
        super().__init__()
        self.rows = rows
        make = torch.Generator().manual_seed(1)
        self.weights = nn.ParameterList(torch.randn(8, 8 // groups, 3, 3, generator=make) / 8 for *_, groups in rows)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = []
        for (stride, padding, rest, dilation, groups), weight in zip(self.rows, self.weights, strict=True):
            found.append(F.conv2d(image, weight, None, stride, padding, dilation, groups))
            found.append(F.conv_transpose2d(image, weight, None, stride, padding, rest, groups, dilation))
        return tuple(found)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A module as an ONNX file, in the forms of camkit, with a dynamic batch."""

    def write(module: nn.Module, image: Tensor) -> Path:
        path = tmp_path_factory.mktemp("operators") / "file.onnx"
        program = torch.onnx.export(
            module.eval(),
            (image,),
            dynamo=True,
            input_names=["image"],
            opset_version=18,
            custom_translation_table=FORMS,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        path.write_bytes(program.model_proto.SerializeToString())
        return path

    return write


@pytest.fixture(scope="module")
def pools(written):
    return written(Pools(), torch.zeros(3, 3, 9, 10))


@pytest.mark.parametrize("engine", ENGINES)
def test_ties_of_a_max_pool_go_to_the_first(engine, pools, engines):
    pytest.importorskip("openvino" if engine == OPENVINO else "onnx")
    image = torch.from_numpy(np.random.RandomState(0).randint(0, 3, (2, 3, 9, 10))).float()
    found = engines.ENGINES[engine](pools)({"image": image.numpy()})
    for pool, indices, expected in zip(POOLS, found, Pools()(image), strict=True):
        if engine == REFERENCE and pool[1] == (1, 1):
            continue  # it counts from the window's corner as if it were as wide as the output
        np.testing.assert_array_equal(indices, expected.numpy(), err_msg=str(pool))


@pytest.mark.parametrize("engine", ENGINES)
def test_transposed_convolution(engine, written, engines):
    pytest.importorskip("openvino" if engine == OPENVINO else "onnx")
    # the reference evaluator cannot run a transposed convolution of several groups
    model = Transposed(TRANSPOSED[:-1] if engine == REFERENCE else TRANSPOSED)
    image = torch.from_numpy(images(2, (8, 9, 10)))
    found = engines.ENGINES[engine](written(model, image))({"image": image.numpy()})
    for values, right in zip(found, model(image), strict=True):
        np.testing.assert_allclose(values, right.detach().numpy(), rtol=0, atol=1e-5)


def test_planes_are_not_pooled_twice(pools):
    kinds = [node.op_type for node in onnx.load(pools).graph.node]
    assert kinds.count("MaxPool") == kinds.count("Mod") == len(POOLS)


class Clamped(nn.Module):
    """One tensor within several bounds, which are tensors too."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in {"a": -1.0, "b": -0.5, "c": 0.25, "d": 0.5, "e": 1.0}.items():
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("row", torch.linspace(0, 1, 10))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        image = image * 2
        return (
            torch.clamp(image, self.a, self.d),
            torch.clamp(image, self.b, self.e),
            torch.clamp(image, self.c, self.e),
            torch.clamp(image, self.b),
            torch.clamp(image, max=self.d),
            torch.clamp(image, self.a, self.row),
        )


def test_bounds_of_one_tensor_are_kept_apart(written, engines):
    image = torch.from_numpy(images(2, (3, 9, 10)))
    found = engines.ENGINES[RUNTIME](written(Clamped(), image))({"image": image.numpy()})
    for values, right in zip(found, Clamped()(image), strict=True):
        np.testing.assert_array_equal(values, right.numpy())
