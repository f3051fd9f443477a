"""Sessions that torch runs on the CPU, whatever the file's format."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from camkit_export.session import Session


class TorchSession(Session):
    """A session whose graph takes and gives tensors; a format's own class opens the file and sets `_graph`."""

    runtime = f"torch {torch.__version__}"
    providers = ("CPU",)
    _graph: Callable[..., Sequence[torch.Tensor]]

    def _run(self, *inputs: NDArray[Any]) -> Sequence[NDArray[Any]]:
        with torch.inference_mode():
            return [output.numpy() for output in self._graph(*map(torch.from_numpy, inputs))]
