"""Large matrices that the forward pass and its gradient multiply by are held once.

ONNX Runtime (1.31) rearranges a constant right factor as it loads a file, once for the matrix and once for its
transpose, and keeps both: of VGG-16's classifier another 470 MiB. A constant left factor it takes as it is in the file.
The price is paid by batches of few images, of which products by rearranged factors are faster.
"""

import math

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

# 16 MiB. Below that what is saved is not worth transposing all else.
_LARGE = 2**22


def hold_once(graph: GraphProto) -> None:
    """Writes ``x @ matrix`` as ``(matrix.T @ x.T).T`` where the graph has ``y @ matrix.T`` too, and that alike."""
    constants = {one.name: one for one in graph.initializer}
    large = {name for name, one in constants.items() if len(one.dims) == 2 and math.prod(one.dims) >= _LARGE}
    transposed = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}
    forward = {node.output[0]: node.input[1] for node in graph.node if _is_plain(node, constants)}
    flat = {one.name for one in (*graph.value_info, *graph.input) if len(one.type.tensor_type.shape.dim) == 2}
    backward = {
        node.output[0]: transposed[node.input[1]]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[0] in flat and node.input[1] in transposed
    }
    both = large & set(forward.values()) & set(backward.values())

    nodes: list[NodeProto] = []
    for node in graph.node:
        name = node.output[0]
        if forward.get(name) in both:
            bias = _column(node, constants)
            graph.initializer.append(bias)
            nodes += _turned(node, helper.make_node("Gemm", [forward[name], "", bias.name], [""], transA=1))
        elif backward.get(name) in both:
            nodes += _turned(node, helper.make_node("MatMul", [backward[name], ""], [""]))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph, both)


def _is_plain(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    """Whether a node is ``input @ matrix``, with a constant bias or without one."""
    if node.op_type != "Gemm" or any(name not in constants for name in node.input[1:]):
        return False
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return attributes.items() <= {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}.items()


def _column(node: NodeProto, constants: dict[str, TensorProto]) -> TensorProto:
    """The bias of a product as a column; of zeros too, or ONNX Runtime would turn the factors round again."""
    outputs = constants[node.input[1]].dims[1]
    bias = numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 else np.zeros(outputs, np.float32)
    return numpy_helper.from_array(np.broadcast_to(bias, outputs).reshape(-1, 1).copy(), f"{node.output[0]}_bias")


def _turned(node: NodeProto, product: NodeProto) -> list[NodeProto]:
    """A product by the transposed input of a node, transposed to be its output."""
    given, result = f"{node.output[0]}_given", f"{node.output[0]}_turned"
    product.name, product.input[1], product.output[0] = node.name, given, result
    return [
        helper.make_node("Transpose", [node.input[0]], [given], perm=[1, 0]),
        product,
        helper.make_node("Transpose", [result], [node.output[0]], perm=[1, 0]),
    ]


def _drop_unused(graph: GraphProto, matrices: set[str]) -> None:
    """Removes transposes of matrices and biases that nothing takes any more."""
    used = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Transpose" and node.input[0] in matrices and node.output[0] not in used:
            del graph.node[place]
    for place, name in reversed([(place, one.name) for place, one in enumerate(graph.initializer)]):
        if name not in used:
            del graph.initializer[place]
