"""The sweep: adapters measured on one model of every family of a library, each in a process of its own.

Results are JSON lines, written as they come, so that a sweep that was interrupted goes on where it stopped.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camkit.errors import CamkitError
from camkit.models import Representative, Zoo
from camkit.output import update_lines
from camkit.registry import registry

if TYPE_CHECKING:
    from camkit.models import BuiltModel
    from camkit.testing.adapters import AdapterReport

IMAGES = 2
Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How a sweep runs: processes side by side, seconds for each model, and whether it exports."""

    jobs: int = 2
    time_limit: float = 900.0
    exports: bool = True


def representatives(source: str) -> Sequence[Representative]:
    """The models of a source that stand for its families.

    Raises:
        CamkitError: there is no such source, or it has no families.
    """
    found = registry().get("model_source", source)()
    if not isinstance(found, Zoo):
        raise CamkitError(f"The model source '{source}' lists no families to measure; torchvision and timm do.")
    return found.representatives()


def read_results(path: Path) -> dict[tuple[str, str], Record]:
    """The results in a file by source and name; none where there is no file.

    Raises:
        CamkitError: the file holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines if line.strip()]
        return {(record["source"], record["name"]): record for record in records}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CamkitError(f"'{path}' does not hold the results of a sweep ({error!r}); name another file.") from None


def run(source: str, chosen: Iterable[Representative], results: Path, settings: Settings) -> Iterator[Record]:
    """Measures the chosen models and yields each result when it is there and written to the file `results`."""
    with ThreadPoolExecutor(settings.jobs) as pool:
        waiting = [pool.submit(_in_a_process, source, one, settings) for one in chosen]
        try:
            for done in as_completed(waiting):
                record = done.result()
                update_lines(results, [record], key="key")
                yield record
        finally:
            for one in waiting:
                one.cancel()


def _in_a_process(source: str, one: Representative, settings: Settings) -> Record:
    started = time.monotonic()
    command = [sys.executable, "-m", "camkit.sweep", source, one.name, *([] if settings.exports else ["--no-exports"])]
    # two processes share the cores, and threads that spin while they wait would take them from each other
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=settings.time_limit, check=False
        )
        found = _last_line(done.stdout)
        if found is None:
            reason = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]
            found = {"failures": {"runs": reason[:500]}}
    except subprocess.TimeoutExpired:
        found = {"failures": {"runs": f"took longer than {settings.time_limit:.0f} seconds"}}
    own = {"key": f"{source}:{one.name}", "source": source, "name": one.name, "family": one.family}
    return {**own, **found, "seconds": round(time.monotonic() - started, 1)}


def _last_line(text: str) -> Record | None:
    try:
        found = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found if isinstance(found, dict) else None


def measure(source: str, name: str, *, exports: bool) -> Record:
    """What is found of one representative, as JSON values; runs in this process."""
    from camkit.testing.adapters import as_record

    one = next(one for one in representatives(source) if one.name == name)
    report, facts = _check(one.make, exports=exports and one.shorten is None)
    if exports and one.shorten is not None and report.passed:
        short, _ = _check(one.shorten, exports=True)
        report.exports, report.failures = short.exports, short.failures
        report.kept |= {promise: found for promise, found in short.kept.items() if promise not in report.kept}
        facts["exported_with"] = one.shortened
    return {**as_record(report), **facts, "exported": exports}


def _check(make: "Callable[[], BuiltModel]", *, exports: bool) -> "tuple[AdapterReport, Record]":
    import torch

    from camkit.explain import Explainer
    from camkit.models import LoadedModel
    from camkit.testing.adapters import check_adapter
    from camkit.testing.weights import restrain_batch_norms, vary_constants

    torch.manual_seed(0)
    built = make()
    vary_constants(built.module)
    height, width = built.preprocessing.size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, built.preprocessing.channels, height, width, generator=generator)
    restrain_batch_norms(built.module, images)
    loaded = LoadedModel("representative", built.module, built.preprocessing, weights="none")
    report = check_adapter(Explainer(loaded), images, exports=exports)
    parameters = sum(parameter.numel() for parameter in built.module.parameters())
    return report, {"input": [height, width], "parameters": parameters, "torch": torch.__version__.partition("+")[0]}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], exports="--no-exports" not in sys.argv)))
