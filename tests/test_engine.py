"""The rules of the engine: what a model may look like, who may call, and that it comes back as it was."""

import copy
import threading
import warnings
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from camkit import CamkitError, CamkitWarning, Explainer, Target
from camkit.adapter import Adapter
from camkit.registry import registry
from camkit.testing import Oracle, assert_agrees, state

METHODS = ["gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"]


class Small(nn.Module):
    """Two convolutions, pooling, a linear layer; `wrap` makes the output of it, `between` stands behind `second`."""

    def __init__(self, *, channels=3, classes=zoo.CLASSES, between=None, wrap=None):
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, classes)
        self.between, self.wrap = between or F.relu, wrap or (lambda logits: logits)
        zoo.randomised(self)

    def forward(self, images):
        features = self.between(self.second(F.relu(self.first(images))))
        return self.wrap(self.fc(features.mean(dim=(2, 3))))


ADAPTER = Adapter(name="small", targets={"last": {"path": "second"}}, classifier="fc")


def explainer(model, **options):
    return Explainer(zoo.watch(model), adapter=ADAPTER.model_copy(update=options))


def oracle_agrees(model_explainer, images, method="gradcam", layer=None, class_index=3, **options):
    found = model_explainer(images, method, class_index, layer, relu=False)
    reference = Oracle(model_explainer, images, method, layer)(images, torch.full((len(images),), class_index))
    assert_agrees(found.logits, found.maps, reference, found.size, relu=False, **options)
    return found


# --- the model comes back as it was


def test_state_notices_everything_that_an_explanation_could_leave_behind():
    """The check that every test here relies on is itself one that can fail."""
    changes = {
        "requires_grad": lambda m: m.fc.weight.requires_grad_(False),
        "grad": lambda m: setattr(m.fc.weight, "grad", torch.zeros_like(m.fc.weight)),
        "hook": lambda m: m.second.register_forward_hook(lambda *_: None),
        "training": lambda m: m.second.train(),
        "in-place flag": lambda m: setattr(m.relu, "inplace", True),
        "dtype": lambda m: m.double(),
        "buffer": lambda m: m.norm.running_mean.add_(1),
        "weight": lambda m: nn.init.zeros_(m.fc.weight),
        "module": lambda m: setattr(m, "second", copy.deepcopy(m.second)),
    }
    for name, change in changes.items():
        model = Small()
        model.norm, model.relu = nn.BatchNorm2d(8).eval(), nn.ReLU().eval()
        before = state(model)
        assert state(model) == before
        change(model)
        assert state(model) != before, name


class BoomError(Exception):
    pass


def boom(*_):
    raise BoomError("something in it broke")


def test_the_model_is_as_it_was_after_an_exception_in_its_forward():
    model = Small(between=boom)
    with pytest.raises(BoomError):
        explainer(model)(zoo.images())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", ["method", "target"])
def test_the_model_is_as_it_was_after_an_exception_in_a_plugin(kind, monkeypatch):
    """The registered function itself is exchanged, as a third party's broken one would be."""
    name = {"method": "gradcam", "target": "class"}[kind]
    item = registry()._items[kind][name]
    broken = replace(item, value=replace(item.value, function=boom))
    monkeypatch.setitem(registry()._items[kind], name, broken)
    with pytest.raises((BoomError, CamkitError), match="something in it broke"):
        explainer(Small())(zoo.images())
    assert torch.is_grad_enabled()


def test_the_users_own_gradients_and_flags_survive():
    model = Small()
    model(zoo.images()).sum().backward()
    model.first.bias.requires_grad_(False)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    explainer(model)(zoo.images(), METHODS)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, gradients[name])
        assert parameter.requires_grad == (name != "first.bias")


def test_the_images_stay_as_they_were_and_may_require_gradients():
    images = zoo.images().requires_grad_()
    before = images.detach().clone()
    explainer(Small())(images, METHODS)
    assert images.grad is None
    assert images._version == 0
    assert torch.equal(images, before)


# --- whoever calls, the same maps


def inference_images():
    with torch.inference_mode():
        return zoo.images().clone()


