"""The head as a graph of its own, so that perturbed activations need not run through the whole model.

`torch.export` gives the model as one functional graph. The node of the layer's output is found by the layer's path;
the nodes that depend on it are the head. What they need besides (a residual stream, a class token) bypasses the layer
and is computed once for the images and repeated for their perturbed copies.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import TreeSpec, tree_unflatten

from camkit.cut import Forward, Layer, element, frozen, lock, with_element

LARGEST_BATCH = 2**20


class NoHead(Exception):  # noqa: N818 - it is an answer, which leads to full forward passes, not an error
    """Why the head of a model cannot be had as a graph, in words that follow "because".

    Attributes:
        said: whether the user was told; the reason is kept with the model, so that it is said once.
    """

    said = False


@dataclass(frozen=True)
class Bypass:
    """One value that the head needs besides the activations.

    `dimension` is the one that holds the images of the batch, None for values that are the same for all batches. A
    `size` computes a number, and no tensor, from the batch size.
    """

    node: Node
    dimension: int | None = None
    size: Callable[[int], Any] | None = None


@dataclass(frozen=True)
class HeadGraph:
    """A model's head behind one layer: ``run(layer's output, bypassing values) -> the model's output``."""

    head: GraphModule
    trunk: GraphModule
    bypasses: tuple[Bypass, ...]
    structure: TreeSpec

    def prepare(self, images: Tensor) -> list[Any]:
        """The bypassing values for images [B, C, H, W]; one pass through the trunk, or none where nothing bypasses."""
        needed = [bypass for bypass in self.bypasses if bypass.size is None]
        found = iter(self.trunk(images) if needed else ())
        return [next(found) if bypass.size is None else None for bypass in self.bypasses]

    def run(self, output: Tensor, prepared: list[Any], times: int) -> Any:
        """The model's output for `output` [n * B, ...] in place of the layer's, n = `times` copies of the batch."""
        values = [
            bypass.size(output.shape[0]) if bypass.size is not None else _repeated(value, bypass.dimension, times)
            for bypass, value in zip(self.bypasses, prepared, strict=True)
        ]
        return tree_unflatten(list(self.head(output, *values)), self.structure)


def _repeated(value: Tensor, dimension: int | None, times: int) -> Tensor:
    if dimension is None or times == 1:
        return value
    return value.repeat(*(times if place == dimension else 1 for place in range(value.ndim)))


# torch.export keeps its state in globals
_exporting = threading.Lock()
_cache: "weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[Any, HeadGraph | NoHead]]]" = weakref.WeakKeyDictionary()


def head_graph(module: nn.Module, layer: Layer, forward: Forward) -> HeadGraph:
    """The head of a model behind a layer, made once for each layer and input, as long as the model keeps its parts.

    Raises:
        NoHead: the model cannot be exported, or its head cannot be told from the rest.
    """
    images, captured = forward.images, forward.captured[layer.path]
    key = (layer.path, layer.element, tuple(images.shape[1:]), images.dtype, images.device, tuple(captured.shape[1:]))
    parts = tuple(map(id, (*module.modules(), *module.parameters(), *module.buffers())))
    with lock(module):
        kept = _cache.setdefault(module, {})
        if key not in kept or kept[key][0] != parts:
            try:
                kept[key] = parts, _build(module, layer, images)
            except NoHead as reason:
                kept[key] = parts, reason
        found = kept[key][1]
    if isinstance(found, NoHead):
        raise found
    return found


def _build(module: nn.Module, layer: Layer, images: Tensor) -> HeadGraph:
    # a batch of one is taken for a constant while the graph is made
    example = images.detach()[:1].repeat(2, 1, 1, 1)
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    try:
        with _exporting, torch.inference_mode(False), torch.no_grad(), frozen(module), _marked(layer):
            program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)
            program = program.run_decompositions({})
        graph = program.module().graph
    # what torch.export cannot take it says in many ways, of which none is the user's mistake
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise NoHead(f"torch.export refuses the model ({type(error).__name__}: {reason})") from error
    owner = graph.owning_module
    image = next(node for node in graph.nodes if node.op == "placeholder")
    symbol = image.meta["val"].shape[0].node.expr
    start = _layer_node(graph, layer)
    behind = _behind(start)
    result = next(node for node in graph.nodes if node.op == "output")
    if result not in behind:
        raise NoHead(f"the output does not depend on '{layer.path}' in the exported graph")
    bypasses = tuple(_bypass(node, symbol) for node in _crossing(graph, behind, start))
    structure = program.call_spec.out_spec
    if structure is None:
        raise NoHead("the exported graph does not tell the form of the model's output")
    return HeadGraph(
        head=_copy(owner, graph, [start, *(bypass.node for bypass in bypasses)], behind, list(result.args[0])),
        trunk=_trunk(owner, graph, image, [bypass.node for bypass in bypasses if bypass.size is None]),
        bypasses=bypasses,
        structure=structure,
    )


