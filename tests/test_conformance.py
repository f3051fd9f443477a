"""The conformance kit: first-party methods keep the contract, and a method that breaks a promise is told which."""

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

import zoo
from camkit import Explainer, plugin
from camkit.contracts import Head
from camkit.errors import CamkitError
from camkit.registry import registry
from camkit.testing import check_method

pytestmark = pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")

# fewer draws than a user would take
OPTIONS = {"rise": {"masks": 60}}
METHODS = registry().names("method")
# an export takes seconds; tests/export has others on real models
EXPORTED = ["cam", "sobel", "chefer"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_contract(method):
    check_method(method, options=OPTIONS.get(method), exports=method in EXPORTED)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name not in EXPORTED])
def test_every_method_that_can_be_traced_is_exported(method):
    check_method(method, options=OPTIONS.get(method))


def test_methods_that_cannot_be_traced_say_so():
    cannot = {method.name for method in registry().values("method") if not method.traceable}
    asking = {"model_scores", "guided_gradients", "deconvnet_gradients", "bias_gradients"}
    expected = {m.name for m in registry().values("method") if set(m.signature.asks) & asking} | {"random"}
    assert expected <= cannot


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("torchvision:resnet18", "timm:vit")), "demo:vgg"]
)
def test_the_kit_takes_any_model(name, random_model):
    check_method("gradcam", Explainer(random_model(name)), zoo.inputs(name, 2, 64 if "resnet" in name else 48))


def marked(**facts):
    return plugin.method("broken", paper="none", **facts)


@marked()
def ignores_the_class(activations: Tensor) -> Tensor:
    return activations.mean(dim=1)


@marked(class_specific=False)
def depends_on_the_class(activations: Tensor, gradients: Tensor) -> Tensor:
    return (activations * gradients).sum(dim=1)


@marked()
def mixes_the_batch(activations: Tensor, gradients: Tensor) -> Tensor:
    return activations * gradients.mean(dim=(0, 2, 3), keepdim=True)


@marked()
def draws_globally(activations: Tensor, gradients: Tensor) -> Tensor:
    return activations * gradients + torch.rand(activations.shape)


@marked()
def works_in_place(activations: Tensor, gradients: Tensor) -> Tensor:
    return activations.mul_(gradients.mean(dim=(2, 3), keepdim=True))


@marked()
def divides_by_zero(activations: Tensor, gradients: Tensor) -> Tensor:
    return activations * gradients / gradients.abs().amax(dim=(1, 2, 3), keepdim=True)


@marked()
def wants_many_positions(activations: Tensor, gradients: Tensor) -> Tensor:
    return activations * gradients / activations.std(dim=(2, 3), keepdim=True)


@marked()
def fails_on_one_channel(activations: Tensor, gradients: Tensor) -> Tensor:
    return (activations * gradients)[:, [0, 1]].sum(dim=1)


@marked(kind="pixels")
def gives_small_pixels(activations: Tensor, gradients: Tensor) -> Tensor:
    return activations * gradients


@marked()
def has_an_untyped_option(activations: Tensor, gradients: Tensor, *, power=2) -> Tensor:
    return activations * gradients**power


@marked()
def rounds_to_bfloat16(activations: Tensor, gradients: Tensor) -> Tensor:
    precision = torch.bfloat16 if activations.dtype == torch.float32 else activations.dtype
    return (activations.to(precision) * gradients.mean(dim=(2, 3), keepdim=True)).to(activations.dtype)


@marked()
def freezes_the_batch(activations: Tensor, gradients: Tensor) -> Tensor:
    return torch.stack([a * g for a, g in zip(activations, gradients, strict=True)])


BROKEN = {
    ignores_the_class: "class_specific=False",
    depends_on_the_class: "gave other maps for two classes",
    mixes_the_batch: "a batch gives exactly what single images give",
    draws_globally: "a generator of their own",
    works_in_place: "changed 'activations' in place",
    divides_by_zero: "not finite on zero gradients",
    wants_many_positions: "not finite",
    fails_on_one_channel: "a single channel",
    gives_small_pixels: "pixels have the shape of the images",
    has_an_untyped_option: "has no type",
    rounds_to_bfloat16: "float64 oracle",
    freezes_the_batch: "can be exported",
}


@pytest.mark.parametrize("method", BROKEN, ids=lambda method: method.__name__)
def test_a_broken_promise_is_named(method):
    with pytest.raises(AssertionError, match=r".*") as caught:
        check_method(method)
    assert BROKEN[method] in str(caught.value)
    assert "the contract: " in str(caught.value)


@marked()
def changes_the_model(activations: Tensor, gradients: Tensor, head: Head) -> Tensor:
    module = head.this.module
    with torch.no_grad():
        next(module.parameters()).add_(0)
    return activations * gradients


def test_a_method_that_reaches_into_the_model_is_told():
    with pytest.raises(AssertionError, match="left the model changed"):
        check_method(changes_the_model)


def unmarked(activations: Tensor) -> Tensor:
    return activations.mean(dim=1)


def test_a_function_that_is_not_a_method_is_refused():
    with zoo.refused("'unmarked' is not a method", "@plugin.method"):
        check_method(unmarked)


@marked()
def refuses_every_model(activations: Tensor) -> Tensor:
    raise CamkitError("This method wants a model of its own.")


def test_a_method_for_no_small_model_needs_its_own():
    with pytest.raises(CamkitError, match="none of the small models"):
        check_method(refuses_every_model)


def test_one_image_is_not_enough(random_model):
    with zoo.refused("at least two"):
        check_method("gradcam", Explainer(random_model("timm:resnet")), zoo.images(1, 64))


def test_options_are_pydantic_fields():
    assert all(issubclass(method.signature.options_model, BaseModel) for method in registry().values("method"))
