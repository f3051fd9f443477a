"""Attacks beside captum's and torchattacks': the same images where nothing is random, else like success and size."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import camkit
import zoo
from camkit import Explainer
from camkit.attacks import AttackResult, Goal, attack

EPSILON = 4 / 255
STEPS = 5


class OnPixels(nn.Module):
    """The demo model as the peers take it: pixels in [0, 1] in, logits out."""

    def __init__(self, explainer: Explainer) -> None:
        super().__init__()
        self.explainer, self.module = explainer, explainer.module

    def forward(self, pixels: Tensor) -> Tensor:
        return self.module(self.explainer.preprocessing.normalise(pixels))


@dataclass(frozen=True)
class Setting:
    """A demo model taken as a softmax model, which is the only kind the peers know, and images that it gets right."""

    explainer: Explainer
    images: Tensor
    pixels: Tensor
    labels: Tensor
    model: OnPixels

    def ours(self, name: str, **settings: Any) -> AttackResult:
        return attack(self.explainer, self.images, name, **settings)

    def fooled(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(pixels).argmax(dim=1) != self.labels


def setting(count: int, model: str = "demo:vgg") -> Setting:
    loaded = camkit.load_model(model)
    explainer = Explainer(zoo.watch(loaded.module), preprocessing=loaded.preprocessing)
    assert explainer.probability == "softmax"
    images = zoo.scenes(count)
    pixels = explainer.preprocessing.pixels(images)
    images = explainer.preprocessing.normalise(pixels)
    labels = explainer.logits(images).detach().argmax(dim=1)
    return Setting(explainer, images, pixels, labels, OnPixels(explainer).eval())


@pytest.fixture(scope="module")
def few() -> Setting:
    return setting(3)


@pytest.fixture(scope="module")
def many() -> Setting:
    return setting(24)


def lengths(change: Tensor) -> Tensor:
    return change.flatten(1).norm(dim=1)


# --- nothing is random: the same images


def captum_fgsm(few: Setting, labels: Tensor, targeted: bool) -> Tensor:
    robust = pytest.importorskip("captum.robust")
    peer = robust.FGSM(few.model, nn.CrossEntropyLoss(reduction="none"), 0, 1)
    # by default captum takes gradients below 1e-6 for zero
    peer.zero_thresh = 0
    return peer.perturb(few.pixels, EPSILON, labels, targeted=targeted)


def captum_pgd(few: Setting, labels: Tensor, targeted: bool) -> Tensor:
    robust = pytest.importorskip("captum.robust")
    peer = robust.PGD(few.model, nn.CrossEntropyLoss(reduction="none"), 0, 1)
    peer.fgsm.zero_thresh = 0
    return peer.perturb(few.pixels, EPSILON, EPSILON / 3, STEPS, labels, targeted=targeted)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("name", "peer", "options"),
    [
        ("fgsm", captum_fgsm, {}),
        ("pgd", captum_pgd, {"steps": STEPS, "step_size": EPSILON / 3, "random_start": False}),
    ],
)
def test_captum(few, name, peer, options, targeted):
    target = (few.labels + 1) % 10 if targeted else None
    ours = few.ours(name, epsilon=EPSILON, target=target, options=options, early_stop=False)
    assert not ours.already_wrong.any()
    theirs = peer(few, few.labels if target is None else target, targeted)
    assert lengths(theirs - few.pixels).min() > 1
    torch.testing.assert_close(ours.pixels, theirs, atol=2e-7, rtol=0)


# torchattacks divides the loss by the number of images, so that the signs of gradients near zero may differ
DETERMINISTIC: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "bim": ("BIM", "linf", {"eps": EPSILON, "alpha": EPSILON / 4, "steps": STEPS}, {"step_size": EPSILON / 4}),
    "pgd": (
        "PGD",
        "linf",
        {"eps": EPSILON, "alpha": EPSILON / 4, "steps": STEPS, "random_start": False},
        {"step_size": EPSILON / 4, "random_start": False},
    ),
    "pgd in L2": (
        "PGDL2",
        "l2",
        {"eps": 0.5, "alpha": 0.2, "steps": STEPS, "random_start": False},
        {"step_size": 0.2, "random_start": False},
    ),
    "mifgsm": (
        "MIFGSM",
        "linf",
        {"eps": EPSILON, "alpha": EPSILON / 4, "steps": STEPS, "decay": 0.9},
        {"step_size": EPSILON / 4, "decay": 0.9},
    ),
    "tifgsm": (
        "TIFGSM",
        "linf",
        {"eps": EPSILON, "alpha": EPSILON / 4, "steps": STEPS, "diversity_prob": 0.0},
        {"step_size": EPSILON / 4},
    ),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_torchattacks_without_chance(few, name):
    peers = pytest.importorskip("torchattacks")
    peer, norm, theirs, options = DETERMINISTIC[name]
    epsilon = 0.5 if norm == "l2" else EPSILON
    found = few.ours(
        name.split()[0], norm=norm, epsilon=epsilon, options={"steps": STEPS, **options}, early_stop=False
    ).pixels
    expected = getattr(peers, peer)(few.model, **theirs)(few.pixels, few.labels)
    assert lengths(expected - few.pixels).min() > 0.4
    different = (found - expected).abs() > 1e-6
    assert different.float().mean() < 1e-3


def test_deepfool(few):
    """Of torchattacks' images one stands on the border itself, where rounding decides."""
    peers = pytest.importorskip("torchattacks")
    expected = peers.DeepFool(few.model, steps=10, overshoot=0.02)(few.pixels, few.labels)
    found = few.ours("deepfool", options={"steps": 10})
    with torch.no_grad():
        margins = Goal(few.labels).margin(few.model(expected))
    assert (margins > -1e-4).all()
    assert found.success.all()
    torch.testing.assert_close(found.distance, lengths(expected - few.pixels), rtol=1e-3, atol=0)


