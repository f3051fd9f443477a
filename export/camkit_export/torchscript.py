"""TorchScript: a file that torch alone can load and run, without autograd and without the model's code."""

import copy
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from camkit import plugin
from camkit.errors import CamkitError, first_line
from camkit.exports import ExportReport, ExportRequest
from camkit_export.publish import publish
from camkit_export.session import METADATA_FILE, read_bytes
from camkit_export.torch_session import TorchSession
from camkit_export.trace import Graph

aten = torch.ops.aten

# TorchScript knows no symbolic sizes, and views that a functional graph may take need a copy where strides differ.
_METHODS = {
    aten.sym_size.int: "size",
    aten.sym_numel.default: "numel",
    aten.view.default: "reshape",
    aten._unsafe_view.default: "reshape",
    aten.expand.default: "expand",
}
# As it loads a file, TorchScript (2.15) takes the rows of mm's second matrix for those of the product, and then refuses
# to multiply that with a layer's output, as the gradient of a tanh does; matmul does the same and leaves them open.
_FUNCTIONS = {aten.mm.default: aten.matmul}

# Operators of torch's own that write or read a file of the name that they are given.
_FILES = frozenset({"aten::save", "aten::from_file"})


@plugin.exporter("torchscript", suffix=".pt")
def export_torchscript(request: ExportRequest, path: Path) -> ExportReport:
    """Writes an explanation as TorchScript, with a dynamic batch.

    Raises:
        CamkitError: an operator has no TorchScript form, or the file's answers do not agree with the oracle.
    """
    return publish(request, path, _write, TorchScriptSession)


class TorchScriptSession(TorchSession):
    """An exported ``.pt`` file, run by torch on the CPU.

    Raises:
        CamkitError: there is no such file, it is damaged or not camkit's, or it uses operators of others.
    """

    def __init__(self, path: str | Path) -> None:
        data = read_bytes(path)
        extra = {METADATA_FILE: ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit announces its own end
                module = torch.jit.load(io.BytesIO(data), map_location="cpu", _extra_files=extra).eval()
        except (RuntimeError, ValueError) as error:
            raise CamkitError(
                f"{path} cannot be read: it is truncated or not TorchScript ({first_line(error)})."
            ) from error
        metadata: str | bytes = extra[METADATA_FILE]
        self._graph = module
        super().__init__(path, (metadata.decode() if isinstance(metadata, bytes) else metadata) or None)
        custom = sorted(_operators(module.inlined_graph))
        if custom:
            raise CamkitError(
                f"{path} is refused: it uses the operator {custom[0]}, which "
                f"{'touches files' if custom[0] in _FILES else 'is none of torch'}."
            )


def _operators(block: Any) -> set[str]:
    """The kinds of the nodes in a graph and in its branches that are not torch's own, or touch files."""
    found = set()
    for node in block.nodes():
        if node.kind().split("::")[0] not in ("aten", "prim") or node.kind() in _FILES:
            found.add(str(node.kind()))
        for inner in node.blocks():
            found |= _operators(inner)
    return found


def _write(graph: Graph, path: Path, metadata: str) -> int:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts: dict[str, Any] = {"explain": _scriptable(graph.explain)}
        if not graph.request.raw:
            # traced, as TorchScript does not compile all of Python; no size of the example stays but that of the images
            ranks = (2,) if graph.request.top_k else ()
            images = graph.example[:1] if graph.request.dynamic_size else ()
            parts["heatmap"] = torch.jit.trace(
                graph.heatmap, (torch.zeros(len(graph.example[0]), *ranks, 3, 3), *images)
            )
        try:
            module = torch.jit.script(GraphModule(parts, graph.graph).eval())
            # freezing would widen weights that are kept in float16
            module = module if graph.request.half else torch.jit.freeze(module)
        except RuntimeError as error:
            raise CamkitError(f"TorchScript cannot express the graph: {' '.join(str(error).split())[:400]}") from error
        torch.jit.save(module, buffer, _extra_files={METADATA_FILE: metadata})
    path.write_bytes(_without_debug_files(buffer.getvalue()))
    return sum(1 for _ in module.inlined_graph.nodes())


def _scriptable(explain: GraphModule) -> GraphModule:
    """A copy of the graph in the words of TorchScript; parameters are shared."""
    graph = GraphModule(explain, copy.deepcopy(explain.graph))
    for node in graph.graph.nodes:
        if node.target in _METHODS:
            node.op, node.target = "call_method", _METHODS[node.target]
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = _FUNCTIONS.get(node.target, node.target.overloadpacket)
    graph.recompile()
    return graph


def _without_debug_files(archive: bytes) -> bytes:
    """The archive without the files that map its code to sources on the exporting machine; torch loads it as before."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            if not name.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(name), source.read(name))
    return buffer.getvalue()
