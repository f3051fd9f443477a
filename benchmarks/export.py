"""Measures exported graphs beside the plain forward graph of the same model: time, operators, memory; see README.md."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import onnx
import torch
from rich.progress import Progress, TaskID

import camkit
import serving
from camkit.exports import request
from camkit_export import trace
from camkit_export.onnx import write_onnx
from contestants import CLASS, GRAD_CAM, THREADS, Call, Case, ignore_warnings, make_images, ready
from memory import in_a_process, resident
from screen import bars, show
from serving import CAM_GRAPH, EAGER, PLAIN_GRAPH
from tables import DISTRIBUTIONS, command, machine, ratio, seconds, table
from timing import Timing, interleave

# With what the CAM graph may cost in units of the plain graph.
CASES = {
    "resnet50": (Case("resnet50", "layer4"), 1.05),
    "convnext_tiny": (Case("convnext_tiny", "features.7"), 1.05),
    "swin_t": (Case("swin_t", "features.7"), 1.05),
    "vgg16": (Case("vgg16", "features.29"), 1.10),
    "vit_b_16": (Case("vit_b_16", "encoder.layers.encoder_layer_11.ln_1", tokens=True), 1.15),
    "resnet50, layer1": (Case("resnet50", "layer1"), 2.2),
    "resnet18": (Case("resnet18", "layer4"), 1.10),
}
DEFAULT = [name for name in CASES if name != "resnet18"]
# Of these grad-cam would take rows for channels, unless told otherwise.
CHANNELS_LAST = ("swin_t",)
# Beside that, on ResNet-50: the plain forward of PyTorch without any explanation, and grad-cam.
OF_EAGER = 0.5
TIMES_GRAD_CAM = 6
MEMORY = 1.1
EXPORT_TIME = 2.0
# Operators that only work out shapes; on constants they would be a waste.
SHAPES = ("Shape", "Gather", "GatherND", "Unsqueeze", "Concat")


@dataclass(frozen=True)
class Row:
    """What was measured of one model."""

    timing: Timing
    nodes: dict[str, int]
    shapes: dict[str, int]
    seconds: dict[str, float]
    peaks: dict[str, float]


def main() -> None:
    """Measures what was asked for and shows, or writes, the page."""
    options = _parse()
    if options.run:
        print(json.dumps(_peak(*options.run)))
        return
    ignore_warnings()
    torch.set_num_threads(options.threads)
    rows = {}
    with bars() as progress:
        task = progress.add_task("", total=len(options.models))
        for name in options.models:
            say = partial(_say, progress, task, name)
            rows[name] = measure(name, options, say)
            progress.advance(task)
    text = document(rows, options, command(options.write))
    show(text, options.write)


def measure(name: str, options: argparse.Namespace, say: Callable[[str], None]) -> Row:
    """One model: both graphs are written, counted, and run in turns."""
    case, _ = CASES[name]
    model, images = case.build(), make_images(options.batch, options.size)
    with tempfile.TemporaryDirectory() as folder:
        plain, cam = Path(folder) / "plain.onnx", Path(folder) / "gradcam.onnx"
        say("exporting the plain forward")
        seconds = {PLAIN_GRAPH: _seconds(lambda: serving.export_plain(model, options.size, plain))}
        say("exporting Grad-CAM")
        seconds[CAM_GRAPH] = _seconds(lambda: _export(model, case, options.size, cam, compact=options.compact))
        files = {PLAIN_GRAPH: plain, CAM_GRAPH: cam}
        graphs = {what: onnx.load(path).graph for what, path in files.items()}
        say("memory")
        peaks = {what: _peak_in_a_process(path, options) for what, path in files.items()}
        reference, contestants = serving.contestants(files, model, case, images)
        if name not in CHANNELS_LAST:
            contestants[GRAD_CAM] = partial(ready, GRAD_CAM, model, case, images)
        timing = interleave(reference, contestants, options.rounds, say)
    return Row(
        timing,
        {what: len(graph.node) for what, graph in graphs.items()},
        {what: sum(node.op_type in SHAPES for node in graph.node) for what, graph in graphs.items()},
        seconds,
        peaks,
    )


def _export(model: torch.nn.Module, case: Case, size: int, path: Path, *, compact: bool) -> None:
    """Grad-CAM as ONNX as `camkit.export` writes it, without its verification."""
    prepared = request(camkit.Explainer(model, layer=case.layer), images=make_images(2, size))
    write_onnx(trace.trace(prepared), path, "", compact=compact)


def _seconds(call: Call) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def _peak_in_a_process(path: Path, options: argparse.Namespace) -> float:
    """The peak of ONNX Runtime's memory on a batch over what the process held with the library imported, in MiB."""
    return float(in_a_process(Path(__file__), "--run", path, options.batch, options.size))


