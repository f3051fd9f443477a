"""``camkit plugins``: what is installed, what it takes, and what is broken and why."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from camkit.errors import CamkitError


def plugins(
    name: Annotated[str | None, typer.Argument(help="Show one item with its options.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the installed methods, targets, attacks, metrics …, and what is broken and why."""
    from camkit.registry import registry

    found = registry()
    items = [_describe(item) for kind in found.kinds() for item in found.items(kind)]
    broken = [
        {"distribution": p.distribution, "version": p.version, "plugin": p.name, "module": p.module, "error": p.error}
        for p in found.plugins
    ]
    if name is not None:
        items = [item for item in items if name in (item["name"], f"{item['distribution']}:{item['name']}")]
        if not items:
            everything = [item.name for kind in found.kinds() for item in found.items(kind)]
            from camkit.errors import unknown

            raise unknown("item", name, everything)
    if as_json:
        typer.echo(json.dumps({"plugins": broken, "items": items}, indent=2, default=str))
        return
    console = Console()
    if name is not None:
        for item in items:
            _show(console, item)
        return
    console.print(_items_table(items))
    failures = [entry for entry in broken if entry["error"]]
    if failures:
        table = Table("plugin", "from", "why it is broken", title="Broken plugins", title_justify="left")
        for entry in failures:
            table.add_row(str(entry["plugin"]), f"{entry['distribution']} {entry['version']}", str(entry["error"]))
        console.print(table)


def _describe(item: Any) -> dict[str, Any]:
    value = item.value
    signature = getattr(value, "signature", None)
    function = getattr(value, "function", value)
    return {
        "kind": item.kind,
        "name": item.name,
        "distribution": item.distribution,
        "error": item.error,
        "summary": next(iter((getattr(function, "__doc__", None) or "").strip().splitlines()), ""),
        "asks": list(signature.asks) if signature else [],
        "options": signature.describe() if signature else {},
        "paper": getattr(value, "paper", None),
    }


def _items_table(items: list[dict[str, Any]]) -> Table:
    table = Table("kind", "name", "from", "what it is", title="Installed", title_justify="left")
    previous = ""
    for item in items:
        kind = item["kind"].replace("_", " ")
        if previous and kind != previous:
            table.add_section()
        what = f"[red]broken: {item['error']}[/]" if item["error"] else item["summary"]
        table.add_row(kind if kind != previous else "", item["name"], item["distribution"], what)
        previous = kind
    return table


def _show(console: Console, item: dict[str, Any]) -> None:
    if item["error"]:
        raise CamkitError(f"The {item['kind']} '{item['name']}' of {item['distribution']} is broken: {item['error']}")
    console.print(f"[bold]{item['name']}[/]  {item['kind'].replace('_', ' ')} from {item['distribution']}")
    console.print(item["summary"], markup=False)
    if item["paper"]:
        console.print(f"paper: {item['paper']}", markup=False)
    if item["asks"]:
        console.print(f"asks for: {', '.join(item['asks'])}", markup=False)
    for option, facts in item["options"].items():
        console.print(f"option {item['name']}.{option}: {facts['type']} = {facts['default']!r}", markup=False)
