"""One explanation in every format, as both conformance kits write it."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from camkit.errors import CamkitError
from camkit.registry import registry

if TYPE_CHECKING:
    from camkit.exports import Exporter, ExportRequest


def refusals(asked: "ExportRequest") -> dict[str, str]:
    """By each format that is checked: why the request could not be written in it, or nothing. It is traced once."""
    exporters: list[Exporter] = [one for one in registry().values("exporter") if one.checked]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for exporter in exporters:
            path = Path(folder) / f"explanation{exporter.suffix}"
            try:
                exporter.function(asked, path)
                found[exporter.name] = ""
            except CamkitError as error:
                found[exporter.name] = str(error)
            path.unlink(missing_ok=True)
    return found
