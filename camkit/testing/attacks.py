"""The conformance kit for attacks: what every attack promises, checked one promise at a time.

Each check is named after its promise, and fails with a sentence that says it.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from camkit.attacks import Attack, AttackResult, as_attack, attack
from camkit.errors import CamkitError, CamkitWarning
from camkit.explain import Explainer
from camkit.testing.examples import examples
from camkit.testing.oracle import in_double
from camkit.testing.promises import options_have_types, repeatable, without_global_draws
from camkit.testing.state import state

# Two attacks in double precision that differ in nothing but the order of sums: how many pixels may differ, and by how
# much another one must.
_SAME_PIXEL = 1e-6
_SHARE = 1e-3


def check_attack(
    name: str | Callable[..., Tensor],
    explainer: Explainer | None = None,
    images: Tensor | None = None,
    *,
    epsilon: float | None = None,
    norm: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Checks that an attack keeps the contract of camkit; run it in a test of your plugin.

    Args:
        name: the name of a registered attack, or a function marked with `plugin.attack`.
        explainer: the model to check it on. By default small ones with random weights: a convolutional network with
            softmax, and a transformer with sigmoid.
        images: for that model, at least two, [B, C, H, W].
        epsilon: the budget, as for `camkit.attack`.
        norm: the threat model; by default each that the attack works in, one after the other.
        options: options of the attack, for instance fewer steps.

    Raises:
        AssertionError: a promise is not kept; the sentence says which.
        CamkitError: the attack cannot be used at all.
    """
    parsed = as_attack(name)
    options_have_types(parsed.signature)
    for own, pictures in examples(explainer, images):
        for threat in [norm] if norm else parsed.norms:
            for goal in parsed.goals:
                target = torch.arange(len(pictures)) % 2 if goal == "targeted" else None
                _check(Case(name, parsed, own, pictures, threat, epsilon, target, options or {}))


@dataclass(frozen=True)
class Case:
    """An attack on a model, in one threat model, towards one goal."""

    given: str | Callable[..., Tensor]
    attack: Attack
    explainer: Explainer
    images: Tensor
    norm: str
    epsilon: float | None
    target: Tensor | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, images: Tensor | None = None, explainer: Explainer | None = None, target: Tensor | None = None
    ) -> AttackResult:
        """What the attack does."""
        with warnings.catch_warnings():
            # a model with random weights may well be flat somewhere
            warnings.simplefilter("ignore", CamkitWarning)
            return attack(
                explainer or self.explainer,
                self.images if images is None else images,
                self.given,
                epsilon=self.epsilon,
                norm=self.norm,
                target=self.target if target is None else target,
                options=self.options,
            )


@repeatable()
def _check(case: Case) -> None:
    before = state(case.explainer.module)
    given = case.images.clone()
    try:
        result = case()
    except CamkitError as refusal:
        raise _broken(
            case,
            f"was refused: {refusal}",
            "the result is finite, of the images' shape and within the budget, and gradients are asked for only by an "
            "attack that says so",
        ) from refusal
    _nothing_that_was_given_is_changed(case, given, before)
    _images_that_are_wrong_already_are_left_alone(result, case)
    _the_result_is_the_same_every_time(case, result)
    _callers_may_switch_gradients_off(case, result)
    _images_of_a_batch_do_not_influence_each_other(case)
    _nothing_that_was_given_is_changed(case, given, before)


def _broken(case: Case, what: str, contract: str) -> AssertionError:
    towards = "untargeted" if case.target is None else "targeted"
    return AssertionError(f"The attack '{case.attack.name}' ({case.norm}, {towards}) {what}; the contract: {contract}.")


def _nothing_that_was_given_is_changed(case: Case, images: Tensor, before: Mapping[str, Any]) -> None:
    if state(case.explainer.module) != before:
        raise _broken(case, "left the model changed", "the user's model comes back as it was")
    if not torch.equal(case.images, images):
        raise _broken(case, "changed the user's images in place", "the images that are given stay as they are")


def _images_that_are_wrong_already_are_left_alone(result: AttackResult, case: Case) -> None:
    wrong = result.already_wrong
    if not torch.equal(result.pixels[wrong], result.original[wrong]) or bool((wrong & result.success).any()):
        raise _broken(case, "changed an image that needed no change", "what is wrong already is left as it is")


def _the_result_is_the_same_every_time(case: Case, result: AttackResult) -> None:
    again = without_global_draws(case, partial(_broken, case))
    if not torch.equal(again.pixels, result.pixels):
        raise _broken(case, "gave two results for one question", "the same images and options give the same images")


def _callers_may_switch_gradients_off(case: Case, result: AttackResult) -> None:
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = case()
        if not torch.equal(found.pixels, result.pixels):
            raise _broken(case, f"gave other images under torch.{mode.__name__}", "the caller's mode does not matter")


def _images_of_a_batch_do_not_influence_each_other(case: Case) -> None:
    twin = in_double(case.explainer)
    images = case.images.double()
    together = case(images, twin)
    for index in range(len(images)):
        row = slice(index, index + 1)
        alone = case(images[row], twin, None if case.target is None else case.target[row])
        different = (alone.pixels - together.pixels[row]).abs() > _SAME_PIXEL
        if float(different.float().mean()) > _SHARE or not torch.equal(alone.success, together.success[row]):
            raise _broken(
                case, "lets the images of a batch influence each other", "a batch gives exactly what single images give"
            )
