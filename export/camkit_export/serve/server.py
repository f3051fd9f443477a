"""The process that listens: its socket, and how it stops."""

import errno
import signal
import socket
import time
from types import FrameType

import uvicorn

from camkit.errors import CamkitError
from camkit_export.serve.app import Service, make_app

# How long requests in flight may take to be answered after the signal to stop.
GRACE = 30.0
# Connections that wait to be accepted, and those that are open; each costs memory before it asked for anything.
_BACKLOG = 256
_MOST_CONNECTIONS = 1024


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one.

    Raises:
        CamkitError: the port is in use or may not be used, or the host has no such address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.create_server((str(address[0]), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CamkitError(f"Port {port} of {host} is in use; choose another with --port.") from None
        reason = (error.strerror or str(error)).lower()
        raise CamkitError(f"camkit cannot listen on port {port} of {host}: {reason}.") from None
    # asyncio sends at once only on sockets that say that they are TCP; else a short answer waits 40 ms for its headers
    # to be acknowledged
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=made.detach())


def address_of(listening: socket.socket) -> str:
    """The address that a browser takes."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(service: Service, listening: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT, then answers what is in flight and returns."""
    config = uvicorn.Config(
        make_app(service),
        # the implementation that the tests ran; others are taken where they happen to be installed
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    try:
        _Server(config, service).run(sockets=[listening])
    finally:
        service.close()


class _Server(uvicorn.Server):
    """Goes on listening after the signal until what is in flight was answered, so that its state can be asked for.

    uvicorn's own way closes the socket at once, and ends the process by the signal, which is no exit code 0.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._gate = service.gate
        self._deadline = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops after what is in flight; at once when Ctrl+C is pressed again."""
        if self._gate.stopping and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        if not self._gate.stopping:
            self._deadline = time.monotonic() + GRACE
            self._gate.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        if self._gate.stopping and (not self._gate.in_flight or time.monotonic() > self._deadline):
            self.should_exit = True
        return await super().on_tick(counter)
