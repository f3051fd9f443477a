"""AOTInductor: the graph compiled for one kind of processor, in a package that torch loads as native code."""

import io
import json
import os
import platform
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch

from camkit import plugin
from camkit.errors import CamkitError, first_line
from camkit.exports import ExportReport, ExportRequest
from camkit_export.program import exported_program
from camkit_export.publish import publish
from camkit_export.quiet import quiet
from camkit_export.session import METADATA_FILE
from camkit_export.torch_session import TorchSession
from camkit_export.trace import Graph

SUFFIX = ".aoti.pt2"

_LOGGERS = ("torch.export", "torch._inductor", "torch.utils.cpp_extension")

# Instructions that a package may use, and whether this processor has them. Without them the process would end.
_INSTRUCTIONS = {"AVX512": torch.cpu._is_avx512_supported, "AVX2": torch.cpu._is_avx2_supported}


@plugin.exporter("aotinductor", suffix=SUFFIX, checked=False)
def export_aotinductor(request: ExportRequest, path: Path) -> ExportReport:
    """Compiles an explanation for the processor of this machine, with a dynamic batch; takes about a minute.

    Raises:
        CamkitError: there is no C++ compiler or it fails, or the file's answers do not agree with the oracle.
    """
    _demand_compiler()
    return publish(request, path, _write, AOTInductorSession)


class AOTInductorSession(TorchSession):
    """An exported ``.aoti.pt2`` file, which is native code: opening it runs what its author wrote into it.

    Raises:
        CamkitError: there is no such file, it is damaged or not camkit's, or it is for machines of another kind.
    """

    def __init__(self, path: str | Path) -> None:
        metadata, machine = _read(Path(path))
        super().__init__(path, metadata)
        unmet = _unmet(machine)
        if unmet:
            raise CamkitError(f"{path} was compiled for {unmet}, which this machine has not; export it here.")
        try:
            with quiet(*_LOGGERS):
                self._graph = torch._inductor.aoti_load_package(str(path))
        except Exception as error:  # its loader raises whatever the library leads to
            raise CamkitError(f"torch cannot load {path}: {first_line(error)[:400]}") from error


def only_by_name(path: Path) -> NoReturn:
    """The answer to who opens such a file without saying that native code may run."""
    raise CamkitError(
        f"'{path.name}' is native code, which can do anything as soon as it is loaded; if you trust who made it, name "
        "its format: camkit.load(..., format='aotinductor') or camkit verify --format aotinductor."
    )


def _write(graph: Graph, path: Path, metadata: str) -> int:
    program = exported_program(graph)
    package = path.parent / "package.pt2"  # torch takes no other suffix
    try:
        with quiet(*_LOGGERS):
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=_settings())
    except Exception as error:  # of the compiler's many, its user gets one sentence
        raise CamkitError(f"AOTInductor cannot compile the graph: {first_line(error)[:400]}") from error
    path.write_bytes(_published(package, metadata))
    return len(program.graph.nodes)


def _demand_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # each platform has its own
        raise CamkitError(
            "AOTInductor needs a C++ compiler and finds none: install one (such as g++), or name it in the environment "
            "variable CXX; every other format does without."
        ) from error


def _unmet(machine: Mapping[str, str]) -> str | None:
    """What a package needs of a machine and does not find here. Torch itself would only log it."""
    for key, here in (("AOTI_PLATFORM", sys.platform), ("AOTI_MACHINE", platform.machine())):
        if machine.get(key, here) != here:
            return machine[key]
    instructions = machine.get("AOTI_CPU_ISA", "")
    return next((name for name, has in _INSTRUCTIONS.items() if name in instructions and not has()), None)


def _read(path: Path) -> tuple[str | None, dict[str, str]]:
    """Camkit's metadata, and what the package says of its machine; nothing is loaded yet."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            about = [archive.read(name) for below, name in names.items() if below.endswith(".wrapper_metadata.json")]
            own = names.get(f"extra/{METADATA_FILE}")
            metadata = archive.read(own).decode() if own else None
            machine: dict[str, str] = json.loads(about[0]) if about else {}
            return metadata, {key: str(machine[key]) for key in machine}
    except OSError as error:
        raise CamkitError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, RuntimeError, ValueError, TypeError, EOFError, NotImplementedError) as error:
        raise CamkitError(f"{path} cannot be read: it is truncated or not an AOTInductor package.") from error


def _published(package: Path, metadata: str) -> bytes:
    """The package with camkit's metadata, without the sources of its libraries and without this machine's paths."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            if not name.endswith(".cpp"):
                target.writestr(zipfile.ZipInfo(name), _without_paths(source.read(name)))
        target.writestr(zipfile.ZipInfo(f"{package.stem}/extra/{METADATA_FILE}"), metadata)
    return buffer.getvalue()


def _without_paths(library: bytes) -> bytes:
    """A library in which the folders of this machine are blotted out, byte for byte.

    They stand in the texts of errors and in the names of sources, which nothing reads while it runs.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folders = {os.path.dirname(torch.__file__), cache_dir(), sys.prefix, sys.base_prefix, os.getcwd(), str(Path.home())}
    for folder in sorted((os.fsencode(one) for one in folders if len(one) > 1), key=len, reverse=True):
        library = re.sub(re.escape(folder) + rb"(?=/)", b"/" + b"_" * (len(folder) - 1), library)
    return library


def _settings() -> dict[str, bool]:
    """How many threads run is left to whoever serves, not fixed at this machine's; no source is named by its lines."""
    from torch._inductor import config

    settings = {"cpp.dynamic_threads": True}
    if hasattr(config.aot_inductor, "enable_line_tables"):  # older ones write none
        settings["aot_inductor.enable_line_tables"] = False
    return settings
