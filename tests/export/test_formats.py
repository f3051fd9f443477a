"""A third party's format is one small file that uses `publish`; formats and rules are found through the hooks."""

import gc
import sys
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from camkit import plugin
from camkit.exports import ExportReport, ExportRequest
from camkit.registry import registry
from camkit_export.publish import publish
from camkit_export.session import Session
from camkit_export.torchscript import export_torchscript
from camkit_export.trace import Graph


def write_program(graph: Graph, path: Path, metadata: str) -> int:
    batch = {0: torch.export.Dim("batch")}
    example = (torch.zeros(3, 3, 45, 38), torch.zeros(3, dtype=torch.int64))
    program = torch.export.export(graph, example, dynamic_shapes={"image": batch, "class_index": batch})
    torch.export.save(program, path, extra_files={"camkit.json": metadata})
    return len(program.graph.nodes)


class ProgramSession(Session):
    def __init__(self, path: Path) -> None:
        extra = {"camkit.json": ""}
        self.program = torch.export.load(path, extra_files=extra).module()
        super().__init__(path, extra["camkit.json"])

    def _run(self, images, classes):
        with torch.inference_mode():
            outputs = self.program(torch.from_numpy(images), torch.from_numpy(classes))
        return tuple(output.numpy() for output in outputs)


@plugin.exporter("program", suffix=".pt2")
def export_program(request: ExportRequest, path: Path) -> ExportReport:
    return publish(request, path, write_program, ProgramSession)


def test_a_format_of_somebody_else(small, tmp_path):
    report = export_program(small, tmp_path / "a.pt2")
    assert report.nodes > 50
    assert all(check.passed for check in report.checks)
    result = ProgramSession(report.path)(np.ones((2, *small.image_shape), np.float32))
    assert result.heatmaps.shape == (2, 45, 38)


def test_what_holds_for_every_format_is_found_once_and_forgotten_with_the_request(small, tmp_path):
    calls = Counter()

    def counting(name, function):
        def counted(*given):
            calls[name] += 1
            return function(*given)

        return counted

    asked = replace(small, oracle=counting("oracle", small.oracle), explain=counting("eager", small.explain))
    export_torchscript(asked, tmp_path / "a.pt")
    once = calls.copy()
    assert once["oracle"] > 10
    assert once["eager"] > 4
    export_torchscript(asked, tmp_path / "b.pt")
    export_program(asked, tmp_path / "c.pt2")
    assert calls == once
    forgotten = weakref.ref(asked)
    del asked
    gc.collect()
    assert forgotten() is None


def test_formats_are_registered():
    found = {exporter.name: exporter.suffix for exporter in registry().values("exporter")}
    assert found["onnx"] == ".onnx"
    assert found["torchscript"] == ".pt"
    assert found["pt2"] == ".pt2"
    assert found["aotinductor"] == ".aoti.pt2"
    assert [item.name for item in registry().items("decomposition") if item.error] == []
    assert "aten.avg_pool2d_backward.default" in registry().names("decomposition")


@pytest.mark.parametrize("module", ["camkit_export", "camkit_export.hooks", "camkit_export.session"])
def test_entry_points_import_no_torch(module):
    import subprocess

    code = f"import sys, {module}; print([name for name in ('torch', 'onnx', 'onnxruntime') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr
