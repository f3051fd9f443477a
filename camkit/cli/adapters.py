"""``camkit adapters``: the installed adapters, or what a model gets; its subcommands check, suggest and measure."""

import json
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.table import Table

from camkit.cli import printing
from camkit.cli.adapters_check import check
from camkit.cli.adapters_suggest import suggest
from camkit.cli.adapters_sweep import sweep
from camkit.cli.options import ModelOptions, with_model
from camkit.cli.plugins import print_broken

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@with_model(required=False)
def adapters(
    options: ModelOptions,
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of adapter files.")] = False,
) -> None:
    """List the adapters, or show what a model gets and by which rule.

    With --model: the adapter that describes the model, the rule by which it was found, and the layer and layout that
    its maps are taken from. No weights are loaded for that, unless a checkpoint is given.
    """
    if context.invoked_subcommand is not None:
        return
    if schema:
        from camkit.adapter_files import json_schema

        typer.echo(json.dumps(json_schema(), indent=2))
        return
    found = _resolve(options) if options.model else _installed()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif isinstance(found, dict):
        table = Table(show_header=False, box=None)
        for key, value in found.items():
            if value is not None:
                table.add_row(key, ", ".join(value) if isinstance(value, list) else str(value))
        table.columns[0].style = "bold"
        printing.console().print(table)
    else:
        _print(found)


app.callback(invoke_without_command=True, help=printing.paragraphs(adapters.__doc__))(adapters)
for command in (check, suggest, sweep):
    app.command(command.__name__, help=printing.paragraphs(command.__doc__))(command)


def _installed() -> list[dict[str, Any]]:
    from camkit.adapter_files import load_adapters
    from camkit.registry import registry

    return [
        {
            "name": adapter.name,
            "distribution": distribution,
            "library": adapter.library,
            "classes": list(adapter.classes),
            "layout": adapter.layout,
            "targets": {name: list(position.path) for name, position in adapter.targets.items()},
        }
        for distribution, path in registry().adapter_files()
        for adapter in load_adapters(path)
    ]


def _print(rows: list[dict[str, Any]]) -> None:
    table = printing.table("adapter", "from", "classes", "layout", "layers")
    for row in rows:
        layers = ", ".join(f"{name}: {' or '.join(paths)}" for name, paths in row["targets"].items())
        classes = ", ".join(row["classes"]) or "any"
        table.add_row(row["name"], row["distribution"], classes, row["layout"], layers)
    printing.console().print(table)
    print_broken()


def _resolve(options: ModelOptions) -> dict[str, Any]:
    import torch

    from camkit.cli.walking import example_images
    from camkit.cut import Cut

    # where a model is cut does not depend on its weights
    explainer, loaded = replace(
        options, weights="none" if options.weights == "default" else options.weights
    ).explainer()
    example = example_images(explainer, loaded, None)
    height, width = example.shape[2:]
    resolved = explainer.resolve(example)
    layer = resolved.adapter.layer(explainer.module, images=example)
    shape = tuple(Cut(explainer.module, [layer]).forward(example, graph=False).captured[layer.path].shape)
    layout = resolved.adapter.layout_of(explainer.module, layer, shape, (height, width))
    classifier = resolved.adapter.find_classifier(explainer.module)
    _, channels, rows, columns = layout.to_maps(torch.zeros(shape)).shape
    reader = resolved.adapter.reader(explainer.module)
    return {
        "model": f"{loaded.spec} ({type(explainer.module).__module__}.{type(explainer.module).__name__})",
        "adapter": resolved.adapter.name,
        "rule": resolved.rule,
        "note": resolved.adapter.note,
        "layer": layer.path,
        "layout": str(layout),
        "map": f"{rows}x{columns}, {channels} channels",
        "classifier": type(classifier).__name__ if classifier is not None else "not named",
        "output": "class scores" if reader.classes else "an embedding (--target embedding)",
        "probability": explainer.probability if reader.classes else None,
        "input": f"{height}x{width}",
        "layers": list(resolved.adapter.targets),
    }
