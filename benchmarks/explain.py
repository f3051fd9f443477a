"""Measures what an explanation costs beside the plain forward pass and beside other libraries; see README.md."""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from pathlib import Path

# Threads that spin while they wait make a busy machine several times slower; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rich.progress import Progress

import memory
import serving
from contestants import (
    ALL_METHODS,
    CAMKIT,
    CASES,
    CONTESTANTS,
    METHODS,
    PLAIN,
    THREADS,
    applies,
    ignore_warnings,
    make_images,
    plain,
    ready,
)
from screen import bars, show
from tables import Results, command, document
from timing import WARM_UP, interleave

PARTS = ("memory", "time", "onnx")


def main() -> None:
    """Runs what was asked for and shows the tables."""
    options = _parse()
    ignore_warnings()
    torch.set_num_threads(THREADS)
    results = Results(options.rounds, options.size, options.batch)
    with bars() as progress:
        for part in options.only or PARTS:
            {"memory": measure_memory, "time": measure_time, "onnx": measure_onnx}[part](options, results, progress)
    text = document(results, command(options.write))
    show(text, options.write)


def measure_memory(options: argparse.Namespace, results: Results, progress: Progress) -> None:
    """The peak of everybody on every model at the first batch size."""
    names = [PLAIN, CAMKIT] if options.quick else [name for name in CONTESTANTS if name != ALL_METHODS]
    cases = [(model, name) for model in options.models for name in names if applies(name, CASES[model])]
    task = progress.add_task("memory", total=len(cases))
    for model, name in cases:
        progress.update(task, description=f"memory: {model}, {name}")
        peak = memory.measure(name, model, options.batch[0], options.size)
        results.memory.setdefault(model, {})[name] = peak
        progress.advance(task)


def measure_time(options: argparse.Namespace, results: Results, progress: Progress) -> None:
    """The time of everybody on every model at every batch size."""
    for model in options.models:
        case = CASES[model]
        module = case.build()
        for batch in options.batch:
            images = make_images(batch, options.size)
            contestants = {
                name: partial(ready, name, module, case, images) for name in CONTESTANTS if applies(name, case)
            }
            with (
                plain(module, case) as run,
                rounds(progress, f"time: {model}, batch {batch}", contestants, options.rounds) as go,
            ):
                results.times[model, batch] = interleave(partial(run, images), contestants, options.rounds, go)
        results.methods[model] = METHODS[case]


def measure_onnx(options: argparse.Namespace, results: Results, progress: Progress) -> None:
    """The exported explanation of the first model at every batch size."""
    model = options.models[0]
    case = CASES[model]
    module = case.build()
    with tempfile.TemporaryDirectory() as folder:
        task = progress.add_task(f"onnx: exporting {model}", total=1)
        paths = serving.export(module, case, options.size, Path(folder))
        progress.advance(task)
        for batch in options.batch:
            reference, contestants = serving.contestants(paths, module, case, make_images(batch, options.size))
            with rounds(progress, f"onnx: {model}, batch {batch}", contestants, options.rounds) as go:
                results.onnx[model, batch] = interleave(reference, contestants, options.rounds, go)


@contextmanager
def rounds(progress: Progress, title: str, contestants: Sized, count: int) -> Iterator[Callable[[str], None]]:
    """A line of progress; the function that it gives is told what is about to run."""
    task = progress.add_task(title, total=(count + WARM_UP) * len(contestants))

    def go(name: str) -> None:
        progress.update(task, description=f"{title}: {name}")
        progress.advance(task)

    yield go
    progress.update(task, description=title)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=CASES, default=["resnet50", "vgg16", "vit_b_16"], metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=[8, 1], help="memory is measured at the first")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="by default everything")
    parser.add_argument("--quick", action="store_true", help="a small model and two rounds, to see that all works")
    parser.add_argument("--write", type=Path, metavar="PATH", help="writes the tables as Markdown")
    options = parser.parse_args()
    if options.quick:
        options.models, options.batch, options.rounds, options.size = ["resnet18"], [2], 2, 64
    return options


if __name__ == "__main__":
    main()
