"""Peak memory of one contestant of rows.py, in a process of its own; what is measured is said in memory.py."""

import os
import subprocess
import sys
from pathlib import Path

import memory


def measure(name: str, model: str, size: int) -> float:
    """The peak of one contestant over its start in MiB, for one image at a time."""
    command = [sys.executable, str(Path(__file__)), name, model, "1", str(size)]
    environment = {**os.environ, **memory.ALLOCATOR}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"'{name}' on {model} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    import contestants
    import rows

    contestants.CONTESTANTS = rows.CONTESTANTS
    memory._main(*sys.argv[1:])
