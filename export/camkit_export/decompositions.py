"""Backward operators in terms of forward ones, so that a gradient can be written as an ordinary forward graph.

Each rule is a function with the signature of its operator. PyTorch's own core decompositions cover activations,
normalisations, softmax and indexing; these are the ones that it leaves over. Sizes other than the batch are static.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from camkit import plugin

aten = torch.ops.aten


@plugin.decomposition(aten.convolution_backward.default)
def convolution_backward(
    grad_output: Tensor,
    input: Tensor,  # noqa: A002  (the operator's own name)
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    """The input gradient of a convolution is the transposed convolution, and the other way round.

    Weight and bias gradients are left as they are: a map needs the gradient of activations only.
    """
    if output_mask[1] or output_mask[2]:
        return NotImplemented  # type: ignore[no-any-return]
    spatial = range(input.dim() - 2)
    size, window = input.shape[2:], weight.shape[2:]
    if transposed:
        gradient = aten.convolution(
            grad_output, weight, None, stride, padding, dilation, False, [0] * len(spatial), groups
        )
        for axis in spatial:
            if gradient.shape[axis + 2] != size[axis]:  # an output padding of a whole stride: no input reached these
                gradient = gradient.narrow(axis + 2, 0, size[axis])
        return gradient, None, None
    # rows and columns at the far border that the stride stepped over
    unreached = [
        int(size[axis] + 2 * padding[axis] - dilation[axis] * (window[axis] - 1) - 1) % stride[axis] for axis in spatial
    ]
    gradient = aten.convolution(grad_output, weight, None, stride, padding, dilation, True, unreached, groups)
    return gradient, None, None


@plugin.decomposition(aten.max_pool2d_with_indices_backward.default)
def max_pool2d_with_indices_backward(
    grad_output: Tensor,
    input: Tensor,  # noqa: A002
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Each window sends its gradient to its largest element; windows that overlap add up."""
    zeros = torch.zeros_like(input).flatten(-2)
    return zeros.scatter_add(-1, indices.flatten(-2), grad_output.flatten(-2)).view(input.shape)


