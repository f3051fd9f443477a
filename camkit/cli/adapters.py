"""``camkit adapters``: the installed adapters, or the adapter, layer and layout that a model gets and by which rule."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from camkit.cli.options import ModelOptions, with_model


@with_model(required=False)
def adapters(
    options: ModelOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the adapters, or show which adapter, layer and layout a model gets and by which rule."""
    if not options.model:
        _list(as_json)
        return
    found = _resolve(options)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table(show_header=False, box=None)
    for key in (
        "model",
        "adapter",
        "rule",
        "layer",
        "layout",
        "map",
        "classifier",
        "probability",
        "input",
        "positions",
    ):
        table.add_row(f"[bold]{key}[/]", str(found[key]))
    Console().print(table)


def _list(as_json: bool) -> None:
    from pathlib import Path

    from camkit.adapter import load_adapters
    from camkit.errors import CamkitError
    from camkit.registry import registry

    rows: list[dict[str, Any]] = []
    for distribution, path in registry().adapter_files():
        try:
            for adapter in load_adapters(Path(path)):
                positions = {name: list(position.path) for name, position in adapter.targets.items()}
                rows.append(
                    {
                        "name": adapter.name,
                        "distribution": distribution,
                        "library": adapter.library,
                        "classes": list(adapter.classes),
                        "layout": adapter.layout,
                        "targets": positions,
                        "error": None,
                    }
                )
        except CamkitError as error:
            rows.append(
                {
                    "name": Path(path).name,
                    "distribution": distribution,
                    "library": None,
                    "classes": [],
                    "layout": "",
                    "targets": {},
                    "error": str(error),
                }
            )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("adapter", "from", "classes", "layout", "targets")
    for row in rows:
        targets = ", ".join(f"{name}: {' or '.join(paths)}" for name, paths in row["targets"].items())
        classes = ", ".join(row["classes"]) or "any"
        table.add_row(row["name"], row["distribution"], classes, row["layout"], row["error"] or targets)
    Console().print(table)


def _resolve(options: ModelOptions) -> dict[str, Any]:
    import torch

    explainer, loaded = options.explainer()
    height, width = loaded.preprocessing.size
    example = torch.zeros(
        1, len(loaded.preprocessing.mean), height, width, device=explainer.device, dtype=explainer.dtype
    )
    resolved = explainer.resolve(example)
    plan = explainer.plan(example, [], [None])
    layer = plan.layers[0]
    shape = plan.cut.forward(example, graph=False).captured[layer.path].shape
    layout = resolved.adapter.layout_of(explainer.module, layer, shape, (height, width))
    classifier = resolved.adapter.find_classifier(explainer.module)
    map_shape = layout.to_maps(torch.zeros(shape)).shape
    return {
        "model": f"{loaded.spec} ({type(explainer.module).__module__}.{type(explainer.module).__name__})",
        "adapter": resolved.adapter.name,
        "rule": resolved.rule,
        "layer": layer.path,
        "layout": str(layout),
        "map": f"{map_shape[2]}x{map_shape[3]}, {map_shape[1]} channels",
        "classifier": type(classifier).__name__ if classifier is not None else "not named",
        "probability": explainer.probability,
        "input": f"{height}x{width}",
        "positions": ", ".join(resolved.adapter.targets) or "none",
    }
