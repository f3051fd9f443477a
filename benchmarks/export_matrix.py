"""Exports every method on a model of each family in every format, and writes how well they agree; see README.md.

The methods of one model share a graph, so that a format is written once; each has its own float64 oracle. A run takes
hours: with --record what is done of a family in a format is kept in a file, and not done again.
"""

import argparse
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import camkit
from camkit.errors import CamkitError, CamkitWarning
from camkit.exports import Exporter, ExportRequest, request
from camkit.journal import Journal
from camkit.registry import registry
from camkit.testing.weights import restrain_batch_norms, vary_constants
from screen import bars, show
from tables import command, machine, table

# A small model of each family; the demo models are trained.
FAMILIES = {
    "ResNet": "demo:resnet",
    "VGG": "demo:vgg",
    "ViT": "demo:vit",
    "ConvNeXt": "timm:test_convnext",
    "EfficientNet": "timm:test_efficientnet",
    "NFNet": "timm:test_nfnet",
    "Swin": "timm:swin_tiny_patch4_window7_224",
}
QUICK = ("onnx", "torchscript", "pt2")
# Compiling takes minutes for each family.
FORMATS = (*QUICK, "aotinductor")
# How many noisy images, steps of a path, and so on; as many as keep the run short.
OPTIONS = {"integrated-gradcam.steps": 8}

Errors = dict[tuple[str, str, str], float]
"""By method, family and format: the largest error of a map against the oracle, in units of what is allowed."""
Refusals = dict[tuple[str, str], str]
"""By method and family: why it is not exported."""


def main() -> None:
    """Exports what was asked for and shows, or writes, the page."""
    options = _parse()
    warnings.simplefilter("ignore", CamkitWarning)
    errors: Errors = {}
    refusals: Refusals = {}
    record = Journal(options.record) if options.record else None
    with bars() as progress:
        task = progress.add_task("", total=len(options.families) * len(options.formats))
        for family in options.families:
            explainer, images = _model(FAMILIES[family])
            # what is right is worked out for the first format alone
            asked = cache(partial(_request, explainer, images))
            methods = []
            for method in _methods(options.methods):
                try:
                    asked((method,))
                    methods.append(method)
                except CamkitError as error:
                    refusals[method, family] = str(error)
            for name in options.formats:
                progress.update(task, description=f"{family}, {name}")
                if not _recorded(record, family, name, errors, refusals):
                    _export(asked, tuple(methods), family, name, errors, refusals)
                    _keep(record, family, name, errors, refusals)
                progress.advance(task)
    text = document(errors, refusals, options.families, options.formats, command(options.write))
    show(text, options.write)


def _request(explainer: camkit.Explainer, images: torch.Tensor, methods: tuple[str, ...]) -> ExportRequest:
    given = {name: value for name, value in OPTIONS.items() if name.partition(".")[0] in methods}
    return request(explainer, methods, options=given, images=images)


