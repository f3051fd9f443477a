"""The conformance kit for engines: what every engine promises, checked one promise at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from camkit.engines import Light, find_engine
from camkit.errors import CamkitError

_REFUSED = "The work refused the task 3."


def check_engine(name: str, *, options: Mapping[str, Any] | None = None, tasks: int = 7) -> None:
    """Checks that an engine keeps the contract of camkit; run it in a test of your plugin.

    Args:
        name: the name of a registered engine.
        options: its options, for instance how many workers it has.
        tasks: how many tasks it is given; at least four.

    Raises:
        AssertionError: a promise is not kept; the sentence says which.
        CamkitError: the engine cannot be used at all.
    """
    engine = find_engine(name, options)
    found = sorted(engine(iter(range(tasks)), _Squares(), options))
    _promise(found == [task**2 for task in range(tasks)], f"'{name}' does every task once, and gave {found}")
    _promise(not list(engine((), _Squares(), options)), f"'{name}' does nothing where there is nothing to do")
    sentence = ""
    try:
        list(engine(range(tasks), _Squares(refused=3), options))
    except CamkitError as error:
        sentence = str(error)
    _promise(sentence == _REFUSED, f"'{name}' raises what the work raises as it is, and raised '{sentence}'")
    running = engine(range(tasks), _Squares(), options)
    next(running)
    running.close()
    _promise(list(engine(range(1), _Squares(), options)) == [0], f"'{name}' can be stopped, and works again")


def _promise(kept: bool, sentence: str) -> None:
    if not kept:
        raise AssertionError(sentence)


@dataclass(frozen=True)
class _Squares(Light):
    refused: int | None = None

    def __call__(self, task: int) -> int:
        if task == self.refused:
            raise CamkitError(_REFUSED)
        return task**2
