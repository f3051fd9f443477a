"""Sessions: numpy in, numpy out; every bad input and every hostile file refused in one sentence."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from camkit.errors import CamkitError
from camkit_export.session import OnnxSession
from camkit_export.torchscript import TorchScriptSession
from standin import images


@pytest.fixture(scope="module", params=["onnx", "torchscript"])
def session(request, small_onnx, small_pt):
    return OnnxSession(small_onnx) if request.param == "onnx" else TorchScriptSession(small_pt)


@pytest.mark.parametrize("batch", [1, 3])
def test_result_equals_eager(session, small, batch):
    inputs = images(batch, small.image_shape)
    classes = [4, -1, 6][:batch]
    result = session(inputs, classes)
    logits, maps, explained = small.explain(torch.from_numpy(inputs), torch.tensor(classes))
    np.testing.assert_allclose(result.logits, logits.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.maps, maps.numpy(), rtol=0, atol=1e-5 * float(maps.abs().max()))
    assert result.classes.tolist() == explained.tolist()
    assert result.classes.dtype == np.int64
    assert result.heatmaps.shape == (batch, *small.image_shape[1:])
    assert result.heatmaps.dtype == result.maps.dtype == result.logits.dtype == np.float32
    assert result.heatmaps.min(axis=(1, 2)).tolist() == [0.0] * batch
    assert result.heatmaps.max(axis=(1, 2)).tolist() == [1.0] * batch


def test_facts(session, small):
    assert session.provenance == small.provenance
    assert session.class_names == tuple(f"class {index}" for index in range(7))
    assert session.image_shape == (3, 45, 38)
    assert session.classes == 7


def test_ways_to_name_classes(session, small):
    inputs = images(3, small.image_shape)
    top = session(inputs)
    assert top.classes.tolist() == top.logits.argmax(axis=1).tolist()
    assert session(inputs, 5).classes.tolist() == [5, 5, 5]
    assert session(inputs, -7).classes.tolist() == top.classes.tolist()
    assert session(inputs, (1, 2, 3)).classes.tolist() == [1, 2, 3]
    assert session(inputs, np.array([1, -1, 3], dtype=np.int32)).classes.tolist()[::2] == [1, 3]
    mixed = session(inputs[::-1], np.array([2, 2, 2]))
    np.testing.assert_allclose(mixed.maps[::-1], session(inputs, 2).maps, rtol=1e-4, atol=1e-6)


GOOD = np.zeros((2, 3, 45, 38), np.float32)


@pytest.mark.parametrize(
    ("inputs", "classes", "sentence"),
    [
        (GOOD, 7, "There is no class 7: the model has 7"),
        (GOOD, [0, 9], "There is no class 9"),
        (GOOD, [0], "one class for each of the 2 images"),
        (GOOD, [[0], [1]], "one class for each of the 2 images"),
        (GOOD, [0.0, 1.0], "Classes must be integers, not float64"),
        (GOOD, True, "Classes must be integers, not bool"),
        (GOOD, "cat", "Classes must be integers"),
        (GOOD[0], None, r"shape \[batch, 3, 45, 38\], not \[3, 45, 38\]"),
        (GOOD[:0], None, r"shape \[batch, 3, 45, 38\]"),
        (GOOD[:, :, 1:], None, r"shape \[batch, 3, 45, 38\], not \[2, 3, 44, 38\]"),
        (GOOD.astype(np.float64), None, "float32, not float64"),
        (GOOD.astype(np.uint8), None, "preprocessed and float32, not uint8"),
        (GOOD.tolist(), None, "numpy array, not list"),
    ],
)
def test_bad_input_is_refused(session, inputs, classes, sentence):
    with pytest.raises(CamkitError, match=sentence):
        session(inputs, classes)


def changed(path, target, change):
    model = onnx.load(path)
    change(model)
    target.write_bytes(model.SerializeToString())
    return target


def refused(path, sentence):
    with pytest.raises(CamkitError, match=sentence) as error:
        OnnxSession(path)
    assert len(str(error.value).splitlines()) == 1


def test_missing_file(tmp_path):
    refused(tmp_path / "none.onnx", "cannot be read: No such file")
    with pytest.raises(CamkitError, match="cannot be read: No such file"):
        TorchScriptSession(tmp_path / "none.pt")


@pytest.mark.parametrize("keep", [0, 1, 100, 20_000, -1, -5000])
def test_truncated_file(small_onnx, tmp_path, keep):
    (tmp_path / "a.onnx").write_bytes(small_onnx.read_bytes()[:keep])
    refused(tmp_path / "a.onnx", "truncated|holds no graph|no camkit metadata")


def test_file_of_another_kind(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20)
    refused(tmp_path / "a.onnx", "not an ONNX model|holds no graph")


def test_model_of_somebody_else(small_onnx, tmp_path):
    def change(model):
        del model.metadata_props[:]

    refused(changed(small_onnx, tmp_path / "a.onnx", change), "not exported by camkit")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "damaged"), ("[]", "damaged"), ("{}", "damaged"), (json.dumps({"format": 99}), "format 99")],
)
def test_damaged_metadata(small_onnx, tmp_path, text, sentence):
    def change(model):
        model.metadata_props[0].value = text

    refused(changed(small_onnx, tmp_path / "a.onnx", change), sentence)


@pytest.mark.parametrize("where", ["graph", "branch", "function"])
def test_custom_operator(small_onnx, tmp_path, where):
    def change(model):
        model.opset_import.append(onnx.helper.make_opsetid("evil", 1))
        node = onnx.helper.make_node("Run", ["image"], ["evil"], domain="evil")
        if where == "branch":
            del model.opset_import[-1]
            branch = onnx.helper.make_graph([node], "branch", [], [])
            node = onnx.helper.make_node("If", ["image"], [], then_branch=branch, else_branch=branch)
        if where == "function":
            del model.opset_import[-1]
            function = onnx.helper.make_function("evil", "Run", ["x"], ["y"], [], [])
            model.functions.append(function)
        else:
            model.graph.node.insert(0, node)

    refused(changed(small_onnx, tmp_path / "a.onnx", change), "operators of the domain 'evil'")


def test_external_data(small_onnx, tmp_path):
    model = onnx.load(small_onnx)
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    refused(tmp_path / "a.onnx", "reads its weights from other files")


def test_external_data_of_an_attribute(small_onnx, tmp_path):
    def change(model):
        tensor = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="/etc/passwd")
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["secret"], value=tensor))

    refused(changed(small_onnx, tmp_path / "a.onnx", change), "reads its weights from other files")


def test_graph_that_the_runtime_refuses(small_onnx, tmp_path):
    def change(model):
        model.graph.node[0].op_type = "Nonsense"

    refused(changed(small_onnx, tmp_path / "a.onnx", change), "ONNX Runtime cannot load")


SERVE = """
import sys
for name in ("torch", "pluggy", "onnx", "pydantic", "onnxscript"):
    sys.modules[name] = None
import numpy as np
from camkit_export.session import OnnxSession
result = OnnxSession(sys.argv[1])(np.ones((2, 3, 45, 38), np.float32), [1, -1])
print(result.heatmaps.shape, result.classes[0])
"""


def test_serving_needs_neither_torch_nor_pluggy(small_onnx):
    run = subprocess.run([sys.executable, "-c", SERVE, small_onnx], capture_output=True, text=True)
    assert run.stdout == "(2, 45, 38) 1\n", run.stderr
