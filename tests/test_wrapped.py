"""Wrapped, compiled, scripted and quantised models: explained as what is inside, or refused in one sentence."""

import copy
import threading
from functools import partial

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import zoo
from camkit import CamkitError, Explainer
from camkit.adapter import Adapter
from camkit.registry import registry
from camkit.walk import walk

# the gradient of the recorded head, of the whole model, and of the head with the activations replaced
METHODS = ["gradcam", "guided-backprop", "shapleycam"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:Please use quant_min"),
]


class Small(nn.Module):
    """Two convolutions, a sum, pooling, a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, zoo.CLASSES)
        zoo.randomised(self)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.first(images))
        features = F.relu(self.second(features) + features)
        return self.fc(features.mean(dim=(2, 3)))


ADAPTER = Adapter(name="small", targets={"last": "second"}, classifier="fc")


def resnet():
    """A model of the test's own, since compiling changes it."""
    return copy.deepcopy(zoo.random_model("timm:resnet"))


def images():
    return zoo.images(2, 64)


@pytest.fixture(scope="module")
def expected():
    """What the plain model gives, by method."""
    explained = Explainer(zoo.random_model("timm:resnet"))(images(), METHODS, 3, relu=False)
    assert all(one.maps.flatten(1).std(dim=1).min() > 0 for one in explained)
    return explained


def assert_explained_alike(explainer, expected):
    for one, other in zip(explainer(images(), METHODS, 3, relu=False), expected, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.maps, other.maps)


