"""What a transformer's layers attend to, and the gradients of scores with respect to it."""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camkit import plugin
from camkit.contracts import Attention
from camkit.cut import Cut, Layer, replay
from camkit.errors import CamkitError
from camkit.layout import Tokens
from camkit.precision import single
from camkit.quantities import Pass

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
_PRODUCTS = (Tensor.__matmul__, torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm, torch.einsum)
# What stands between softmax and product without changing the weights.
_UNCHANGED = (F.dropout, torch.dropout, Tensor.to, Tensor.type_as, Tensor.contiguous)

# While a mode is active, this function hands itself to the mode before anything else and then runs where the mode does
# not see it. Here it is without that first step, so that the attention inside is seen.
_multi_head_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda tensors: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


class AttentionWeights(TorchFunctionMode):
    """Watches a forward pass and keeps the weights [B, heads, N, N] of every attention layer, in order.

    Fused attention is computed in the open, since it shows its weights to nobody; a softmax over the last of four
    dimensions is attention that the model itself computes in the open. Where autograd is to record, it does so from the
    first weights on, which become a leaf.

    Attributes:
        weights: the weights of each attention layer.
        unused: those that the model computes in the open and has not yet multiplied with anything, each as a list of
            the tensors that stand for it.
    """

    def __init__(self, graph: bool) -> None:
        super().__init__()
        self.graph = graph
        self.weights: list[Tensor] = []
        self.unused: list[list[Tensor]] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replaces attention, passes every other call on."""
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if function is F.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        result = function(*args, **kwargs)
        if function in _SOFTMAX and result.ndim == 4:
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            if dim in (-1, 3):
                # what the model does in place must not reach what was kept
                given = self._kept(result).clone()
                self.unused.append([given])
                return given
        if self.unused and (function in _PRODUCTS or function in _UNCHANGED):
            self._follow(function, args, result)
        return result

    def _follow(self, function: Any, operands: Sequence[Any], result: Tensor) -> None:
        for position, tensors in enumerate(self.unused):
            if any(operand is tensor for operand in operands for tensor in tensors):
                if function in _UNCHANGED:
                    tensors.append(result)
                else:
                    del self.unused[position]
                return

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            times = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(times, dim=-3), value.repeat_interleave(times, dim=-3)
        products = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
        if is_causal:
            attn_mask = torch.ones(products.shape[-2:], dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None:
            boolean = attn_mask.dtype == torch.bool
            products = products.masked_fill(~attn_mask, -torch.inf) if boolean else products + attn_mask
        weights = self._kept(single(products).softmax(dim=-1))
        return F.dropout(weights, dropout_p).to(value.dtype) @ value

    def _multi_head(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        wanted, averaged = kwargs.get("need_weights", True), kwargs.get("average_attn_weights", True)
        with self:
            # without weights it goes the way of fused attention, which is watched
            output, _ = _multi_head_attention(*args, **{**kwargs, "need_weights": False})
        weights = self.weights[-1].to(output.dtype)
        return output, (weights.mean(dim=1) if averaged else weights) if wanted else None

    def _kept(self, weights: Tensor) -> Tensor:
        if self.graph and not weights.requires_grad:
            weights = weights.detach().requires_grad_()
            torch.set_grad_enabled(True)
        self.weights.append(weights)
        return weights


@dataclass(frozen=True)
class _Attention:
    weights: tuple[Tensor, ...]
    layout: Tokens
    reads: str

    def relevance(self, matrix: Tensor) -> Tensor:
        rows = matrix[:, 0] if self.reads == "class token" else matrix[:, self.layout.prefix :].mean(dim=1)
        return self.layout.to_maps(rows[:, :, None])[:, 0]


@plugin.quantity("attention", traceable=True, layer=False, observer=AttentionWeights)
def attention(this: Pass) -> Attention:
    """The attention weights of all layers, [B, heads, N, N] each, and how a relevance [B, N, N] becomes a map."""
    weights, layout = _global_attention(this)
    reads = this.adapter.reads or ("class token" if layout.prefix else "patches")
    return _Attention(tuple(single(each.detach()) for each in weights), layout, reads)


@plugin.quantity("attention_gradients", traceable=True, graph=True, layer=False, observer=AttentionWeights)
def attention_gradients(this: Pass) -> tuple[Tensor, ...]:
    """The gradient of the scores with respect to each layer's attention weights, through all later layers."""
    weights, _ = _global_attention(this)
    scores = this.scored.scores
    if not scores.requires_grad:
        raise CamkitError("The scores do not depend on the attention; choose a target that the output is made from.")
    found = torch.autograd.grad(
        scores,
        weights,
        grad_outputs=torch.ones_like(scores),
        retain_graph=this.scored.retain_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return tuple(single(gradient) for gradient in found)


def _global_attention(this: Pass) -> tuple[list[Tensor], Tokens]:
    """The weights of all layers, where every one of them goes from every token to every token."""
    seen: AttentionWeights = this.scored.forward.observed[AttentionWeights]
    weights, kind, otherwise = seen.weights, type(this.module).__name__, "use a method for any model, such as gradcam"
    if not weights:
        raise CamkitError(
            f"The model has no attention: none was seen in a forward pass of the {kind}, and this method shows nothing "
            f"else; {otherwise}."
        )
    batch, count = this.scored.forward.images.shape[0], weights[0].shape[-1]
    strange = [each for each in weights if each.ndim != 4 or each.shape[0] != batch or each.shape[2:] != (count, count)]
    if strange:
        raise CamkitError(
            f"The {kind} does not attend from every token to every token in all its layers, but within windows or "
            f"otherwise (attention of shape {list(strange[0].shape)} for {batch} images), so this method cannot follow "
            f"it through the model; {otherwise}."
        )
    if seen.unused:
        raise CamkitError(
            f"The {kind} changes attention weights between their softmax and their use, so this method cannot tell "
            f"what it attends to; {otherwise}."
        )
    layout = _token_layout(this, count)
    if layout is None:
        raise CamkitError(
            f"The {kind} attends to {count} tokens, which are no grid with the prefix tokens that its adapter "
            f"'{this.adapter.name}' states; state prefix and grid in an adapter."
        )
    return weights, layout


def _token_layout(this: Pass, count: int) -> Tokens | None:
    layout = this.layout
    if isinstance(layout, Tokens) and layout.prefix + layout.grid[0] * layout.grid[1] == count:
        return layout
    batch, _, height, width = this.scored.forward.images.shape
    try:
        # the target layer may be one without tokens, or with the patches alone
        layout = this.adapter.layout_of(this.module, this.layer, (batch, count, 1), (height, width))
    except CamkitError:
        return None
    return layout if isinstance(layout, Tokens) else None


class _Blocks:
    """Watches attention, and keeps the largest module around each one attention layer with its input and its tokens."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.found: dict[int, tuple[nn.Module, Any, Tensor]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> list[Tensor]:
        weights: list[Tensor] = self._stack.enter_context(AttentionWeights(graph=True)).weights
        started: list[int] = []
        here = threading.get_ident()

        def enter(module: nn.Module, inputs: Any) -> None:
            if threading.get_ident() == here:
                started.append(len(weights))

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            if threading.get_ident() != here:
                return
            first = started.pop()
            if len(weights) != first + 1 or not isinstance(output, Tensor) or output.ndim != 3:
                return
            if output.shape[:2] == (weights[first].shape[0], weights[first].shape[-1]):
                self.found[first] = (module, inputs[0] if inputs else None, output)

        for child in self.module.modules():
            self._stack.callback(child.register_forward_pre_hook(enter).remove)
            self._stack.callback(child.register_forward_hook(leave).remove)
        return weights

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


@plugin.quantity("layer_attention_gradients", traceable=True, layer=False, reruns=True, observer=AttentionWeights)
def layer_attention_gradients(this: Pass) -> tuple[Tensor, ...]:
    """For each layer, the gradient of its own scores with respect to its own attention weights.

    A layer's own scores are what the part of the model behind the last block makes of the mean over this layer's
    tokens, as LeGrad needs them. It takes two more forward passes, of which one is recorded.
    """
    count = len(_global_attention(this)[0])
    blocks = _Blocks(this.module)
    # no target layer: the recording begins at the first attention
    cut = Cut(this.module, [], this.adapter.reader(this.module))
    weights = cut.forward(this.scored.forward.images, graph=True, observers=[blocks]).observed[_Blocks]
    found = [blocks.found[index] for index in range(count) if index in blocks.found]
    follow = all(later[1] is earlier[2] for earlier, later in pairwise(found))
    if len(found) < count or not follow:
        raise CamkitError(
            f"The {type(this.module).__name__} is no chain of blocks with one attention layer each, so its layers have "
            f"no scores of their own; use chefer."
        )
    modules, _, tokens = zip(*found, strict=True)
    with torch.enable_grad():
        leaves = [each.detach().requires_grad_() for each in tokens]
        scores = _tail_scores(this, modules[-1], leaves)
        gradients = torch.autograd.grad(scores.sum(), leaves)
    # from a block's tokens to its weights there is only this block, so no two of these share what they let go of
    return tuple(
        single(torch.autograd.grad(each, own, gradient)[0])
        for each, own, gradient in zip(tokens, weights, gradients, strict=True)
    )


def _tail_scores(this: Pass, last: nn.Module, tokens: Sequence[Tensor]) -> Tensor:
    """The scores [L * B] that the model behind its last block gives the mean of each of L times tokens [B, N, K]."""
    forward, times = this.scored.forward, len(tokens)
    # with the mean at every place it is the same to a model that reads the class token and to one that pools
    means = torch.cat([each.mean(dim=1, keepdim=True).expand_as(each) for each in tokens])
    path = next(name for name, module in this.module.named_modules() if module is last)
    output = replay(this.module, forward.images.detach(), Layer(path, path, last), means)
    return this.scored.question.repeated(times).scores(forward.with_output(output, means.shape[0]))
