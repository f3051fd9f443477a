"""Measures `camkit serve` on the loopback: requests a second and latencies, with and without dynamic batching.

Every figure is of a server that is started for it, asked by so many clients as fast as they get answers, over
connections that stay open. Clients and server share the machine's processors, as the page says.
"""

import argparse
import http.client
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

import camkit
from screen import show
from tables import command, machine, table

DISTRIBUTIONS = ("onnxruntime-gpu", "onnxruntime", "fastapi", "uvicorn", "numpy")
BATCHING = {"one by one": ("--max-batch", "1", "--max-wait", "0"), "batched": ("--max-batch", "8", "--max-wait", "5")}
FEWEST = 3


@dataclass(frozen=True)
class Load:
    """What a client sends; `name` is its row."""

    name: str
    path: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Figures:
    """Of one server: latencies in seconds, how long it was asked, and the mean number of images in a batch."""

    latencies: list[float]
    seconds: float
    images: float

    def row(self) -> list[str]:
        """Requests a second, and latencies in milliseconds."""
        cuts = statistics.quantiles(self.latencies, n=100, method="inclusive")
        milliseconds = [f"{1000 * cuts[place - 1]:.1f}" for place in (50, 95, 99)]
        return [f"{len(self.latencies) / self.seconds:.1f}", *milliseconds, f"{self.images:.1f}"]


def main() -> None:
    """Exports a model, asks servers of it, and shows the table."""
    options = _parse()
    console = Console(stderr=True)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gradcam.onnx"
        with console.status(f"Exporting {options.model}"):
            export(options.model, file)
        rows = []
        shape = camkit.load(file).image_shape
        for asked in loads(shape):
            for clients in options.clients:
                for name, batching in BATCHING.items():
                    with console.status(f"{asked.name}, {clients} clients, {name}"), server(file, batching) as address:
                        figures = measure(address, asked, clients, options.seconds)
                    rows.append([asked.name, str(clients), name, *figures.row()])
    text = document(options, load, "x".join(map(str, shape)), rows)
    show(text, options.write)


def export(model: str, file: Path) -> None:
    weights = [] if model.startswith("demo:") else ["--weights", "none"]
    subprocess.run([script(), "export", "--model", model, *weights, "--output", file], check=True, capture_output=True)


def loads(shape: tuple[int, int, int]) -> list[Load]:
    """One image each: as a tensor in bytes, whose map is asked for in bytes; as a tensor in JSON; as a photo."""
    generator = np.random.default_rng(0)
    image = generator.standard_normal((1, *shape), dtype=np.float32)
    described = {"name": "image", "datatype": "FP32", "shape": list(image.shape)}
    outputs = [{"name": "logits"}, {"name": "map"}]
    size = {"binary_data_size": image.nbytes}
    head = json.dumps({"inputs": [{**described, "parameters": size}], "outputs": outputs}).encode()
    values = [round(float(value), 4) for value in image.ravel()]
    whole = json.dumps({"inputs": [{**described, "data": values}], "outputs": outputs}).encode()
    photo = io.BytesIO()
    noise = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(photo, "jpeg")
    infer = "/v2/models/gradcam/infer"
    return [
        Load("tensor, bytes", infer, head + image.tobytes(), {"Inference-Header-Content-Length": str(len(head))}),
        Load("tensor, JSON", infer, whole, {"Content-Type": "application/json"}),
        Load("photo to overlay", "/explain", photo.getvalue(), {"Content-Type": "image/jpeg"}),
    ]


@contextmanager
def server(file: Path, options: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """A server of a file: its host and port."""
    arguments = [script(), "serve", str(file), "--port", "0", *options]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://([\d.]+):(\d+)", process.stdout.readline())
        assert found, "the server did not start"
        try:
            yield found[1], int(found[2])
        finally:
            process.terminate()
    assert process.returncode == 0


def measure(address: tuple[str, int], load: Load, clients: int, seconds: float) -> Figures:
    """Asks for so long, after one request of each client that is left out, and for `FEWEST` answers at least."""
    latencies: list[list[float]] = [[] for _ in range(clients)]
    begun: list[float] = []
    together = threading.Barrier(clients, action=lambda: begun.append(time.perf_counter()))

    def ask(own: list[float]) -> None:
        with closing(http.client.HTTPConnection(*address, timeout=120)) as connection:
            answer(connection, load)
            together.wait()
            while len(own) < FEWEST or time.perf_counter() < begun[0] + seconds:
                own.append(answer(connection, load))

    with ThreadPoolExecutor(clients) as threads:
        # results, so that what a client stumbles over is raised
        list(threads.map(ask, latencies))
    took = time.perf_counter() - begun[0]
    return Figures([latency for own in latencies for latency in own], took, images_in_a_batch(address))


def answer(connection: http.client.HTTPConnection, load: Load) -> float:
    """Seconds until the answer was there."""
    begun = time.perf_counter()
    connection.request("POST", load.path, load.body, load.headers)
    response = connection.getresponse()
    content = response.read()
    assert response.status == 200, content
    return time.perf_counter() - begun


def images_in_a_batch(address: tuple[str, int]) -> float:
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    total, count = (
        float(re.findall(rf"^camkit_batch_images_{name} (\S+)$", text, re.MULTILINE)[0]) for name in ("sum", "count")
    )
    return total / count


def document(options: argparse.Namespace, load: float, size: str, rows: list[list[str]]) -> str:
    """The page."""
    header = ["request", "clients", "", "requests/s", "p50 ms", "p95 ms", "p99 ms", "images a batch"]
    return (
        "\n\n".join(
            [
                "# Serving",
                "`camkit serve` on the loopback: how many requests of one image each are answered in a second, and "
                "after how many milliseconds. Clients run on the same processors. This page is written by",
                f"```\n{command(options.write)}\n```",
                "\n".join(
                    [
                        *machine(f"{os.cpu_count()} processors", DISTRIBUTIONS),
                        f"* load of the machine when the run began: {load:.1f}",
                        f"* model: {options.model}, Grad-CAM, {size}; {options.seconds:g} seconds a row",
                    ]
                ),
                table(header, rows),
                "*One by one* is `--max-batch 1 --max-wait 0`, *batched* `--max-batch 8 --max-wait 5`. *Bytes* is the "
                "protocol's binary tensor extension.",
            ]
        )
        + "\n"
    )


def script() -> str:
    return str(Path(sys.executable).with_name("camkit"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="torchvision:resnet18", help="with random weights, if it is not a demo model"
    )
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=5, help="a row")
    parser.add_argument("--quick", action="store_true", help="two clients and a second a row, to see that all works")
    parser.add_argument("--write", type=Path, metavar="PATH", help="writes the table as Markdown")
    options = parser.parse_args()
    if options.quick:
        options.clients, options.seconds = [2], 1
    return options


if __name__ == "__main__":
    main()