@plugin.decomposition(aten.avg_pool2d_backward.default)
def avg_pool2d_backward(
    grad_output: Tensor,
    input: Tensor,  # noqa: A002
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Each window shares its gradient among its elements."""
    kernel, steps, pads = (_pair(values) for values in (kernel_size, stride or kernel_size, padding))

    def windows(axis: int, size: int, count: int) -> list[list[float]]:
        matrix = []
        for window in range(count):
            start = window * steps[axis] - pads[axis]
            end = min(start + kernel[axis], size + pads[axis])
            first, last = max(start, 0), min(end, size)
            divisor = end - start if count_include_pad else last - first
            share = 1 / (1 if divisor_override else divisor)
            matrix.append([share if first <= position < last else 0.0 for position in range(size)])
        return matrix

    gradient = _separable_backward(grad_output, input.shape[-2:], windows)
    return gradient / divisor_override if divisor_override else gradient


@plugin.decomposition(aten._adaptive_avg_pool2d_backward.default)
def adaptive_avg_pool2d_backward(grad_output: Tensor, input: Tensor) -> Tensor:  # noqa: A002
    """Each window shares its gradient among its elements; windows differ in size where sizes do not divide."""

    def windows(axis: int, size: int, count: int) -> list[list[float]]:
        matrix = []
        for window in range(count):
            first, last = window * size // count, -((-(window + 1) * size) // count)
            matrix.append([1 / (last - first) if first <= position < last else 0.0 for position in range(size)])
        return matrix

    return _separable_backward(grad_output, input.shape[-2:], windows)


@plugin.decomposition(aten.upsample_bilinear2d_backward.default)
def upsample_bilinear2d_backward(
    grad_output: Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Tensor:
    """Each output pixel sends its gradient to the two by two input pixels that it was blended from."""
    scales = (scales_h, scales_w)

    def windows(axis: int, size: int, count: int) -> list[list[float]]:
        matrix = []
        given = scales[axis]
        for pixel in range(count):
            if align_corners:
                source = pixel * (size - 1) / (count - 1) if count > 1 else 0.0
            else:
                source = max((pixel + 0.5) * (1 / given if given else size / count) - 0.5, 0.0)
            low = min(int(source), size - 1)
            row = [0.0] * size
            row[low] += 1 - (source - low)
            row[min(low + 1, size - 1)] += source - low
            matrix.append(row)
        return matrix

    return _separable_backward(grad_output, input_size[-2:], windows)


@plugin.decomposition(aten.select_backward.default)
def select_backward(grad_output: Tensor, input_sizes: Sequence[int], dim: int, index: int) -> Tensor:
    """The gradient of one slice, with zeros around it."""
    size = input_sizes[dim]
    if not isinstance(size, int):
        return NotImplemented
    before, behind = index % size, size - 1 - index % size
    padding = [0, 0] * (len(input_sizes) - 1 - dim % len(input_sizes)) + [before, behind]
    return torch.nn.functional.pad(grad_output.unsqueeze(dim), padding)


@plugin.decomposition(aten._safe_softmax.default)
def safe_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:  # noqa: A002
    """Attention's softmax, which also gives zeros for a query that may look at nothing.

    A query of an image always sees something, and looking for such rows costs a tenth of a transformer's time. Where a
    model has one after all, verification refuses the file: its answers are not numbers.
    """
    return torch.softmax(input, dim, dtype)


@plugin.decomposition(aten.stack.default)
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors side by side along a new axis.

    PyTorch's own rule joins them along the old one and views that as two, with the batch as the second. Before a
    transpose OpenVINO (2026.4) takes such a view for shuffled channels, whose number has to be known, and gives up.
    """
    return torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


@plugin.decomposition(aten.empty_permuted.default)
def empty_permuted(
    size: Sequence[int],
    physical_layout: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Tensor:
    """Memory that is filled later; older PyTorch leaves it in some gradients, and no runtime knows it."""
    return torch.zeros(size, dtype=dtype, device=device)


@plugin.function_mode("adaptive average pooling to a mean")
class GlobalPoolAsMean(TorchFunctionMode):
    """Writes global average pooling as a mean: PyTorch's own way strides in place, which no graph format knows."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replaces pooling to one position, passes every other call on."""
        axes = _POOLED_AXES.get(function)
        if axes is not None:
            return _global_pool(function, axes, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


_POOLED_AXES: dict[Any, tuple[int, ...]] = {
    torch.nn.functional.adaptive_avg_pool1d: (-1,),
    torch.nn.functional.adaptive_avg_pool2d: (-2, -1),
    # as the graph of a head calls them
    aten.adaptive_avg_pool1d.default: (-1,),
    aten.adaptive_avg_pool2d.default: (-2, -1),
}


def _global_pool(
    function: Callable[..., Tensor],
    axes: tuple[int, ...],
    input: Tensor,  # noqa: A002
    output_size: Any,
) -> Tensor:
    if output_size in (1, (1,), (1, 1), [1, 1], [1], torch.Size((1, 1))):
        return input.mean(dim=axes, keepdim=True)
    return function(input, output_size)


@plugin.function_mode("trained batch normalisation to a scale and a shift")
class BatchNormAsAffine(TorchFunctionMode):
    """Writes batch normalisation by running statistics as what it is: a factor and a summand for each channel."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replaces normalisation by constants, passes every other call on."""
        if function is torch.nn.functional.batch_norm:
            return _affine_batch_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _affine_batch_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        return torch.nn.functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    # computed now, not in the graph
    with _disable_current_modes(), torch.no_grad():
        scale = (running_var + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -running_mean * scale
        shift = shift if bias is None else shift + bias
        channels = (-1, *[1] * (input.dim() - 2))
        scale, shift = scale.view(channels), shift.view(channels)
    return input * scale + shift


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _separable_backward(
    grad_output: Tensor, size: Sequence[int], windows: Callable[[int, int, int], list[list[float]]]
) -> Tensor:
    """The gradient [..., h, w] of ``rows @ input @ columns.T`` from that of its output.

    ``windows(axis, size, count)`` is the matrix [count, size] of one axis, a constant as its sizes are static.
    """
    rows, columns = (
        grad_output.new_tensor(windows(axis, int(size[axis]), int(grad_output.shape[axis - 2]))) for axis in (0, 1)
    )
    return _last_axis_times(_last_axis_times(grad_output, columns).mT, rows).mT


def _last_axis_times(tensor: Tensor, matrix: Tensor) -> Tensor:
    """``tensor @ matrix`` as one plain matrix product: a batched one would copy the matrix for each channel."""
    return (tensor.flatten(0, -2) @ matrix).reshape(*tensor.shape[:-1], matrix.shape[1])
