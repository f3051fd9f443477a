"""Formats by name: where the suffix does not say it, or to be explicit."""

from pathlib import Path

import pytest

import camkit
from camkit.errors import CamkitError
from camkit.exports import find_exporter
from camkit.registry import registry
from camkit.serving import suffix_of
from camkit_export.session import OnnxSession
from camkit_export.torchscript import TorchScriptSession

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2", "aotinductor": ".aoti.pt2"}


@pytest.mark.parametrize(("name", "suffix"), SUFFIXES.items())
def test_a_format_is_found_by_suffix_and_by_name(name, suffix):
    assert find_exporter(Path(f"model.v1{suffix}")).name == name
    for path in (f"a{suffix}", "a", "a.bin"):
        assert find_exporter(Path(path), name).name == name


def test_every_exporter_has_an_engine():
    found = {one.name: one.suffix for one in registry().values("exporter")}
    assert found == SUFFIXES
    for name in found:
        with pytest.raises(CamkitError, match="There is no file 'absent'"):
            camkit.load("absent", format=name)


def test_the_longest_suffix_counts():
    assert suffix_of(Path("a.aoti.pt2"), SUFFIXES.values()) == ".aoti.pt2"
    assert suffix_of(Path("aoti.pt2"), SUFFIXES.values()) == ".pt2"
    assert suffix_of(Path("a.b"), SUFFIXES.values()) is None


@pytest.mark.parametrize(
    ("path", "name", "sentence"),
    [
        ("a.onnx", "torchscript", "'a.onnx' ends in .onnx, but a file of the format 'torchscript' ends in .pt."),
        ("a.aoti.pt2", "pt2", "'a.aoti.pt2' ends in .aoti.pt2, but a file of the format 'pt2' ends in .pt2."),
        ("a.pt2", "aotinductor", "'a.pt2' ends in .pt2, but a file of the format 'aotinductor' ends in .aoti.pt2."),
        ("a.onnx", "onyx", "There is no export format 'onyx'; did you mean 'onnx'?"),
        ("a.onx", None, "There is no export format '.onx'; did you mean '.onnx'?"),
        (".onnx", None, "There is no export format '.onnx'; did you mean '.onnx'?"),
    ],
)
def test_what_does_not_fit_is_said(path, name, sentence):
    with pytest.raises(CamkitError) as error:
        find_exporter(Path(path), name)
    assert str(error.value) == sentence


def test_files_of_any_name_are_opened_by_their_format(small_onnx, small_pt, tmp_path):
    for source, name, session in ((small_onnx, "onnx", OnnxSession), (small_pt, "torchscript", TorchScriptSession)):
        path = tmp_path / f"{name}.bin"
        path.write_bytes(source.read_bytes())
        assert isinstance(camkit.load(path, format=name), session)
    with pytest.raises(CamkitError, match=r"There is no engine for files that end in '\.bin'"):
        camkit.load(path)
    with pytest.raises(CamkitError, match="There is no export format 'onyx'; did you mean 'onnx'"):
        camkit.load(path, format="onyx")
