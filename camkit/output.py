"""Files that camkit writes: folders that must be writable, names that every system accepts, lines that are whole."""

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from camkit.errors import CamkitError


def directory(path: Path) -> Path:
    """The folder, made if need be.

    Raises:
        CamkitError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise CamkitError(f"The output folder '{path}' cannot be written: {error.strerror}; choose another.") from None


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Adds JSON lines to a file, all of them in one write."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CamkitError(f"'{path}' cannot be written: {error.strerror}; choose another place.") from None


def file_name(*parts: str | None) -> str:
    """A file name from several parts, without characters that a file system or a shell minds."""
    cleaned = [re.sub(r"[^\w.\-]+", "_", part).strip("._") for part in parts if part]
    return "-".join(part[:60] for part in cleaned if part)
