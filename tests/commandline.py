"""The command ``camkit`` as tests call it: in this process where many cases are tried, as a real process elsewhere."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from camkit.cli import main

SCRIPT = Path(sys.executable).with_name("camkit")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def run(*arguments: object) -> Result:
    """The command in this process, which has imported torch already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["camkit", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return Result(code, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> str:
    """What the command prints; it must succeed and say nothing on standard error."""
    result = run(*arguments)
    assert (result.code, result.err) == (0, "")
    return result.out


def process(*arguments: object, cwd: Path | None = None, **environment: str) -> Result:
    """The installed command as a process of its own."""
    done = subprocess.run(
        [SCRIPT, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Result(done.returncode, done.stdout, done.stderr)