CALLERS = {
    "no_grad": (torch.no_grad, zoo.images, None),
    "inference mode": (torch.inference_mode, zoo.images, None),
    "inference mode, images made in it": (torch.inference_mode, inference_images, None),
    "images made in inference mode": (torch.enable_grad, inference_images, None),
    "frozen parameters": (torch.enable_grad, zoo.images, lambda model: model.requires_grad_(False)),
    "frozen parameters, no_grad": (torch.no_grad, zoo.images, lambda model: model.requires_grad_(False)),
}


@pytest.mark.parametrize("target", ["top", "last", 3, "counterfactual:top", torch.tensor([1, 4])], ids=str)
@pytest.mark.parametrize("caller", CALLERS)
def test_the_callers_mode_changes_nothing(caller, target):
    mode, make, prepare = CALLERS[caller]
    model = Small()
    expected = explainer(model)(zoo.images(), METHODS, target, relu=False)
    frozen = copy.deepcopy(model)
    if prepare:
        prepare(frozen)
    with mode():
        found = explainer(frozen)(make(), METHODS, target, relu=False)
        inside = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        assert inside == ("inference mode" in caller and "made in inference" not in caller, mode is torch.enable_grad)
    for one, other in zip(found, expected, strict=True):
        assert one.maps.flatten(1).std(dim=1).min() > 0
        assert torch.equal(one.maps, other.maps)


def test_a_class_index_made_in_inference_mode_is_accepted():
    with torch.inference_mode():
        index = torch.tensor([1, 4])
    assert explainer(Small())(zoo.images(), target=index, relu=False).targets.tolist() == [1, 4]


def test_a_layer_that_passes_images_made_in_inference_mode_on():
    """The activations are then the caller's own tensor, for which autograd can record nothing."""
    model = nn.Sequential(nn.Identity(), Small()).eval()
    plain = Explainer(zoo.watch(model), adapter=Adapter(name="identity"))
    found = plain(inference_images(), layer="0", target=3, relu=False)
    assert torch.equal(found.maps, plain(zoo.images(), layer="0", target=3, relu=False).maps)


def test_a_model_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        model = Small()
    with zoo.refused("inference_mode", "build it outside"):
        Explainer(model, adapter=ADAPTER)(zoo.images())


# --- in-place operations and modules called twice


def test_a_layer_before_an_in_place_relu_keeps_its_negative_activations(random_model):
    """VGG's features.-3 is a convolution, features.-2 an in-place ReLU that overwrites its output."""
    model = random_model("torchvision:vgg11")
    kept = {}
    found = Explainer(model)(zoo.images(2, 64), ["hirescam", "gradcam"], 3, ["features.-3", "features.-2"], relu=False)
    handles = [
        model.features[index].register_forward_hook(lambda m, i, o, index=index: kept.update({index: o.clone()}))
        for index in (18, 19)
    ]
    model(zoo.images(2, 64))
    for handle in handles:
        handle.remove()
    assert bool((kept[18] < 0).any())
    # behind the ReLU only positive activations count, in front of it the gradient is zero where they are negative
    before, behind = found[0].maps, found[1].maps
    torch.testing.assert_close(before, behind, rtol=1e-5, atol=1e-7)
    gradcam_before, gradcam_behind = found[2].maps, found[3].maps
    assert not torch.allclose(gradcam_before, gradcam_behind, rtol=0.1)
    for layer in ("features.-3", "features.-2"):
        oracle_agrees(Explainer(model), zoo.images(2, 64), layer=layer)


RELUS = {"module": nn.ReLU(inplace=True), "function": lambda x: F.relu(x, inplace=True), "method": lambda x: x.relu_()}


@pytest.mark.parametrize("relu", RELUS)
def test_an_in_place_relu_behind_the_layer_gives_the_map_of_a_plain_one(relu):
    torch.manual_seed(1)
    found = explainer(Small(between=RELUS[relu]))(zoo.images(), METHODS, 3, relu=False)
    torch.manual_seed(1)
    expected = explainer(Small())(zoo.images(), METHODS, 3, relu=False)
    assert all(torch.equal(one.maps, other.maps) for one, other in zip(found, expected, strict=True))
    assert expected[0].maps.std() > 0


