"""The graph of an explanation as an ExportedProgram: what every format but TorchScript is made of."""

from typing import Any

import torch
from torch.export import ExportedProgram

from camkit.errors import CamkitError
from camkit_export.quiet import quiet
from camkit_export.trace import Graph, dynamic_axes


def captured(graph: Graph) -> ExportedProgram:
    """The graph with what it leaves open of sizes; raises whatever torch.export stumbles over."""
    batch = torch.export.Dim("batch")
    shapes: dict[str, dict[int, Any]] = {name: {0: batch} for name in graph.inputs}
    shapes[graph.inputs[0]] |= dict.fromkeys(dynamic_axes(graph.request)[1:], torch.export.Dim.DYNAMIC)
    return torch.export.export(graph, graph.example, dynamic_shapes=shapes)


def exported_program(graph: Graph) -> ExportedProgram:
    """The graph with a dynamic batch, without a trace of this machine.

    Raises:
        CamkitError: torch.export does not take the graph.
    """
    try:
        with quiet():
            program = captured(graph)
    except Exception as error:  # whatever the exporter stumbles over, its user gets one sentence
        raise CamkitError(f"torch.export cannot take the graph: {' '.join(str(error).split())[:400]}") from error
    for node in program.graph.nodes:
        # stack traces and names of modules; what a node gives is all that the graph needs
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    return program
