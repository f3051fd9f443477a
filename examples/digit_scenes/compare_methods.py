"""Compare all methods on scenes of two digits: asked for one of them, where the heatmap peaks.

Each digit of a scene is asked for in turn. The pointing game looks whether the heatmap's peak lies in the box of the
asked digit or in that of the other; one explanation serves both questions.

Usage: python examples/digit_scenes/compare_methods.py [--scenes 100] [--models demo:vit ...] [--write docs/methods.md]
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Threads that spin while they wait make a busy machine several times slower; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import camkit
from camkit import progress as inner_progress
from camkit.errors import CamkitError, CamkitWarning
from camkit.methods import Method
from camkit.registry import registry
from camkit_adapters.demo import scenes

MODELS = ("demo:resnet", "demo:vgg", "demo:vit")
SEED = 0
BATCH = 10

# By how much the number of scenes is divided for a method that runs the model hundreds of times for every image.
FEWER_SCENES = {"ablationcam": 4, "scorecam": 4, "rise": 4, "iscam": 10, "sscam": 10}

KINDS = {
    "gradient": "asks for a gradient",
    "activation": "asks for activations, and nothing that is differentiated or run again",
    "perturbation": "runs the model, or the part of it behind the target layer, again (Shapley-CAM differentiates "
    "that part a second time)",
    "transformer": "asks for attention",
    "baseline": "is given nothing of the model, or says in the place of its paper that it is a baseline",
}

EXPLANATION = """\
The convolutional networks end in a mean over positions and one linear layer. There the gradient is the same at every
position, Grad-CAM, XGrad-CAM, HiResCAM, Recipro-CAM, Shapley-CAM and CAM are one formula, and their columns say so.
What they miss, they mostly miss by a cell: maps that are smoother or finer than the target layer's cells
(ViT-Recipro-CAM's Gaussian, RISE's masks) hit narrow digits more often. Full-Grad scales the channels of
a layer together, as its authors' code does; with `rescale=channel`, the paper's formula, the many channels that see
no digit outvote the few that do.

Class-agnostic methods find digits, but cannot know which was asked for, and an edge detector does as well. On the
ViT, Eigen-CAM and FEM do not even find digits: behind a LayerNorm all tokens share a large offset, which is what an
uncentred first component shows; KPCA-CAM, which is centred, does not have that problem.

In the ViT one more attention follows the target layer, so that a channel means different things in different
positions. Methods that take one weight for a channel (Grad-CAM, Grad-CAM++, Ablation-CAM, Shapley-CAM) point worse
there than those that keep each position's own gradient (HiResCAM, LayerCAM), and methods that drop a sign
(Seg-Eigen-CAM, Full-Grad) or do not fix it (Eigen-Grad-CAM) hardly tell the digits apart. Of the cheap methods, those
that follow class-specific attention through all layers point best. Its maps are moved by half a cell, 4 pixels, by
the odd kernels of its stem (see the [model card](../adapters/camkit_adapters/demo/MODEL_CARD.md)), which costs every
method that reads tokens some hits. Recipro-CAM's maps are logits of nearly empty images, often negative everywhere
and so blank; the target `probability` avoids that. SS-CAM adds noise twice as large as the mask's own range, and
needs many more samples than were taken."""


@dataclass(frozen=True)
class Task:
    """One method on one model.

    Attributes:
        spec: the model.
        method: the method's name.
        scene_count: on how many scenes it is measured.
        options: the options that differ from the method's defaults.
        target: name of the target function.
    """

    spec: str
    method: str
    scene_count: int
    options: Mapping[str, Any] = field(default_factory=dict)
    target: str = "class"


@dataclass(frozen=True)
class Pointing:
    """How often the peak fell into the asked digit's box and into the other's, as shares of all that can be judged.

    `judged` is their number; a flat heatmap has no peak. `refusal` says why the model was refused, if it was.
    """

    asked: float = math.nan
    other: float = math.nan
    judged: int = 0
    refusal: str = ""


# by model and method
Found = Mapping[tuple[str, str], tuple[Task, Pointing]]


def kind_of(method: Method) -> str:
    """One of `KINDS`, by what the method asks for."""
    asks = set(method.signature.asks) - {"note"}
    if asks <= {"images"} or "baseline" in method.paper:
        return "baseline"
    if any("attention" in name for name in asks):
        return "transformer"
    if asks & {"head", "model_scores"}:
        return "perturbation"
    return "gradient" if "samples" in asks or any("gradients" in name for name in asks) else "activation"


def map_methods() -> list[Method]:
    """The registered methods of kind ``map``, in order of kind and name."""
    found: list[Method] = [registry().get("method", name) for name in registry().names("method")]
    order = list(KINDS)
    maps = [method for method in found if method.kind == "map"]
    return sorted(maps, key=lambda method: (order.index(kind_of(method)), method.name))


def run(task: Task) -> Pointing:
    """Measures one method on one model; runs in a process of its own."""
    asked, other = [], []
    with warnings.catch_warnings(), inner_progress.shown_in(Progress(disable=True)):
        # a blank map is no news here: it is counted
        warnings.simplefilter("ignore", CamkitWarning)
        try:
            for images, labels, own_box, other_box in questions(task.scene_count):
                target = camkit.Target(function=task.target, class_index=labels)
                explanation = explainer(task.spec)(images, task.method, target, options=dict(task.options))
                pointing_game = registry().get("metric", "pointing_game").function
                asked.append(pointing_game(explanation.heatmaps, own_box))
                other.append(pointing_game(explanation.heatmaps, other_box))
        except CamkitError as error:
            return Pointing(refusal=str(error))
    own = torch.cat(asked)
    judged = int(own.isfinite().sum())
    return Pointing(float(own.nanmean()), float(torch.cat(other).nanmean()), judged)


@cache
def explainer(spec: str) -> camkit.Explainer:
    """The model, loaded once in each process."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    return camkit.Explainer(camkit.load_model(spec))