class Compiler:
    """A backend of torch.compile that runs graphs as they are and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


# --- wrappers


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


WRAPPERS = {
    "data parallel": nn.DataParallel,
    "compiled": compiled,
    "compiled by autograd's compiler": partial(torch.compile, backend="aot_eager"),
    "data parallel, compiled": lambda model: compiled(nn.DataParallel(model)),
    "compiled, data parallel": lambda model: nn.DataParallel(compiled(model)),
    "compiled in place, data parallel": lambda model: nn.DataParallel(compiled_in_place(model)),
    "data parallel, compiled in place": lambda model: compiled_in_place(nn.DataParallel(model)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_explained_as_the_model_inside(wrapper, expected, watch):
    model = resnet()
    wrapped = WRAPPERS[wrapper](model)
    before = wrapped(images()).detach()
    explainer = Explainer(watch(wrapped))
    assert explainer.module is model
    assert_explained_alike(explainer, expected)
    assert torch.equal(wrapped(images()), before)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    """This process as a group of its own."""
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=store.as_uri(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


DISTRIBUTED = {
    "distributed": DistributedDataParallel,
    "distributed, compiled": lambda model: compiled(DistributedDataParallel(model)),
    "compiled, distributed": lambda model: DistributedDataParallel(compiled(model)),
    "compiled in place, distributed": lambda model: DistributedDataParallel(compiled_in_place(model)),
}


@pytest.mark.parametrize("wrapper", DISTRIBUTED)
def test_a_distributed_model_is_explained_as_the_model_inside(wrapper, expected, process_group, watch):
    model = resnet()
    wrapped = DISTRIBUTED[wrapper](model)
    explainer = Explainer(watch(wrapped))
    assert explainer.module is model
    assert_explained_alike(explainer, expected)


def test_a_distributed_model_goes_on_to_share_its_gradients(process_group):
    shared = []

    def share(state, bucket):
        shared.append(bucket.buffer().numel())
        return allreduce_hook(state, bucket)

    model = resnet()
    wrapped = DistributedDataParallel(model)
    wrapped.register_comm_hook(None, share)
    Explainer(wrapped)(images(), METHODS, 3, relu=False)
    assert shared == []
    wrapped(images()).sum().backward()
    assert sum(shared) == sum(parameter.numel() for parameter in model.parameters())


# --- compiled models


def forward_function(model, backend):
    model.forward = torch.compile(model.forward, backend=backend)
    return model


def in_place(model, backend):
    model.compile(backend=backend)
    return model


def parts_in_place(model, backend):
    for part in (model.layer1, *model.layer4):
        part.compile(backend=backend)
    return model


def parts(model, backend):
    model.layer2 = torch.compile(model.layer2, backend=backend)
    model.layer4[0] = torch.compile(model.layer4[0], backend=backend)
    return model


COMPILED = [in_place, parts_in_place, parts, forward_function]


@pytest.mark.parametrize("run_before", [True, False])
@pytest.mark.parametrize("compile_it", COMPILED)
def test_a_compiled_model_runs_as_it_was_written(compile_it, run_before, expected, watch):
    compiler = Compiler()
    model = compile_it(resnet(), compiler)
    if run_before:
        model(images())
    seen = compiler.graphs
    assert_explained_alike(Explainer(watch(model)), expected)
    walk(model, images(), gradients=True)
    assert compiler.graphs == seen
    # with the grad mode of the caller, for which it was compiled if at all
    model(images())
    assert (compiler.graphs == seen) is run_before


def test_the_head_of_a_compiled_model_is_run_alone():
    """A warning, which is an error here, would say if it could not be had as a graph."""
    plain = Small()
    found, expected = (
        Explainer(one, adapter=ADAPTER)(zoo.images(), "ablationcam", 3, relu=False)
        for one in (in_place(copy.deepcopy(plain), Compiler()), plain)
    )
    assert expected.maps.std() > 0
    assert torch.equal(found.maps, expected.maps)


def test_layers_inside_a_compiled_part_keep_their_paths():
    plain = Explainer(zoo.random_model("timm:resnet"))
    explainer = Explainer(parts(resnet(), "eager"))
    layers = ["layer4.0.conv2", "layer4.-1.conv1", "layer2.-1", "layer2.0.act1", "layer4.-1"]
    found, expected = (one(images(), "gradcam", 3, layers, relu=False) for one in (explainer, plain))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.maps, other.maps)
    with zoo.refused("no layer 'layer4.0.conv7'", "nothing is called 'conv7'"):
        Explainer(explainer.module, layer="layer4.0.conv7")


class Meeting(nn.Module):
    """Says that it runs, and waits for something before it ends."""

    def __init__(self, running, waits_for):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.running, self.waits_for = running, waits_for
        zoo.randomised(self)

    def forward(self, images):
        self.running.set()
        assert self.waits_for.wait(30)
        return self.head(self.conv(images).mean(dim=(2, 3)))


def test_compiling_goes_on_after_explanations_in_two_threads():
    """The first to begin is the first to end; the second found compiling switched off and must not leave it so."""
    first_runs, second_runs, first_is_done = threading.Event(), threading.Event(), threading.Event()
    adapter = Adapter(name="meeting", targets={"last": "conv"})
    first = Explainer(compiled_in_place(Meeting(first_runs, second_runs)), adapter=adapter)
    second = Explainer(compiled_in_place(Meeting(second_runs, first_is_done)), adapter=adapter)
    thread = threading.Thread(target=lambda: second(zoo.images(1, 16)))
    start = threading.Thread(target=lambda: (first_runs.wait(30), thread.start()))
    start.start()
    first(zoo.images(1, 16))
    first_is_done.set()
    start.join()
    thread.join()
    compiler = Compiler()
    torch.compile(nn.Linear(3, 2), backend=compiler)(torch.ones(1, 3))
    assert compiler.graphs == 1


# --- TorchScript


def loaded(tmp_path):
    torch.jit.script(Small()).save(tmp_path / "small.pt")
    return torch.jit.load(tmp_path / "small.pt")


SCRIPTED = {
    "scripted": lambda folder: torch.jit.script(Small()),
    "traced": lambda folder: torch.jit.trace(Small(), zoo.images()),
    "loaded": loaded,
    "traced, data parallel": lambda folder: nn.DataParallel(torch.jit.trace(Small(), zoo.images())),
}


@pytest.mark.parametrize("kind", SCRIPTED)
def test_a_scripted_model_is_refused(kind, tmp_path):
    model = SCRIPTED[kind](tmp_path)
    with zoo.refused("scripted model", "cannot be watched", "give the Python model"):
        Explainer(model, adapter=ADAPTER)
    with zoo.refused("scripted model"):
        walk(model, zoo.images())


# --- quantised models


def dynamic(dtype, model=None):
    """The linear layer in integers or half precision; the convolutions stay as they are."""
    return torch.ao.quantization.quantize_dynamic(model or Small(), {nn.Linear}, dtype=dtype).eval()


def static():
    """Everything in integers, from the first layer to the last."""
    prepared = prepare_fx(Small(), get_default_qconfig_mapping(), (zoo.images(),))
    prepared(zoo.images(8, seed=1))
    return convert_fx(prepared).eval()


class QuantizedWeight(Tensor):
    """A weight that counts as quantised and enters a product as the numbers that it stands for."""


class QuantizedProduct(QuantizedWeight):
    """A weight whose products are made of integers."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            inputs, weight, *bias = args
            scale = inputs.abs().max() / 127
            inputs = (inputs / scale).round().to(torch.int8) * scale.detach()
            return F.linear(inputs, weight.as_subclass(Tensor), *bias)
        return super().__torch_function__(function, types, args, kwargs or {})


