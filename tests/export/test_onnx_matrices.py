"""Large matrices of a classifier: once in the file, once in ONNX Runtime's memory, and the same answers."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from camkit_export.onnx import export_onnx
from camkit_export.onnx_matrices import hold_once
from commandline import run, succeed
from standin import make_request

SIZE = 2048


def model(nodes, *, bias=True):
    generator = torch.Generator().manual_seed(0)
    constants = {"matrix": torch.randn(SIZE, SIZE, generator=generator)}
    if bias:
        constants["bias"] = torch.randn(SIZE, generator=generator)
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", SIZE]) for name in ("x", "y")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", SIZE]) for name in ("forward", "backward")],
        [numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    made.ir_version = 10
    return made


def products(*, bias=True, **attributes):
    return [
        helper.make_node("Gemm", ["x", "matrix", *(["bias"] if bias else [])], ["forward"], **attributes),
        helper.make_node("Transpose", ["matrix"], ["transposed"], perm=[1, 0]),
        helper.make_node("MatMul", ["y", "transposed"], ["backward"]),
    ]


@pytest.mark.parametrize("bias", [True, False])
def test_both_products_take_the_matrix_as_it_is(bias):
    before = model(products(bias=bias), bias=bias)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    hold_once(after.graph)
    onnx.checker.check_model(after, full_check=True)
    takes = [(node.op_type, list(node.input).index("matrix")) for node in after.graph.node if "matrix" in node.input]
    assert takes == [("Gemm", 0), ("MatMul", 0)]
    assert {one.name for one in after.graph.initializer} == {"matrix", "forward_bias"}
    for batch in (1, 3):
        feed = {name: torch.randn(batch, SIZE).numpy() for name in ("x", "y")}
        expected, found = (ReferenceEvaluator(one).run(None, feed) for one in (before, after))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "nodes",
    [
        [*products()[:1], helper.make_node("Relu", ["y"], ["backward"])],
        products(transB=1),
        products(alpha=0.5),
    ],
    ids=["one product", "transposed already", "with a factor"],
)
def test_anything_else_stays(nodes):
    made = model(nodes)
    kept = made.SerializeToString()
    hold_once(made.graph)
    assert made.SerializeToString() == kept


class Classifier(nn.Module):
    """As VGG's: most of its weights are in layers of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 32, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(8))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, 7))

    def forward(self, images):
        return self.classifier(self.features(images))


@pytest.mark.parametrize("compact", [False, True])
def test_an_exported_classifier(compact, tmp_path):
    """Written and, by `export_onnx`, found to agree with the oracle."""
    torch.manual_seed(0)
    request = make_request(Classifier().eval(), "features.1", (45, 38))
    graph = onnx.load(export_onnx(request, tmp_path / "classifier.onnx", compact=compact).path).graph
    (matrix,) = (one.name for one in graph.initializer if list(one.dims) == [SIZE, SIZE])
    takes = sorted((node.op_type, list(node.input).index(matrix)) for node in graph.node if matrix in node.input)
    assert takes == ([("Gemm", 0), ("MatMul", 0)] if compact else [("Gemm", 1), ("Transpose", 0)])


def test_on_the_command_line(tmp_path):
    succeed("export", "--model", "demo:vgg", "--output", tmp_path / "small.onnx", "--compact")
    refused = run("export", "--model", "demo:vgg", "--output", tmp_path / "small.pt", "--compact")
    assert refused.code == 2
    assert "compact" in refused.err
    assert [one.name for one in tmp_path.iterdir()] == ["small.onnx"]
