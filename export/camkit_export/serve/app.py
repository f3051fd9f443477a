"""The routes of the server."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from camkit import visualize
from camkit.errors import CamkitError, unknown
from camkit.version import __version__
from camkit_export.serve import body, protocol
from camkit_export.serve.batcher import Batcher, Inputs, Outputs
from camkit_export.serve.gate import Doorkeeper, Gate
from camkit_export.serve.metrics import CONTENT_TYPE, Metrics
from camkit_export.serve.pictures import Pictures
from camkit_export.serve.places import Places
from camkit_export.serve.refusals import NoSuchModel, Refused
from camkit_export.session import Session

T = TypeVar("T")

# Threads that decode and encode; two, since what they run holds the interpreter's lock most of the time.
_PREPARING = 2

_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
            },
        },
    }
}


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        batch: images in one run of the session, and in one request.
        wait: seconds that a request waits for others to be run with it.
        queue: images that were received and are not answered yet.
        body: bytes of a request's body.
        pixels: of an uploaded image.
    """

    batch: int
    wait: float
    queue: int
    body: int
    pixels: int


class Service:
    """A session behind its queue, and everything that answers a request beside HTTP itself.

    Raises:
        CamkitError: the preprocessing in the file is damaged.
    """

    def __init__(self, session: Session, name: str, limits: Limits) -> None:
        self.session = session
        self.name = name
        self.limits = limits
        self.pictures = Pictures(session, limits.pixels)
        # the first run of a session is slow, and tells how large its maps are
        self.metadata = protocol.metadata(name, session, session.run(*session.example()))
        self.gate = Gate()
        self.places = Places(limits.queue)
        self.metrics = Metrics(lambda: self.places.taken)
        self._batcher = Batcher(
            session.tensors, max_batch=limits.batch, max_wait=limits.wait, observe=self.metrics.batch
        )
        self._preparing = ThreadPoolExecutor(_PREPARING, thread_name_prefix="camkit preparation")

    async def prepare(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs what takes long outside the loop that serves the others."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, function, *arguments)

    async def run(self, inputs: Inputs) -> Outputs:
        """The session's outputs for checked inputs, run together with others that wait."""
        return await asyncio.wrap_future(self._batcher.submit(inputs))

    def require(self, name: str) -> None:
        """Refuses the name of another model."""
        if name != self.name:
            raise NoSuchModel(str(unknown("model", name, [self.name])))

    def close(self) -> None:
        """Answers what waits, and ends the threads."""
        self._batcher.close()
        self._preparing.shutdown()


def make_app(service: Service) -> FastAPI:
    """The application of a service."""
    # its pages of documentation load scripts from elsewhere; /openapi.json does not
    app = FastAPI(title="camkit", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Doorkeeper, gate=service.gate, metrics=service.metrics)
    _answer_errors(app)
    _add_health(app, service)
    _add_inference(app, service)
    _add_explanation(app, service)
    return app


def _answer_errors(app: FastAPI) -> None:
    """Every error is one sentence in JSON."""

    @app.exception_handler(CamkitError)
    async def refused(request: Request, error: CamkitError) -> Response:
        if isinstance(error, Refused):
            return JSONResponse({"error": str(error)}, error.status, error.headers)
        return JSONResponse({"error": str(error)}, Refused.status)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()[0]
        return JSONResponse({"error": f"The parameter '{found['loc'][-1]}' is wrong: {found['msg']}."}, Refused.status)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": f"{error.detail}: {request.url.path}"}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        # the reason is in the server's log, not in a stranger's hands
        return JSONResponse({"error": "The server failed to answer this request."}, 500)


def _add_health(app: FastAPI, service: Service) -> None:
    def readiness(facts: dict[str, Any]) -> Response:
        ready = not service.gate.stopping
        return JSONResponse({**facts, "ready": ready}, 200 if ready else 503)

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "camkit", "version": __version__, "extensions": protocol.EXTENSIONS}

    @app.get("/v2/health/live")
    async def live() -> dict[str, Any]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        return readiness({})

    @app.get("/v2/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        service.require(name)
        return service.metadata

    @app.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> Response:
        service.require(name)
        return readiness({"name": name})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_inference(app: FastAPI, service: Service) -> None:
    @app.post("/v2/models/{name}/infer")
    async def infer(name: str, request: Request) -> Response:
        service.require(name)
        with service.places.take() as place:
            content = await body.read(request, service.limits.body)
            header_length = request.headers.get(protocol.HEADER_LENGTH)
            asked = await service.prepare(protocol.parse, content, header_length, service.session)
            count = len(asked.inputs[0])
            if count > service.limits.batch:
                raise Refused(f"{count} images are more than the {service.limits.batch} that are run at once.")
            place.grow(count)
            outputs = await service.run(asked.inputs)
            answer = await service.prepare(protocol.answer, name, asked, outputs)
        return Response(answer.body, headers=dict(answer.headers))


def _add_explanation(app: FastAPI, service: Service) -> None:
    pictures = service.pictures

    @app.post("/explain", openapi_extra=_IMAGE_BODY)
    async def explain(
        request: Request,
        asked: Annotated[str, Query(alias="class", description="A class index, a class name, or top.")] = "top",
        output: Annotated[Literal["png", "json"], Query(description="An overlay, or the figures.")] = "png",
        alpha: Annotated[float, Query(ge=0, le=1, description="Opacity of the heatmap where it is strongest.")] = 0.6,
        colormap: Annotated[str | None, Query(description="Any matplotlib colormap.")] = None,
        which: Annotated[str | None, Query(alias="map", description="One of several maps, METHOD__LAYER.")] = None,
    ) -> Response:
        visualize.check_colormap(colormap)
        question = pictures.question(asked, which)
        with service.places.take():
            content, name = await body.read_image(request, service.limits.body)
            prepared = await service.prepare(pictures.read, content, name)
            outputs = await service.run(pictures.inputs(prepared, question))
            explanation = await service.prepare(pictures.explanation, outputs, question)
            if output == "json":
                return JSONResponse(await service.prepare(pictures.record, explanation))
            png = await service.prepare(pictures.png, explanation, prepared.picture, colormap, alpha)
        return Response(png, media_type="image/png")
