"""``camkit robustness --spurious``: whether a model goes by a mark beside the object."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camkit.cli import printing
from camkit.cli.recording import show

if TYPE_CHECKING:
    from camkit.explain import Explainer
    from camkit.samples import Sample


def run(
    explainer: "Explainer",
    model: str,
    samples: "Iterable[Sample]",
    images: int,
    methods: Sequence[str],
    options: Mapping[str, Any],
    layer: str | None,
    batch_size: int,
    output: Path,
) -> None:
    """Examines the model on so many samples in four versions, prints the numbers, and writes them with pictures."""
    from camkit import output as files
    from camkit import spurious_report as report
    from camkit.spurious import examine, versions_of
    from camkit.statistics import words

    scenes = versions_of(list(islice(samples, images)))
    folder = files.directory(output)
    own = {key: value for key, value in options.items() if key.rpartition(".")[0] in methods}
    findings = examine(explainer, scenes, methods, layer=layer, options=own, batch_size=batch_size)
    report.write(folder, findings, scenes, explainer, model, layer=layer, options=own)

    table = printing.table("test", "share or change", "n")
    for name, one in report.tests(findings).items():
        table.add_row(name, words(one), str(one.count))
    show(table)
    table = printing.table("energy of", *report.ENERGIES.values(), "n")
    for method, found in report.energies(findings).items():
        table.add_row(method, *(words(found[where]) for where in report.ENERGIES), str(found["object"].count))
    show(table)
    printing.line(findings.verdict)
    printing.line(f"report.html, spurious.png and spurious.json are in {folder}")
