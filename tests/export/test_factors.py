"""Factors of channels in the weights of convolutions: the same answers by fewer operators."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from camkit_export.factors import fold_factors
from camkit_export.trace import trace
from standin import make_request

aten = torch.ops.aten
IMAGES = (2, 4, 7, 6)


def folded(function: Callable[[Tensor], Tensor]) -> GraphModule:
    """A function's graph after folding; it gives what the function gives, for any number of images."""
    graph = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(torch.randn(IMAGES))
    fold_factors(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    for batch in (1, 3):
        given = torch.randn(batch, *IMAGES[1:])
        torch.testing.assert_close(graph(given), function(given), rtol=1e-4, atol=1e-5)
    return graph


def operators(graph: GraphModule) -> list[object]:
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def channels(count: int) -> Tensor:
    return torch.randn(count, 1, 1)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [None, torch.randn(8)])
@pytest.mark.parametrize("summand", [None, channels(8)])
def test_behind_a_convolution(groups, bias, summand):
    weight, factor = torch.randn(8, 4 // groups, 3, 3), channels(8)

    def normalised(images):
        scaled = F.conv2d(images, weight, bias, 2, 1, 1, groups) * factor
        return scaled if summand is None else scaled + summand

    assert operators(folded(normalised)) == [aten.convolution.default]


def test_before_a_convolution():
    weight, factor = torch.randn(8, 4, 3, 3), channels(4)
    graph = folded(lambda images: F.conv2d(factor * images, weight, None, 1, 1))
    assert operators(graph) == [aten.convolution.default]


@pytest.mark.parametrize("groups", [1, 2])
def test_before_a_transposed_convolution(groups):
    weight, bias, factor = torch.randn(4, 6 // groups, 3, 3), torch.randn(6), channels(4)
    graph = folded(lambda images: F.conv_transpose2d(images * factor, weight, bias, 2, 1, 0, groups))
    assert operators(graph) == [aten.convolution.default]


def test_behind_a_transposed_convolution():
    weight, factor, summand = torch.randn(4, 6, 3, 3), channels(6), channels(6)
    graph = folded(lambda images: F.conv_transpose2d(images, weight) * factor + summand)
    assert operators(graph) == [aten.convolution.default]


def test_forward_pass_and_gradient_share_weights():
    weight, factor = torch.randn(4, 4, 3, 3), channels(4)

    def both(images):
        output = F.conv2d(images, weight) * factor
        return F.conv_transpose2d(output.relu() * factor, weight)

    graph = folded(both)
    assert operators(graph) == [aten.convolution.default, aten.relu.default, aten.convolution.default]
    first, second = (node.args[1].target for node in graph.graph.nodes if node.target is aten.convolution.default)
    assert first == second


def test_weights_that_take_two_factors_are_not_those_that_take_one():
    weight, before, behind = torch.randn(4, 4, 3, 3), channels(4), channels(4)

    def twice(images):
        first = F.conv2d(images * before, weight, None, 1, 1) * behind
        return F.conv2d(first.relu() * before, weight, None, 1, 1)

    assert operators(folded(twice)) == [aten.convolution.default, aten.relu.default, aten.convolution.default]


@pytest.mark.parametrize(
    "function",
    [
        # what the convolution gives is needed as it is, as activations are
        lambda output, factor: (output * factor).relu() + output,
        # one factor for each row
        lambda output, factor: output * factor[:5].view(5, 1),
        # factors that depend on the image
        lambda output, factor: output * (factor * output.mean()),
    ],
)
def test_other_products_stay(function):
    weight, factor = torch.randn(8, 4, 3, 3), channels(8)
    graph = folded(lambda images: function(F.conv2d(images, weight), factor))
    assert aten.mul.Tensor in operators(graph)


def test_one_channel_that_becomes_several_stays():
    weight, factor = torch.randn(8, 4, 3, 3), channels(4)
    graph = folded(lambda images: F.conv2d(images[:, :1] * factor, weight))
    assert aten.mul.Tensor in operators(graph)


def test_groups_of_a_scaled_input_stay():
    weight, factor = torch.randn(8, 2, 3, 3), channels(4)
    graph = folded(lambda images: F.conv2d(images * factor, weight, None, 1, 0, 1, 2))
    assert operators(graph) == [aten.mul.Tensor, aten.convolution.default]


def test_a_residual_network_keeps_no_batch_normalisation():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    graph = trace(make_request(resnet18().eval(), "layer3", (64, 64))).explain
    scaled = [
        node
        for node in graph.graph.nodes
        if node.target is aten.mul.Tensor and any(source.op == "get_attr" for source in node.all_input_nodes)
    ]
    assert not scaled
    weights = [node.args[1].target for node in graph.graph.nodes if node.target is aten.convolution.default]
    # layer4 has five convolutions, each of them in the forward pass and in its gradient
    assert len(weights) == 25
    assert len(set(weights)) == 20