# --- chance: success and size at equal budget


@pytest.mark.slow
def test_carlini_and_wagner(many):
    """torchattacks has one c for all images; searching for it makes changes smaller."""
    peers = pytest.importorskip("torchattacks")
    expected = peers.CW(many.model, c=1, kappa=0, steps=60, lr=0.01)(many.pixels, many.labels)
    theirs = many.fooled(expected)
    found = many.ours("cw", options={"steps": 60, "searches": 1})
    both = theirs & found.success
    print(f"cw: torchattacks {theirs.float().mean():.2f}, camkit {found.success_rate:.2f}")
    print(f"sizes {lengths(expected - many.pixels)[both].mean():.3f}, {found.distance[both].mean():.3f}")
    assert found.success_rate >= float(theirs.float().mean())
    # torchattacks stops all images when their common cost rises
    assert found.distance[both].mean() <= 1.01 * lengths(expected - many.pixels)[both].mean()
    searched = many.ours("cw", options={"steps": 60, "searches": 4})
    print(f"searched: {searched.success_rate:.2f}, {searched.distance.mean():.3f}")
    assert searched.success.all()
    assert searched.distance[both].mean() < 0.95 * found.distance[both].mean()


@dataclass(frozen=True)
class Duel:
    """One attack with what it is compared with; both at the same budget."""

    name: str
    norm: str
    epsilon: float
    options: dict[str, Any]
    peer: Callable[[Any, nn.Module], Any]


DUELS = [
    Duel("difgsm", "linf", 2 / 255, {}, lambda peers, model: peers.DIFGSM(model, 2 / 255, 0.2 / 255, 10)),
    Duel("pgd", "linf", 1.5 / 255, {"steps": 10}, lambda peers, model: peers.PGD(model, 1.5 / 255, 0.375 / 255, 10)),
    Duel("pgd", "l2", 0.25, {"steps": 10}, lambda peers, model: peers.PGDL2(model, 0.25, 0.0625, 10)),
    Duel("apgd", "linf", 1.5 / 255, {"steps": 20}, lambda peers, model: peers.APGD(model, "Linf", 1.5 / 255, 20)),
    Duel("apgd", "l2", 0.25, {"steps": 20}, lambda peers, model: peers.APGD(model, "L2", 0.25, 20)),
    Duel(
        "apgd",
        "linf",
        1.5 / 255,
        {"steps": 20, "objective": "dlr"},
        lambda peers, model: peers.APGD(model, "Linf", 1.5 / 255, 20, loss="dlr"),
    ),
    Duel("square", "linf", 12 / 255, {"steps": 100}, lambda peers, model: peers.Square(model, "Linf", 12 / 255, 100)),
]


@pytest.mark.slow
@pytest.mark.parametrize("duel", DUELS, ids=lambda duel: f"{duel.name}-{duel.norm}-{duel.options.get('objective', '')}")
def test_success_at_equal_budget(many, duel):
    peers = pytest.importorskip("torchattacks")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = duel.peer(peers, many.model)(many.pixels, many.labels)
    theirs = many.fooled(expected)
    found = many.ours(duel.name, norm=duel.norm, epsilon=duel.epsilon, options=duel.options)
    assert found.distance.max() <= duel.epsilon + 1e-6
    print(f"{duel.name} {duel.norm}: torchattacks {theirs.float().mean():.2f}, camkit {found.success_rate:.2f}")
    # camkit keeps what fools on the way, which torchattacks does in part; two standard errors of paired rates
    assert found.success_rate >= float(theirs.float().mean()) - 2 * math.sqrt(0.25 / len(theirs))
    assert found.success_rate > 0


@pytest.mark.slow
def test_one_pixel():
    """With ten pixels and fifty candidates both lower the label's probability about as much."""
    peers = pytest.importorskip("torchattacks")
    some = setting(4)
    expected = peers.OnePixel(some.model, pixels=10, steps=3, popsize=50)(some.pixels, some.labels)
    found = some.ours("one-pixel", epsilon=10, options={"steps": 3, "population": 50}, early_stop=False)
    assert found.distance.max() <= 10
    before, theirs, ours = (
        some.model(pixels).detach().softmax(dim=1).gather(1, some.labels[:, None]).mean()
        for pixels in (some.pixels, expected, found.pixels)
    )
    print(f"one-pixel: {before:.3f} before, torchattacks {theirs:.3f}, camkit {ours:.3f}")
    assert ours < before - 0.5 * (before - theirs)
