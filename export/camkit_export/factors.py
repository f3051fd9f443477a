"""A factor of each channel beside a convolution, as of batch normalisation, becomes part of its weights.

PyTorch multiplies after the forward convolution and before its gradient's, engines join the first at best. Both have
the same weights, times the same factors, so that they are held once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from camkit_export.simplify import new_constant

aten = torch.ops.aten


def fold_factors(graph: GraphModule) -> None:
    """Replaces ``convolution * factor + summand`` and ``convolution(tensor * factor)`` by one convolution each."""
    known: dict[tuple[Any, ...], str] = {}
    for node in list(graph.graph.nodes):
        if node.target is aten.convolution.default and _constant(graph, node.args[1]) is not None:
            _fold_before(graph, node, known)
            _fold_after(graph, node, known)


def _fold_before(graph: GraphModule, node: Node, known: dict[tuple[Any, ...], str]) -> None:
    source, transposed, groups = node.args[0], node.args[6], node.args[8]
    if not (isinstance(source, Node) and source.target is aten.mul.Tensor and list(source.users) == [node]):
        return
    factor = _of_channels(graph, source, node)
    if factor is not None and (transposed or groups == 1):
        tensor, constant = factor
        node.update_arg(0, tensor)
        node.update_arg(1, _weights(graph, node, constant, 0 if transposed else 1, known))


def _fold_after(graph: GraphModule, node: Node, known: dict[tuple[Any, ...], str]) -> None:
    transposed, groups = node.args[6], node.args[8]
    scaled = _only_user(node, aten.mul.Tensor)
    factor = _of_channels(graph, scaled, node) if scaled is not None else None
    if scaled is None or factor is None or (transposed and groups != 1):
        return
    given = node.args[2]
    bias = torch.zeros_like(factor[1]) if given is None else _constant(graph, given)
    if bias is None:
        return
    bias, last = bias * factor[1], scaled
    shifted = _only_user(scaled, aten.add.Tensor)
    summand = _of_channels(graph, shifted, node) if shifted is not None and not shifted.kwargs else None
    if shifted is not None and summand is not None:
        bias, last = bias + summand[1], shifted
    node.update_arg(1, _weights(graph, node, factor[1], 1 if transposed else 0, known))
    if given is not None or last is not scaled:
        node.update_arg(2, new_constant(graph, f"_bias_{node.name}", bias, node))
    last.replace_all_uses_with(node)


def _of_channels(graph: GraphModule, node: Node, convolution: Node) -> tuple[Any, Tensor] | None:
    """The tensor and the constant [C] of a product or sum of a tensor [B, C, ...] and one number for each channel."""
    axes = len(convolution.args[3]) + 2  # type: ignore[arg-type]
    for tensor, other in (node.args, node.args[::-1]):
        constant, values = _constant(graph, other), tensor.meta.get("val") if isinstance(tensor, Node) else None
        if constant is None or constant.dtype != torch.float32 or values is None or values.dim() != axes:
            continue
        if (1,) * (axes - constant.dim()) + tuple(constant.shape) == (1, values.shape[1], *[1] * (axes - 2)):
            return tensor, constant.reshape(-1)
    return None


def _weights(graph: GraphModule, node: Node, factor: Tensor, axis: int, known: dict[tuple[Any, ...], str]) -> Node:
    """The weights of a convolution times a factor along an axis; the same for all that have the same of both."""
    name = str(node.args[1].target)  # type: ignore[union-attr]
    weight = getattr(graph, name)
    key = (weight.data_ptr(), factor.data_ptr(), axis)
    if key not in known:
        # not of the node, which may take two factors
        known[key] = f"_factors_{len(known)}"
        shape = [-1 if each == axis else 1 for each in range(weight.dim())]
        return new_constant(graph, known[key], weight.detach() * factor.reshape(shape), node)
    with graph.graph.inserting_before(node):
        return graph.graph.get_attr(known[key])


def _constant(graph: GraphModule, node: Any) -> Tensor | None:
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value = getattr(graph, str(node.target))
    return value.detach() if isinstance(value, Tensor) else None


def _only_user(node: Node, operator: Any) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target is operator else None