def _peak(path: str, batch: str, size: str) -> float:
    images = np.random.default_rng(0).standard_normal((int(batch), 3, int(size), int(size)), dtype=np.float32)
    start = resident("VmRSS")
    session = serving.open_graph(Path(path))
    feed = {"image": images, "class_index": np.full(len(images), CLASS)}
    wanted = {one.name: feed[one.name] for one in session.get_inputs()}
    for _ in range(2):
        session.run(None, wanted)
    return resident("VmHWM") - start


def _say(progress: Progress, task: TaskID, name: str, what: str) -> None:
    progress.update(task, description=f"{name}: {what}")


def document(rows: Mapping[str, Row], options: argparse.Namespace, written_by: str) -> str:
    """The page: one column for each model, and what was aimed at."""
    own = [
        [f"*{PLAIN_GRAPH}: seconds*", *(seconds(row.timing.reference) for row in rows.values())],
        *(
            [name, *(ratio(row.timing, name) for row in rows.values())]
            for name in (PLAIN_GRAPH, CAM_GRAPH, EAGER, GRAD_CAM)
        ),
        ["operators, plain and Grad-CAM", *(_both(row.nodes, "d") for row in rows.values())],
        ["of which work out shapes", *(_both(row.shapes, "d") for row in rows.values())],
        ["peak memory, MiB", *(_both(row.peaks, ".0f") for row in rows.values())],
        ["exporting, CPU seconds", *(_both(row.seconds, ".1f") for row in rows.values())],
    ]
    parts = [
        "# Exported Grad-CAM beside the plain forward",
        f"Both graphs of one model in ONNX Runtime, batch {options.batch}, in turns, PyTorch's eager forward without "
        f"any explanation, and grad-cam's Grad-CAM. **CPU-time ratio** to the plain graph, median of {options.rounds} "
        "rounds (lowest - highest); ratio on the clock. Exporting is without verification. This page is written by",
        f"```\n{written_by}\n```",
        "\n".join(machine(f"{options.threads} threads", DISTRIBUTIONS)),
        table(["", *rows], own),
        "## Aims",
        table(["", "measured", "met"], [[aim, value, "yes" if met else "no"] for aim, value, met in aims(rows)]),
    ]
    return "\n\n".join(parts) + "\n"


def aims(rows: Mapping[str, Row]) -> list[tuple[str, str, bool]]:
    """What is aimed at, what was measured, and whether that is so."""
    found = []
    for name, row in rows.items():
        share, bound = row.timing.cpu(CAM_GRAPH).median, CASES[name][1]
        found.append((f"at most {bound:.2f} x the plain graph: {name}", f"{share:.2f}", share <= bound))
    for name, row in rows.items():
        if name == "resnet50":
            share = row.timing.cpu(CAM_GRAPH).median / row.timing.cpu(EAGER).median
            aim = f"at most {OF_EAGER:.2f} x PyTorch's forward without explanation: {name}"
            found.append((aim, f"{share:.2f}", share <= OF_EAGER))
            times = row.timing.cpu(GRAD_CAM).median / row.timing.cpu(CAM_GRAPH).median
            found.append(
                (
                    f"at least {TIMES_GRAD_CAM} times as fast as grad-cam: {name}",
                    f"{times:.1f}",
                    times >= TIMES_GRAD_CAM,
                )
            )
    for what, bound, values in (
        ("memory", MEMORY, {name: row.peaks for name, row in rows.items()}),
        ("export time", EXPORT_TIME, {name: row.seconds for name, row in rows.items()}),
    ):
        for name, both in values.items():
            share = both[CAM_GRAPH] / both[PLAIN_GRAPH]
            found.append((f"{what} at most {bound:.1f} x the plain graph's: {name}", f"{share:.2f}", share <= bound))
    return found


def _both(values: Mapping[str, float], form: str) -> str:
    return f"{values[PLAIN_GRAPH]:{form}}, {values[CAM_GRAPH]:{form}}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=CASES, default=DEFAULT, metavar="NAME")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--compact", action="store_true", help="large classifiers are held once")
    parser.add_argument("--quick", action="store_true", help="a small model and two rounds, to see that all works")
    parser.add_argument(
        "--write", type=Path, metavar="PATH", help="the page to write, such as docs/export-benchmark.md"
    )
    parser.add_argument("--run", nargs=3, metavar=("FILE", "BATCH", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.models, options.batch, options.rounds, options.size = ["resnet18"], 2, 2, 64
    return options


if __name__ == "__main__":
    main()