def test_the_functional_in_place_relu_behind_densenets_last_norm(random_model):
    found = oracle_agrees(Explainer(random_model("torchvision:densenet")), zoo.images(2, 64), layer="features.norm5")
    assert found.layer == "features.norm5"


def test_layers_beside_an_in_place_residual_sum():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, images):
            features = self.first(images)
            return self.second(features).add_(features).relu_()

    model = nn.Sequential(Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, zoo.CLASSES))
    plain = Explainer(zoo.watch(zoo.randomised(model)), adapter=Adapter(name="residual"))
    for layer in ("0", "0.first", "0.second"):
        oracle_agrees(plain, zoo.images(), layer=layer)


def test_a_layer_whose_own_output_is_overwritten_through_another_name_is_refused():
    class Keeping(nn.Conv2d):
        def forward(self, images):
            self.kept = super().forward(images)
            return self.kept

    class Overwriting(Small):
        def forward(self, images):
            features = self.second(F.relu(self.first(images)))
            self.second.kept.mul_(0)
            return self.fc(features.mean(dim=(2, 3)))

    model = Overwriting()
    model.second = Keeping(6, 8, 3).eval()
    with zoo.refused("overwrites the output of the layer 'second' in place", "choose the layer behind it"):
        explainer(model)(zoo.images())


def test_a_target_layer_that_runs_twice_is_refused_and_other_modules_may():
    class Twice(Small):
        def forward(self, images):
            features = self.first(self.back(self.first(images)))
            return self.fc(self.second(features).mean(dim=(2, 3)))

    model = Twice()
    model.back = nn.Conv2d(6, 3, 1)
    zoo.randomised(model)
    with zoo.refused("'first' runs more than once", "choose a layer that runs once"):
        explainer(model)(zoo.images(), layer="first")
    oracle_agrees(explainer(model), zoo.images(), layer="second")
    oracle_agrees(explainer(model), zoo.images(), layer="back")


# --- outputs of layers and of models


class Pair(NamedTuple):
    extra: Tensor
    features: Tensor


LAYER_OUTPUTS = {
    "tuple": (lambda x: (x * 2, x), 1, lambda out: out[1]),
    "tuple from its end": (lambda x: (x * 2, x), -1, lambda out: out[1]),
    "list": (lambda x: [x, x * 2], 0, lambda out: out[0]),
    "dict": (lambda x: {"a": x * 2, "b": x}, "b", lambda out: out["b"]),
    "named tuple": (lambda x: Pair(x * 2, x), 1, lambda out: out.features),
}


class Wrapped(nn.Module):
    """A layer whose output is not a bare tensor."""

    def __init__(self, inner, make):
        super().__init__()
        self.inner, self.make = inner, make

    def forward(self, features):
        return self.make(self.inner(features))


@pytest.mark.parametrize("kind", LAYER_OUTPUTS)
def test_the_adapter_names_the_element_of_a_layers_output(kind):
    make, element, take = LAYER_OUTPUTS[kind]
    torch.manual_seed(1)
    plain = Small()
    wrapped = copy.deepcopy(plain)
    wrapped.second = Wrapped(wrapped.second, make)
    wrapped.between = lambda out: F.relu(take(out))
    position = {"path": "second", "element": element}
    named = Adapter(name="wrapped", targets={"last": position})
    expected = explainer(plain)(zoo.images(), METHODS, relu=False)
    found = Explainer(zoo.watch(wrapped.eval()), adapter=named)(zoo.images(), METHODS, relu=False)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.maps, other.maps)
    with zoo.refused("'second' gives", "of 2 tensors", "element"):
        explainer(wrapped)(zoo.images())
    with zoo.refused("'second' has no element 7"):
        Explainer(wrapped, adapter=Adapter(name="x", targets={"last": {"path": "second", "element": 7}}))(zoo.images())


class Output(NamedTuple):
    loss: Tensor
    logits: Tensor


