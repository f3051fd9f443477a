"""Peak memory of one contestant, in a process of its own.

The peak is that of the resident memory (Linux's VmHWM: ru_maxrss, but not inherited from the parent process) over what
the process held before, with its libraries imported, its model built, and one image explained: the first call of all
loads the code of every kernel, which has nothing to do with the batch. Then come two calls, as in a loop over images:
some libraries keep the first graph while the second is made.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

CALLS = 2

# Freed blocks go back to the system at once. By default the allocator keeps what it thinks fit, which differs by 20 %
# from run to run and hides what was in use at the same time.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def measure(name: str, model: str, batch: int, size: int, *, contestants: str = "contestants") -> float:
    """The peak of one contestant over its start in MiB, measured in a fresh process.

    `contestants` is the module whose `CONTESTANTS` has it.
    """
    peak: float = in_a_process(Path(__file__), name, model, batch, size, contestants)
    return peak


def in_a_process(script: Path, *words: object) -> Any:
    """What a script that is given these words prints last, as JSON, in a fresh process."""
    command = [sys.executable, str(script), *map(str, words)]
    done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def resident(field: str) -> float:
    """A field of this process's status in MiB: VmRSS (now) or VmHWM (the highest so far)."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, "memory is measured on Linux only"
    return int(found[1]) / 1024


def _main(name: str, model: str, batch: str, size: str, contestants: str) -> None:
    import torch

    from contestants import CASES, THREADS, ignore_warnings, make_images

    ignore_warnings()
    torch.set_num_threads(THREADS)
    case = CASES[model]
    module, images = case.build(), make_images(int(batch), int(size))
    contestant = importlib.import_module(contestants).CONTESTANTS[name]
    with contestant(module, case) as run:
        run(images[:1])
        start = resident("VmRSS")
        for _ in range(CALLS):
            run(images)
        print(json.dumps(resident("VmHWM") - start))


if __name__ == "__main__":
    _main(*sys.argv[1:])
