"""Engines: who does the tasks of a long piece of work, this process or many.

An engine is a function that hands every task to the work and gives what came of it, in any order. The core numbers the
tasks, so that one that comes back twice counts once, and one that does not come back is missed.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from camkit import plugin
from camkit.errors import CamkitError
from camkit.injection import Signature, blaming, parse_signature
from camkit.registry import registry

if TYPE_CHECKING:
    from camkit.registry import Registry

Tasks = Iterable[Any]
Work = Callable[[Any], Any]

KNOWN: dict[str, object] = {"tasks": Tasks, "work": Work}


class Light:
    """A dataclass whose fields alone are sent to another process: what it has loaded stays, and is loaded there."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Engine:
    """A registered engine."""

    name: str
    function: Callable[..., Iterator[Any]]
    signature: Signature

    @classmethod
    def parse(cls, function: Callable[..., Iterator[Any]], mark: plugin.Mark, registry: "Registry") -> "Engine":
        """Reads a marked function; what it can ask for is listed in `KNOWN`."""
        return cls(mark.name, function, parse_signature(function, f"the engine '{mark.name}'", KNOWN))

    def __call__(
        self, tasks: Tasks, work: Work, options: Mapping[str, Any] | None = None
    ) -> Generator[Any, None, None]:
        """What the work makes of each task, as it comes.

        Args:
            tasks: small, and picklable.
            work: called with one task at a time; picklable; see `Light`.
            options: the engine's own.

        Raises:
            CamkitError: an option is wrong, the work raised one, or a task was lost.
        """
        chosen, given, done = self.signature.options(options), set[int](), set[int]()

        def numbered() -> Iterator[tuple[int, Any]]:
            for number, task in enumerate(tasks):
                given.add(number)
                yield number, task

        available = {"tasks": numbered(), "work": _Numbered(work)}
        answers = self.function(*(available[ask] for ask in self.signature.asks), **chosen)
        with blaming(f"the engine '{self.name}'"):
            for number, answer in answers:
                if number not in done:
                    done.add(number)
                    yield answer
        lost = len(given - done)
        if lost:
            raise CamkitError(f"The engine '{self.name}' lost {lost} of {len(given)} tasks; run it once more.")


@dataclass(frozen=True)
class _Numbered:
    """Work that answers with the number of the task."""

    work: Work

    def __call__(self, task: tuple[int, Any]) -> tuple[int, Any]:
        number, given = task
        return number, self.work(given)


def find_engine(name: str, options: Mapping[str, Any] | None = None) -> Engine:
    """The engine of that name, which takes these options.

    Raises:
        CamkitError: there is none, or it does not take them.
    """
    engine: Engine = registry().get("engine", name)
    engine.signature.options(options)
    return engine