MODEL_OUTPUTS = {
    "tensor": (lambda x: x, None),
    "tuple": (lambda x: (x, x * 2), None),
    "tuple, second": (lambda x: (x.exp(), x), 1),
    "dict with logits": (lambda x: {"aux": x * 2, "logits": x}, None),
    "dict with out": (lambda x: {"out": x}, None),
    "dict, named": (lambda x: {"logits": x * 2, "scores": x}, "scores"),
    "attribute": (lambda x: Output(x.sum(), x), None),
}


@pytest.mark.parametrize("kind", MODEL_OUTPUTS)
def test_the_logits_are_found_in_the_models_output(kind):
    wrap, key = MODEL_OUTPUTS[kind]
    torch.manual_seed(1)
    found = explainer(Small(wrap=wrap), output=key)(zoo.images(), METHODS, relu=False)
    torch.manual_seed(1)
    expected = explainer(Small())(zoo.images(), METHODS, relu=False)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.maps, other.maps)


@pytest.mark.parametrize(
    ("wrap", "key", "words"),
    [
        (lambda x: x[:, :, None], None, "tensor of shape [2, 10, 1]"),
        (lambda x: {"aux": x}, None, "logits of shape [batch, classes] are expected"),
        (lambda x: "text", None, "is str"),
        (lambda x: {"logits": x}, "scores", "no entry 'scores'"),
    ],
)
def test_an_output_without_logits_is_refused(wrap, key, words):
    with zoo.refused(words):
        explainer(Small(wrap=wrap), output=key)(zoo.images())


# --- shapes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (33, 47)], ids=str)
def test_images_need_not_be_square(shape, method):
    found = oracle_agrees(explainer(Small()), zoo.images(2, shape), method)
    assert found.maps.shape == (2, (shape[0] + 1) // 2, (shape[1] + 1) // 2)
    assert found.heatmaps.shape == (2, *shape)


def test_one_channel_images():
    oracle_agrees(explainer(Small(channels=1)), zoo.images(2, channels=1))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: x[:, 0]], ids=["[B, 1]", "[B]"])
@pytest.mark.parametrize("count", [1, 3])
def test_single_logit_models(wrap, count):
    found = oracle_agrees(explainer(Small(classes=1, wrap=wrap)), zoo.images(count), class_index=0)
    assert found.logits.shape == (count, 1)
    torch.testing.assert_close(found.probabilities, found.logits.sigmoid())
    with zoo.refused("Class 1 was asked for, but the model has 1 classes"):
        explainer(Small(classes=1, wrap=wrap))(zoo.images(count), target=1)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 48, 48), "shape [3, 48, 48]"),
        (torch.zeros(2, 3, 48, 48, dtype=torch.uint8), "uint8"),
        (torch.zeros(0, 3, 48, 48), "shape [0, 3, 48, 48]"),
        ("picture.png", "str"),
        (torch.zeros(2, 3, 48, 48, dtype=torch.float64), "convert one to the other"),
    ],
    ids=["three dimensions", "integers", "no image", "a path", "float64"],
)
def test_images_that_cannot_be_explained_are_refused(images, words):
    with zoo.refused(words):
        explainer(Small())(images)


def test_probabilities_are_softmax_or_sigmoid_as_the_adapter_says():
    softmax = explainer(Small())(zoo.images(), relu=False)
    sigmoid = explainer(Small(), probability="sigmoid")(zoo.images(), relu=False)
    torch.testing.assert_close(softmax.probabilities, softmax.logits.softmax(dim=1))
    torch.testing.assert_close(sigmoid.probabilities, sigmoid.logits.sigmoid())
    torch.testing.assert_close(softmax.probabilities.sum(dim=1), torch.ones(2))
    assert Explainer(zoo.camkit.load_model("demo:resnet")).probability == "sigmoid"


# --- wrappers, precision, memory format


def test_a_compiled_model_is_explained_as_the_model_inside(random_model):
    model = random_model("timm:resnet")
    compiled = torch.compile(model, backend="eager")
    compiled(zoo.images(2, 64))
    found, expected = Explainer(compiled)(zoo.images(2, 64)), Explainer(model)(zoo.images(2, 64))
    assert Explainer(compiled).module is model
    assert torch.equal(found.maps, expected.maps)


