"""The engine ``ray``: Ray Data on this machine or on a cluster; each worker loads the model once."""

import logging
import os
import pickle
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

from annotated_types import Ge, Gt

from camkit import plugin
from camkit.engines import Tasks, Work
from camkit.errors import CamkitError

# Ray Data plans every block beforehand: so many tasks at once, and the workers start anew for the next
_AT_ONCE = 10_000


@plugin.engine("ray")
def ray(
    tasks: Tasks,
    work: Work,
    *,
    workers: Annotated[int, Ge(1)] | None = None,
    cpus: Annotated[float, Gt(0)] = 1.0,
    gpus: Annotated[float, Ge(0)] = 0.0,
    address: str | None = None,
) -> Iterator[Any]:
    """Ray Data: `workers` processes, each with so many `cpus` and `gpus`, that hold the model and take the next task.

    Without `workers` there are as many as the cluster has room for. `address` is that of a cluster, otherwise the
    environment's RAY_ADDRESS, or this machine. A worker that dies is started again and its task done again. The
    workers of a cluster need the same packages and the same paths.

    Raises:
        CamkitError: Ray is not installed or cannot be reached, or the cluster has no room for a worker.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # what its machinery has to say of every actor is none of the user's affair
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray as library
        import ray.data as data
    except ImportError:
        raise CamkitError("The engine 'ray' needs Ray, which is not installed: pip install 'camkit[ray]'.") from None
    started = not library.is_initialized()
    if started:
        try:
            library.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise CamkitError(f"Ray cannot be reached or started: {' '.join(str(error).split())}") from None
    try:
        count = workers or _room(library.cluster_resources(), cpus, gpus)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        data.DataContext.get_current().enable_progress_bars = False
        pool = data.ActorPoolStrategy(size=count)
        sent = (library.cloudpickle.dumps(work), os.getcwd(), sys.path)
        rows = ({"task": pickle.dumps(task)} for task in tasks)
        while window := list(islice(rows, _AT_ONCE)):
            done = data.from_items(window, override_num_blocks=len(window)).map(
                _Worker, fn_constructor_args=sent, compute=pool, num_cpus=cpus, num_gpus=gpus
            )
            for row in done.iter_rows():
                refused, answer = pickle.loads(row["answer"])  # noqa: S301  # our own workers wrote it
                if refused is not None:
                    raise CamkitError(refused)
                yield answer
    finally:
        if started:
            library.shutdown()


class _Worker:
    """What lives in each process: the work, with what it has loaded."""

    def __init__(self, work: bytes, folder: str, path: list[str]) -> None:
        # the same modules and files as where the command was given
        if os.path.isdir(folder):
            os.chdir(folder)
        sys.path += [entry for entry in path if entry not in sys.path]
        self.work: Work = pickle.loads(work)  # noqa: S301  # our own process wrote it

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        refused, answer = None, None
        try:
            answer = self.work(pickle.loads(row["task"]))  # noqa: S301  # our own process wrote it
        except CamkitError as error:
            # as an exception it would be tried again, and come back wrapped in another
            refused = str(error)
        return {"answer": pickle.dumps((refused, answer))}


def _room(cluster: dict[str, float], cpus: float, gpus: float) -> int:
    """How many workers fit into a cluster."""
    found = int(cluster.get("CPU", 0) // cpus)
    if gpus:
        found = min(found, int(cluster.get("GPU", 0) // gpus))
    if found < 1:
        raise CamkitError(
            f"Ray has {cluster.get('CPU', 0):g} CPUs and {cluster.get('GPU', 0):g} GPUs, which is not enough for a "
            f"worker with {cpus:g} and {gpus:g}."
        )
    return found
