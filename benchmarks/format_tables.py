"""What the formats cost, as Markdown."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tables import environment, table
from timing import Spread, Timing


@dataclass
class Results:
    """What one run measured: times by (threads, batch), and of each file (seconds to write and verify it, MB)."""

    model: str
    rounds: int
    size: int
    times: dict[tuple[int, int], Timing] = field(default_factory=dict)
    files: dict[str, tuple[float, float]] = field(default_factory=dict)


def document(results: Results, command: str) -> str:
    """The whole page."""
    parts = [
        "# Formats",
        f"What Grad-CAM of {results.model} costs in each exported format, in multiples of PyTorch's plain forward. How "
        "this is measured and how to read it: [benchmarks/README.md](../benchmarks/README.md). This page is written by",
        f"```\n{command}\n```",
        environment(results.size),
        "## Time",
        f"Median of {results.rounds} rounds, with the lowest and the highest: time on the clock, and CPU time, each "
        "divided by that of the plain forwards before and after.",
        table(["threads", "batch", "contestant", "milliseconds", "clock", "CPU"], list(_times(results))),
        "## Files",
        table(
            ["format", "seconds to write and verify", "MB"],
            [[name, f"{seconds:.0f}", f"{size:.1f}"] for name, (seconds, size) in results.files.items()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _times(results: Results) -> Iterator[list[str]]:
    for (threads, batch), timing in results.times.items():
        plain = Spread.of([cost.wall for cost in timing.reference]).median
        for name in timing.ratios:
            clock, cpu = timing.wall(name), timing.cpu(name)
            yield [str(threads), str(batch), name, f"{1000 * plain * clock.median:.1f}", _cell(clock), _cell(cpu)]


def _cell(spread: Spread) -> str:
    return f"**{spread.median:.2f}** ({spread.low:.2f} to {spread.high:.2f})"