def data_parallel_and_compiled(model):
    return nn.DataParallel(torch.compile(model, backend="eager"))


@pytest.mark.parametrize("wrap", [nn.DataParallel, data_parallel_and_compiled])
def test_a_data_parallel_model_is_explained_as_the_model_inside(wrap, random_model):
    model = random_model("timm:resnet")
    assert Explainer(wrap(model)).module is model
    found, expected = Explainer(wrap(model))(zoo.images(2, 64)), Explainer(model)(zoo.images(2, 64))
    assert torch.equal(found.maps, expected.maps)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning")
def test_a_model_compiled_in_place():
    model = Small()
    expected = explainer(model)(zoo.images(), relu=False)
    compiled = copy.deepcopy(model)
    compiled.compile(backend="eager")
    compiled(zoo.images())
    torch.testing.assert_close(explainer(compiled)(zoo.images(), relu=False).maps, expected.maps)


@pytest.mark.parametrize("method", METHODS)
def test_channels_last(method, random_model):
    model = copy.deepcopy(zoo.random_model("timm:resnet")).to(memory_format=torch.channels_last)
    found = oracle_agrees(
        Explainer(zoo.watch(model)), zoo.images(2, (64, 96)).to(memory_format=torch.channels_last), method
    )
    assert found.maps.shape[1:] == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_maps_are_float32_whatever_the_model_is(dtype):
    found = explainer(Small().to(dtype))(zoo.images().to(dtype), relu=False)
    assert found.maps.dtype == found.heatmaps.dtype == torch.float32
    assert found.logits.dtype == dtype
    torch.testing.assert_close(found.probabilities.sum(dim=1).float(), torch.ones(2), rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_autocast(method):
    model = Small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = explainer(model)(zoo.images(), method, 3, relu=False)
        assert torch.is_autocast_enabled("cpu")
    assert found.logits.dtype == torch.bfloat16
    reference = Oracle(explainer(model), zoo.images(), method)(zoo.images(), torch.full((2,), 3))
    # a heatmap is the map over its maximum, and both are rounded
    assert_agrees(found.logits, found.maps, reference, found.size, relu=False, allowed=2e-2, heatmap_allowed=4e-2)


# --- what is refused


@pytest.mark.parametrize("part", ["", "second"])
def test_a_model_in_training_mode_is_refused(part):
    model = Small()
    model.get_submodule(part).train()
    with zoo.refused("training mode", "model.eval()", *([f"'{part}'"] if part else [])):
        Explainer(model, adapter=ADAPTER)


def test_a_model_set_to_training_after_the_explainer_was_made_is_refused():
    model = Small()
    made = Explainer(model, adapter=ADAPTER)
    model.train()
    with zoo.refused("training mode", "model.eval()"):
        made(zoo.images())


def test_a_layer_that_never_runs_is_refused():
    model = Small()
    model.parts = nn.ModuleList([model.first, model.second])
    model.spare = nn.Conv2d(3, 3, 1)
    model.eval()
    with zoo.refused("'spare' never runs in a forward pass", "camkit doctor"):
        explainer(model)(zoo.images(), layer="spare")
    # a list of modules cannot run; it stands for its last
    assert explainer(model)(zoo.images(), layer="parts").layer == "parts.1"


def test_a_layer_without_influence_is_refused():
    class Aside(Small):
        def forward(self, images):
            self.aside(images)
            return super().forward(images)

    model = Aside()
    model.aside = nn.Conv2d(3, 4, 3).eval()
    with zoo.refused("'aside' has no influence on the scores"):
        explainer(model)(zoo.images(), layer=["aside", "second"])
    with zoo.refused("'aside'"):
        explainer(model)(zoo.images(), layer="aside")


def test_a_layer_without_positions_is_refused(random_model):
    resnet = Explainer(random_model("torchvision:resnet18"))
    for layer, words in {"avgpool": "1x1 maps", "fc": "shape [2, 10]"}.items():
        with zoo.refused(words):
            resnet(zoo.images(2, 64), layer=layer)


def test_an_unknown_layer_method_or_option_is_refused_with_the_nearest_names(random_model):
    resnet = Explainer(random_model("torchvision:resnet18"))
    images = zoo.images(1, 64)
    for call, words in [
        (lambda: resnet(images, layer="layr4"), "did you mean 'layer4'"),
        (lambda: resnet(images, layer="layer4.7"), "There is no layer 'layer4.7'"),
        (lambda: Explainer(resnet.module, "stag3"), "did you mean 'stage3'"),
        (lambda: resnet(images, method="gradcm"), "did you mean 'gradcam'"),
        (lambda: resnet(images, options={"alpha": 1}), "has no option 'alpha'"),
        (lambda: resnet(images, ["gradcam", "cam"], options={"alpha": 1}), "'method.alpha'"),
        (lambda: resnet(images, ["gradcam"], options={"cam.alpha": 1}), "which was not asked for"),
        (lambda: resnet(images, []), "At least one method"),
        (lambda: Explainer(42), "not int"),
    ]:
        with zoo.refused(words):
            call()


# --- blank maps are said to be blank


def test_the_layer_behind_a_class_tokens_last_attention_gives_a_zero_map_and_a_warning(random_model):
    for name, layer in {"timm:vit": "blocks.-1", "torchvision:vit": "encoder.layers.-1"}.items():
        with pytest.warns(CamkitWarning, match="behind a class token's last attention") as caught:
            found = Explainer(random_model(name))(zoo.images(), layer=layer)
        assert bool((found.maps == 0).all())
        assert bool((found.heatmaps == 0).all())
        assert all("zero everywhere" in note for note in found.notes)
        assert caught[0].filename == __file__, "the warning points at the user's line"


def test_a_map_that_is_not_finite_is_said_so():
    model = Small().half()
    with torch.no_grad():
        model.second.weight.abs_().mul_(1e4)
    with pytest.warns(CamkitWarning, match="not finite.*try float32"):
        found = explainer(model)(zoo.images().half() * 10)
    assert not bool(found.maps.isfinite().all())
    assert all(found.notes)


def test_a_map_without_a_positive_value_is_said_so_only_where_relu_blanks_it():
    model = Small()
    with torch.no_grad():
        model.fc.weight[3] = -model.fc.weight[3].abs()
        model.second.bias.add_(5)
        model.second.weight.abs_()
    with pytest.warns(CamkitWarning, match="of images 0, 1 has no positive value"):
        found = explainer(model)(zoo.images(), "hirescam", 3)
    assert bool((found.maps <= 0).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error", CamkitWarning)
        assert not any(explainer(model)(zoo.images(), "hirescam", 3, relu=False).notes)


# --- several at once


def test_several_methods_layers_and_targets_in_one_pass_equal_single_calls(random_model):
    model = random_model("timm:resnet")
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    zoo.forget()
    made, images = Explainer(zoo.watch(model)), zoo.images(2, 64)
    methods, layers, targets = [*METHODS, "cam"], ["last", "layer3", "layer2.0"], ["top", 3, "counterfactual:3"]
    try:
        with zoo.refused("CAM needs"):
            made(images, methods, targets, layers)
        methods = METHODS
        calls.clear()
        found = made(images, methods, targets, layers, relu=False)
        assert len(calls) == 1
    finally:
        handle.remove()
        zoo.forget()
    order = [(method, layer, target) for method in methods for layer in layers for target in targets]
    assert len(found) == len(order) == 45
    paths = {"last": "layer4", "layer3": "layer3", "layer2.0": "layer2.0"}
    for explanation, (method, layer, target) in zip(found, order, strict=True):
        assert (explanation.method, explanation.layer) == (method, paths[layer])
        single = made(images, method, target, layer, relu=False)
        assert torch.equal(explanation.targets, single.targets)
        torch.testing.assert_close(explanation.maps, single.maps, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(explanation.scores, single.scores)


def test_a_list_of_one_gives_a_list_and_top_three_gives_three():
    made, images = explainer(Small()), zoo.images()
    for options in ({"method": ["gradcam"]}, {"layer": ["second"]}, {"target": [3]}):
        assert isinstance(made(images, relu=False, **options), list)
    assert not isinstance(made(images, relu=False), list)
    ranks = made(images, target="top-3", relu=False)
    order = ranks[0].logits.argsort(dim=1, descending=True)
    assert torch.equal(torch.stack([one.targets for one in ranks], dim=1), order[:, :3])
    assert torch.equal(made(images, target="last", relu=False).targets, order[:, -1])


def test_the_same_layer_under_two_names_and_nested_layers_in_one_call(random_model):
    made, images = Explainer(random_model("timm:resnet")), zoo.images(2, 64)
    layers = ["last", "layer4", "layer4.-1", "layer4.0.conv2", "layer3"]
    together = made(images, layer=layers, target=3, relu=False)
    for explanation, layer in zip(together, layers, strict=True):
        single = made(images, layer=layer, target=3, relu=False)
        torch.testing.assert_close(explanation.maps, single.maps, rtol=1e-5, atol=1e-7)


def test_images_of_a_batch_are_explained_as_if_alone(random_model):
    made, images = Explainer(random_model("timm:resnet")), zoo.images(3, 64)
    together = made(images, METHODS, torch.tensor([1, 5, -1]), relu=False)
    for index, target in enumerate([1, 5, "top"]):
        alone = made(images[index : index + 1], METHODS, target, relu=False)
        for one, other in zip(together, alone, strict=True):
            assert one.targets[index] == other.targets[0]
            torch.testing.assert_close(one.maps[index], other.maps[0], rtol=1e-4, atol=1e-6)


def test_a_method_that_differentiates_nothing_runs_without_a_graph(random_model):
    """CAM alone: no graph is recorded, and the map is that of the pass with one."""
    made, images = Explainer(random_model("timm:resnet")), zoo.images(2, 64)
    alone = made(images, "cam", 3, relu=False)
    beside = made(images, ["gradcam", "cam"], 3, relu=False)[1]
    assert torch.equal(alone.maps, beside.maps)
    assert not made.plan(images, ["cam"], [None]).needs_graph


# --- threads


def test_eight_threads_with_one_model_give_what_one_thread_gives(random_model):
    model = random_model("timm:resnet")
    jobs = [
        (zoo.images(1 + seed % 3, (64, 64 + 32 * (seed % 2)), seed=seed), method, seed % 10, layer)
        for seed, (method, layer) in enumerate(
            (method, layer) for method in METHODS[:4] for layer in ("last", "layer3", "layer2.0", "stage1")
        )
    ]
    made = Explainer(model)
    expected = [made(*job, relu=False).maps for job in jobs]
    prediction = model(zoo.images(2, 64)).detach()
    found, predictions, failures, stop = {}, [], [], threading.Event()

    def explain(worker):
        try:
            own = made if worker % 2 else Explainer(model)
            for _ in range(3):
                for index in range(worker, worker + len(jobs), 3):
                    job = index % len(jobs)
                    found[worker, job] = own(*jobs[job], relu=False).maps
        except BaseException as error:
            failures.append(error)

    def predict():
        try:
            with torch.no_grad():
                while not stop.is_set():
                    predictions.append(model(zoo.images(2, 64)))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=explain, args=(worker,)) for worker in range(8)]
    bystander = threading.Thread(target=predict)
    for thread in [bystander, *workers]:
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    bystander.join()
    assert failures == []
    assert len({job for _, job in found}) == len(jobs)
    assert all(torch.equal(maps, expected[job]) for (_, job), maps in found.items())
    assert predictions
    assert all(torch.equal(one, prediction) for one in predictions)
    assert not any(one.requires_grad for one in predictions)


def test_a_target_may_be_an_object():
    made, images = explainer(Small()), zoo.images()
    given = made(images, target=Target("counterfactual", 3, label="not three"), relu=False)
    written = made(images, target="counterfactual:3", relu=False)
    assert torch.equal(given.maps, written.maps)
    torch.testing.assert_close(given.maps, -made(images, target=3, relu=False).maps)
