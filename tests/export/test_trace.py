"""The traced graph: right at any batch size, functional, and refused where something would be frozen."""

import dataclasses
import threading

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from camkit.errors import CamkitError
from camkit_export.decompositions import GlobalPoolAsMean
from camkit_export.simplify import fold_constants, share_matrices
from camkit_export.trace import installed_rules, trace
from standin import Small, images, make_request


@pytest.fixture(scope="module")
def graph(small):
    return trace(small)


@pytest.mark.parametrize("batch", [1, 4])
def test_graph_equals_eager(small, graph, batch):
    inputs = torch.from_numpy(images(batch, small.image_shape))
    classes = torch.tensor([-1, 6, 2, -5])[:batch]
    logits, heatmaps, maps, explained = graph(inputs, classes)
    expected_logits, expected_maps, expected_classes = small.explain(inputs, classes)
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(maps, expected_maps, rtol=1e-4, atol=1e-6 * float(expected_maps.abs().max()))
    assert explained.tolist() == expected_classes.tolist()
    assert heatmaps.shape == (batch, *small.image_shape[1:])
    assert heatmaps.amin(dim=(1, 2)).tolist() == [0.0] * batch
    assert heatmaps.amax(dim=(1, 2)).tolist() == [1.0] * batch


def test_graph_is_functional_and_forgets_its_sources(graph):
    for node in graph.explain.graph.nodes:
        assert "backward" not in str(node.target)
        assert "detach" not in str(node.target)
        if isinstance(node.target, torch._ops.OpOverload):
            assert not node.target._schema.is_mutable
        assert not {"stack_trace", "nn_module_stack", "custom"} & set(node.meta)


def test_graph_runs_without_autograd(small, graph):
    with torch.inference_mode():
        outputs = graph(torch.from_numpy(images(2, small.image_shape)), torch.tensor([0, 1]))
    assert not any(output.requires_grad for output in outputs)


def test_missing_rule_names_operator_module_and_hook(small):
    rules, _ = installed_rules()
    kept = {operator: rule for operator, rule in rules.items() if "max_pool2d" not in str(operator)}
    with pytest.raises(CamkitError) as error:
        trace(small, kept, [])
    assert "aten.max_pool2d_with_indices_backward.default" in str(error.value)
    assert "MaxPool2d 'pool'" in str(error.value)
    assert "camkit_decompositions" in str(error.value)


def test_rules_of_plugins_are_installed():
    rules, modes = installed_rules()
    assert torch.ops.aten.convolution_backward.default in rules
    assert GlobalPoolAsMean in modes


def test_number_of_images_as_a_constant_is_refused(small):
    def explain(batch, class_index):
        logits, maps, explained = small.explain(batch, class_index)
        return logits, maps / int(batch.shape[0]), explained

    with pytest.raises(CamkitError, match="depends on the batch size"):
        trace(dataclasses.replace(small, explain=explain))


def test_map_of_one_batch_as_a_constant_is_refused(small):
    frozen = {
        batch: small.explain(torch.zeros(batch, *small.image_shape), torch.zeros(batch).long()) for batch in (3, 5)
    }

    def explain(batch, class_index):
        logits, _, explained = small.explain(batch, class_index)
        return logits, frozen[int(batch.shape[0])][1], explained

    with pytest.raises(CamkitError, match="depends on the batch size"):
        trace(dataclasses.replace(small, explain=explain))


def test_frozen_map_is_refused(small):
    frozen = small.explain(torch.zeros(1, *small.image_shape), torch.zeros(1).long())[1]

    def explain(batch, class_index):
        logits, _, explained = small.explain(batch, class_index)
        return logits, frozen.expand(batch.shape[0], -1, -1), explained

    with pytest.raises(CamkitError, match="map would be frozen"):
        trace(dataclasses.replace(small, explain=explain))


def test_branch_on_values_is_refused(small):
    def explain(batch, class_index):
        logits, maps, explained = small.explain(batch, class_index)
        return logits, maps if maps.sum() > 0 else -maps, explained

    with pytest.raises(CamkitError, match="cannot be traced into a graph"):
        trace(dataclasses.replace(small, explain=explain))


def test_other_threads_may_run_models_meanwhile(small):
    stop, failures = threading.Event(), []
    model = Small().eval()

    def run():
        while not stop.is_set():
            try:
                model(torch.zeros(1, *small.image_shape))
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        trace(small)
    finally:
        stop.set()
        thread.join()
    assert failures == []


def test_model_stays_as_it_was():
    model = Small()
    request = make_request(model, "stage.1", (45, 38))
    before = {name: (value.data_ptr(), value._version, value.grad) for name, value in model.state_dict().items()}
    trace(request)
    assert {
        name: (value.data_ptr(), value._version, value.grad) for name, value in model.state_dict().items()
    } == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_tables_that_are_built_of_nothing_are_constants():
    """As torchvision's Swin builds its mask of windows at every call."""

    def masked(values: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(4, 4)
        mask[:2, 1:] = 1
        return values + mask.masked_fill(mask == 0, -100.0)

    graph = make_fx(torch.func.functionalize(masked))(torch.zeros(2, 4, 4))
    assert any(node.target == torch.ops.aten.slice_scatter.default for node in graph.graph.nodes)
    fold_constants(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert names == ["aten.add.Tensor"]
    values = torch.randn(2, 4, 4)
    assert torch.equal(graph(values), masked(values))


@pytest.mark.parametrize("turned", [False, True])
def test_copies_of_one_matrix_become_one_product(turned):
    weight = torch.randn(5, 4)

    def product(batch):
        copies = (weight if turned else weight.T).expand(len(batch), *(weight if turned else weight.T).shape)
        return torch.bmm(batch, copies.permute(0, 2, 1) if turned else copies)

    # as the tokens of an encoder that takes them first: PyTorch does not make one matrix of it
    batch = torch.randn(3, 2, 4).transpose(0, 1)
    graph = make_fx(product, tracing_mode="symbolic", _allow_non_fake_inputs=True)(batch)
    assert any(node.target is torch.ops.aten.bmm.default for node in graph.graph.nodes)
    share_matrices(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    left = {node.target for node in graph.graph.nodes}
    assert not left & {torch.ops.aten.bmm.default, torch.ops.aten.expand.default}
    for size in (2, 7):
        other = torch.randn(3, size, 4).transpose(0, 1)
        torch.testing.assert_close(graph(other), product(other))


def test_products_of_many_matrices_stay_as_they_are():
    graph = make_fx(torch.bmm, tracing_mode="symbolic")(torch.randn(2, 3, 4), torch.randn(2, 4, 5))
    share_matrices(graph)
    assert any(node.target is torch.ops.aten.bmm.default for node in graph.graph.nodes)
