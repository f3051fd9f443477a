"""Fixtures of the export tests: one small model, exported once in each format."""

import pytest
import torch

from camkit.exports import ExportRequest
from standin import Small, make_request


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "export" in item.path.parts:  # torch.jit announces its own end at every call
            item.add_marker(pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"))


@pytest.fixture(scope="session")
def small() -> ExportRequest:
    torch.manual_seed(0)
    return make_request(Small(), "stage.1", (45, 38))


@pytest.fixture(scope="session")
def small_onnx(small, tmp_path_factory):
    from camkit_export.onnx import export_onnx

    return export_onnx(small, tmp_path_factory.mktemp("onnx") / "small.onnx").path


@pytest.fixture(scope="session")
def small_pt(small, tmp_path_factory):
    from camkit_export.torchscript import export_torchscript

    return export_torchscript(small, tmp_path_factory.mktemp("torchscript") / "small.pt").path


@pytest.fixture(scope="session")
def small_pt2(small, tmp_path_factory):
    from camkit_export.pt2 import export_pt2

    return export_pt2(small, tmp_path_factory.mktemp("pt2") / "small.pt2").path
