"""``camkit export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from camkit.cli import printing
from camkit.cli.options import ModelOptions, comma_separated, parse_options, with_model
from camkit.errors import CamkitError, first_line

if TYPE_CHECKING:
    from torch import Tensor

    from camkit.check import Check
    from camkit.explain import Explainer


@with_model()
def export(
    options: ModelOptions,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.onnx|.pt|.pt2|…", help="The file; its suffix is the format."),
    ] = None,
    triton: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A model repository of Triton, to which the model is added.")
    ] = None,
    method: Annotated[str, typer.Option(metavar="A,B", help="The methods, one map each.")] = "gradcam",
    option: Annotated[
        list[str] | None, typer.Option(metavar="A.name=value", help="An option of the method or target; repeatable.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(metavar="A,B", help="The target layers; by default the adapter's.")
    ] = None,
    target: Annotated[str, typer.Option(help="The target function: class, counterfactual …")] = "class",
    target_input: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE.npy", help="An example of what the target needs beside the class; repeatable."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Explain so many of the highest classes, instead of one that is asked for.")
    ] = None,
    signed: Annotated[bool, typer.Option("--signed", help="Heatmaps without ReLU, in [-1, 1].")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="No heatmaps, the small maps alone.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Weights in float16, half as large.")] = False,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Take images of any height and width that the model takes.")
    ] = False,
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="Take pictures, uint8 [batch, H, W, 3].")
    ] = False,
    frame_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="The size of those pictures; by default the model's input.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="The ONNX opset, 18 or later.")] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="ONNX: less memory for large classifiers; single images take longer.")
    ] = False,
    file_format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="onnx, torchscript, pt2, aotinductor …")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
) -> None:
    """Write prediction and heatmap as one verified graph.

    The graph holds the forward pass, the gradient, the method and the resize; the file takes its name once it gave the
    same results as the model.
    """
    import torch

    from camkit.exports import export as write
    from camkit.output import file_name
    from camkit.targets import Target
    from camkit_export.triton import destination, write_model

    torch.manual_seed(seed)
    methods, layers = comma_separated(method), comma_separated(layer)
    given: dict[str, Any] = {"opset": opset, "compact": compact or None}
    format_options = {name: value for name, value in given.items() if value is not None}
    console = printing.console()
    with (
        destination(output, triton, file_name(options.model, method)) as path,
        console.status("Tracing, writing and verifying …"),
    ):
        explainer, _ = options.explainer()
        report = write(
            explainer,
            path,
            methods,
            layer=layers or None,
            target=Target(target, inputs=dict(map(_target_input, target_input or []))),
            options=parse_options(option or [], methods, [target]),
            relu=not signed,
            top_k=top_k,
            frame_size=_frame_size(explainer, with_preprocessing, frame_size),
            raw=raw,
            half=half,
            dynamic_size=dynamic_size,
            format=file_format,
            **format_options,
        )
        size = report.path.stat().st_size / 2**20
        added = write_model(path, triton) if triton else None
    console.print(_table(report.checks))
    written = " and ".join(str(one) for one in (output, added) if one)
    printing.line(f"Wrote {written} ({report.nodes} nodes, {size:.1f} MB), verified.")


def _target_input(text: str) -> "tuple[str, Tensor]":
    """``NAME=FILE.npy`` as the name and an example, [1, ...] or of several images."""
    import numpy as np
    import torch

    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise CamkitError(f"--target-input was '{text}'; NAME=FILE.npy is expected, such as embedding=cat.npy.")
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.ndim == 0 or len(array) == 0:
            raise ValueError("it is no array with an entry for an image")
        return name, torch.from_numpy(array)
    except (OSError, ValueError, TypeError) as error:
        raise CamkitError(f"The example '{path}' of the input '{name}' cannot be read: {first_line(error)}") from None


def _frame_size(explainer: "Explainer", wanted: bool, text: str | None) -> tuple[int, int] | None:
    """Height and width of the pictures that a graph preprocesses; None where it takes preprocessed images."""
    if text is not None:
        height, separator, width = text.partition("x")
        if not (separator and height.isdigit() and width.isdigit() and int(height) and int(width)):
            raise CamkitError(f"--frame-size was '{text}'; height x width in pixels is expected, such as 480x640.")
        return int(height), int(width)
    if not wanted:
        return None
    from camkit.exports import require_preprocessing

    return require_preprocessing(explainer).size


def _table(checks: "tuple[Check, ...]") -> Table:
    table = printing.table("check", "largest error", "allowed", "images", "ties left out", "")
    for check in checks:
        verdict = Text("equal", style="green") if check.passed else Text("differs", style="bold red")
        row = (check.name, f"{check.error:.1e}", f"{check.tolerance:.0e}", str(check.images), str(check.ties_left_out))
        table.add_row(*row, verdict)
    return table
