"""The TorchScript file: loaded by torch alone, without debug files, nothing about the machine that it comes from."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import camkit
import zoo
from camkit.errors import CamkitError
from camkit_export.torchscript import METADATA_FILE, TorchScriptSession
from standin import assert_torch_alone_loads, images

ROOT = Path(__file__).resolve().parents[2]


def test_torch_alone_loads_it(small_pt, tmp_path):
    assert_torch_alone_loads(small_pt, "torch.jit.load(sys.argv[1], _extra_files=extra)", tmp_path)


def test_no_debug_files_and_no_trace_of_this_machine(small_pt):
    with zipfile.ZipFile(small_pt) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        content = b"".join(archive.read(name) for name in names)
    assert f"archive/extra/{METADATA_FILE}" in names
    assert not [name for name in names if "debug" in name]
    for text in (
        str(ROOT),
        str(Path.home()),
        os.path.dirname(torch.__file__),
        "site-packages",
        "eval_with_key",
        'File "',
    ):
        assert text.encode() not in content, text


def test_exporting_machine_wrote_them_once(small_pt):
    """The archive with debug files would have failed the test above: torch writes them."""
    module = torch.jit.load(small_pt)
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    with zipfile.ZipFile(buffer) as archive:
        assert [name for name in archive.namelist() if name.endswith(".debug_pkl")]


def test_it_agrees_with_onnx(small_pt, small_onnx, small):
    from camkit_export.session import OnnxSession

    batch = images(3, small.image_shape)
    one, other = (session(batch, [-1, 2, 6]) for session in (OnnxSession(small_onnx), TorchScriptSession(small_pt)))
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.maps, other.maps, rtol=0, atol=1e-4 * np.abs(one.maps).max())
    np.testing.assert_allclose(one.heatmaps, other.heatmaps, rtol=0, atol=1e-3)
    assert one.classes.tolist() == other.classes.tolist()


def test_weights_without_a_graph_are_refused(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(CamkitError, match="not TorchScript"):
        TorchScriptSession(tmp_path / "a.pt")


def test_script_of_somebody_else_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "a.pt")
    with pytest.raises(CamkitError, match="not exported by camkit"):
        TorchScriptSession(tmp_path / "a.pt")


def test_truncated_file_is_refused(small_pt, tmp_path):
    (tmp_path / "a.pt").write_bytes(small_pt.read_bytes()[:-200])
    with pytest.raises(CamkitError, match="truncated or not TorchScript"):
        TorchScriptSession(tmp_path / "a.pt")


def test_custom_operator_is_refused(small_pt, tmp_path):
    library = torch.library.Library("camkit_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")

    class Custom(torch.nn.Module):
        def forward(self, image: torch.Tensor, class_index: torch.Tensor) -> torch.Tensor:
            if image.sum() > 0:
                return torch.ops.camkit_test.twice(image)
            return image

    with zipfile.ZipFile(small_pt) as archive:
        metadata = archive.read(f"archive/extra/{METADATA_FILE}").decode()
    torch.jit.save(torch.jit.script(Custom()), tmp_path / "a.pt", _extra_files={METADATA_FILE: metadata})
    with pytest.raises(CamkitError, match="camkit_test::twice"):
        TorchScriptSession(tmp_path / "a.pt")


def test_operators_that_touch_files_are_refused(small_pt, tmp_path):
    class Saves(torch.nn.Module):
        def forward(self, image: torch.Tensor, class_index: torch.Tensor) -> torch.Tensor:
            torch.save(image, "spoilt")
            return image

    extra = {METADATA_FILE: ""}
    torch.jit.load(small_pt, _extra_files=extra)
    torch.jit.save(torch.jit.script(Saves()), tmp_path / "a.pt", _extra_files=extra)
    with pytest.raises(CamkitError, match=r"aten::save, which touches files"):
        TorchScriptSession(tmp_path / "a.pt")


def test_a_head_with_a_tanh_behind_a_norm_is_loaded(tmp_path):
    """As MaxViT's: TorchScript guessed the sizes of a product of matrices, wrongly."""
    head = (nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4, bias=False))
    model = zoo.randomised(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), *head))
    explainer = camkit.Explainer(model, "1", camkit.Adapter(name="own", layout="NCHW"))
    camkit.export(explainer, tmp_path / "tanh.pt", images=zoo.images(2, 12))
    found = camkit.load(tmp_path / "tanh.pt")(zoo.images(5, 12).numpy(), 1)
    expected = explainer(zoo.images(5, 12), target=1)
    assert float(expected.maps.std()) > 0
    torch.testing.assert_close(torch.from_numpy(found.maps), expected.maps, rtol=1e-4, atol=1e-6)


def test_what_the_engine_says_is_one_sentence(small_pt, small):
    session = TorchScriptSession(small_pt)
    session._graph = torch.jit.script(nn.Linear(2, 2))
    with zoo.refused(f"The graph of {small_pt.name} fails in torch {torch.__version__}: "):
        session(images(1, small.image_shape))
