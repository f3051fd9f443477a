"""``camkit serve``."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from camkit.cli import printing
from camkit.errors import CamkitError

_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def serve(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx|FILE.pt", help="An exported file.", show_default=False)],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name.  [default: the file's]")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Images that are run together.")] = 8,
    max_wait: Annotated[float, typer.Option(min=0, help="Milliseconds that a request waits for others.")] = 2.0,
    max_queue: Annotated[int, typer.Option(min=1, help="Images received and not yet answered; more get 429.")] = 64,
    max_body: Annotated[int, typer.Option(min=1, help="Size of a request in MiB; larger ones get 413.")] = 32,
    max_pixels: Annotated[int, typer.Option(min=1, help="Millions of pixels of an uploaded image.")] = 25,
    file_format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="The format; 'aotinductor' runs native code.")
    ] = None,
) -> None:
    """Serve an exported file over HTTP.

    Tensors by the Open Inference Protocol at /v2/models/NAME/infer, images at /explain, figures at /metrics. It stops
    at Ctrl+C or SIGTERM, after it has answered what it has begun.
    """
    _require_libraries()
    if name is not None and ("/" in name or not name):
        raise CamkitError(f"--name was '{name}'; the name of a model is part of an address and holds no slash.")
    if max_queue < max_batch:
        raise CamkitError(f"--max-queue was {max_queue}; it must be at least --max-batch, which is {max_batch}.")
    import camkit

    session = camkit.load(file, format=file_format)

    from camkit_export.serve.app import Limits, Service
    from camkit_export.serve.server import address_of, listen, run

    service = Service(
        session,
        name or file.stem,
        Limits(max_batch, max_wait / 1000, max_queue, max_body * 2**20, max_pixels * 1_000_000),
    )
    listening = listen(host, port)
    methods = ", ".join(dict.fromkeys(one["method"] for one in session.map_facts))
    what = f"{methods} of {session.provenance['model']} as '{service.name}'"
    printing.line(f"Serving {what} on {address_of(listening)}; Ctrl+C stops it.")
    run(service, listening)


def _require_libraries() -> None:
    for library in _NEEDED:
        if not _is_installed(library):
            raise CamkitError(
                f"camkit serve needs the package {library}, which is not installed; run pip install 'camkit[serve]'."
            )


def _is_installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ValueError:  # a module that was blocked has no spec
        return False
