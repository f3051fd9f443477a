"""Dynamic batching: requests that wait are run together, by one thread that owns the session."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Inputs = tuple[NDArray[Any], ...]
Outputs = Mapping[str, NDArray[Any]]
Observe = Callable[[int, float], None]


@dataclass(frozen=True)
class _Waiting:
    inputs: Inputs
    answer: "Future[Outputs]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    def __len__(self) -> int:
        return len(self.inputs[0])


class Batcher:
    """Runs a session in a thread of its own, on batches of whatever waits.

    A request is never divided. The oldest one waits for others until there are `max_batch` images or `max_wait` seconds
    have gone by; while the session runs, the next batch gathers by itself.

    Args:
        run: what explains: inputs [B, ...] in, outputs [B, ...] by name out.
        max_batch: images in one batch, at most.
        max_wait: seconds that a request waits for others, at most.
        observe: called after each batch with the number of its images and the seconds that it took.
    """

    def __init__(self, run: Callable[..., Outputs], *, max_batch: int, max_wait: float, observe: Observe) -> None:
        self._session = run
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._closing = False
        self._changed = threading.Condition()
        # a daemon, so that a process whose server failed can end
        self._thread = threading.Thread(target=self._work, name="camkit session", daemon=True)
        self._thread.start()

    def submit(self, inputs: Inputs) -> "Future[Outputs]":
        """The outputs for checked inputs [B, ...], B at most `max_batch`, when they are there."""
        waiting = _Waiting(inputs)
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(waiting)
            self._changed.notify()
        return waiting.answer

    def close(self) -> None:
        """Answers what waits, and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if batch:
                self._run(batch)

    def _next(self) -> list[_Waiting] | None:
        """The next batch, without those that nobody waits for any more; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            left = self._waiting[0].arrived + self._max_wait - time.monotonic()
            self._changed.wait_for(lambda: self._gathered() >= self._max_batch or self._closing, max(0.0, left))
            batch, images = [], 0
            while self._waiting and images + len(self._waiting[0]) <= self._max_batch:
                first = self._waiting.popleft()
                if first.answer.set_running_or_notify_cancel():
                    batch.append(first)
                    images += len(first)
            return batch

    def _gathered(self) -> int:
        return sum(len(one) for one in self._waiting)

    def _run(self, batch: Sequence[_Waiting]) -> None:
        begun = time.monotonic()
        try:
            outputs = self._session(
                *(np.concatenate(arrays) for arrays in zip(*(one.inputs for one in batch), strict=True))
            )
        except Exception as error:  # whatever it is, it belongs to those who wait; the thread goes on
            for one in batch:
                one.answer.set_exception(error)
            return
        self._observe(sum(map(len, batch)), time.monotonic() - begun)
        start = 0
        for one in batch:
            part = slice(start, start + len(one))
            start = part.stop
            one.answer.set_result({name: values[part] for name, values in outputs.items()})
