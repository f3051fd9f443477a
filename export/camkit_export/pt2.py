"""torch.export: a ``.pt2`` file that torch alone can load, run, and compile or lower further."""

import io
from pathlib import Path

import torch

from camkit import plugin
from camkit.errors import CamkitError, first_line
from camkit.exports import ExportReport, ExportRequest
from camkit_export import pt2_file
from camkit_export.program import exported_program
from camkit_export.publish import publish
from camkit_export.quiet import quiet
from camkit_export.session import METADATA_FILE, read_bytes
from camkit_export.torch_session import TorchSession
from camkit_export.trace import Graph


@plugin.exporter("pt2", suffix=".pt2", checked=False)
def export_pt2(request: ExportRequest, path: Path) -> ExportReport:
    """Writes an explanation as a program of torch.export, with a dynamic batch and no pickle in the file.

    Raises:
        CamkitError: torch.export does not take the graph, or the file's answers do not agree with the oracle.
    """
    return publish(request, path, _write, Pt2Session)


class Pt2Session(TorchSession):
    """An exported ``.pt2`` file, run by torch on the CPU.

    `torch.export.load` by itself runs code that a file tells it to; here a file is read by `camkit_export.pt2_file`
    first, which lets a graph of torch's own operators and raw weights pass and nothing else. What remains is trust in
    torch's operators with whatever sizes the file gives them, as with a TorchScript file.

    Raises:
        CamkitError: there is no such file, it is damaged or not camkit's, or loading it could run code.
    """

    def __init__(self, path: str | Path) -> None:
        data = read_bytes(path)
        try:
            contents = pt2_file.read(data)
        except CamkitError as error:
            raise CamkitError(f"{path} {error}") from error
        super().__init__(path, contents.metadata)
        try:
            with quiet("torch.export"):
                self._graph = torch.export.load(io.BytesIO(contents.archive)).module()
        except Exception as error:  # its loader raises whatever a damaged graph leads to
            raise CamkitError(f"torch cannot load {path}: {first_line(error)[:400]}") from error


def _write(graph: Graph, path: Path, metadata: str) -> int:
    program = exported_program(graph)
    # sample inputs are a pickle, guards are Python code: a file without them can be told to be safe
    program._example_inputs, program._guards_code = None, []
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_FILE: metadata})
    path.write_bytes(buffer.getvalue())
    return len(program.graph.nodes)
