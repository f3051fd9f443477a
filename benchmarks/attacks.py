"""Measures PGD beside other libraries, and what stopping each image early saves; see README.md."""

import argparse
import os
import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

import camkit
import explain
from camkit.attacks import attack
from contestants import CASES, THREADS, Call, ignore_warnings
from screen import bars, show
from tables import command, machine, table
from timing import Spread, Timing, interleave

CAMKIT, EARLY, CAPTUM, TORCHATTACKS = "camkit", "camkit, early stop", "captum", "torchattacks"
DISTRIBUTIONS = ("torch", "torchvision", "captum", "torchattacks")
# So near that no image is fooled, and everybody takes every step.
NEAR = 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class OnPixels(nn.Module):
    """The model as the peers take it: pixels in [0, 1] in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, classes] of pixels [B, 3, H, W]."""
        return self.model((pixels - self.mean) / self.std)


@dataclass
class Results:
    """What one run measured, by the size of the change: times, the share of the steps that were taken, success."""

    options: argparse.Namespace
    times: dict[float, Timing] = field(default_factory=dict)
    steps: dict[float, float] = field(default_factory=dict)
    success: dict[float, dict[str, float]] = field(default_factory=dict)


def main() -> None:
    """Runs what was asked for and shows, or writes, the page."""
    options = _parse()
    ignore_warnings()
    torch.set_num_threads(options.threads)
    results = Results(options)
    model = OnPixels(CASES[options.model].build()).eval().to(options.device)
    pixels = torch.rand(options.batch, 3, options.size, options.size, generator=torch.Generator().manual_seed(1)).to(
        options.device
    )
    with torch.no_grad():
        labels = model(pixels).argmax(dim=1)
    with bars() as progress:
        for epsilon in (NEAR, *options.epsilon):
            attacks = contestants(model, pixels, labels, epsilon, options.steps)
            calls: dict[str, Callable[[], AbstractContextManager[Call]]] = {
                name: partial(nullcontext, partial(_finished, call, options.device)) for name, call in attacks.items()
            }
            reference = partial(_finished, attacks[TORCHATTACKS], options.device)
            with explain.rounds(progress, f"eps {epsilon:.3g}", calls, options.rounds) as go:
                results.times[epsilon] = interleave(reference, calls, options.rounds, go)
            results.success[epsilon] = {
                name: _fooled(model, call(), labels) for name, call in attacks.items() if name != EARLY
            }
            early = attack(_explainer(model), pixels, "pgd", epsilon=epsilon, labels=labels, options=_settings(options))
            results.steps[epsilon] = float(early.queries.float().mean()) / options.steps
    show(document(results), options.write)


def contestants(
    model: nn.Module, pixels: Tensor, labels: Tensor, epsilon: float, steps: int
) -> Mapping[str, Callable[[], Tensor]]:
    """Everybody's PGD in the same ball with the same steps, each giving the attacked pixels."""
    import torchattacks
    from captum.robust import PGD

    step = 2.5 * epsilon / steps
    explainer = _explainer(model)

    def ours(*, early_stop: bool) -> Tensor:
        chosen = {"steps": steps, "step_size": step}
        return attack(
            explainer, pixels, "pgd", epsilon=epsilon, labels=labels, options=chosen, early_stop=early_stop
        ).pixels

    captum = PGD(model, nn.CrossEntropyLoss(reduction="none"), 0, 1)
    peer = torchattacks.PGD(model, eps=epsilon, alpha=step, steps=steps, random_start=True)
    return {
        TORCHATTACKS: lambda: peer(pixels, labels),
        CAPTUM: lambda: captum.perturb(pixels, epsilon, step, steps, labels, random_start=True),
        CAMKIT: partial(ours, early_stop=False),
        EARLY: partial(ours, early_stop=True),
    }


def _settings(options: argparse.Namespace) -> dict[str, int]:
    return {"steps": options.steps}


def _explainer(model: nn.Module) -> camkit.Explainer:
    return camkit.Explainer(model, "model.layer4", camkit.Adapter(name="resnet", layout="NCHW", probability="softmax"))


def _finished(call: Callable[[], Tensor], device: str) -> Tensor:
    """The result, when the device has it: a GPU is asked and goes on by itself."""
    result = call()
    if device != "cpu":
        torch.cuda.synchronize()
    return result


def _fooled(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(pixels).argmax(dim=1) != labels).float().mean())


def document(results: Results) -> str:
    """The whole page."""
    options = results.options
    where = f"{options.threads} threads" if options.device == "cpu" else f"on {torch.cuda.get_device_name()}"
    parts = [
        "# Attacks",
        f"What PGD costs: {options.steps} steps on {options.model}, batch {options.batch}, beside the same attack of "
        "other libraries. How this is measured and how to read it: "
        "[benchmarks/README.md](../benchmarks/README.md). This page is written by",
        f"```\n{command(options.write)}\n```",
        "\n".join(
            [*machine(where, DISTRIBUTIONS), f"* images: 3x{options.size}x{options.size}, random; random weights"]
        ),
        f"Median of {options.rounds} rounds, with the lowest and the highest: time on the clock, divided by that of "
        "torchattacks before and after. In the first rows the ball is so small that no image is fooled, so that "
        "everybody takes every step. In the others camkit lets each image that is fooled leave the batch: the last "
        "column is the share of all steps that its images took.",
        table(["eps", "contestant", "seconds", "time", "fooled", "steps taken"], list(_rows(results))),
        "## Aims",
        _aims(results),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(results: Results) -> list[list[str]]:
    rows = []
    for epsilon, timing in results.times.items():
        reference = statistics.median(cost.wall for cost in timing.reference)
        for name in timing.ratios:
            spread = timing.wall(name)
            early = name == EARLY
            rows.append(
                [
                    f"{epsilon:.3g}",
                    name,
                    f"{reference * spread.median:.2f}",
                    f"**{spread.median:.2f}** ({spread.low:.2f} to {spread.high:.2f})",
                    f"{results.success[epsilon][CAMKIT if early else name]:.0%}",
                    f"{results.steps[epsilon]:.0%}" if early else "100%",
                ]
            )
    return rows


def _aims(results: Results) -> str:
    timing = results.times[NEAR]
    peers = min((timing.wall(TORCHATTACKS), timing.wall(CAPTUM)), key=lambda spread: spread.median)
    ours = timing.wall(CAMKIT)
    lines = [["no slower than the faster peer within the spread", _against(ours, peers), _verdict(ours, peers)]]
    for epsilon, taken in results.steps.items():
        if epsilon != NEAR:
            early, full = (results.times[epsilon].wall(name).median for name in (EARLY, CAMKIT))
            lines.append(
                [
                    f"early stop saves what the stopped images save (eps {epsilon:.3g})",
                    f"{early / full:.2f} of the time for {taken:.2f} of the steps",
                    "",
                ]
            )
    return table(["aim", "measured", ""], lines)


def _against(*spreads: Spread) -> str:
    return " and ".join(f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})" for spread in spreads)


def _verdict(ours: Spread, peer: Spread) -> str:
    return "met" if ours.low <= peer.high else "**missed**"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("resnet50", "resnet18"), default="resnet50", metavar="NAME")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--epsilon", nargs="+", type=float, default=[2e-4, 8 / 255])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a small model and two rounds, to see that all works")
    parser.add_argument("--write", type=Path, metavar="PATH", help="writes the page as Markdown")
    options = parser.parse_args()
    if options.quick:
        options.model, options.batch, options.steps, options.rounds, options.size = "resnet18", 2, 4, 2, 64
    return options


if __name__ == "__main__":
    main()
