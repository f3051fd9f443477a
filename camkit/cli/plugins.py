"""``camkit plugins``: what is installed, what it takes, and what is broken and why."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from camkit.cli import printing
from camkit.errors import CamkitError, unknown


def plugins(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show one item with its options.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what is installed, and what is broken and why.

    Methods, targets, attacks, metrics and the rest, each with the distribution that it comes from; with NAME
    (NAME, or distribution:NAME) what the item asks for and which options it takes.
    """
    from camkit.registry import registry

    found = registry()
    items = [item for kind in found.kinds() for item in found.items(kind)]
    if name is not None:
        names = [candidate for item in items for candidate in (item.name, item.qualified)]
        items = [item for item in items if name in (item.name, item.qualified)]
        if not items:
            raise unknown("item", name, names)
    described = [_describe(item) for item in items]
    if as_json:
        everything = {"plugins": [asdict(plugin) for plugin in found.plugins], "items": described}
        typer.echo(json.dumps(everything, indent=2, default=str))
    elif name is not None:
        for item in described:
            _show(item)
    else:
        _print_items(described)
        print_broken()


def print_broken() -> None:
    """Prints which plugins are broken and why, if any are."""
    from camkit.registry import registry

    broken = [plugin for plugin in registry().plugins if plugin.error]
    if broken:
        table = printing.table("plugin", "from", "why it is broken", title="Broken plugins")
        for plugin in broken:
            origin = f"{plugin.distribution} {plugin.version}"
            table.add_row(plugin.name, origin, Text(str(plugin.error), style="red"))
        printing.console().print(table)


def _describe(item: Any) -> dict[str, Any]:
    value = item.value
    signature = getattr(value, "signature", None)
    function = getattr(value, "function", value)
    return {
        "kind": item.kind.replace("_", " "),
        "name": item.name,
        "distribution": item.distribution,
        "error": item.error,
        "summary": next(iter((getattr(function, "__doc__", None) or "").strip().splitlines()), ""),
        "asks": list(signature.asks) if signature else [],
        "options": signature.describe() if signature else {},
        "facts": dict(getattr(value, "facts", {})),
        "paper": getattr(value, "paper", None),
    }


def _print_items(items: list[dict[str, Any]]) -> None:
    table = printing.table("kind", "name", "from", "what it is")
    previous = ""
    for item in items:
        if previous and item["kind"] != previous:
            table.add_row()
        what = Text(f"broken: {item['error']}", style="red") if item["error"] else item["summary"]
        table.add_row(item["kind"] if item["kind"] != previous else "", item["name"], item["distribution"], what)
        previous = item["kind"]
    printing.console().print(table)


def _show(item: dict[str, Any]) -> None:
    if item["error"]:
        raise CamkitError(f"The {item['kind']} '{item['name']}' of {item['distribution']} is broken: {item['error']}")
    printing.line(f"{item['name']}: {item['kind']} from {item['distribution']}")
    printing.line(item["summary"])
    if item["paper"]:
        printing.line(f"paper: {item['paper']}")
    for fact, text in item["facts"].items():
        printing.line(f"{fact}: {text}")
    if item["asks"]:
        printing.line(f"asks for: {', '.join(item['asks'])}")
    for option, facts in item["options"].items():
        printing.line(f"option: {item['name']}.{option} ({facts['type']}) = {facts['default']!r}")
