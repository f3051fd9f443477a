"""Compares what several engines answer for one exported file with the float64 oracle, and writes docs/engines.md."""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

import camkit
import serving
from camkit.check import Check
from camkit.errors import first_line
from camkit.exports import ExportRequest, request
from camkit_export import onnx_file
from camkit_export.onnx import export_onnx
from camkit_export.session import METADATA_KEY, Session
from camkit_export.verify import compare_session
from contestants import ignore_warnings
from screen import show
from tables import command, machine, table

# (model, layer, side of its images in pixels); the default where there is none.
ROWS = (
    ("demo:resnet", None, None),
    ("demo:resnet", "stage1", None),
    ("demo:vgg", "stage1", None),
    ("demo:vit", None, None),
    ("torchvision:resnet18", "stage1", 96),
    ("torchvision:vgg11", "stage2", 64),
    ("timm:test_convnext", "stage2", None),
    ("timm:test_efficientnet", "stage2", None),
    ("timm:test_vit", None, None),
)
DISTRIBUTIONS = ("onnxruntime-gpu", "onnxruntime", "openvino", "onnx", "torch", "onnxscript")
PARTS = ("logits", "map", "heatmap")


# Runs a file: arrays by the names of its inputs to its outputs, in their order.
Run = Callable[[Mapping[str, NDArray[Any]]], Sequence[NDArray[Any]]]


def onnx_runtime(path: Path) -> Run:
    """ONNX Runtime on the CPU."""
    return partial(serving.open_graph(path).run, None)


def openvino(path: Path) -> Run:
    """OpenVINO on the CPU, in float32: by itself it takes bfloat16 where the CPU has it."""
    import openvino

    core = openvino.Core()
    engine = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: [np.asarray(found) for found in engine(dict(inputs)).values()]


def onnx_reference(path: Path) -> Run:
    """Onnx's reference evaluator: plain numpy, slow."""
    from onnx.reference import ReferenceEvaluator

    return partial(ReferenceEvaluator(str(path)).run, None)


ENGINES: dict[str, Callable[[Path], Run]] = {
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
    "onnx's reference": onnx_reference,
}


class EngineSession(Session):
    """An exported ``.onnx`` file in an engine of that name.

    Raises:
        Exception: whatever an engine raises that does not take the file.
    """

    def __init__(self, engine: str, path: Path) -> None:
        super().__init__(path, onnx_file.read(path.read_bytes()).metadata.get(METADATA_KEY))
        self._answer = ENGINES[engine](path)

    def _run(self, *inputs: NDArray[Any]) -> Sequence[NDArray[Any]]:
        return self._answer(dict(zip(self.inputs, inputs, strict=True)))


def checks(engine: str, path: Path, made: ExportRequest) -> tuple[Check, ...]:
    """An engine's answers beside those of the oracle and of eager PyTorch, on twelve images."""
    return compare_session(EngineSession(engine, path), made)


def main() -> None:
    """Exports every row, runs it in every engine and shows the table."""
    options = _parse()
    ignore_warnings()
    rows = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        for row in progress.track(ROWS[2:4] if options.quick else ROWS, description="models"):
            rows.append(list(_cells(*row, Path(folder) / "file.onnx")))
    text = _document(rows, command(options.write))
    show(text, options.write)


def _cells(spec: str, layer: str | None, side: int | None, path: Path) -> Iterator[str]:
    weights = "default" if spec.startswith("demo:") else "none"
    made = request(camkit.Explainer(camkit.load_model(spec, weights=weights, size=side), layer=layer), "gradcam")
    report = export_onnx(made, path)
    yield from (spec, str(made.provenance["layer"]), str(report.nodes))
    for engine in ENGINES:
        try:
            yield _cell(checks(engine, path, made))
        except Exception as error:  # of an engine: each has classes of its own
            yield f"**refused**: {first_line(error)[:100]}"


def _cell(found: Sequence[Check]) -> str:
    errors = [max(check.error for check in found if check.name.startswith(part)) for part in PARTS]
    text = " ".join(f"{error:.0e}" for error in errors)
    return text if all(check.passed for check in found) else f"**{text}**"


def _document(rows: Sequence[Sequence[str]], command: str) -> str:
    parts = [
        "# Engines",
        "The same ONNX file in several engines, each compared with the float64 oracle: the largest error of logits, "
        "map and heatmap, relative to the largest value of an image. What verification refuses would be bold: larger "
        "errors, or another class explained. Images whose map jumps within rounding are left out, as there. Where "
        "engines differ and what the files do about it: [formats.md](formats.md#engines). This page is written by",
        f"```\n{command}\n```",
        "\n".join(machine("random weights but for demo models, Grad-CAM", DISTRIBUTIONS)),
        table(["model", "layer", "nodes", *ENGINES], rows),
    ]
    return "\n\n".join(parts) + "\n"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small models: does it all work?")
    parser.add_argument("--write", type=Path, metavar="PATH", help="writes the table as Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    main()
