"""``camkit adapters check``: the conformance kit for adapter files."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from camkit.cli import printing
from camkit.cli.options import ModelOptions, with_model
from camkit.errors import CamkitError

if TYPE_CHECKING:
    from camkit.testing.adapters import AdapterReport


@with_model()
def check(
    options: ModelOptions,
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The adapter file.", show_default=False)],
    no_exports: Annotated[bool, typer.Option("--no-exports", help="Do not export, which takes longest.")] = False,
    random_constants: Annotated[
        bool,
        typer.Option(
            help="Make random what an untrained model has constant, such as a head of zeros (--weights none)."
        ),
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of random weights and images.")] = 0,
) -> None:
    """Check what an adapter file says of a model; exit code 1 if a promise is broken.

    The layer exists and runs once, the layout is right, the gradient is not zero, eager equals the float64 oracle, the
    other named layers can be explained, and the explanation can be exported.
    """
    import torch

    from camkit.adapter_files import load_adapters
    from camkit.progress import task
    from camkit.testing.adapters import PROMISES, check_adapter
    from camkit.testing.weights import vary_constants

    if options.adapter:
        raise CamkitError("The file to check was given twice, as an argument and with --adapter; give it once.")
    load_adapters(file)
    torch.manual_seed(seed)
    explainer, loaded = replace(options, adapter=file).explainer()
    if random_constants and loaded.weights == "none":
        vary_constants(explainer.module, seed)
    generator = torch.Generator().manual_seed(seed)
    size = (loaded.preprocessing.channels, *loaded.preprocessing.size)
    images = torch.randn(2, *size, generator=generator).to(explainer.device, explainer.dtype)
    with task("Checking", len(PROMISES)) as advance:
        report = check_adapter(explainer, images, exports=not no_exports, progress=lambda _: advance(1))
    _print(report)
    if not report.passed:
        raise typer.Exit(1)


def _print(report: "AdapterReport") -> None:
    from camkit.testing.adapters import PROMISES

    screen = printing.console()
    screen.print(f"{report.adapter}: {report.layer} {report.layout} {report.grid[0]}x{report.grid[1]}")
    for promise in PROMISES:
        if promise in report.failures:
            screen.print(Text("broken  ", style="bold red").append(promise, style="bold"))
            screen.print(Text(f"        {report.failures[promise]}"))
        elif promise in report.kept:
            screen.print(Text("kept    ", style="green").append(promise), Text(report.kept[promise], style="dim"))
        else:
            screen.print(Text("-       ", style="dim").append(promise, style="dim"))
    for remark in report.remarks:
        printing.line(remark, label="Note", style="bold yellow")
