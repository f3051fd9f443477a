"""The page of a sweep: what was measured of every family, with each exception and its cause."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from camkit.testing.adapters import LEAST_SIMILARITY

Record = Mapping[str, Any]

_HEAD = """# Coverage: which models camkit explains without configuration

One model of every family, with random weights, each in a process of its own. Made by

```console
camkit adapters sweep --source torchvision --results coverage.jsonl
camkit adapters sweep --source timm --results coverage.jsonl --page docs/coverage.md
```

What the columns say. **Adapter**, **layer** and **map**: where the model is cut without being told, and how the output
there is read; *tokens 1+14x14* are 14 x 14 patches behind one class or register token. **Gradient**: the share of the
map's positions with a gradient. **Occluder**: how far the change in the activations has the shape of the occluder
that was moved over the image, as a cosine; *mixed* where the layer mixes all positions, so that their order shows only
in the model's code. **Oracle**: the largest difference of Grad-CAM from the float64 oracle, relative to the
largest value of the map. **Exports**: the formats that were written and agree with the oracle at batch sizes 1, 3 and
8. **Layers**: the names that `--layer` takes beside `last`.
"""


def render_page(records: Sequence[Record]) -> str:
    """The page as Markdown: a section for each source, then the exceptions."""
    parts = [_HEAD]
    for source, group in groupby(sorted(records, key=order), key=lambda record: str(record["source"])):
        found = list(group)
        parts.append(f"## {source}\n\n{_count(found)}\n")
        rows = [
            "| family | model | input | adapter | layer | map | gradient | occluder | oracle | exports | layers |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for record in found:
            size = "x".join(map(str, record.get("input", ()))) or "-"
            row = (record["family"], record["name"], size, *cells(record), _other_layers(record))
            rows.append("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |")
        parts.append("\n".join(rows) + "\n")
    remarks = _remarks(records)
    if remarks:
        parts.append("## Exceptions, and what to know\n\n" + remarks + "\n")
    return "\n".join(parts)


def order(record: Record) -> tuple[str, str, str]:
    """Results in the order in which they are shown: by source, family and name."""
    return str(record["source"]), str(record["family"]), str(record["name"])


def cells(record: Record) -> tuple[str, ...]:
    """A result as the texts of a row: adapter, layer, map, gradient, occluder, oracle, exports."""
    if not record.get("layout"):
        return (record.get("adapter") or "-", record.get("layer") or "-", "fails", "-", "-", "-", "-")
    error = record["error"]
    return (
        record["adapter"],
        record["layer"],
        _map(record),
        f"{record['gradient_share']:.0%}",
        f"{record['follows']:.2f}" if record["follows"] >= LEAST_SIMILARITY else "mixed",
        f"{error:.0e}" if error == error else "-",
        _exports(record),
    )


def _map(record: Record) -> str:
    rows, columns = record["grid"]
    layout = str(record["layout"])
    if layout.startswith("tokens"):
        prefix = layout.partition("prefix ")[2].partition(",")[0]
        return f"tokens {'' if prefix == '0' else prefix + '+'}{rows}x{columns}"
    return f"{layout} {rows}x{columns}"


def _exports(record: Record) -> str:
    if not record.get("exported"):
        return "not tried"
    made = [name for name, reason in record["exports"].items() if not reason]
    failed = [f"no {name}" for name, reason in record["exports"].items() if reason]
    return ", ".join(made + failed) or "-"


def _other_layers(record: Record) -> str:
    return ", ".join(name for name, found in record.get("layers", {}).items() if not found.startswith("none"))


def _count(records: Sequence[Record]) -> str:
    explained = sum("eager equals the oracle" in record.get("kept", {}) for record in records)
    tried = [record for record in records if record.get("exported")]
    exported = sum("exports equal the oracle" in record.get("kept", {}) for record in tried)
    return (
        f"{len(records)} models of {len({record['family'] for record in records})} families: {explained} explained in "
        f"agreement with the oracle, {exported} of {len(tried)} that were exported in agreement in every format."
        f"{_versions(records)}"
    )


def _versions(records: Sequence[Record]) -> str:
    """With which versions of torch they were measured, where that is known."""
    found = Counter(str(record["torch"]) for record in records if record.get("torch"))
    listed = ", ".join(f"torch {version} ({count})" for version, count in sorted(found.items()))
    return f" Measured with {listed}." if listed else ""


def _remarks(records: Sequence[Record]) -> str:
    lines = []
    for record in sorted(records, key=order):
        said = [f"**{promise}** is broken: {reason}" for promise, reason in record["failures"].items()]
        short = [f"exported with {record['exported_with']}"] if record.get("exported_with") else []
        for text in (*said, *record.get("remarks", ()), *short):
            lines.append(f"- `{record['source']}:{record['name']}`: {text}")
    return "\n".join(lines)
