"""A traced graph made simpler: nothing is changed in place, and what is constant is computed once."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

# A constant of more elements is not computed ahead: a weight that is used as it is and transposed would be kept twice.
_LARGEST = 2**16

aten = torch.ops.aten

# Of a batch of matrices they change the number alone, where the last two sizes stay.
_SAME_MATRICES = (aten.view.default, aten._unsafe_view.default, aten.clone.default)


def out_of_place(graph: GraphModule) -> bool:
    """Replaces every operator that writes into its input by the one that does not; says whether that was possible.

    It is not where other tensors share the memory that is written to, or where the operator has no such twin. Later
    uses of a tensor that was written to refer to the operator's result already: the tracer saw to that.
    """
    for node in graph.graph.nodes:
        if not _writes(node):
            continue
        written = node.args[0]
        twin = _twin(node.target)
        if twin is None or _shares_memory(written) or any(_is_view(user) for user in written.users):
            return False
        node.target = twin
    graph.recompile()
    return True


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _twin(operator: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """``aten.relu.default`` of ``aten.relu_.default``."""
    namespace, _, name = operator._schema.name.partition("::")
    first, *others = operator._schema.arguments
    writes_first_alone = first.is_write and not any(argument.is_write for argument in others)
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    if not name.endswith("_") or not writes_first_alone or packet is None:
        return None
    twin = getattr(packet, operator._overloadname, None)
    if twin is None or twin._schema.is_mutable:
        return None
    same = [argument.name for argument in twin._schema.arguments] == [first.name, *(other.name for other in others)]
    return twin if same else None


def _shares_memory(node: Any) -> bool:
    if not isinstance(node, Node) or node.op != "call_function":
        return True
    if not _is_view(node):
        return False
    # a view of what nothing else looks at shares with nobody
    return any(list(source.users) != [node] or _shares_memory(source) for source in node.all_input_nodes)


def _is_view(node: Node) -> bool:
    """Whether a result of the operator may share memory with an argument that it does not write to."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    return any(
        result.alias_info is not None and not result.alias_info.is_write for result in node.target._schema.returns
    )


def _draws(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def fold_constants(graph: GraphModule) -> None:
    """Computes what depends on small constants alone, such as a table of position biases."""
    values: dict[Node, Tensor] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            values[node] = getattr(graph, str(node.target))
            continue
        sources = node.all_input_nodes
        if node.op != "call_function" or not all(source in values for source in sources):
            continue
        if sum(values[source].numel() for source in sources) > _LARGEST or _draws(node):
            continue
        with torch.no_grad():
            result = node.target(*map_arg(node.args, values.get), **map_arg(node.kwargs, values.get))
        if isinstance(result, Tensor) and result.numel() <= _LARGEST:
            values[node] = result.detach().contiguous().clone()
    for node, value in values.items():
        # what is made of nothing, such as a tensor of zeros, is shorter as it is
        if not node.all_input_nodes or all(user in values for user in node.users):
            continue
        node.replace_all_uses_with(new_constant(graph, f"_folded_{node.name}", value, node))


def new_constant(graph: GraphModule, name: str, value: Tensor, before: Node) -> Node:
    """A constant of a graph, in front of the node that needs it."""
    graph.register_buffer(name, value)
    with graph.graph.inserting_before(before):
        return graph.graph.get_attr(name)


def share_matrices(graph: GraphModule) -> None:
    """Multiplies a batch by one matrix instead of by as many copies of it as the batch has items.

    PyTorch takes them for one where they share memory (`torch.matmul` of a batch with other strides than its own), and
    engines write them out: of a ViT's projection one for each token.
    """
    for node in list(graph.graph.nodes):
        matrix = _one_matrix(node.args[1]) if node.target is aten.bmm.default else None
        if matrix is None:
            continue
        source, turned = matrix
        batch = node.args[0]
        inner, outer = _sides(node.args[1])
        with graph.graph.inserting_before(node):
            call = graph.graph.call_function
            right = call(aten.permute.default, (source, [1, 0])) if turned else source
            flat = call(aten.reshape.default, (batch, [-1, inner]))
            product = call(aten.mm.default, (flat, right))
            sizes = [call(aten.sym_size.int, (batch, axis)) for axis in (0, 1)]
            result = call(aten.reshape.default, (product, [*sizes, outer]))
        node.replace_all_uses_with(result)


def _one_matrix(node: Any) -> tuple[Node, bool] | None:
    """The matrix of which a batch of matrices is nothing but copies, and whether they are turned."""
    turned = False
    while isinstance(node, Node) and node.op == "call_function":
        source = node.args[0]
        if node.target is aten.expand.default and isinstance(source, Node) and source.meta["val"].ndim == 2:
            return source, turned
        if node.target is aten.permute.default and node.args[1] == [0, 2, 1]:
            turned = not turned
        elif node.target not in _SAME_MATRICES or _sides(source) != _sides(node):
            return None
        node = source
    return None


def _sides(node: Any) -> tuple[int, int]:
    rows, columns = node.meta["val"].shape[-2:]
    return rows, columns


def halve(graph: GraphModule) -> None:
    """Keeps every constant of a traced graph in float16, half as large, and computes in float32 as before."""
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        value = getattr(graph, str(node.target))
        if value.dtype != torch.float32:
            continue
        kept = new_constant(graph, f"_half_{node.name}", value.detach().half(), node)
        with graph.graph.inserting_after(kept):
            widened = graph.graph.call_function(torch.ops.aten._to_copy.default, (kept,), {"dtype": torch.float32})
        node.replace_all_uses_with(widened)
        graph.graph.erase_node(node)
    graph.recompile()
