"""One functional graph of an explanation: forward pass, gradient of the head, method. No autograd is left in it."""

import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.fx.traceback
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit import plugin
from camkit.errors import CamkitError, first_line
from camkit.exports import ExportRequest, heatmaps_of
from camkit.registry import registry
from camkit_export.factors import fold_factors
from camkit_export.session import INPUTS, output_names
from camkit_export.simplify import fold_constants, halve, out_of_place, share_matrices

# A batch size that a graph holds as a number differs between the two; neither is a size that PyTorch specialises.
_BATCHES = (3, 5)

# What autograd needs between tensors that share memory; in a graph without it each is its argument.
_ALIASES = (
    torch.ops.aten.alias.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.lift_fresh_copy.default,
)


class _Heatmap(nn.Module):
    def __init__(self, request: ExportRequest) -> None:
        super().__init__()
        self.shape, self.frames, self.relu = (1, *request.image_shape), request.frames, request.relu

    def forward(self, maps: Tensor, images: Tensor | None = None) -> Tensor:
        # only what depends on the images takes them: their size is a number where it is always the same
        shape = self.shape if images is None else images.shape
        return heatmaps_of(maps, shape, self.frames, relu=self.relu)


class Graph(GraphModule):
    """What is written to a file: images and class indices in; logits, heatmaps, maps and explained classes out.

    Heatmaps are made around the traced graph rather than in it, so that their resize stays one operator.

    Attributes:
        explain: the traced graph; heatmap: the resize.
        request: what was traced.
        inputs, outputs: the names of its inputs and outputs, in order.
        origins: for an operator of the graph, a module that uses it, as far as that is known; for error messages.
    """

    explain: GraphModule

    def __init__(self, explain: GraphModule, request: ExportRequest, origins: Mapping[str, str]) -> None:
        names = map_names(request)
        inputs = (*(INPUTS if request.top_k is None else INPUTS[:1]), *request.inputs)
        outputs = output_names(names, raw=request.raw)
        graph = FxGraph()
        given = tuple(graph.placeholder(name) for name in inputs)
        found = graph.call_module("explain", given)
        logits, *maps, explained = (
            graph.call_function(operator.getitem, (found, index)) for index in range(len(names) + 2)
        )
        sized = given[:1] if request.dynamic_size else ()
        kept = [[one] if request.raw else [graph.call_module("heatmap", (one, *sized)), one] for one in maps]
        graph.output((logits, *(one for both in kept for one in both), explained))
        super().__init__({"explain": explain, "heatmap": _Heatmap(request)}, graph)
        self.request, self.inputs, self.outputs, self.origins = request, inputs, outputs, origins
        self.example = _example(request, _BATCHES[0])


def map_names(request: ExportRequest) -> tuple[str, ...]:
    """The names of a request's maps; one empty name where there is one map."""
    return tuple(dict.fromkeys(part.name for part in request.parts)) or ("",)


def _example(request: ExportRequest, batch: int) -> tuple[Tensor, ...]:
    """Inputs of a graph: images of zeros, class 0 where the class is an input, the example of any further input."""
    images = torch.zeros(batch, *request.image_shape, dtype=torch.uint8 if request.frames else torch.float32)
    classes = () if request.top_k else (torch.zeros(batch, dtype=torch.int64),)
    return (images, *classes, *(one.repeat(batch, *[1] * (one.ndim - 1)) for one in request.inputs.values()))


def installed_rules() -> tuple[dict[Any, Callable[..., Any]], list[type]]:
    """Rules by operator, and function modes, of every installed plugin. Of two rules the first-party one is taken."""
    rules: dict[Any, Callable[..., Any]] = {}
    modes: list[type] = []
    for item in registry().values("decomposition"):
        for mark in plugin.marks(item):
            if "operator" in mark.facts:
                rules.setdefault(mark.facts["operator"], item)
            elif item not in modes:
                modes.append(item)
    return rules, modes