def with_weight(kind):
    model = Small()
    model.fc.weight = nn.Parameter(model.fc.weight.detach().as_subclass(kind), requires_grad=False)
    return model


QUANTISED = {
    "int8, dynamic": (lambda: dynamic(torch.qint8), "'fc' is quantised (torch.ao.nn.quantized.dynamic.Linear)"),
    "float16, dynamic": (lambda: dynamic(torch.float16), "'fc' is quantised (torch.ao.nn.quantized.dynamic.Linear)"),
    "int8, static": (static, "'first' is quantised (torch.ao.nn.intrinsic.quantized.ConvReLU2d)"),
    "weights of a class of their own": (lambda: with_weight(QuantizedProduct), "'fc' is quantised (QuantizedProduct)"),
}


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.filterwarnings("ignore:The part of the model behind:camkit.errors.CamkitWarning")
@pytest.mark.filterwarnings("ignore::camkit.errors.MapWarning")
def test_methods_without_gradients_explain_a_quantised_model_and_the_others_are_refused(kind, watch):
    make, sentence = QUANTISED[kind]
    explainer = Explainer(watch(make()), adapter=ADAPTER)
    explained, refusals = {}, {}
    for method in registry().values("method"):
        target = 3 if method.class_specific else "class"
        options = {"rise.masks": 60} if method.name == "rise" else {}
        try:
            explained[method.name] = explainer(zoo.images(2, 24), method.name, target, options=options, relu=False)
        except CamkitError as error:
            refusals[method] = str(error)
    assert set(explained) >= {"eigencam", "kpcacam", "dff", "ablationcam", "reciprocam", "scorecam", "rise"}
    for name, explanation in explained.items():
        assert bool(explanation.maps.isfinite().all()), name
        assert float(explanation.maps.std()) > 0, name
    for method in (method for method in refusals if any(quantity.graph for quantity in method.quantities)):
        assert sentence in refusals[method]
    assert {method.name for method in refusals if sentence not in refusals[method]} <= {"cam", "legrad", "rollout"}


def test_the_refusal_names_methods_that_need_no_gradients():
    with pytest.raises(CamkitError) as caught:
        Explainer(dynamic(torch.qint8), adapter=ADAPTER)(zoo.images())
    head, _, named = str(caught.value).removesuffix(".").partition(", such as ")
    assert head == (
        "The model has no gradients because its layer 'fc' is quantised (torch.ao.nn.quantized.dynamic.Linear); "
        "explain the model that was quantised, or use a method that needs none"
    )
    methods = {method.name: method for method in registry().values("method")}
    for name in named.split(", "):
        assert methods[name].kind == "map"
        assert not any(quantity.graph or quantity.reruns for quantity in methods[name].quantities)
    assert "eigencam" in named.split(", ")


