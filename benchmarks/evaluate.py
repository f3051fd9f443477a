"""Measures what judging several methods together saves; see README.md."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from PIL import Image

import camkit
import explain
from camkit.evaluate import Evaluation, Sample
from contestants import CASES, CLASS, PLAIN, THREADS, Call, Case, ignore_warnings, make_images, plain
from memory import in_a_process, resident
from screen import bars, show
from tables import command, machine, ratio, seconds, table
from timing import Timing, interleave

GRADIENTS = ("gradcam", "gradcam++", "xgradcam", "layercam", "hirescam")
# All from one pass of the model, and cheap beside it: what is measured is how often the model runs.
TEN = (*GRADIENTS, "cam", "gradcam-elementwise", "fem", "sobel", "random")
MASKING = ("average_drop", "increase_in_confidence")
TOGETHER, ONE_BY_ONE, PEER = "camkit, one call", "camkit, one by one", "grad-cam, one by one"
JUDGED, JUDGED_ONE_BY_ONE, READING = "ten methods together", "ten methods one by one", "reading the pictures alone"
DISTRIBUTIONS = ("torch", "torchvision", "grad-cam", "numpy")
# What `camkit evaluate` takes by default.
LARGE = 32
# At least so many times as many images a second as the peer; at most so many times what the forward passes take.
FASTER, OVER_FORWARDS = 10.0, 1.1


def main() -> None:
    """Runs what was asked for and shows, or writes, the page."""
    options = _parse()
    ignore_warnings()
    if options.peak:
        print(json.dumps(_peak(options)))
        return
    torch.set_num_threads(options.threads)
    case = CASES[options.model]
    model, images = case.build(), make_images(options.batch, options.size)
    with bars() as progress, plain(model, case) as run:
        forward = partial(run, images)
        timings = []
        for title, calls in (
            ("maps", {PLAIN: forward, **explaining(model, case, images)}),
            ("metrics", judging(case, options)),
        ):
            entered = {name: partial(nullcontext, call) for name, call in calls.items()}
            contestants: Mapping[str, Callable[[], AbstractContextManager[Call]]] = entered
            with explain.rounds(progress, title, contestants, options.rounds) as go:
                timings.append(interleave(forward, contestants, options.rounds, go))
    show(document(*timings, _peak_in_a_process(options), options), options.write)


def explaining(model: torch.nn.Module, case: Case, images: torch.Tensor) -> Mapping[str, Call]:
    """Heatmaps of five methods by everybody."""
    import pytorch_grad_cam as peer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    explainer = camkit.Explainer(model, layer=case.layer)
    classes = (peer.GradCAM, peer.GradCAMPlusPlus, peer.XGradCAM, peer.LayerCAM, peer.HiResCAM)

    def peers() -> list[np.ndarray]:
        found = []
        for kind in classes:
            with kind(model, [model.get_submodule(case.layer)]) as explain:
                found.append(explain(images, targets=[ClassifierOutputTarget(CLASS)] * len(images)))
        return found

    def together() -> list[torch.Tensor]:
        return [one.heatmaps for one in explainer(images, list(GRADIENTS), CLASS)]

    def one_by_one() -> list[torch.Tensor]:
        return [explainer(images, name, CLASS).heatmaps for name in GRADIENTS]

    return {TOGETHER: together, ONE_BY_ONE: one_by_one, PEER: peers}


def judging(case: Case, options: argparse.Namespace) -> Mapping[str, Call]:
    """Average drop and increase in confidence of ten methods, from pictures to rows."""
    loaded = camkit.load_model(f"torchvision:{case.model}", weights="none", size=(options.size, options.size))
    explainer = camkit.Explainer(loaded, layer=case.layer)
    drawn = np.random.default_rng(0).integers(0, 256, (options.batch, options.size, options.size, 3), dtype=np.uint8)
    samples = [Sample(Image.fromarray(one), CLASS) for one in drawn]
    together = Evaluation(explainer, MASKING, TEN, target="top")
    alone = [Evaluation(explainer, MASKING, name, target="top") for name in TEN]

    def read() -> torch.Tensor:
        return torch.stack([loaded.preprocessing(sample.picture) for sample in samples])

    return {
        JUDGED: partial(together, samples),
        JUDGED_ONE_BY_ONE: lambda: [one(samples) for one in alone],
        READING: read,
    }


def _peak(options: argparse.Namespace) -> dict[str, float]:
    """What a process holds when it judges, in MiB: with its libraries imported, with the model, and at most."""
    torch.set_num_threads(options.threads)
    imported = resident("VmRSS")
    calls = judging(CASES[options.model], options)
    built = resident("VmRSS")
    calls[JUDGED]()
    return {"libraries": imported, "and the model": built, "at most": resident("VmHWM")}


def _peak_in_a_process(options: argparse.Namespace) -> dict[str, float]:
    given = {"--model": options.model, "--batch": LARGE, "--size": options.size, "--threads": options.threads}
    return in_a_process(Path(__file__), "--peak", *(word for pair in given.items() for word in pair))


def document(maps: Timing, metrics: Timing, peak: Mapping[str, float], options: argparse.Namespace) -> str:
    """The whole page."""
    parts = [
        "# Judging several methods",
        f"What it saves to explain and to judge several methods together, on {options.model}, batch {options.batch}. "
        "How this is measured and how to read it: [benchmarks/README.md](../benchmarks/README.md). This page is "
        "written by",
        f"```\n{command(options.write)}\n```",
        "\n".join(
            [
                *machine(f"{options.threads} threads", DISTRIBUTIONS),
                f"* images: 3x{options.size}x{options.size}, random; random weights",
            ]
        ),
        f"**CPU-time ratio** to a plain forward, median of {options.rounds} rounds (lowest - highest); ratio on the "
        f"clock. A plain forward: {seconds(maps.reference)}.",
        f"## Maps of five methods\n\n{', '.join(GRADIENTS)}: heatmaps of one class.",
        table(["", "in plain forwards", "images a second"], _rows(maps, options.batch)),
        f"## Two metrics of ten methods\n\n{', '.join(MASKING)} of {', '.join(TEN)}: pictures are read, explained, and "
        f"masked with each heatmap, which takes {1 + len(TEN)} forward passes. Both metrics ask for the same masked "
        "images, which run once.",
        table(["", "in plain forwards", "images a second"], _rows(metrics, options.batch)),
        f"A process that judges {LARGE} pictures at a time holds, in MiB: "
        + ", ".join(f"{what} {mebibytes:.0f}" for what, mebibytes in peak.items())
        + ".",
        "## Aims",
        table(
            ["", "measured", "met"], [[aim, value, "yes" if met else "no"] for aim, value, met in aims(maps, metrics)]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(timing: Timing, batch: int) -> list[list[str]]:
    clock = sum(cost.wall for cost in timing.reference) / len(timing.reference)
    return [[name, ratio(timing, name), f"{batch / (clock * timing.wall(name).median):.2f}"] for name in timing.ratios]


def aims(maps: Timing, metrics: Timing) -> list[tuple[str, str, bool]]:
    """What is aimed at, what was measured, and whether that is so."""
    faster = maps.cpu(PEER).median / maps.cpu(TOGETHER).median
    passes = 1 + len(TEN)
    over = (metrics.cpu(JUDGED).median - metrics.cpu(READING).median) / passes
    return [
        (f"five methods at least {FASTER:.0f} x as fast as grad-cam one by one", f"{faster:.1f}", faster >= FASTER),
        (
            f"two metrics of ten methods, without reading, at most {OVER_FORWARDS:.1f} x their {passes} forward passes",
            f"{over:.2f}",
            over <= OVER_FORWARDS,
        ),
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("resnet50", "resnet18"), default="resnet50", metavar="NAME")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--quick", action="store_true", help="a small model and two rounds, to see that all works")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, metavar="PATH", help="writes the page as Markdown")
    options = parser.parse_args()
    if options.quick:
        options.model, options.batch, options.rounds, options.size = "resnet18", 2, 2, 64
    return options


if __name__ == "__main__":
    main()
