"""JSON lines that are written as they come, so that what was done outlives an interruption."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from camkit.errors import CamkitError

Line = dict[str, Any]


class Journal:
    """The lines of a file, and those that are added to it.

    A last line that was cut off, as a killed process leaves it, is taken off the file.

    Raises:
        CamkitError: the file cannot be read, or a line in it is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Line] = []
        try:
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                os.truncate(path, len(whole))
        except OSError as error:
            raise self._failure("read", error) from error
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not isinstance(line, dict):
                raise CamkitError(f"Line {number} of '{path}' is not a JSON object; move the file away and start anew.")
            self.lines.append(line)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Appends lines, all of them or none.

        Raises:
            CamkitError: they cannot be written, the disk being full for example.
        """
        added = [dict(line) for line in lines]
        content = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in added)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab", buffering=0) as file:
                # a disk that is nearly full takes a part without complaint
                while content:
                    content = content[file.write(content) :]
        except OSError as error:
            if self.path.is_file():
                os.truncate(self.path, size)
            raise self._failure("written", error) from error
        self.lines += added

    def _failure(self, what: str, error: OSError) -> CamkitError:
        kept = f"; {len(self.lines)} lines are kept in it" if self.lines else ""
        return CamkitError(f"'{self.path}' cannot be {what}: {(error.strerror or str(error)).lower()}{kept}.")