@contextmanager
def _marked(layer: Layer) -> Iterator[None]:
    """The layer gives a copy of its output: the copy marks the place, also of a layer that hands its input on."""

    def mark(child: nn.Module, inputs: Any, output: Any) -> Any:
        return with_element(output, layer, element(output, layer).clone())

    handle = layer.module.register_forward_hook(mark)
    try:
        yield
    finally:
        handle.remove()


def _layer_node(graph: Graph, layer: Layer) -> Node:
    """The node that holds the layer's output: the copy that ends the layer."""
    inside: list[Node] = [node for node in graph.nodes if layer.path in _modules(node)]
    for node in reversed(inside):
        if node.target is torch.ops.aten.clone.default:
            return node
    raise NoHead(f"the output of '{layer.path}' was not found in the exported graph")


def _modules(node: Node) -> Iterator[str]:
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        yield path


def _behind(start: Node) -> set[Node]:
    found, queue = set[Node](), [start]
    while queue:
        for user in queue.pop().users:
            if user not in found:
                found.add(user)
                queue.append(user)
    return found


def _crossing(graph: Graph, behind: set[Node], start: Node) -> list[Node]:
    """What the nodes behind the layer need and is neither behind it nor a parameter, in the graph's order."""
    sources = {source for node in behind for source in node.all_input_nodes}
    return [
        node
        for node in graph.nodes
        if node in sources and node not in behind and node != start and node.op != "get_attr"
    ]


def _bypass(node: Node, symbol: Any) -> Bypass:
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt):
        return Bypass(node, size=_of_batch(value.node.expr, symbol))
    if not isinstance(value, Tensor):
        raise NoHead(f"the value '{node.name}', which bypasses the layer, is no tensor")
    batched = [place for place, size in enumerate(value.shape) if symbol in _symbols(size)]
    if len(batched) > 1:
        raise NoHead(f"the value '{node.name}', which bypasses the layer, holds the batch in several dimensions")
    return Bypass(node, dimension=batched[0] if batched else None)


def _of_batch(expression: Any, symbol: Any) -> Callable[[int], Any]:
    # torch.export has imported them by now; where no head is taken they would only be slow to import
    from torch.utils._sympy.interp import sympy_interp
    from torch.utils._sympy.reference import PythonReferenceAnalysis

    return lambda batch: sympy_interp(PythonReferenceAnalysis, {symbol: batch}, expression)


def _symbols(size: Any) -> Any:
    return size.node.expr.free_symbols if isinstance(size, torch.SymInt) else ()


def _copy(
    owner: nn.Module | None, graph: Graph, inputs: list[Node], members: set[Node], results: list[Any]
) -> GraphModule:
    """The graph of `members` from `inputs` to `results`, with its parameters shared with the model."""
    made = Graph()
    copies: dict[Node, Node] = {node: made.placeholder(node.name) for node in inputs}

    def copied(node: Node) -> Node:
        if node not in copies:
            copies[node] = made.node_copy(node, copied)
        return copies[node]

    for node in graph.nodes:
        if node in members and node.op != "output":
            copy = copied(node)
            # another kernel, or a repeated value, may have other strides than those at the time of export
            if copy.target is torch.ops.aten.view.default:
                copy.target = torch.ops.aten.reshape.default
    made.output(tuple(copied(one) if isinstance(one, Node) else one for one in results))
    return GraphModule(owner or nn.Module(), made)


def _trunk(owner: nn.Module | None, graph: Graph, image: Node, wanted: list[Node]) -> GraphModule:
    needed, queue = set[Node](), list(wanted)
    while queue:
        node = queue.pop()
        if node not in needed and node != image:
            needed.add(node)
            queue.extend(node.all_input_nodes)
    return _copy(owner, graph, [image], needed, list(wanted))
