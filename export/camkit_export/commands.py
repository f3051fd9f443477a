"""``camkit export`` and ``camkit verify``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from camkit.cli import printing
from camkit.cli.options import ModelOptions, parse_options, with_model
from camkit.errors import CamkitError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from camkit.check import Check


@with_model()
def export(
    options: ModelOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.onnx|FILE.pt", help="The file; its suffix is the format.")
    ],
    method: Annotated[str, typer.Option(help="The method.")] = "gradcam",
    option: Annotated[
        list[str] | None, typer.Option(metavar="A.name=value", help="An option of the method or target; repeatable.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="The target layer; by default the adapter's.")] = None,
    target: Annotated[str, typer.Option(help="The target function: class, counterfactual …")] = "class",
    signed: Annotated[bool, typer.Option("--signed", help="Heatmaps without ReLU, in [-1, 1].")] = False,
    opset: Annotated[int | None, typer.Option(help="The ONNX opset, 18 or later.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
) -> None:
    """Write prediction and heatmap as one verified graph.

    The graph holds the forward pass, the gradient, the method and the resize; the file takes its name once it gave the
    same results as the model.
    """
    import torch

    from camkit.exports import export as write

    torch.manual_seed(seed)
    explainer, _ = options.explainer(layer)
    format_options: dict[str, Any] = {} if opset is None else {"opset": opset}
    console = printing.console()
    with console.status("Tracing, writing and verifying …"):
        report = write(
            explainer,
            output,
            method,
            target=target,
            options=parse_options(option or [], [method], [target]),
            relu=not signed,
            **format_options,
        )
    console.print(_table(report.checks))
    size = report.path.stat().st_size / 2**20
    printing.line(f"Wrote {report.path} ({report.nodes} nodes, {size:.1f} MB), verified.")


@with_model(required=False)
def verify(
    options: ModelOptions,
    file: Annotated[Path, typer.Argument(help="An exported file.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Seed of random weights, as given to camkit export.")] = 0,
) -> None:
    """Check an exported file against its own test vectors.

    With --model it is compared with PyTorch too, on other images.
    """
    from camkit_export.verify import verify_file

    checks = verify_file(file)
    if options.model:
        checks = (*checks, *_against_model(file, options, seed))
    console = printing.console()
    console.print(_table(checks))
    failed = [check for check in checks if not check.passed]
    if failed:
        worst = max(failed, key=lambda check: check.error)
        raise CamkitError(
            f"'{file}' does not give what it should: {worst.name} differs by {worst.error:.1e}, "
            f"{worst.tolerance:.0e} is allowed."
        )
    printing.line(f"{file} gives what it should.")


def _against_model(file: Path, options: ModelOptions, seed: int) -> "tuple[Check, ...]":
    import torch

    import camkit
    from camkit.exports import request
    from camkit_export.verify import compare

    torch.manual_seed(seed)
    session = camkit.load(file)
    facts = session.provenance
    explainer, _ = options.explainer(facts["layer"])
    asked = request(
        explainer,
        facts["method"],
        target=facts["target"],
        options={**_named(facts["method"], facts["options"]), **_named(facts["target"], facts.get("target_options"))},
        relu=session.relu,
        images=torch.randn(1, *session.image_shape),
    )
    return compare(file, asked)


def _named(owner: str, options: "Mapping[str, Any] | None") -> dict[str, Any]:
    return {f"{owner}.{name}": value for name, value in (options or {}).items()}


def _table(checks: "tuple[Check, ...]") -> Table:
    table = printing.table("check", "largest error", "allowed", "images", "ties left out", "")
    for check in checks:
        verdict = Text("equal", style="green") if check.passed else Text("differs", style="bold red")
        row = (check.name, f"{check.error:.1e}", f"{check.tolerance:.0e}", str(check.images), str(check.ties_left_out))
        table.add_row(*row, verdict)
    return table