def _export(
    asked: Callable[[tuple[str, ...]], ExportRequest],
    methods: tuple[str, ...],
    family: str,
    name: str,
    errors: Errors,
    refusals: Refusals,
) -> None:
    """One file of all the methods; where that fails, several, so that it is known which fails."""
    exporter: Exporter = registry().get("exporter", name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = exporter.function(asked(methods), Path(folder) / f"all{exporter.suffix}")
        except CamkitError as error:
            if len(methods) == 1:
                refusals[methods[0], family] = f"{name}: {error}"
                return
            for part in _apart(methods, str(error)):
                _export(asked, part, family, name, errors, refusals)
            return
    for method in methods:
        checks = [
            check
            for check in report.checks
            if check.name.endswith("map against the oracle")
            and (len(methods) == 1 or check.name.startswith((f"{method}__", f"{method},")))
            and "heatmap" not in check.name
        ]
        errors[method, family, name] = max(check.error for check in checks)


def _apart(methods: tuple[str, ...], reason: str) -> list[tuple[str, ...]]:
    """Those that the reason names each by itself, and the others; where it names none or all, two halves."""
    named = [method for method in methods if re.search(rf"(?<![\w+-]){re.escape(method)}(__|,|')", reason)]
    if named and len(named) < len(methods):
        return [*((method,) for method in named), tuple(method for method in methods if method not in named)]
    return [methods[: len(methods) // 2], methods[len(methods) // 2 :]]


def _recorded(record: Journal | None, family: str, name: str, errors: Errors, refusals: Refusals) -> bool:
    """Takes what an earlier run found of a family in a format; whether there is such."""
    own = [line for line in record.lines if (line["family"], line["format"]) == (family, name)] if record else []
    for line in own:
        if line["refused"] is None:
            errors[line["method"], family, name] = line["error"]
        else:
            refusals[line["method"], family] = line["refused"]
    return bool(own)


def _keep(record: Journal | None, family: str, name: str, errors: Errors, refusals: Refusals) -> None:
    if record is None:
        return
    found = [
        {"family": family, "format": name, "method": method, "error": error, "refused": None}
        for (method, *place), error in errors.items()
        if place == [family, name]
    ]
    refused = [
        {"family": family, "format": name, "method": method, "error": None, "refused": reason}
        for (method, where), reason in refusals.items()
        if where == family and reason.startswith(f"{name}: ")
    ]
    record.add([*found, *refused])


def _model(spec: str) -> tuple[camkit.Explainer, torch.Tensor]:
    torch.manual_seed(0)
    trained = spec.startswith("demo:")
    loaded = camkit.load_model(spec, weights="default" if trained else "none")
    size = loaded.preprocessing.size
    images = torch.randn(2, loaded.preprocessing.channels, *size, generator=torch.Generator().manual_seed(0))
    if not trained:
        vary_constants(loaded.module)
        restrain_batch_norms(loaded.module, images)
    return camkit.Explainer(loaded), images


def _methods(wanted: Sequence[str]) -> list[str]:
    return [one.name for one in registry().values("method") if one.kind == "map" and (not wanted or one.name in wanted)]


def document(
    errors: Errors, refusals: Refusals, families: Sequence[str], formats: Sequence[str], written_by: str
) -> str:
    """The page: a table of the largest errors, and why what is missing is missing."""
    methods = list(dict.fromkeys([*(key[0] for key in errors), *(key[0] for key in refusals)]))
    reasons: dict[str, str] = {}
    rows = []
    for method in methods:
        cells = [_cell(method, family, formats, errors, refusals, reasons) for family in families]
        if any(not cell.startswith("[") for cell in cells):
            rows.append([f"`{method}`", *cells])
    everywhere = [method for method in methods if all((method, family) in refusals for family in families)]
    parts = [
        "# What can be exported",
        f"Every method on a small model of each family, written as {_listed(formats)}. A cell is the largest error of "
        "a map against the float64 oracle, relative to its largest value, of the worst of these formats. What is "
        "allowed is ten times PyTorch's own error in float32, at least 1e-4 and at most 1e-3; what differs by more "
        "is not written. This page is written by",
        f"```\n{written_by}\n```",
        "\n".join(
            machine("one thread of it", ("torch", "timm", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime"))
        ),
        "Models: " + ", ".join(f"{family} `{FAMILIES[family]}`" for family in families) + ". Those of timm have random "
        "weights.",
        table(["method", *families], rows),
        "\n".join(f"* [{mark}] {reason}" for reason, mark in reasons.items()),
        "## Never exported",
        "\n".join(f"* `{method}`: {refusals[method, families[0]]}" for method in everywhere),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(
    method: str,
    family: str,
    formats: Iterable[str],
    errors: Errors,
    refusals: Refusals,
    reasons: dict[str, str],
) -> str:
    if (method, family) in refusals:
        reason = refusals[method, family]
        if "cannot be traced" in reason:
            return "[never]"
        return f"[{reasons.setdefault(reason, str(len(reasons) + 1))}]"
    return f"{max(errors[method, family, name] for name in formats):.0e}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(QUICK))
    parser.add_argument("--methods", nargs="+", default=[], help="by default all that give maps")
    parser.add_argument("--record", type=Path, help="JSON lines of what is done, such as docs/export-matrix.jsonl")
    parser.add_argument("--write", type=Path, help="the page to write, such as docs/export-matrix.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
