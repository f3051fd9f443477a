"""The AOTInductor package: native code, which is opened by name only; compiled once, by the slow tests."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import camkit
from camkit.errors import CamkitError
from camkit_export import aotinductor
from camkit_export.aotinductor import AOTInductorSession, export_aotinductor
from camkit_export.pt2 import Pt2Session
from commandline import run
from standin import assert_equals_eager

ROOT = Path(__file__).resolve().parents[2]


def refused(open_file, path, sentence):
    with pytest.raises(CamkitError, match=sentence) as error:
        open_file(path)
    assert len(str(error.value).splitlines()) == 1


MODEL = "a/data/aotinductor/model"


def package(path, metadata=None, machine=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{MODEL}/a.so", b"\x7fELF")
        if metadata is not None:
            archive.writestr("a/extra/camkit.json", metadata)
        if machine is not None:
            archive.writestr(f"{MODEL}/a.wrapper_metadata.json", json.dumps(machine))
    return path


def test_native_code_is_only_opened_by_name(tmp_path):
    path = package(tmp_path / "a.aoti.pt2", metadata="{}")
    refused(camkit.load, path, r"'a.aoti.pt2' is native code, .* format='aotinductor'")
    done = run("verify", path)
    assert done.code == 2
    assert "camkit verify --format aotinductor" in " ".join(done.err.split())
    path = path.rename(tmp_path / "a.pt2")
    refused(camkit.load, path, "holds no graph")


def test_native_code_beside_a_graph_is_refused_as_well(small_pt2, tmp_path):
    path = tmp_path / "a.pt2"
    path.write_bytes(small_pt2.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{MODEL}/a.so", b"\x7fELF")
    refused(Pt2Session, path, "holds native code; if you trust who made it, load it with format='aotinductor'")


def test_no_compiler_is_said_before_anything_is_done(small, tmp_path):
    with (
        torch._inductor.config.patch({"cpp.cxx": ("absent-compiler",)}),
        pytest.raises(CamkitError, match=r"needs a C\+\+ compiler and finds none: install one") as error,
    ):
        export_aotinductor(small, tmp_path / "a.aoti.pt2")
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(small_pt2, tmp_path):
    refused(AOTInductorSession, tmp_path / "none.aoti.pt2", "cannot be read: No such file")
    (tmp_path / "a.aoti.pt2").write_bytes(small_pt2.read_bytes()[:-200])
    refused(AOTInductorSession, tmp_path / "a.aoti.pt2", "truncated or not an AOTInductor package")
    refused(AOTInductorSession, package(tmp_path / "b.aoti.pt2"), "not exported by camkit")
    refused(AOTInductorSession, package(tmp_path / "c.aoti.pt2", metadata="{}"), "metadata of .* is damaged")


@pytest.mark.parametrize(
    ("machine", "what"), [({"AOTI_PLATFORM": "beos"}, "beos"), ({"AOTI_MACHINE": "z80"}, "z80"), (None, None)]
)
def test_a_package_for_another_machine_is_not_loaded(small_pt2, tmp_path, machine, what):
    with zipfile.ZipFile(small_pt2) as archive:
        metadata = archive.read("archive/extra/camkit.json").decode()
    path = package(tmp_path / "a.aoti.pt2", metadata, machine)
    refused(AOTInductorSession, path, f"was compiled for {what}, which" if what else "torch cannot load")


def test_instructions_that_a_processor_lacks(monkeypatch):
    monkeypatch.setattr(aotinductor, "_INSTRUCTIONS", {"AVX512": lambda: False, "AVX2": lambda: True})
    assert aotinductor._unmet({"AOTI_CPU_ISA": "AVX512_VNNI"}) == "AVX512"
    assert aotinductor._unmet({"AOTI_CPU_ISA": "AVX2"}) is None
    assert aotinductor._unmet({"AOTI_CPU_ISA": "ASIMD"}) is None


def test_paths_are_blotted_out_and_nothing_moves():
    inside = os.path.join(os.path.dirname(torch.__file__), "include", "a.h").encode()
    library = b"\x7fELF\0" + inside + b"\0" + str(Path.home()).encode() + b"/a\0rest"
    found = aotinductor._without_paths(library)
    assert len(found) == len(library)
    assert found.endswith(b"/a\0rest")
    assert b"/include/a.h\0" in found
    assert inside not in found
    assert str(Path.home()).encode() not in found


# --- compiled

ALONE = """
import json, sys, torch
model = torch._inductor.aoti_load_package(sys.argv[1])
outputs = model(torch.ones(2, 3, 45, 38), torch.tensor([-1, 3]))
assert not [name for name in sys.modules if name.split(".")[0] in ("camkit", "camkit_export", "onnx", "pluggy")]
print(json.dumps([list(output.shape) for output in outputs]))
"""


@pytest.fixture(scope="module")
def compiled(small, tmp_path_factory):
    report = export_aotinductor(small, tmp_path_factory.mktemp("aoti") / "small.aoti.pt2")
    assert all(check.passed for check in report.checks)
    assert [path.name for path in report.path.parent.iterdir()] == ["small.aoti.pt2"]
    return report.path


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
def test_it_agrees_with_eager(compiled, small, batch):
    session = camkit.load(compiled, format="aotinductor")
    assert_equals_eager(session, small, batch)
    assert session.provenance == small.provenance


@pytest.mark.slow
def test_torch_alone_loads_it(compiled, tmp_path):
    done = subprocess.run([sys.executable, "-c", ALONE, compiled], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[2, 7], [2, 45, 38], [2, 23, 19], [2]]


@pytest.mark.slow
def test_no_sources_and_no_trace_of_this_machine(compiled):
    with zipfile.ZipFile(compiled) as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name) for name in archive.namelist()}
    assert not [name for name in found if name.endswith(".cpp")]
    for text in (str(ROOT), str(Path.home()), os.path.dirname(torch.__file__), "torchinductor_", sys.prefix + "/"):
        assert not [name for name, data in found.items() if text.encode() in data], text


@pytest.mark.slow
def test_the_command_line_opens_it_by_name(compiled):
    done = run("verify", compiled, "--format", "aotinductor")
    assert done.code == 0, done.err
    assert f"{compiled} gives what it should.\n" in done.out