def traced(request: ExportRequest) -> Graph:
    """The graph of a request by the rules of all plugins, traced once however many formats are written from it."""
    return request.once("graph", partial(trace, request))


def trace(
    request: ExportRequest,
    rules: Mapping[Any, Callable[..., Any]] | None = None,
    modes: Iterable[type] | None = None,
) -> Graph:
    """The graph of an explanation, with a dynamic batch and parameters as constants.

    `rules` (operator -> decomposition) and `modes` (`TorchFunctionMode` classes) default to those of all plugins.

    Raises:
        CamkitError: an operator has no rule, or something that depends on the batch was about to be frozen.
    """
    if rules is None or modes is None:
        found_rules, found_modes = installed_rules()
        rules, modes = found_rules if rules is None else rules, found_modes if modes is None else modes
    graph, origins, fixed = _trace(request, rules, modes, _BATCHES[0])
    # a batch that was turned into a number may still have left no trace of itself
    if fixed and _differ(graph, _trace(request, rules, modes, _BATCHES[1])[0]):
        raise CamkitError(
            f"The graph depends on the batch size: traced with {_BATCHES[0]} and with {_BATCHES[1]} images it differs; "
            "the model or the method turns the number of images, or a value computed from them, into a constant."
        )
    _refuse_unconnected(graph)
    if request.half:
        halve(graph)
    # a new module holds what the graph still refers to, and no constant that was replaced
    return Graph(GraphModule(graph, graph.graph), request, origins)


def _trace(
    request: ExportRequest, rules: Mapping[Any, Callable[..., Any]], modes: Iterable[type], batch: int
) -> tuple[GraphModule, dict[str, str], bool]:
    """The graph, where its operators come from, and whether something asked for the batch as a number."""
    with ExitStack() as stack:
        # not even a size that happens to equal the batch is taken for it
        shapes = ShapeEnv(assume_static_by_default=True, duck_shape=False)
        fake = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True, allow_fallback_kernels=False)
        axes = dynamic_axes(request)
        images, *others = inputs = [
            fake.from_tensor(
                tensor,
                symbolic_context=StatelessSymbolicContext(
                    dynamic_sizes=[
                        DimDynamic.DYNAMIC if axis in (axes if place == 0 else (0,)) else DimDynamic.STATIC
                        for axis in range(tensor.dim())
                    ]
                ),
            )
            for place, tensor in enumerate(_example(request, batch))
        ]
        # all have one batch: said here, or a comparison of two sizes would be left in the graph
        for one in others:
            torch._check(images.shape[0] == one.shape[0])
        # fused attention has no backward in terms of forward operators
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_module_names())
        for mode in modes:
            stack.enter_context(mode())

        def traced(function: Callable[..., Any]) -> GraphModule:
            table = {**dict(core_aten_decompositions().items()), **rules}
            tracer = make_fx(function, decomposition_table=table, tracing_mode="symbolic", _allow_non_fake_inputs=True)
            return tracer(*inputs)

        try:
            graph = traced(request.explain)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            reason = first_line(error)[:400]
            raise CamkitError(f"The model or the method cannot be traced into a graph: {reason}") from error
        _refuse_backward(graph)
        origins = {str(node.target): module for node in graph.graph.nodes if (module := _own_module(node))}
        if not out_of_place(graph):
            graph = traced(functionalize(graph))
        fixed = _is_fixed(images.shape[0])
        _refuse_fixed_size(images, axes)
    _clean(graph)
    return graph, origins, fixed


def dynamic_axes(request: ExportRequest) -> tuple[int, ...]:
    """The axes of the images whose length a graph leaves open."""
    return (0, 2, 3) if request.dynamic_size else (0,)


def _is_fixed(size: Any) -> bool:
    return isinstance(size, int) or size.node.maybe_as_int() is not None


def _refuse_fixed_size(images: Tensor, axes: tuple[int, ...]) -> None:
    sizes: list[Any] = [images.shape[axis] for axis in axes if axis]
    if any(map(_is_fixed, sizes)):
        raise CamkitError("The model or the method takes images of one size only; export it without --dynamic-size.")
    if len(sizes) == 2 and sizes[0].node.expr == sizes[1].node.expr:
        raise CamkitError("The model or the method takes square images only; export it without --dynamic-size.")


