"""The way of every format: trace, write under a temporary name, verify in the format's own engine, then rename.

A format is one small file that uses it::

    def write(graph: Graph, path: Path, metadata: str) -> int: ...          # returns the number of nodes

    class MySession(Session): ...                                           # runs such a file

    @plugin.exporter("mine", suffix=".mine")
    def export_mine(request: ExportRequest, path: Path) -> ExportReport:
        return publish(request, path, write, MySession)
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from camkit.errors import CamkitError
from camkit.exports import ExportReport, ExportRequest
from camkit_export.reference import further_inputs
from camkit_export.session import METADATA_FORMAT, Session
from camkit_export.trace import Graph, map_names, traced
from camkit_export.vectors import make_vectors
from camkit_export.verify import compare_session, demand, verify_vectors

Write = Callable[[Graph, Path, str], int]
Open = Callable[[Path], Session]


def publish(request: ExportRequest, path: Path, write: Write, open_session: Open) -> ExportReport:
    """Makes the file `path` out of a request, or nothing at all.

    `write(graph, path, metadata)` writes one file that holds the JSON text `metadata`, and returns how many nodes its
    graph has. `open_session(path)` runs it.

    Raises:
        CamkitError: the graph cannot be traced or written, or the file does not agree with the oracle.
    """
    graph = traced(request)
    metadata = json.dumps(
        {
            "format": METADATA_FORMAT,
            "image_shape": list(request.image_shape),
            "image_type": "uint8" if request.frames else "float32",
            "classes": request.classes,
            "relu": request.relu,
            "raw": request.raw,
            "half": request.half,
            "top_k": request.top_k,
            "dynamic_size": request.dynamic_size,
            "maps": list(map_names(request)),
            "provenance": dict(request.provenance),
            "further": [
                {"name": name, "shape": list(shape), "type": kind.name}
                for name, (shape, kind) in further_inputs(request).items()
            ],
            "vectors": make_vectors(request),
        }
    )
    try:
        # a folder beside the file: renaming stays within one file system, and whatever a writer leaves behind goes too
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".camkit-") as folder:
            temporary = Path(folder) / path.name  # its suffix may have several parts
            nodes = write(graph, temporary, metadata)
            session = open_session(temporary)
            checks = (*compare_session(session, request), *verify_vectors(session))
            demand(checks, f"The graph written for '{path.name}'")
            del session  # some systems do not rename a file that is open
            os.replace(temporary, path)
    except OSError as error:
        raise CamkitError(f"'{path}' cannot be written: {error.strerror or error}.") from error
    return ExportReport(path, nodes, checks)
