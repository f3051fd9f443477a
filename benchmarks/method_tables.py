"""What methods.py measured, as Markdown: the same text on the screen and in the documentation."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from contestants import PLAIN
from rows import ABLATION, BY_HAND, CAMKIT, EVERY, GRAD_CAM, LIBRARIES, SCORE, SUBSETS, name_of, titles
from tables import environment, ratio, seconds, table
from timing import Timing

# What camkit may cost, in plain forwards.
BOUNDS = {"Eigen-CAM": 1.1, "Full-Grad": 4.0, EVERY: 1.3}
EXTRA_MEMORY = 200


@dataclass
class Results:
    """Everything that one run measured, by model; times and memory by contestant too.

    `channels` are those of the layer and those that vary, `subsets` the images that were timed and those that the whole
    takes, `methods` what camkit runs in one call.
    """

    rounds: int
    long_rounds: int
    size: int
    times: dict[str, Timing] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    channels: dict[str, tuple[int, int]] = field(default_factory=dict)
    subsets: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    methods: dict[str, list[str]] = field(default_factory=dict)


def document(results: Results, command: str) -> str:
    """The whole page."""
    parts = [
        "# What the methods cost",
        "Each method of camkit beside the same method of grad-cam and torchcam, for one image at a time, in multiples "
        "of the plain forward pass. How this is measured and how to read it: "
        "[benchmarks/README.md](../benchmarks/README.md). This page is written by",
        f"```\n{command}\n```",
        environment(results.size),
    ]
    for model in dict.fromkeys([*results.times, *results.memory]):
        parts += [f"## {model}", *_model(results, model)]
    parts += [
        "## Aims",
        table(["", "measured", "met"], [[*aim[:2], "yes" if aim[2] else "no"] for aim in aims(results)]),
    ]
    return "\n\n".join(parts) + "\n"


def _model(results: Results, model: str) -> Iterator[str]:
    timing, peaks = results.times.get(model), results.memory.get(model, {})
    if timing:
        noise = ratio(timing, PLAIN)
        yield f"The plain forward takes {seconds(timing.reference)} seconds; against itself {noise}."
        rows = [
            [title, *(ratio(timing, name_of(library, title)) for library in LIBRARIES)]
            for title in titles(list(timing.ratios))
        ]
        yield table(["time", *LIBRARIES], rows)
        yield _legend(results, model)
    if peaks:
        rows = [
            [title, *(_peak(name_of(library, title), peaks) for library in LIBRARIES)] for title in titles(list(peaks))
        ]
        header = [f"MiB over the plain forward's {peaks[PLAIN]:.0f}", *LIBRARIES]
        yield table([cell for cell in header if cell != BY_HAND], [row[:2] + row[3:] for row in rows])


def _peak(name: str, peaks: dict[str, float]) -> str:
    if name not in peaks:
        return "n/a"
    # a library that keeps something of every chunk had no time to do so
    least = "at least " if name in SUBSETS and not name.startswith(CAMKIT) else ""
    return f"{least}{round(peaks[name] - peaks[PLAIN])}"


def _legend(results: Results, model: str) -> str:
    total, varying = results.channels[model]
    subsets = "; ".join(f"{name}: {seen} of {whole}" for name, (seen, whole) in results.subsets[model].items())
    return (
        f"**CPU-time ratio**, median over rounds ({results.rounds}; {results.long_rounds} for what runs the model or "
        f"its head per channel or position), lowest - highest; ratio on the clock. The layer has {total} channels, of "
        f"which {varying} vary. Extrapolated from the images of the first chunks, {subsets}. "
        f"The methods in one call: {', '.join(results.methods[model])}."
    )


def aims(results: Results) -> list[tuple[str, str, bool]]:
    """What camkit is meant to reach, what was measured, and whether that is so."""
    found = []
    for model, timing in results.times.items():
        own, other, hand = (timing.cpu(name_of(library, ABLATION)).median for library in (CAMKIT, GRAD_CAM, BY_HAND))
        # behind a ResNet's last stage is next to nothing; elsewhere the head is what limits
        if model.startswith("resnet"):
            aim = f"{ABLATION} at least 200 x faster than grad-cam's: {model}"
            found.append((aim, f"{other / own:.0f}", other / own >= 200))
        else:
            aim = f"{ABLATION} at most 1.10 x a loop by hand: {model}"
            found.append((aim, f"{own / hand:.2f}", own / hand <= 1.1))
        for title, bound in BOUNDS.items():
            cost = timing.cpu(name_of(CAMKIT, title)).median
            found.append((f"{title} at most {bound:.2f}: {model}", f"{cost:.2f}", cost <= bound))
        own, other = (timing.cpu(name_of(library, SCORE)).median for library in (CAMKIT, GRAD_CAM))
        found.append((f"{SCORE} no slower than grad-cam's: {model}", f"{own:.0f}, grad-cam {other:.0f}", own <= other))
    for model, peaks in results.memory.items():
        for title in (ABLATION, SCORE):
            extra = peaks[name_of(CAMKIT, title)] - peaks[PLAIN]
            found.append(
                (f"{title} at most {EXTRA_MEMORY} MiB over plain: {model}", f"{round(extra)}", extra <= EXTRA_MEMORY)
            )
    return found
