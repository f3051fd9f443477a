"""ONNX: one file, weights inside, operators of ONNX itself only, nothing about the machine that it was made on."""

import contextlib
import io
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf.message import EncodeError
from onnx import GraphProto, ModelProto, numpy_helper

from camkit import plugin
from camkit.errors import CamkitError
from camkit.exports import ExportReport, ExportRequest
from camkit_export.onnx_matrices import hold_once
from camkit_export.program import captured
from camkit_export.publish import publish
from camkit_export.quiet import quiet
from camkit_export.session import METADATA_KEY, OnnxSession
from camkit_export.trace import Graph, missing_rule

OLDEST_OPSET = 18


@plugin.exporter("onnx", suffix=".onnx")
def export_onnx(
    request: ExportRequest, path: Path, *, opset: int = OLDEST_OPSET, compact: bool = False
) -> ExportReport:
    """Writes an explanation as ONNX, with a dynamic batch. `opset` is 18 or later.

    `compact` saves memory where a classifier has large layers, as VGG's; single images take longer.

    Raises:
        CamkitError: an operator has no ONNX form, or ONNX Runtime's answers do not agree with the oracle.
    """
    if opset < OLDEST_OPSET:
        raise CamkitError(f"The ONNX opset must be {OLDEST_OPSET} or later, not {opset}.")

    return publish(request, path, partial(write_onnx, opset=opset, compact=compact), OnnxSession)


def write_onnx(graph: Graph, path: Path, metadata: str, opset: int = OLDEST_OPSET, compact: bool = False) -> int:
    """Writes a traced graph as it is, without verifying it; how many nodes it has."""
    model = _convert(graph, opset)
    _keep_padding(model.graph)
    if compact:
        hold_once(model.graph)
    _strip(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata
    path.write_bytes(_encoded(model))
    return len(model.graph.node)


def _encoded(model: ModelProto) -> bytes:
    """The bytes of the file.

    Raises:
        CamkitError: they are more than one message of Protocol Buffers can hold.
    """
    try:
        encoded: bytes = model.SerializeToString()
    except EncodeError as error:
        raise CamkitError("The model is larger than the 2 GiB that an ONNX file can hold.") from error
    return encoded


def _convert(graph: Graph, opset: int) -> ModelProto:
    from camkit_export.onnx_passes import shorten
    from camkit_export.operators.onnx import FORMS

    with quiet("torch.onnx", "onnxscript", "onnx_ir"), contextlib.redirect_stdout(io.StringIO()):
        try:
            exported: Any = torch.onnx.export(
                captured(graph),
                (),
                dynamo=True,
                custom_translation_table=FORMS,
                opset_version=opset,
                input_names=graph.inputs,
                output_names=graph.outputs,
                external_data=False,
                optimize=False,
                verbose=False,
            )
            shorten(exported.model)
        except Exception as error:  # whatever the exporter stumbles over, its user gets one sentence
            raise _explained(error, graph.origins) from error
    model: ModelProto = exported.model_proto
    written = next(entry.version for entry in model.opset_import if not entry.domain)
    if written != opset:
        raise CamkitError(f"The graph cannot be written in ONNX opset {opset}; {written} is possible.")
    return model


def _explained(error: BaseException, origins: Mapping[str, str]) -> CamkitError:
    """The error for an operator that ONNX lacks, if that is what the exporter complains about."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = " ".join(str(error).split())
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)', overload='(\w+)'\)>", reason)
    if missing is None:
        return CamkitError(f"The ONNX exporter failed: {reason[:400]}")
    operator = f"{missing[1]}.{missing[2]}"
    return missing_rule(operator, origins.get(operator))


def _keep_padding(graph: GraphProto) -> None:
    """Names the axes of zeros around a max-pooling's input.

    ONNX Runtime (1.31) makes padding without axes the pooling's own, which is of -inf and gives something else.
    """
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    sizes = {one.name: one.dims[0] for one in graph.initializer if len(one.dims) == 1}
    for node in graph.node:
        if node.op_type == "Pad" and node.output[0] in pooled and len(node.input) < 4:
            axes = numpy_helper.from_array(np.arange(sizes[node.input[1]] // 2), f"{node.output[0]}_axes")
            graph.initializer.append(axes)
            node.input.extend([""] * (3 - len(node.input)) + [axes.name])


def _strip(model: ModelProto) -> None:
    """Leaves the graph and nothing else: traces and names of the exporting machine's files are all over the rest."""
    del model.metadata_props[:]
    model.doc_string = ""
    _strip_graph(model.graph)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    used = {node.domain for node in model.graph.node}
    for opset in [opset for opset in model.opset_import if opset.domain and opset.domain not in used]:
        model.opset_import.remove(opset)


def _strip_graph(graph: GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.doc_string = ""
        del item.metadata_props[:]
    for node in graph.node:
        for attribute in node.attribute:
            attribute.doc_string = ""
            if attribute.HasField("g"):
                _strip_graph(attribute.g)
