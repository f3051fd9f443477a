"""Time as a ratio: every call stands between two calls of a reference, and is divided by the mean of these two.

On a machine that does other things as well, seconds say little. What happens to a call happens to its neighbours too,
and the CPU time of all threads does not count the time spent waiting for a core.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from contestants import Call

WARM_UP = 1


@dataclass(frozen=True)
class Cost:
    """Seconds on the CPU, all threads together, and on the clock; or the ratio of two of them."""

    cpu: float
    wall: float

    def over(self, before: "Cost", after: "Cost") -> "Cost":
        """The ratio to the mean of two neighbours."""
        return Cost(2 * self.cpu / (before.cpu + after.cpu), 2 * self.wall / (before.wall + after.wall))


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Timing:
    """What the reference cost, and by contestant its ratio to its two neighbours in every round."""

    reference: Sequence[Cost]
    ratios: Mapping[str, Sequence[Cost]]

    def cpu(self, name: str) -> Spread:
        """The ratio of CPU times."""
        return Spread.of([ratio.cpu for ratio in self.ratios[name]])

    def wall(self, name: str) -> Spread:
        """The ratio of times on the clock."""
        return Spread.of([ratio.wall for ratio in self.ratios[name]])


def interleave(
    reference: Call,
    contestants: Mapping[str, Callable[[], AbstractContextManager[Call]]],
    rounds: int,
    advance: Callable[[str], None],
) -> Timing:
    """Runs every contestant once a round, in an order that changes, the reference before and after each.

    `advance` is told what is about to run. The first round warms up caches and allocators, and is not counted.
    """
    order = random.Random(0)  # noqa: S311
    references: list[Cost] = []
    ratios: dict[str, list[Cost]] = {name: [] for name in contestants}
    with _settled():
        for number in range(-WARM_UP, rounds):
            before = _measure(reference)
            for name in order.sample(list(contestants), len(contestants)):
                advance(name)
                with contestants[name]() as call:
                    own = _measure(call)
                after = _measure(reference)
                if number >= 0:
                    references.append(after)
                    ratios[name].append(own.over(before, after))
                before = after
    return Timing(references, ratios)


@contextmanager
def _settled() -> Iterator[None]:
    """What the libraries hold for good is not looked through again at every collection of garbage."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _measure(call: Call) -> Cost:
    gc.collect()  # whoever left garbage behind pays for it, but not in the neighbour's time
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    cost = Cost(time.process_time() - cpu, time.perf_counter() - wall)
    del result
    return cost
