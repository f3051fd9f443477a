"""Promises that plugins of every kind make, each with the sentence that says it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from camkit.injection import Signature

Result = TypeVar("Result")
Broken = Callable[[str, str], AssertionError]


def options_have_types(signature: Signature) -> None:
    """Raises an AssertionError that names an option without a type, if there is one."""
    for name, info in signature.options_model.model_fields.items():
        if info.annotation is Any:
            raise AssertionError(
                f"The option '{name}' of {signature.owner} has no type; the contract: every option is annotated, so "
                f"that a wrong value is refused before anything is computed."
            )


@contextmanager
def repeatable() -> Iterator[None]:
    """Holds the device to sums in one order: cuDNN's fastest convolutions add up in any, and no two runs are equal."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def without_global_draws(run: Callable[[], Result], broken: Broken, *, seed: int = 1) -> Result:
    """What `run` gives while the global generator stands at `seed`, where `run` must leave it.

    `broken(what, contract)` makes the error of a broken promise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        result = run()
        if not torch.equal(torch.get_rng_state(), before):
            raise broken(
                "drew from the global random generator",
                "random draws come from a generator of their own, seeded by the option 'seed'",
            )
    return result
