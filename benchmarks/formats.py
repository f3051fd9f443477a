"""Measures what one explanation costs in every exported format, beside camkit on the model itself; see README.md."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

# threads that wait must not use the CPU, whose time is what is measured
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from rich.progress import Progress
from torch import nn

import camkit
import explain
import serving
from contestants import CAMKIT, CASES, CLASS, PLAIN, Call, Case, ignore_warnings, make_images, ready
from format_tables import Results, document
from screen import bars, show
from tables import command
from timing import interleave

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2", "aotinductor": ".aoti.pt2"}


def main() -> None:
    """Writes the formats, measures what was asked for and shows the tables."""
    options = _parse()
    ignore_warnings()
    case = CASES[options.model]
    model = case.build()
    results = Results(options.model, options.rounds, options.size)
    with tempfile.TemporaryDirectory() as folder, bars() as progress:
        paths = write(options, results, model, case, Path(folder), progress)
        for threads in options.threads:
            for batch in options.batch:
                measure(options, results, (threads, batch), paths, model, case, progress)
    text = document(results, command(options.write))
    show(text, options.write)


def write(
    options: argparse.Namespace, results: Results, model: nn.Module, case: Case, folder: Path, progress: Progress
) -> dict[str, Path]:
    """The files of the formats, each verified; and how large they are, and how long they took."""
    explainer, images = camkit.Explainer(model, layer=case.layer), make_images(2, options.size)
    task = progress.add_task("exporting", total=len(options.formats))
    paths = {}
    for name in options.formats:
        progress.update(task, description=f"exporting: {name}")
        paths[name] = folder / f"gradcam{FORMATS[name]}"
        start = time.perf_counter()
        camkit.export(explainer, paths[name], images=images)
        results.files[name] = (time.perf_counter() - start, paths[name].stat().st_size / 2**20)
        progress.advance(task)
    return paths


def measure(
    options: argparse.Namespace,
    results: Results,
    setting: tuple[int, int],
    paths: dict[str, Path],
    model: nn.Module,
    case: Case,
    progress: Progress,
) -> None:
    """The time of everybody with so many threads and images, (threads, batch), between two plain forwards each."""
    threads, batch = setting
    torch.set_num_threads(threads)
    images = make_images(batch, options.size)
    contestants: dict[str, Callable[[], AbstractContextManager[Call]]] = {
        name: partial(ready, name, model, case, images) for name in (PLAIN, CAMKIT)
    }
    for name, path in paths.items():
        call = partial(_session(name, path, threads), images.numpy(), np.full(batch, CLASS))
        contestants[name] = partial(nullcontext, call)
    title = f"{threads} thread{'s' if threads > 1 else ''}, batch {batch}"
    with (
        explain.rounds(progress, title, contestants, options.rounds) as go,
        ready(PLAIN, model, case, images) as reference,
    ):
        results.times[setting] = interleave(reference, contestants, options.rounds, go)


def _session(name: str, path: Path, threads: int) -> Callable[..., object]:
    """As its users would open it; ONNX Runtime has threads of its own, which are told how many they are."""
    session = camkit.load(path, format=name)
    if name == "onnx":
        session._engine = serving.open_graph(path, threads)
    return session


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=CASES, default="resnet18", metavar="NAME")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--quick", action="store_true", help="what needs no compiler, two rounds: does it all work?")
    parser.add_argument("--write", type=Path, metavar="PATH", help="writes the tables as Markdown")
    options = parser.parse_args()
    if options.quick:
        options.formats = [name for name in options.formats if name != "aotinductor"]
        options.batch, options.threads, options.rounds, options.size = [2], [1], 2, 64
    return options


if __name__ == "__main__":
    main()