def test_what_is_computed_from_floating_point_activations_is_as_before():
    """With a quantised head alone the activations are those of the model that was quantised."""
    model = Small()
    found, expected = (
        Explainer(one, adapter=ADAPTER)(zoo.images(), ["eigencam", "dff"], relu=False)
        for one in (dynamic(torch.qint8, model), model)
    )
    for one, other in zip(found, expected, strict=True):
        assert other.maps.std() > 0
        assert torch.equal(one.maps, other.maps)


@pytest.mark.filterwarnings("ignore:The part of the model behind:camkit.errors.CamkitWarning")
def test_the_output_of_a_quantised_layer_is_read_and_replaced_as_the_numbers_it_stands_for(watch):
    model, kept, channel = watch(static()), [], None

    def ablate(module, inputs, output):
        kept.append(output)
        if channel is not None:
            integers = output.int_repr()
            integers[:, channel] = output.q_zero_point()
            return torch._make_per_tensor_quantized_tensor(integers, output.q_scale(), output.q_zero_point())
        return None

    handle = model.second.register_forward_hook(ablate)
    whole = model(zoo.images())[:, 3]
    activations = kept[0].dequantize()
    drops = []
    for channel in range(activations.shape[1]):  # noqa: B007 - the hook reads it
        drops.append((whole - model(zoo.images())[:, 3]) / whole.abs())
    handle.remove()
    assert kept[0].dtype == torch.quint8
    expected = torch.einsum("kb,bkhw->bhw", torch.stack(drops), activations)
    assert expected.flatten(1).std(dim=1).min() > 0
    found = Explainer(model, adapter=ADAPTER)(zoo.images(), "ablationcam", 3, relu=False)
    torch.testing.assert_close(found.maps, expected, rtol=1e-5, atol=1e-6)
    assert found.layer == "second"


def test_an_attack_on_a_quantised_model_is_refused_and_its_logits_are_not():
    explainer = Explainer(dynamic(torch.qint8), adapter=ADAPTER)
    assert explainer.logits(zoo.images()).shape == (2, zoo.CLASSES)
    with zoo.refused("no gradients because its layer 'fc' is quantised"):
        explainer.logits(zoo.images().requires_grad_())


def test_without_an_adapter_a_quantised_model_is_explained_at_a_named_layer():
    """Its layers cannot be tried by their gradients."""
    explainer = Explainer(static())
    expected = Explainer(explainer.module, adapter=ADAPTER)(zoo.images(), "eigencam", relu=False)
    assert torch.equal(explainer(zoo.images(), "eigencam", layer="second", relu=False).maps, expected.maps)
    with zoo.refused("names no target layer; give one"):
        explainer(zoo.images(), "eigencam")
    with zoo.refused("no gradients because its layer 'first' is quantised"):
        explainer(zoo.images(), layer="second")


class NotYet(Small):
    """A model written to be quantised: it adds with a module, which until then is an addition."""

    def __init__(self):
        super().__init__()
        self.add = FloatFunctional().eval()

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.first(images))
        features = self.add.add_relu(self.second(features), features)
        return self.fc(features.mean(dim=(2, 3)))


@pytest.mark.parametrize("make", [NotYet, lambda: with_weight(QuantizedWeight)], ids=["not yet", "weights alone"])
def test_a_model_that_gradients_pass_through_is_explained_with_them(make, watch):
    model = make()
    plain = Small()
    plain.load_state_dict({name: tensor.as_subclass(Tensor) for name, tensor in model.state_dict().items()})
    found, expected = (
        Explainer(watch(one), adapter=ADAPTER)(zoo.images(), target=3, relu=False) for one in (model, plain)
    )
    assert expected.maps.std() > 0
    torch.testing.assert_close(found.maps, expected.maps)
