"""``camkit adapters sweep``: the adapters of a library measured on one model of every family."""

from pathlib import Path
from typing import Annotated, Any

import typer

from camkit.cli import printing
from camkit.errors import unknown


def sweep(
    source: Annotated[str, typer.Option(metavar="timm|torchvision", help="The model source.")],
    family: Annotated[
        list[str] | None, typer.Option(metavar="F", help="A family, a part of its name, or a model; repeatable.")
    ] = None,
    results: Annotated[
        Path, typer.Option(metavar="FILE.jsonl", help="Results, one line each; models found there are not run again.")
    ] = Path("camkit-coverage.jsonl"),
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="A page of all results in the file, of every source.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run models that have a result, too.")] = False,
    no_exports: Annotated[bool, typer.Option("--no-exports", help="Do not export, which takes longest.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Models side by side.")] = 2,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds for each model.")] = 1500,
) -> None:
    """Measure the adapters on one model of every family; exit code 1 if one fails.

    For each model: adapter, layer, layout, size of the map, share of positions with a gradient, Grad-CAM against the
    float64 oracle, and its exports. Each runs in a process of its own, with random weights. A sweep that is
    interrupted goes on where it stopped.
    """
    from camkit.atomic import write_bytes
    from camkit.coverage import cells, order, render_page
    from camkit.progress import task
    from camkit.sweep import Settings, read_results, representatives, run

    known = representatives(source)
    chosen = [one for one in known if not family or any(_is_meant(text, one.family, one.name) for text in family)]
    if not chosen:
        raise unknown("family", ", ".join(family or []), [one.family for one in known])
    done = read_results(results)
    left = [one for one in chosen if fresh or _is_missing(done.get((source, one.name)), exports=not no_exports)]
    settings = Settings(jobs, time_limit, exports=not no_exports)
    with task(f"Measuring {len(left)} models", len(left)) as advance:
        for record in run(source, left, results, settings):
            done[source, record["name"]] = record
            advance(1)
            printing.line(_line(record))
    found = [done[source, one.name] for one in chosen if (source, one.name) in done]
    table = printing.table("model", "adapter", "layer", "map", "gradient", "occluder", "oracle", "exports")
    for record in sorted(found, key=order):
        table.add_row(record["name"], *cells(record))
    printing.console().print(table)
    if page:
        write_bytes(page, render_page(list(done.values())).encode())
        printing.line(f"The page is {page}")
    if any(record["failures"] for record in found):
        raise typer.Exit(1)


def _is_meant(text: str, family: str, name: str) -> bool:
    return text in (family, name) or text.lower() in family.lower()


def _is_missing(record: dict[str, Any] | None, *, exports: bool) -> bool:
    return record is None or (exports and not record.get("exported"))


def _line(record: dict[str, Any]) -> str:
    failed = "; ".join(f"{promise}: {reason}" for promise, reason in record["failures"].items())
    state = failed or f"{record['layer']}, {record['layout']}, {record['grid'][0]}x{record['grid'][1]}"
    return f"{record['source']}:{record['name']} ({record['seconds']:.0f} s): {state}"
