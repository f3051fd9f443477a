"""What was measured, as Markdown: the same text on the screen and in the documentation."""

import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from contestants import ALL_METHODS, CAMKIT, FLOOR, PLAIN, THREADS
from serving import CAM_GRAPH, EAGER, PLAIN_GRAPH
from timing import Cost, Spread, Timing

DISTRIBUTIONS = ("torch", "torchvision", "onnxruntime-gpu", "onnxruntime", "grad-cam", "torchcam", "captum", "numpy")
CNNS = ("resnet50", "vgg16", "resnet18")


@dataclass
class Results:
    """Everything that one run measured: times and ONNX times by (model, batch), memory by model and contestant.

    `methods` are those that camkit runs in one call, by model.
    """

    rounds: int
    size: int
    batches: Sequence[int]
    times: dict[tuple[str, int], Timing] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    onnx: dict[tuple[str, int], Timing] = field(default_factory=dict)
    methods: dict[str, list[str]] = field(default_factory=dict)


def document(results: Results, command: str) -> str:
    """The whole page."""
    parts = [
        "# Benchmarks",
        "What an explanation costs, in multiples of the plain forward pass that it contains. How this is measured and "
        "how to read it: [benchmarks/README.md](../benchmarks/README.md). This page is written by",
        f"```\n{command}\n```",
        environment(results.size),
    ]
    parts += _times(results)
    parts += _memory(results)
    parts += _onnx(results)
    parts += ["## Aims", _aims(results)]
    return "\n\n".join(parts) + "\n"


def environment(size: int) -> str:
    """The machine, the versions and the images."""
    lines = machine(f"{THREADS} threads", DISTRIBUTIONS)
    return "\n".join([*lines, f"* images: 3x{size}x{size}, random; models: random weights"])


def machine(processors: str, distributions: Iterable[str]) -> list[str]:
    """Lines with the machine, of which `processors` were used, and the versions of what is installed."""
    facts = [
        ("CPU", f"{_processor()}, {processors}"),
        ("Python", platform.python_version()),
        *((name, found) for name in distributions if (found := _version(name))),
    ]
    return [f"* {name}: {value}" for name, value in facts]


def _times(results: Results) -> list[str]:
    parts = []
    for batch in results.batches:
        timings = {model: timing for (model, own), timing in results.times.items() if own == batch}
        if not timings:
            continue
        names = list(dict.fromkeys(name for timing in timings.values() for name in timing.ratios))
        rows = [[f"*{PLAIN}: seconds*", *(seconds(timing.reference) for timing in timings.values())]]
        rows += [[_label(name, PLAIN), *(ratio(timing, name) for timing in timings.values())] for name in names]
        parts += [f"## Time, batch {batch}", table(["", *timings], rows)]
    if parts:
        parts.append(_legend(results))
    return parts


def _onnx(results: Results) -> list[str]:
    if not results.onnx:
        return []
    rows = [
        [f"*{PLAIN_GRAPH}: seconds*", *(seconds(timing.reference) for timing in results.onnx.values())],
        *(
            [_label(name, PLAIN_GRAPH), *(ratio(timing, name) for timing in results.onnx.values())]
            for name in (PLAIN_GRAPH, CAM_GRAPH, EAGER)
        ),
    ]
    header = ["", *(f"{model}, batch {batch}" for model, batch in results.onnx)]
    return ["## Exported, in ONNX Runtime", table(header, rows)]


def _memory(results: Results) -> list[str]:
    if not results.memory:
        return []
    names = list(dict.fromkeys(name for peaks in results.memory.values() for name in peaks))
    rows = [[name, *(_peak(peaks.get(name), peaks[PLAIN]) for peaks in results.memory.values())] for name in names]
    return [
        f"## Peak memory, batch {results.batches[0]}",
        table(["", *results.memory], rows),
        "MiB over what the process held before (multiple of the plain forward).",
    ]


def aims(results: Results) -> list[tuple[str, str, bool]]:
    """What camkit is meant to reach, what was measured, and whether that is so."""
    found = []
    for (model, batch), timing in results.times.items():
        floor, own, every = (timing.cpu(name) for name in (FLOOR, CAMKIT, ALL_METHODS))
        where = f"{model}, batch {batch}"
        found.append(
            (
                f"time at the hand-written floor within its spread: {where}",
                f"{own.median:.2f}, floor {floor.median:.2f} ({floor.low:.2f} - {floor.high:.2f})",
                own.median <= floor.high,
            )
        )
        extra = every.median / own.median
        found.append((f"all methods in one call at most 1.10 x Grad-CAM: {where}", f"{extra:.2f}", extra <= 1.10))
    for model, peaks in results.memory.items():
        bound = 1.05 if model in CNNS else 1.7
        share = peaks[CAMKIT] / peaks[PLAIN]
        found.append((f"memory at most {bound:.2f} x plain: {model}", f"{share:.2f}", share <= bound))
    for (model, batch), timing in results.onnx.items():
        if batch == results.batches[0]:
            share = timing.cpu(CAM_GRAPH).median
            found.append((f"ONNX at most 1.10 x plain ONNX: {model}, batch {batch}", f"{share:.2f}", share <= 1.10))
    return found


def _aims(results: Results) -> str:
    return table(["", "measured", "met"], [[aim, value, "yes" if met else "no"] for aim, value, met in aims(results)])


def _legend(results: Results) -> str:
    methods = "; ".join(f"{model}: {', '.join(names)}" for model, names in results.methods.items())
    return (
        f"**CPU-time ratio**, median of {results.rounds} rounds (lowest - highest); ratio on the clock. The plain "
        f"forward against itself shows the noise. All methods are, on {methods}."
    )


def _label(name: str, reference: str) -> str:
    return f"{name}, against itself" if name == reference else name


def seconds(costs: Sequence[Cost]) -> str:
    """Medians of both clocks."""
    cpu, wall = Spread.of([cost.cpu for cost in costs]), Spread.of([cost.wall for cost in costs])
    return f"{cpu.median:.3g} CPU; {wall.median:.3g} clock"


def ratio(timing: Timing, name: str) -> str:
    """A cell: the median ratio of CPU times with its spread, and that on the clock."""
    if name not in timing.ratios:
        return "n/a"
    cpu, wall = timing.cpu(name), timing.wall(name)
    return f"**{cpu.median:.2f}** ({cpu.low:.2f} - {cpu.high:.2f}); {wall.median:.2f}"


def _peak(peak: float | None, reference: float) -> str:
    return "n/a" if peak is None else f"{peak:.0f} ({peak / reference:.2f})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def command(path: Path | None) -> str:
    """The command that was given, without folders of this machine."""
    script, *given = sys.argv
    arguments = [path.name if path and argument == str(path.absolute()) else argument for argument in given]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *arguments])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
