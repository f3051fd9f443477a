"""The door of the server: what goes through it is counted, and after the signal to stop nothing new does."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from camkit_export.serve.metrics import Metrics
from camkit_export.serve.refusals import Stopping

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """Counts the requests in flight.

    Attributes:
        in_flight: how many explanations are asked for and not answered yet.
        stopping: whether the server was told to stop.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.stopping = False


class Doorkeeper:
    """ASGI middleware: measures each request, and refuses explanations once the gate is stopping."""

    def __init__(self, app: App, gate: Gate, metrics: Metrics) -> None:
        self._app = app
        self._gate = gate
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 500

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        # the state of the server can be asked for until the end
        work = scope["method"] == "POST"
        app: App = self._app
        if work and self._gate.stopping:
            refusal = Stopping("The server is stopping; ask another one.")
            app = JSONResponse({"error": str(refusal)}, refusal.status, refusal.headers)
        self._gate.in_flight += work
        try:
            await app(scope, receive, watched)
        finally:
            self._gate.in_flight -= work
            route = scope.get("route")
            self._metrics.request(getattr(route, "path", "other"), status, time.monotonic() - begun)
