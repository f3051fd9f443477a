"""Operators whose form in ONNX is written here: no slower than PyTorch's own, and right in every engine tried."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18 as op

aten = torch.ops.aten

# A tensor of a graph that is being written.
Value = Any


def convolution(
    input: Value,  # noqa: A002  (the operator's own name)
    weight: Value,
    bias: Value | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    transposed: bool = False,
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
) -> Value:
    """A convolution; a transposed one of stride 1 is a plain one by mirrored weights, which engines do faster.

    The gradient of a convolution has its very weights. OpenVINO (2026.4) knows weights that it has rearranged by their
    address and shape: with as many channels out as in, ConvTranspose would get those of Conv, and give something else.
    So they differ, mirrored or negated, which engines compute once as they load the file.
    """
    window = list(weight.shape[2:])
    strides, pads, steps, more = (_each(values, len(window)) for values in (stride, padding, dilation, output_padding))
    shared = {"kernel_shape": window, "dilations": steps, "group": groups}
    if not transposed:
        return op.Conv(input, weight, bias, pads=[*pads, *pads], strides=strides, **shared)
    around = [step * (size - 1) - pad for step, size, pad in zip(steps, window, pads, strict=True)]
    if set(strides) == {1} and min(around) >= 0:
        beyond = [pad + rest for pad, rest in zip(around, more, strict=True)]
        return op.Conv(input, _mirrored(weight, groups), bias, pads=[*around, *beyond], strides=strides, **shared)
    given = (input, weight)
    if weight.shape[0] == weight.shape[1] * groups:
        given = (op.Neg(input), op.Neg(weight))
    return op.ConvTranspose(*given, bias, pads=[*pads, *pads], strides=strides, output_padding=more, **shared)


def _mirrored(weight: Value, groups: int) -> Value:
    """Weights [in, out / groups, ...] of a transposed convolution as those of a plain one, [out, in / groups, ...]."""
    inputs, outputs, *window = weight.shape
    axes = [axis + 2 for axis, size in enumerate(window) if size > 1]
    if axes:
        backwards = [-1] * len(axes)
        beyond = [-(2**31)] * len(axes)
        weight = op.Slice(weight, backwards, beyond, axes, backwards)
    if inputs == groups and outputs == 1:  # depthwise
        return weight
    rest = range(2, 2 + len(window))
    if groups == 1:
        return op.Transpose(weight, perm=[1, 0, *rest])
    weight = op.Reshape(weight, [groups, inputs // groups, outputs, *window])
    weight = op.Transpose(weight, perm=[0, 2, 1, *(axis + 1 for axis in rest)])
    return op.Reshape(weight, [groups * outputs, inputs // groups, *window])


def max_pool(
    input: Value,  # noqa: A002
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Value, Value]:
    """Max-pooling of [B, C, H, W] with the indices of the largest elements, each in its own plane.

    ONNX counts them through the whole batch. PyTorch's own form pools once more, by windows of one element, to learn
    where planes begin; the remainder is cheaper, and onnx's reference evaluator counts within planes where strides
    are 1.
    """
    window = _each(kernel_size, 2)
    pooled, indices = op.MaxPool(
        input,
        kernel_shape=window,
        strides=_each(stride, 2) if stride else window,
        pads=_each(padding, 2) * 2,
        dilations=_each(dilation, 2),
        ceil_mode=int(ceil_mode),
    )
    plane = input.shape[2:]
    if all(isinstance(size, int) for size in plane):
        return pooled, op.Mod(indices, op.Constant(value_int=math.prod(plane)))
    return pooled, op.Mod(indices, op.ReduceProd(op.Shape(input, start=2), keepdims=0))


def clamp(
    input: Value,  # noqa: A002
    min: Value | None = None,  # noqa: A002
    max: Value | None = None,  # noqa: A002
) -> Value:
    """Values within bounds that are tensors; within those of one element by one operator.

    PyTorch's own form is two, which onnxscript (0.7) then joins itself. Where one tensor is clamped several times it
    mixes up the names of the bounds, so that the file refers to some that are not in it.
    """
    if all(bound is None or len(bound.shape) == 0 for bound in (min, max)):
        return op.Clip(input, min, max)
    kept = input if min is None else op.Max(input, min)
    return kept if max is None else op.Min(kept, max)


def _each(values: Sequence[int], axes: int) -> list[int]:
    """One number for each axis, where one may stand for all."""
    return list(values) * axes if len(values) == 1 else list(values)


FORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    aten.clamp.Tensor: clamp,
    aten.convolution.default: convolution,
    aten.max_pool2d_with_indices.default: max_pool,
}
