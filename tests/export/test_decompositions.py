"""Each backward rule against autograd, in float64, over sizes that do not divide."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from camkit import plugin
from camkit_export import decompositions

aten = torch.ops.aten

RULES = {
    mark.facts["operator"]: rule
    for rule in plugin.collect("camkit_export.decompositions", "decomposition")
    for mark in plugin.marks(rule)
    if "operator" in mark.facts
}


class Decompose(TorchDispatchMode):
    """Runs the rules in place of their operators and records which ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in RULES:
            self.ran.add(str(function))
            return RULES[function](*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def agree(function: Callable[[Tensor], Tensor], shape: tuple[int, ...], operator: str) -> None:
    """The gradient of `function` by the rule is autograd's, and the rule did run."""
    torch.manual_seed(0)
    image = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    output = function(image)
    weights = torch.randn_like(output)
    (expected,) = torch.autograd.grad((output * weights).sum(), image)
    with Decompose() as mode:
        (found,) = torch.autograd.grad((function(image) * weights).sum(), image)
    assert f"aten.{operator}.default" in mode.ran
    assert found.shape == expected.shape
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


CONVOLUTIONS = [
    (size, kernel, stride, padding, dilation, groups)
    for size, kernel, stride, padding, dilation, groups in itertools.product(
        [(7, 10), (8, 9)], [1, (2, 3), 4], [1, 2, (3, 2)], [0, (1, 2)], [1, 2], [1, 2, 4]
    )
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation", "groups"), CONVOLUTIONS)
def test_convolution(size, kernel, stride, padding, dilation, groups):
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    weight = torch.randn(8, 4 // groups, *kernel, dtype=torch.float64)
    agree(lambda x: F.conv2d(x, weight, None, stride, padding, dilation, groups), (2, 4, *size), "convolution_backward")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "output_padding", "dilation"),
    [
        (3, 2, 1, 1, 1),
        (2, 2, 0, 0, 1),
        (4, 3, 2, 2, 1),
        (3, 1, 0, 1, 2),
        (3, (2, 3), (0, 1), (1, 2), 1),
        (1, 1, 0, 0, 1),
    ],
)
def test_transposed_convolution(kernel, stride, padding, output_padding, dilation, groups):
    weight = torch.randn(4, 6 // groups, kernel, kernel, dtype=torch.float64)
    agree(
        lambda x: F.conv_transpose2d(x, weight, None, stride, padding, output_padding, groups, dilation),
        (2, 4, 5, 7),
        "convolution_backward",
    )


@pytest.mark.parametrize("size", [(7, 10), (9, 8), (6, 6)])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 1, 1), (3, 2, 0, 1), ((2, 3), (3, 2), (1, 0), 1), (2, 2, 1, 2), (3, 4, 1, 1)],
)
def test_max_pool(size, kernel, stride, padding, dilation, ceil_mode):
    agree(
        lambda x: F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode),
        (2, 3, *size),
        "max_pool2d_with_indices_backward",
    )


@pytest.mark.parametrize("size", [(7, 10), (9, 8), (5, 5)])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("count_include_pad", "divisor"), [(True, None), (False, None), (True, 5), (False, 3)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0), ((2, 3), (3, 2), (1, 0)), (4, 3, 2), (3, None, 1)],
)
def test_average_pool(size, kernel, stride, padding, ceil_mode, count_include_pad, divisor):
    agree(
        lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor),
        (2, 3, *size),
        "avg_pool2d_backward",
    )


@pytest.mark.parametrize("size", [(7, 10), (9, 8), (6, 6), (3, 2)])
@pytest.mark.parametrize("output", [2, (3, 4), (5, 1), (6, 6), (7, 7)])
def test_adaptive_average_pool(size, output):
    agree(lambda x: F.adaptive_avg_pool2d(x, output), (2, 3, *size), "_adaptive_avg_pool2d_backward")


@pytest.mark.parametrize("size", [(7, 10), (9, 8), (1, 6)])
@pytest.mark.parametrize("output", [(14, 20), (5, 11), (3, 1)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear(size, output, align_corners):
    agree(
        lambda x: F.interpolate(x, output, mode="bilinear", align_corners=align_corners),
        (2, 3, *size),
        "upsample_bilinear2d_backward",
    )


@pytest.mark.parametrize("scale", [2.0, (1.7, 0.6)])
@pytest.mark.parametrize("recompute", [None, True])
def test_bilinear_by_scale(scale, recompute):
    agree(
        lambda x: F.interpolate(x, scale_factor=scale, mode="bilinear", recompute_scale_factor=recompute),
        (2, 3, 7, 10),
        "upsample_bilinear2d_backward",
    )


def test_softmax_of_attention():
    scores = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    scores[..., 2] = -torch.inf
    expected = torch.ops.aten._safe_softmax(scores, -1)
    with Decompose() as mode:
        found = torch.ops.aten._safe_softmax(scores, -1)
    assert mode.ran == {"aten._safe_softmax.default"}
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_gradient_of_unbind():
    agree(lambda x: x.unbind(0)[0] * x.unbind(0)[2].sin(), (3, 2, 5), "stack")


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_stack_has_the_new_axis_where_it_is_asked_for(dim):
    parts = [torch.randn(2, 5, dtype=torch.float64) for _ in range(3)]
    expected = torch.stack(parts, dim)
    with Decompose() as mode:
        found = torch.stack(parts, dim)
    assert mode.ran == {"aten.stack.default"}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("index", [0, 1, -1])
def test_gradient_of_one_slice(dim, index):
    agree(lambda x: x.select(dim, index).sin(), (3, 4, 5), "select_backward")


def test_images_without_a_batch():
    agree(lambda x: F.avg_pool2d(x, 3, 2), (3, 7, 10), "avg_pool2d_backward")
    agree(lambda x: F.max_pool2d(x, 3, 2), (3, 7, 10), "max_pool2d_with_indices_backward")


def test_weight_gradients_are_refused():
    assert (
        decompositions.convolution_backward(
            torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), None, [1, 1], [0, 0], [1, 1], False,
            [0, 0], 1, [True, True, False],
        )
        is NotImplemented
    )  # fmt: skip


@pytest.mark.parametrize("output", [1, (1, 1), [1, 1]])
def test_global_pool_becomes_a_mean(output):
    image = torch.randn(2, 3, 5, 7)
    expected = F.adaptive_avg_pool2d(image, output)
    with decompositions.GlobalPoolAsMean(), Count() as count:
        found = F.adaptive_avg_pool2d(image, output)
        pooled = torch.nn.AdaptiveAvgPool2d(output)(image)
        F.adaptive_avg_pool2d(image, (1, 2))
        of_a_graph = aten.adaptive_avg_pool2d.default(image, [1, 1])
    torch.testing.assert_close(of_a_graph, expected)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(pooled, expected)
    assert count.names.count("aten.mean.dim") == 3
    assert count.names.count("aten._adaptive_avg_pool2d.default") == 1


class Count(TorchDispatchMode):
    """Records the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))
