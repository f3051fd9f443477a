"""The graph of an explanation as an ExportedProgram: what every format but TorchScript is made of."""

import torch
from torch.export import ExportedProgram

from camkit.errors import CamkitError
from camkit_export.quiet import quiet
from camkit_export.trace import Graph


def captured(graph: Graph) -> ExportedProgram:
    """The graph with a dynamic batch; raises whatever torch.export stumbles over."""
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(graph, graph.example, dynamic_shapes=dict.fromkeys(graph.inputs, batch))


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