@cache
def pairs(count: int) -> list[scenes.Scene]:
    """Scenes of two digits, whose handwriting was not seen in training."""
    return scenes.generate(count, "test", SEED, digit_counts=(2,))


def questions(count: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Batches (images, asked classes, where the asked digit is, where the other is), each digit of a scene in turn."""
    for start in range(0, count, BATCH):
        batch = pairs(count)[start : start + BATCH]
        images = torch.from_numpy(scenes.inputs(batch)).repeat_interleave(2, dim=0)
        labels = torch.tensor([digit.label for scene in batch for digit in scene.digits])
        boxes = torch.stack([region(digit.box) for scene in batch for digit in scene.digits])
        # digits come in pairs, so that turning each pair round gives the other digit's box
        yield images, labels, boxes, boxes.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def region(box: scenes.Box) -> Tensor:
    """A box as bool [H, W]."""
    left, top, right, bottom = box
    inside = torch.zeros(scenes.SIDE, scenes.SIDE, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    return inside


def tasks(specs: Sequence[str], scene_count: int, rise_masks: int, sscam_samples: int) -> list[Task]:
    """Every method on every model."""
    options = {"rise": {"masks": rise_masks}, "sscam": {"samples": sscam_samples}}
    # the constant in a logit is noise to RISE, whose paper takes probabilities
    targets = {"rise": "probability"}
    return [
        Task(
            spec,
            method.name,
            min(scene_count, max(2, scene_count // FEWER_SCENES.get(method.name, 1))),
            options.get(method.name, {}),
            targets.get(method.name, "class"),
        )
        for spec in specs
        for method in map_methods()
    ]


def measure(todo: Sequence[Task], workers: int) -> Found:
    """What each task found, in processes side by side."""
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found: dict[tuple[str, str], tuple[Task, Pointing]] = {}
    # the slowest first, so that none is left over at the end
    order = sorted(todo, key=lambda task: -FEWER_SCENES.get(task.method, 1))
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task("Starting", total=len(todo))
        waiting = {pool.submit(run, task): task for task in order}
        for done in as_completed(waiting):
            task = waiting[done]
            found[task.spec, task.method] = task, done.result()
            progress.update(bar, advance=1, description=f"{task.spec}: {task.method}")
    return found


def document(specs: Sequence[str], scene_count: int, found: Found) -> str:
    """The page in Markdown."""
    header = ["method", "kind", "scenes", *(f"{spec} {box}" for spec in specs for box in ("asked", "other"))]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * 3}{' ---: |' * (2 * len(specs))}"]
    for method in map_methods():
        task = found[specs[0], method.name][0]
        shares = [cell for spec in specs for cell in cells(found[spec, method.name][1], 2 * task.scene_count)]
        lines.append(f"| {' | '.join([title(method, task), kind_of(method), str(task.scene_count), *shares])} |")
    chance = sum(float(boxes.float().mean()) * len(boxes) for _, _, boxes, _ in questions(scene_count))
    share = f"{chance / (2 * scene_count):.0%}"
    lines.append(f"| *a point by chance* | floor | {scene_count} | {' | '.join([share] * 2 * len(specs))} |")
    return "\n\n".join(
        [
            "# Where the methods point",
            introduction(specs, scene_count, found),
            "\n".join(lines),
            "## What is remarkable",
            *remarks(specs, found),
            *([" ".join(part.split("\n")) for part in EXPLANATION.split("\n\n")] if set(MODELS) <= set(specs) else []),
            "## Refused",
            *refusals(specs, found),
        ]
    )


def introduction(specs: Sequence[str], scene_count: int, found: Found) -> str:
    """What was done, and how to read the table."""
    uncertain = {count: 50 / math.sqrt(2 * count) for count in sorted({task.scene_count for task, _ in found.values()})}
    errors = "; ".join(f"{points:.0f} points with {count} scenes" for count, points in reversed(uncertain.items()))
    kinds = "\n".join(f"* **{kind}**: {what};" for kind, what in KINDS.items()).rstrip(";") + "."
    return (
        f"Each of {scene_count} scenes shows two handwritten digits. Each of the two is asked for in turn, and the "
        "heatmap's peak is looked up: **asked** is how often it lies in the box of the digit that was asked for, "
        "**other** how often in the other digit's box; the rest lies beside both. The models' handwriting is not that "
        "of their training. A method measured on fewer scenes is slow. A *blank* heatmap has no peak "
        "and is left out. A share is uncertain by at most one standard "
        f"error of {errors}.\n\n"
        "A **floor** is what a method has to beat: Sobel knows the picture but not the model, Random (one random "
        "map, the same for every picture, hence one point) neither; the last row is the share of the picture that a "
        "digit's box covers. A class-agnostic method gives both digits the same map, so that its two shares are equal "
        f"by construction.\n\nThe kind is read off what a method asks for:\n\n{kinds}\n\n"
        f"This page is written by\n\n```\n{command()}\n```"
    )


def title(method: Method, task: Task) -> str:
    """The method's name with all that was not as usual."""
    said = [f"{name}={value}" for name, value in task.options.items()]
    said += [f"target {task.target}"] if task.target != "class" else []
    said += [] if method.class_specific or kind_of(method) == "baseline" else ["class-agnostic"]
    said += ["**floor**"] if kind_of(method) == "baseline" else []
    return f"`{method.name}`" + (f" ({', '.join(said)})" if said else "")


def cells(pointing: Pointing, asked: int) -> tuple[str, str]:
    """The two cells of one method on one model."""
    if pointing.refusal:
        return "refused", "refused"
    if not pointing.judged:
        return "blank", "blank"
    blank = f" ({asked - pointing.judged} blank)" if pointing.judged < asked else ""
    return f"{pointing.asked:.0%}{blank}", f"{pointing.other:.0%}"


def remarks(specs: Sequence[str], found: Found) -> list[str]:
    """For each model who points best, and who does not beat the floors or does not answer the question."""
    said = []
    for spec in specs:
        shown = {
            method: found[spec, method.name][1] for method in map_methods() if found[spec, method.name][1].judged > 0
        }
        floor = max((one.asked for method, one in shown.items() if kind_of(method) == "baseline"), default=0.0)
        rivals = {method: one for method, one in shown.items() if kind_of(method) != "baseline"}
        best = max((one.asked for one in rivals.values()), default=0.0)
        first = [method.name for method, one in rivals.items() if one.asked == best]
        low = [method.name for method, one in rivals.items() if one.asked <= floor]
        deaf = [method.name for method, one in rivals.items() if method.class_specific and one.other >= one.asked]
        sentences = [
            f"Most often at the asked digit, {best:.0%}: {listed(first)}.",
            f"No more often than the better floor, {floor:.0%}: {listed(low)}." if low else "All beat the floors.",
            f"At the other digit at least as often, though class-specific: {listed(deaf)}." if deaf else "",
        ]
        said.append(f"**{spec}.** " + " ".join(filter(None, sentences)))
    return said


def refusals(specs: Sequence[str], found: Found) -> list[str]:
    """Who refused which model, and why."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for spec in specs:
        for method in map_methods():
            reason = found[spec, method.name][1].refusal
            if reason:
                reasons.setdefault((spec, reason), []).append(method.name)
    if not reasons:
        return ["No method refused a model."]
    return ["\n".join(f"* {listed(names)} on {spec}: {reason}" for (spec, reason), names in reasons.items())]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return ", ".join(f"`{name}`" for name in names)


def command() -> str:
    """The command as it was given, from the repository's root."""
    return shlex.join(["python", f"examples/digit_scenes/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare all methods on scenes of two digits.")
    parser.add_argument(
        "--scenes", type=int, default=100, help="how many scenes; slow methods take fewer (default 100)"
    )
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL", help="which demo models (default all)")
    parser.add_argument("--rise-masks", type=int, default=500, help="masks of RISE, 4000 in its paper (default 500)")
    parser.add_argument("--sscam-samples", type=int, default=8, help="samples of SS-CAM, 35 in its paper (default 8)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default one for each core)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="Markdown file to write")
    arguments = parser.parse_args()
    if arguments.scenes < 1:
        parser.error(f"--scenes is at least 1, not {arguments.scenes}")
    todo = tasks(arguments.models, arguments.scenes, arguments.rise_masks, arguments.sscam_samples)
    results = measure(todo, arguments.workers)
    text = document(arguments.models, arguments.scenes, results)
    Console().print(Markdown(text))
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
