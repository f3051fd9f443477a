"""Files that camkit writes: folders that must be writable, names that every system accepts, lines that are whole."""

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from camkit.atomic import write_bytes
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
        reason = (error.strerror or str(error)).lower()
        raise CamkitError(f"The output folder '{path}' cannot be written: {reason}; choose another.") from None


def update_lines(path: Path, records: Iterable[Mapping[str, Any]], key: str) -> None:
    """Adds JSON lines to a file; an older line with the same value of `key` gives way."""
    new = list(records)
    written = {record[key] for record in new}
    old = path.read_bytes().split(b"\n") if path.is_file() else []
    kept = [line for line in old if line and _value(line, key) not in written]
    lines = [*kept, *(json.dumps(record, ensure_ascii=False).encode() for record in new)]
    write_bytes(path, b"".join(line + b"\n" for line in lines))


def _value(line: bytes, key: str) -> Any:
    try:
        return json.loads(line)[key]
    except (ValueError, KeyError, TypeError):  # a line that others wrote
        return None


def file_name(*parts: str | None) -> str:
    """A file name from several parts, without characters that a file system or a shell minds."""
    cleaned = [re.sub(r"[^\w.+\-]+", "_", part).strip("._") for part in parts if part]
    return "-".join(part[:60] for part in cleaned if part)


def distinct(names: Iterable[str]) -> list[str]:
    """The names, each with a number where it was there before, also for file systems that ignore case."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        distinct, number = name, 2
        while distinct.lower() in taken:
            distinct, number = f"{name}-{number}", number + 1
        taken.add(distinct.lower())
        found.append(distinct)
    return found
