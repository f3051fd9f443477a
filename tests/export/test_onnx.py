"""The ONNX file: its interface, one Resize, weights inside, and nothing about the machine that it comes from."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from camkit.errors import CamkitError
from camkit_export.onnx import export_onnx
from camkit_export.session import OnnxSession
from standin import Small, images, make_request

ROOT = Path(__file__).resolve().parents[2]


def test_interface(small_onnx):
    graph = onnx.load(small_onnx).graph

    def shapes(values):
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    assert shapes(graph.input) == {"image": ["batch", 3, 45, 38], "class_index": ["batch"]}
    assert shapes(graph.output) == {
        "logits": ["batch", 7],
        "heatmap": ["batch", 45, 38],
        "map": ["batch", 23, 19],
        "explained_class": ["batch"],
    }


def test_model_is_valid_and_holds_one_resize(small_onnx):
    model = onnx.load(small_onnx)
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Resize") == 1
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not model.functions


def test_one_file_is_written(small_onnx):
    assert os.listdir(small_onnx.parent) == [small_onnx.name]


def test_no_trace_of_this_machine(small_onnx):
    content = small_onnx.read_bytes()
    for text in (
        str(ROOT),
        str(Path.home()),
        os.path.dirname(torch.__file__),
        "site-packages",
        ".py",
        "Traceback",
        'File "',
    ):
        assert text.encode() not in content, text


def test_metadata(small_onnx, small):
    model = onnx.load(small_onnx)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert list(entries) == ["camkit"]
    facts = json.loads(entries["camkit"])
    assert facts["provenance"] == small.provenance
    assert facts["image_shape"] == [3, 45, 38]
    assert len(entries["camkit"]) < 20_000


def test_export_says_nothing(small, tmp_path, capfd):
    report = export_onnx(small, tmp_path / "a.onnx", opset=20)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert onnx.load(report.path).opset_import[0].version == 20
    assert report.nodes == len(onnx.load(report.path).graph.node)
    assert all(check.passed for check in report.checks)


def test_old_opset_is_refused(small, tmp_path):
    with pytest.raises(CamkitError, match="18 or later"):
        export_onnx(small, tmp_path / "a.onnx", opset=17)
    assert os.listdir(tmp_path) == []


def test_opset_that_does_not_exist_is_refused(small, tmp_path, capfd):
    with pytest.raises(CamkitError, match="opset 999; 18 is possible"):
        export_onnx(small, tmp_path / "a.onnx", opset=999)
    assert os.listdir(tmp_path) == []
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_operator_that_onnx_lacks_is_named(tmp_path):
    class Exponential(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return torch.linalg.matrix_exp(features[:, :, :2])

    model = Small()
    model.adapt = torch.nn.Sequential(model.adapt, Exponential())
    model.fc = torch.nn.Linear(48, 7)
    with pytest.raises(CamkitError) as error:
        export_onnx(make_request(model, "average", (45, 38)), tmp_path / "a.onnx")
    for text in ("linalg_matrix_exp", "Exponential 'adapt.1'", "camkit_decompositions"):
        assert text in str(error.value)
    assert str(ROOT) not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_signed_heatmap(small, tmp_path):
    session = OnnxSession(export_onnx(dataclasses.replace(small, relu=False), tmp_path / "a.onnx").path)
    result = session(images(2, small.image_shape))
    assert not session.relu
    assert result.heatmaps.min() < -0.01
    assert np.abs(result.heatmaps).max(axis=(1, 2)).tolist() == [1.0, 1.0]
