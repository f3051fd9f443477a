"""What a server counts, in the text format of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)

__all__ = ["CONTENT_TYPE", "Metrics"]


class Metrics:
    """The figures of one server; `queue` says how many images are in it now."""

    def __init__(self, queue: Callable[[], int]) -> None:
        # one of its own: figures of the process's other libraries are not asked for
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "camkit_requests", "Requests, by route and status.", ("route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "camkit_request_seconds",
            "From a request's headers to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch = Histogram(
            "camkit_batch_images", "Images in one run of the session.", buckets=_IMAGES, registry=self._registry
        )
        self._session = Histogram(
            "camkit_session_seconds", "One run of the session.", buckets=_SECONDS, registry=self._registry
        )
        gauge = Gauge("camkit_queue_images", "Images received and not yet answered.", registry=self._registry)
        gauge.set_function(queue)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts a request; `route` is the pattern of its path, so that the number of routes stays small."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, images: int, seconds: float) -> None:
        """Counts a run of the session."""
        self._batch.observe(images)
        self._session.observe(seconds)

    def text(self) -> bytes:
        """All of them; `CONTENT_TYPE` is its type."""
        return generate_latest(self._registry)