@contextmanager
def _module_names() -> Iterator[None]:
    """Writes the module that runs into the metadata of the nodes that are traced, for error messages."""
    stack: list[str] = []
    names: dict[int, str] = {}
    tracing = threading.get_ident()  # the hooks see the models of every thread

    def note() -> None:
        torch.fx.traceback.current_meta["nn_module_stack"] = {str(depth): name for depth, name in enumerate(stack)}

    def enter(module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() != tracing:
            return
        if not stack:
            names.update({id(child): name for name, child in module.named_modules()})
        path = names.get(id(module), "")
        stack.append(f"{type(module).__name__} '{path}'" if path else type(module).__name__)
        note()

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if threading.get_ident() == tracing:
            stack.pop()
            note()

    with torch.fx.traceback.preserve_node_meta():
        before = nn.modules.module.register_module_forward_pre_hook(enter)
        after = nn.modules.module.register_module_forward_hook(leave)
        try:
            yield
        finally:
            before.remove()
            after.remove()


def _refuse_backward(graph: GraphModule) -> None:
    """A backward operator that is left over has no forward form, so no runtime would know it."""
    for node in graph.graph.nodes:
        operator = str(node.target)
        if node.op == "call_function" and ("_backward" in operator or "as_strided" in operator):
            raise missing_rule(operator, _module_of(node))


def missing_rule(operator: str, module: str | None) -> CamkitError:
    """The error for an operator without a rule; `module` is where it comes from, if that is known."""
    where = f", used by the module {module}," if module else ""
    return CamkitError(
        f"The operator {operator}{where} cannot be exported; a plugin can add a rule for it with the hook "
        "camkit_decompositions."
    )


def _module_of(node: Node) -> str | None:
    """The module whose forward pass led to a node: its own, or that of the operator it is the gradient of."""
    forward = str(node.target).split(".")[1].removesuffix("_backward")
    sources = [node, *reversed(node.all_input_nodes)]
    relatives = [other for other in node.graph.nodes if str(other.target).split(".")[1:2] == [forward]]
    users: list[Node] = [user for source in node.all_input_nodes for user in source.users]
    return next((module for other in [*sources, *relatives, *users] if (module := _own_module(other))), None)


def _own_module(node: Node) -> str | None:
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    return str(modules[-1]) if modules else None


def _clean(graph: GraphModule) -> None:
    """Drops aliases, dead code and whatever nodes remember of this machine; no tensor is changed in place by now."""
    for node in graph.graph.nodes:
        if node.target in _ALIASES:
            node.replace_all_uses_with(node.args[0])
    share_matrices(graph)
    fold_constants(graph)
    fold_factors(graph)
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        node.type = None  # the function's own annotation, which is of any number of maps
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "custom", "from_node"):
            node.meta.pop(key, None)
    graph.recompile()


def _constants(graph: GraphModule) -> list[Tensor]:
    return [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]


def _differ(first: GraphModule, second: GraphModule) -> bool:
    return first.code != second.code or not all(
        one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
        for one, other in zip(_constants(first), _constants(second), strict=True)
    )


def _refuse_unconnected(graph: GraphModule) -> None:
    """An output that does not depend on the image was frozen while tracing."""
    image = next(node for node in graph.graph.nodes if node.op == "placeholder")
    dependent = {image}
    for node in graph.graph.nodes:
        if node.op == "call_function" and any(source in dependent for source in node.all_input_nodes):
            if str(node.target).startswith("aten.sym_size"):
                continue  # depends on how many images there are, not on what they show
            dependent.add(node)
    results = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    for result, name in zip(results[:-1], ("logits", *["map"] * (len(results) - 2)), strict=True):
        if result not in dependent:
            raise CamkitError(f"The {name} would be frozen: it does not depend on the image in the traced graph.")
