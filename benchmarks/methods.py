"""Measures what each method costs beside the same method of other libraries, one image at a time; see README.md."""

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

# read when tqdm is imported: a bar of another library's would be drawn over the one here
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from rich.progress import Progress
from torch import Tensor, nn

import explain
import memory
from contestants import CASES, METHODS, PLAIN, THREADS, Call, Case, Contestant, ignore_warnings, make_images, plain
from method_tables import Results, document
from rows import (
    ABLATION,
    CAMKIT,
    CONTESTANTS,
    GRAD_CAM,
    LONG,
    SCORE,
    SUBSETS,
    applies,
    channels,
    extrapolated,
    holds_its_own,
    name_of,
    ready,
)
from screen import bars, show
from tables import command
from timing import Timing, interleave

PARTS = ("memory", "time")

# whose memory a quick run measures
QUICK = [PLAIN, name_of(CAMKIT, ABLATION), name_of(CAMKIT, SCORE), name_of(GRAD_CAM, SCORE)]


def main() -> None:
    """Runs what was asked for and shows the tables."""
    options = _parse()
    ignore_warnings()
    torch.set_num_threads(THREADS)
    results = Results(options.rounds, options.long_rounds, options.size)
    with bars() as progress:
        for part in options.only or PARTS:
            {"memory": measure_memory, "time": measure_time}[part](options, results, progress)
    text = document(results, command(options.write))
    show(text, options.write)


def measure_memory(options: argparse.Namespace, results: Results, progress: Progress) -> None:
    """The peak of everybody who holds something of their own, on every model; one process for each thread."""
    names = QUICK if options.quick else list(filter(holds_its_own, CONTESTANTS))
    cases = [(model, name) for model in options.models for name in names if applies(name, CASES[model])]
    task = progress.add_task("memory", total=len(cases))

    def measure(case: tuple[str, str]) -> float:
        model, name = case
        peak = memory.measure(name, model, 1, options.size, contestants="rows")
        progress.update(task, description=f"memory: {model}, {name}", advance=1)
        return peak

    with ThreadPoolExecutor(THREADS) as pool:
        for (model, name), peak in zip(cases, pool.map(measure, cases), strict=True):
            results.memory.setdefault(model, {})[name] = peak


def measure_time(options: argparse.Namespace, results: Results, progress: Progress) -> None:
    """The time of everybody on every model: first of those that are short, then of those that take their time."""
    for model in options.models:
        case = CASES[model]
        module, images = case.build(), make_images(1, options.size)
        results.channels[model] = channels(module, case, images)
        here = [name for name in CONTESTANTS if applies(name, case)]
        short: dict[str, Contestant] = {name: CONTESTANTS[name] for name in here if name not in LONG}
        long: dict[str, Contestant] = {name: CONTESTANTS[name] for name in here if name in LONG}
        long |= {_before(name): SUBSETS[name].before for name in here if name in SUBSETS}
        once = _interleaved(f"time: {model}", short, module, case, images, options.rounds, progress)
        slow = _interleaved(f"time: {model}, long", long, module, case, images, options.long_rounds, progress)
        ratios = {**once.ratios, **slow.ratios}
        for name in here:
            if name in SUBSETS:
                total = results.channels[model][1] + 1 if name.startswith(CAMKIT) else results.channels[model][0]
                # where the chunks hold one image each, none was counted and the whole ran
                seen = SUBSETS[name].partial.images or total
                results.subsets.setdefault(model, {})[name] = (seen, total)
                ratios[name] = extrapolated(ratios.pop(_before(name)), ratios[name], total / seen)
        results.times[model] = Timing(once.reference, ratios)
        results.methods[model] = METHODS[case]


def _before(name: str) -> str:
    return f"{name}, before its first chunk"


def _interleaved(
    title: str,
    contestants: dict[str, Contestant],
    module: nn.Module,
    case: Case,
    images: Tensor,
    rounds: int,
    progress: Progress,
) -> Timing:
    calls: dict[str, Callable[[], AbstractContextManager[Call]]] = {
        name: partial(ready, contestant, module, case, images) for name, contestant in contestants.items()
    }
    with (
        plain(module, case) as run,
        explain.rounds(progress, title, calls, rounds) as go,
    ):
        return interleave(partial(run, images), calls, rounds, go)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=CASES, default=["resnet50", "vgg16", "vit_b_16"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long-rounds", type=int, default=1, help="of what runs the model or its head per channel")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="by default everything")
    parser.add_argument("--quick", action="store_true", help="a small model and one round, to see that all works")
    parser.add_argument("--write", type=Path, metavar="PATH", help="writes the tables as Markdown")
    options = parser.parse_args()
    if options.quick:
        options.models, options.rounds, options.long_rounds, options.size = ["resnet18"], 1, 1, 64
    return options


if __name__ == "__main__":
    main()
