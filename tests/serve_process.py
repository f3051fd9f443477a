"""``camkit serve`` as tests call it: a process of its own, asked over HTTP."""

import http.client
import json
import os
import re
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import camkit
from camkit.exports import request
from camkit.models import LoadedModel
from camkit_export.onnx import export_onnx
from camkit_export.torchscript import export_torchscript
from commandline import SCRIPT


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    process: "subprocess.Popen[str]"
    host: str
    port: int

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request; a body that is iterated over is sent in chunks, without a length."""
        connection = self.connection()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            chunked = body is not None and not isinstance(body, bytes)
            connection.request(method, path, body, named, encode_chunked=chunked)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.ask("POST", path, body, **headers)

    def metric(self, name: str) -> float:
        """The value of a metric, written with its labels as Prometheus does."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics").body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(timeout=60)


@contextmanager
def serving(file: Path, *options: object) -> Iterator[Server]:
    """A server of a file on a free port, until the context ends."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [str(SCRIPT), "serve", str(file), "--port", "0", *map(str, options)]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            found = re.search(r"http://([\d.]+):(\d+)", line)
            assert found, line + process.stderr.read()
            yield Server(process, found[1], int(found[2]))
        finally:
            process.kill()


class Small(nn.Module):
    """A network that is exported quickly: maps of 12 x 12, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean(dim=(2, 3)))


def small_explainer() -> camkit.Explainer:
    """Of a model with random weights, and the preprocessing and class names of demo:resnet."""
    demo = camkit.load_model("demo:resnet")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Small().eval()
        nn.init.normal_(module.fc.weight)
    return camkit.Explainer(LoadedModel("small", module, demo.preprocessing, demo.class_names, "sigmoid"), "features.3")


def exported(factory: pytest.TempPathFactory) -> Path:
    """A folder with ``gradcam.onnx`` and ``gradcam.pt`` of that model, made once for all of the test processes."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "served"
    ready = folder / "ready"
    try:
        folder.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 300
        while not ready.exists():
            assert time.monotonic() < deadline, "the process that exports the model does not end"
            time.sleep(0.2)
        return folder
    asked = request(small_explainer())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its own end
        export_onnx(asked, folder / "gradcam.onnx")
        export_torchscript(asked, folder / "gradcam.pt")
    ready.touch()
    return folder
