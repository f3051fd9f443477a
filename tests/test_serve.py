"""``camkit serve``: real processes that are asked over HTTP."""

import asyncio
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import camkit
import commandline
from camkit.images import read_image
from camkit.visualize import enlarged
from camkit_adapters import demo
from camkit_export.serve.batcher import Batcher
from camkit_export.serve.protocol import HEADER_LENGTH
from camkit_export.serve.server import listen
from serve_process import Server, serving, small_explainer

SCENES = Path(demo.__file__).with_name("images")
SCENE = SCENES / "scene-05.png"
INFER = "/v2/models/gradcam/infer"
BODY_LIMIT = 3 * 2**20


@pytest.fixture(scope="module")
def server(served):
    options = ("--max-batch", 4, "--max-wait", 5, "--max-queue", 32, "--max-body", 3, "--max-pixels", 1)
    with serving(served / "gradcam.onnx", *options) as started:
        yield started
        assert started.stop(signal.SIGINT) == 0
        assert "Traceback" not in started.process.stderr.read()


@pytest.fixture(scope="module")
def session(served):
    return camkit.load(served / "gradcam.onnx")


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 96, 96)).astype(np.float32)


def tensor(values: np.ndarray, name: str = "image", datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.reshape(-1).tolist()}


def body(*inputs: dict[str, Any], **rest: Any) -> bytes:
    return json.dumps({"inputs": inputs, **rest}).encode()


def binary(count: int, seed: int = 0, classes: list[int] | None = None, **rest: Any) -> tuple[bytes, dict[str, str]]:
    """A request whose tensors are bytes, and its header."""
    arrays = [("image", "FP32", images(count, seed))]
    if classes is not None:
        arrays.append(("class_index", "INT64", np.array(classes)))
    inputs = [
        {"name": name, "datatype": kind, "shape": list(array.shape), "parameters": {"binary_data_size": array.nbytes}}
        for name, kind, array in arrays
    ]
    head = json.dumps({"inputs": inputs, **rest}).encode()
    return head + b"".join(array.tobytes() for _, _, array in arrays), {HEADER_LENGTH: str(len(head))}


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the rounding that another size of batch brings."""
    assert expected.std() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_health_and_metadata(server: Server):
    assert server.get("/v2").json == {
        "name": "camkit",
        "version": camkit.__version__,
        "extensions": ["binary_tensor_data"],
    }
    assert (server.get("/v2/health/live").status, server.get("/v2/health/ready").json) == (200, {"ready": True})
    assert server.get("/v2/models/gradcam/ready").json == {"name": "gradcam", "ready": True}
    model = server.get("/v2/models/gradcam").json
    assert model["inputs"] == [
        {"name": "image", "datatype": "FP32", "shape": [-1, 3, 96, 96]},
        {"name": "class_index", "datatype": "INT64", "shape": [-1]},
    ]
    assert model["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
        {"name": "heatmap", "datatype": "FP32", "shape": [-1, 96, 96]},
        {"name": "map", "datatype": "FP32", "shape": [-1, 12, 12]},
        {"name": "explained_class", "datatype": "INT64", "shape": [-1]},
    ]
    assert model["parameters"]["class_names"][6] == "six"
    assert server.get("/openapi.json").json["info"]["title"] == "camkit"


def test_json_tensors(server: Server, session):
    given, classes = images(2), np.array([3, -1])
    answer = server.post(INFER, body(tensor(given), tensor(classes, "class_index", "INT64"), id="a"))
    assert (answer.status, answer.json["model_name"], answer.json["id"]) == (200, "gradcam", "a")
    expected = session.tensors(given, classes)
    assert [output["name"] for output in answer.json["outputs"]] == list(expected)
    for output in answer.json["outputs"]:
        values = np.array(output["data"]).reshape(output["shape"])
        if output["name"] == "explained_class":
            assert values.tolist() == expected["explained_class"].tolist()
            assert (values[0], output["datatype"]) == (3, "INT64")
        else:
            same(values, expected[output["name"]])


def test_outputs_that_were_asked_for_and_nested_data(server: Server, session):
    given = images(1)
    nested = {"name": "image", "datatype": "FP32", "shape": [1, 3, 96, 96], "data": given.tolist()}
    asked = body(nested, outputs=[{"name": "map"}, {"name": "logits"}])
    outputs = server.post(INFER, asked).json["outputs"]
    assert [output["name"] for output in outputs] == ["map", "logits"]
    same(np.array(outputs[0]["data"]).reshape(1, 12, 12), session(given).maps)


@pytest.mark.parametrize("everything", [True, False])
def test_tensors_as_bytes(server: Server, session, everything):
    wanted = (
        {"parameters": {"binary_data_output": True}}
        if everything
        else {"outputs": [{"name": "heatmap", "parameters": {"binary_data": True}}, {"name": "logits"}]}
    )
    sent, header = binary(2, 1, [5, -1], **wanted)
    answer = server.post(INFER, sent, **header)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")
    length = int(answer.headers[HEADER_LENGTH.lower()])
    head, rest = json.loads(answer.body[:length]), answer.body[length:]
    expected = session.tensors(images(2, 1), np.array([5, -1]))
    assert [one["name"] for one in head["outputs"]] == (list(expected) if everything else ["heatmap", "logits"])
    for one in head["outputs"]:
        if "data" in one:
            assert not everything
            continue
        size = one["parameters"]["binary_data_size"]
        kind = "<i8" if one["datatype"] == "INT64" else "<f4"
        same(np.frombuffer(rest[:size], kind).reshape(one["shape"]), expected[one["name"]])
        rest = rest[size:]
    assert rest == b""


PIXELS = np.zeros((1, 3, 96, 96))
HUGE = 2**64 - 1


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (b"", "not understood"),
        (b"{", "not understood"),
        (b"[" * 100_000, "not understood"),
        (b"[]", "not understood"),
        (b"{}", "inputs: field required"),
        (body(), "'image' is missing"),
        (body({"name": "image"}), "inputs.0.datatype: field required"),
        (body({**tensor(PIXELS), "name": "picture"}), "no input 'picture'; choose 'image' or 'class_index'"),
        (body(tensor(PIXELS), tensor(PIXELS)), "given twice"),
        (body({**tensor(PIXELS), "datatype": "FP64"}), "must have the datatype FP32, not FP64"),
        (body({**tensor(PIXELS), "data": [0.0]}), "do not have its shape"),
        (body({**tensor(PIXELS), "data": [[0.0], [0.0, 1.0]]}), "different lengths"),
        (body({**tensor(PIXELS), "data": ["a"] * PIXELS.size}), "list of numbers of the type FP32"),
        (body({**tensor(PIXELS), "data": None}), "list of numbers"),
        (body({**tensor(PIXELS), "shape": [-1, 3, 96, 96]}), "shape.0: input should be greater"),
        (body({**tensor(PIXELS), "shape": [10**30, 10**30]}), "do not have its shape"),
        (body({**tensor(PIXELS[:, :2])}), "must have the shape [batch, 3, 96, 96], not [1, 2, 96, 96]"),
        (body({**tensor(PIXELS[:0])}), "must have the shape"),
        (body(tensor(PIXELS)).replace(b"0.0", b"NaN", 1), "not finite"),
        (body(tensor(PIXELS)).replace(b"0.0", b"1e39", 1), "not finite"),
        (body(tensor(PIXELS), tensor(np.array([10]), "class_index", "INT64")), "no class 10: the model has 10"),
        (body(tensor(PIXELS), tensor(np.array([0, 1]), "class_index", "INT64")), "one class for each of the 1 images"),
        (body(tensor(PIXELS), {**tensor(np.array([0]), "class_index", "INT64"), "data": [0.5]}), "type INT64"),
        (body(tensor(PIXELS), {**tensor(np.array([0]), "class_index", "INT64"), "data": [HUGE]}), "no class 1844674"),
        (body(tensor(PIXELS), {**tensor(np.array([0]), "class_index", "INT64"), "data": [HUGE**2]}), "type INT64"),
        (body(tensor(PIXELS), outputs=[{"name": "heat"}]), "no output 'heat'; did you mean 'heatmap'?"),
        (body(tensor(np.zeros((5, 3, 96, 96)))), "5 images are more than the 4"),
    ],
    ids=range(27),
)
def test_bad_tensors(server: Server, sent, sentence):
    answer = server.post(INFER, sent)
    assert answer.status == 422
    assert sentence in answer.json["error"].replace("Input", "input"), answer.json


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda sent, length: (sent[:-1], length), "takes 110592 bytes"),
        (lambda sent, length: (sent + b"x", length), "1 bytes of the body belong to no input"),
        (lambda sent, length: (sent, str(10**9)), "but the body has"),
        (lambda sent, length: (sent, "9" * 5000), "must be a number of bytes"),
        (lambda sent, length: (sent, "-1"), "must be a number of bytes"),
        (lambda sent, length: (sent.replace(b"110592", b"110588"), length), "110588 were announced"),
        (lambda sent, length: (sent.replace(b"110592", b'"many"'), length), "many were announced"),
        (lambda sent, length: (sent[:-4] + struct.pack("<f", float("inf")), length), "not finite"),
    ],
    ids=range(8),
)
def test_bad_bytes(server: Server, change, sentence):
    sent, header = binary(1)
    changed, length = change(sent, header[HEADER_LENGTH])
    answer = server.post(INFER, changed, **{HEADER_LENGTH: length})
    assert answer.status == 422
    assert sentence in answer.json["error"], answer.json


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models/gradcm", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/models/gradcm/infer", 404),
        ("POST", "/v2/health/live", 405),
    ],
)
def test_wrong_addresses(server: Server, method, path, status):
    answer = server.ask(method, path)
    assert answer.status == status
    assert answer.json["error"]


def explainer() -> tuple[camkit.Explainer, torch.Tensor, np.ndarray]:
    """The model that is served, the scene as its input, and the scene to draw on."""
    explain = small_explainer()
    image = read_image(SCENE)
    picture = enlarged(np.asarray(explain.preprocessing.view(image)))
    return explain, explain.preprocessing(image)[None], picture


def form(content: bytes, name: str = "photo.png") -> tuple[bytes, str]:
    """A form with one file, and its content type."""
    head = f'--edge\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge"


def test_overlays_are_those_of_camkit_explain(server: Server):
    explain, tensors, picture = explainer()
    content = SCENE.read_bytes()
    for query, target, drawn in (
        ("", "top", {}),
        ("?class=six", "six", {}),
        ("?class=6&alpha=0.9&colormap=magma", 6, {"alpha": 0.9, "colormap": "magma"}),
    ):
        expected = explain(tensors, target=target).draw(0, picture, **drawn)
        answer = server.post(f"/explain{query}", content, Content_Type="image/png")
        assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
        found = np.asarray(Image.open(io.BytesIO(answer.body)))
        assert (found != picture).any()
        differences = np.abs(found.astype(int) - expected)
        # here and there a value lies between two of the colormap's 256 colours, which are 8 levels apart at most
        assert differences.max() <= 8
        assert (differences > 1).mean() < 0.001


@pytest.mark.parametrize("how", ["image/png", "application/octet-stream", "form"])
def test_json_is_what_camkit_explain_writes(server: Server, how):
    explain, tensors, _ = explainer()
    explanation = explain(tensors, target="six")
    content, kind = form(SCENE.read_bytes()) if how == "form" else (SCENE.read_bytes(), how)
    found = server.post("/explain?class=six&output=json", content, Content_Type=kind).json
    same(np.array(found["map"].pop("values")), explanation.maps[0].numpy())
    top = found.pop("top")
    assert [one["class"] for one in top[:2]] == explanation.logits[0].argsort(descending=True)[:2].tolist()
    assert top[0] == found["prediction"]
    expected = explanation.record(0)
    for part in ("prediction", "target", "map"):
        numbers = {key: value for key, value in expected[part].items() if isinstance(value, float)}
        assert numbers
        assert {key: found[part].pop(key) for key in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-5)
        for key in numbers:
            del expected[part][key]
    assert found == expected


def png(width: int, height: int) -> bytes:
    """A valid PNG of one bit per pixel, in which nothing compresses away but everything."""
    rows = zlib.compress(b"\0" * ((width + 7) // 8 + 1) * height, 9)
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), b"IDAT" + rows, b"IEND")
    packed = (struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not an image"),
        (b"no image", "not an image"),
        (SCENE.read_bytes()[:500], "damaged"),
        (png(1, 1), "at least 2x2"),
        (png(10_000, 10_000), "at most 1000000 are taken"),
        (png(60_000, 60_000), "too large"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
    ids=["empty", "text", "truncated", "small", "bomb", "larger bomb", "program"],
)
def test_bad_images(server: Server, content, sentence):
    sent, kind = form(content)
    for answer in (
        server.post("/explain", content, Content_Type="image/png"),
        server.post("/explain", sent, Content_Type=kind),
    ):
        assert answer.status == 422
        assert sentence in answer.json["error"], answer.json


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("class=sixx", "no class 'sixx'; did you mean 'six'?"),
        ("class=10", "0 to 9"),
        ("class=last", "a class index, a class name or 'top' is expected"),
        ("class=top-3", "a class index, a class name or 'top' is expected"),
        (f"class={'9' * 5000}", "1000 are the most"),
        ("output=gif", "'png' or 'json'"),
        ("alpha=2", "less than or equal to 1"),
        ("alpha=nan", "parameter 'alpha'"),
        ("colormap=turbi", "did you mean 'turbo'"),
        ("map=other", "one map without a name"),
    ],
)
def test_bad_questions(server: Server, query, sentence):
    answer = server.post(f"/explain?{query}", SCENE.read_bytes(), Content_Type="image/png")
    assert answer.status == 422
    assert sentence in answer.json["error"], answer.json


@pytest.mark.parametrize(
    ("content", "kind", "status", "sentence"),
    [
        (b"x", "application/json", 415, "'application/json'"),
        (b"x", "multipart/form-data", 422, "boundary"),
        (b"x", "multipart/form-data; boundary=edge", 422, "form cannot be read"),
        (
            b'--edge\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--edge--\r\n',
            "multipart/form-data; boundary=edge",
            422,
            "holds no file",
        ),
        (form(b"x")[0].replace(b"--edge--\r\n", b"") + form(b"x")[0], form(b"")[1], 422, "Too many files"),
    ],
)
def test_bad_forms(server: Server, content, kind, status, sentence):
    answer = server.post("/explain", content, Content_Type=kind)
    assert answer.status == status
    assert sentence in answer.json["error"], answer.json


def test_compressed_bodies_are_not_unpacked(server: Server):
    assert server.post(INFER, zlib.compress(body()), Content_Encoding="gzip").status == 415


@pytest.mark.parametrize("path", [INFER, "/explain"])
def test_too_large_a_body(server: Server, path):
    whole = b"x" * (BODY_LIMIT + 1)
    assert server.post(path, whole, Content_Type="image/png").status == 413
    # without a length, in chunks; what comes is counted
    chunks = (whole[start : start + 2**16] for start in range(0, len(whole), 2**16))
    answer = server.post(path, chunks, Content_Type="image/png")
    assert (answer.status, answer.json["error"]) == (
        413,
        f"The body is larger than the {BODY_LIMIT} bytes that are taken.",
    )
    assert server.post(path, whole[:-1], Content_Type="image/png").status == 422


def raw(server: Server, text: bytes) -> bytes:
    """What the server answers to bytes that need be no HTTP; until it hangs up or says nothing for a while."""
    with socket.create_connection((server.host, server.port), timeout=2) as connection:
        connection.sendall(text)
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
        except TimeoutError:
            pass
        return found


def test_a_length_that_lies(server: Server):
    head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: "
    # more is announced than is taken: refused before any of it is read
    assert b" 413 " in raw(server, f"{head}{2**40}\r\n\r\n".encode())
    # less is announced than comes: the rest is no part of the request
    assert b" 422 " in raw(server, f"{head}2\r\n\r\n{{}}".encode() + b"x" * 100)
    assert b" 400 " in raw(server, f"{head}-5\r\n\r\n".encode())


def test_a_client_that_hangs_up_leaves_its_place(server: Server):
    for _ in range(40):
        with socket.create_connection((server.host, server.port)) as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{{".encode())
            time.sleep(0.01)
    deadline = time.monotonic() + 10
    while server.metric("camkit_queue_images") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.metric("camkit_queue_images") == 0
    assert server.post(INFER, binary(1)[0], **binary(1)[1]).status == 200


def test_many_clients_get_their_own_answers(server: Server, session):
    before = server.metric("camkit_batch_images_count"), server.metric("camkit_batch_images_sum")

    def ask(seed: int) -> tuple[int, np.ndarray]:
        count = 1 + seed % 3
        sent, header = binary(count, seed, [seed % 10] * count, outputs=[{"name": "map"}])
        found = server.post(INFER, sent, **header).json["outputs"][0]
        return seed, np.array(found["data"]).reshape(found["shape"])

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, range(24)))
    for seed, found in answers:
        count = 1 + seed % 3
        same(found, session(images(count, seed), [seed % 10] * count).maps)
    batches = server.metric("camkit_batch_images_count") - before[0]
    assert server.metric("camkit_batch_images_sum") - before[1] == 48
    assert batches < 24


def test_metrics(server: Server):
    ready = server.metric('camkit_requests_total{route="/v2/health/ready",status="200"}')
    lost = server.metric('camkit_requests_total{route="other",status="404"}')
    server.get("/v2/health/ready")
    server.get("/no/such/route")
    answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert server.metric('camkit_requests_total{route="/v2/health/ready",status="200"}') == ready + 1
    # whatever strangers ask for makes no series of its own
    assert server.metric('camkit_requests_total{route="other",status="404"}') == lost + 1
    assert server.metric('camkit_request_seconds_bucket{le="+Inf",route="/v2/health/ready"}') == ready + 1
    assert server.metric("camkit_queue_images") == 0


def test_a_full_queue_and_a_clean_end(served, session):
    """What waits for others to be run with it keeps its place, so that the queue is seen full and the end is seen."""
    options = ("--max-batch", 8, "--max-queue", 8, "--max-wait", 2000, "--name", "mine")
    with serving(served / "gradcam.pt", *options) as server:
        infer = "/v2/models/mine/infer"
        six, header = binary(6, 1)
        with ThreadPoolExecutor(2) as clients:
            first = clients.submit(server.post, infer, six, **header)
            while server.metric("camkit_queue_images") < 6:
                time.sleep(0.02)
            sent, header = binary(3, 2)
            refused = server.post(infer, sent, **header)
            assert (refused.status, refused.headers["retry-after"]) == (429, "1")
            assert refused.json["error"] == "7 of at most 8 images are waiting already; try again later."
            # for two there is room, and with them the batch is full
            sent, header = binary(2, 3)
            answer = server.post(infer, sent, **header)
            same(np.array(answer.json["outputs"][0]["data"]), session(images(2, 3)).logits.reshape(-1))
            assert first.result().status == 200
            assert server.metric('camkit_batch_images_bucket{le="4.0"}') == 0
            assert server.metric("camkit_batch_images_sum") == 8

            one, length = binary(1, 4)
            last = clients.submit(server.post, infer, one, **length)
            while server.metric("camkit_queue_images") < 1:
                time.sleep(0.02)
            server.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 1
            while (ready := server.get("/v2/health/ready")).status == 200 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert (ready.status, ready.json) == (503, {"ready": False})
            assert server.get("/v2/health/live").status == 200
            refused = server.post(infer, sent, **header)
            assert (refused.status, refused.headers["connection"]) == (503, "close")
            assert last.result().status == 200
        assert server.process.wait(timeout=30) == 0
        assert server.process.stderr.read() == ""


@pytest.mark.slow
def test_pictures_several_maps_and_the_top_classes(tmp_path):
    names = ["gradcam__features.3", "layercam__features.3"]
    file = tmp_path / "many.onnx"
    camkit.export(small_explainer(), file, ["gradcam", "layercam"], top_k=2, frame_size=(96, 128))
    session = camkit.load(file)
    picture = np.asarray(read_image(SCENE).resize((128, 96)))
    expected = session.tensors(picture[None])
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "png")

    def explain(query: str, sent: bytes = content.getvalue()) -> Any:
        return server.post(f"/explain?{query}", sent, Content_Type="image/png")

    with serving(file) as server:
        model = server.get("/v2/models/many").json
        assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 96, 128, 3]}]
        assert [output["name"] for output in model["outputs"]] == list(expected)
        answer = server.post("/v2/models/many/infer", body(tensor(picture[None], datatype="UINT8")))
        for output in answer.json["outputs"]:
            same(np.array(output["data"]).reshape(output["shape"]), expected[output["name"]])
        wrong = {**tensor(picture[None], datatype="UINT8"), "data": [256] * picture.size}
        assert "between 0 and 255" in server.post("/v2/models/many/infer", body(wrong)).json["error"]

        first, second = expected["explained_class"][0]
        for name in names:
            for rank, asked in enumerate((first, second)):
                found = explain(f"output=json&class={asked}&map={name}").json
                assert (found["method"], found["target"]["class"]) == (name.partition("__")[0], asked)
                same(np.array(found["map"]["values"]), expected[f"map__{name}"][0, rank])
        assert np.asarray(Image.open(io.BytesIO(explain("").body))).shape == (288, 384, 3)
        other = next(index for index in range(10) if index not in (first, second))
        assert "not among this image's top classes" in explain(f"class={other}").json["error"]
        assert "choose 'gradcam__features.3'" in explain("map=none").json["error"]
        assert "takes pictures of 128x96 pixels" in explain("", SCENE.read_bytes()).json["error"]


@pytest.mark.slow
def test_a_body_that_does_not_come(server: Server):
    with socket.create_connection((server.host, server.port), timeout=60) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{{".encode())
        assert b" 408 " in connection.recv(65536)
    assert server.metric("camkit_queue_images") == 0


def failed(*arguments: object) -> str:
    """The one sentence of a command that is refused."""
    result = commandline.run("serve", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Error: ")
    assert len(result.err.splitlines()) == 1
    return result.err


def test_files_that_cannot_be_served(tmp_path, served):
    assert "There is no file" in failed(tmp_path / "none.onnx")
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    assert "cannot be read" in failed(tmp_path / "a.onnx")
    (tmp_path / "a.txt").write_bytes(b"nothing")
    assert "no engine for files that end in '.txt'" in failed(tmp_path / "a.txt")
    assert "must be at least --max-batch" in failed(served / "gradcam.onnx", "--max-batch", 9, "--max-queue", 8)
    assert "holds no slash" in failed(served / "gradcam.onnx", "--name", "a/b")


def test_answers_do_not_wait_for_their_headers_to_be_acknowledged():
    async def delays(listening: socket.socket) -> int:
        found = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda _, writer: found.set_result(writer), sock=listening)
        with socket.create_connection(listening.getsockname()[:2]):
            accepted = (await found).get_extra_info("socket")
            value = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        server.close()
        return value

    with listen("127.0.0.1", 0) as listening:
        assert asyncio.run(delays(listening))


def test_a_port_in_use(served):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} of 127.0.0.1 is in use" in failed(served / "gradcam.onnx", "--port", port)
    assert "cannot listen" in failed(served / "gradcam.onnx", "--host", "192.0.2.1")


@pytest.mark.parametrize("missing", ["fastapi", "python_multipart"])
def test_the_extra_is_not_installed(missing):
    program = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['camkit', 'serve', 'a.onnx']\n"
    program += "from camkit.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"Error: camkit serve needs the package {missing}, which is not installed; run pip install 'camkit[serve]'.\n"
    )


def batcher(run: Any, *, wait: float = 0.05, seen: list[int] | None = None) -> Batcher:
    sizes = [] if seen is None else seen
    return Batcher(run, max_batch=4, max_wait=wait, observe=lambda images, seconds: sizes.append(images))


def numbered(*values: float) -> tuple[np.ndarray]:
    return (np.array(values),)


def test_requests_are_not_divided_and_keep_their_order():
    sizes: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def double(values: np.ndarray) -> dict[str, np.ndarray]:
        begun.set()
        go.wait(10)
        return {"doubled": 2 * values}

    running = batcher(double, wait=0, seen=sizes)
    answers = [running.submit(numbered(0))]
    assert begun.wait(10)
    # while the session runs, the others gather: 3 and 2 do not fit together, 2, 1 and 1 do
    answers += [running.submit(numbered(*values)) for values in ((1, 2, 3), (4, 5), (6,), (7,), (8,))]
    go.set()
    found = [answer.result(10)["doubled"].tolist() for answer in answers]
    running.close()
    assert found == [[0], [2, 4, 6], [8, 10], [12], [14], [16]]
    assert sizes == [1, 3, 4, 1]


def test_a_batch_that_fails_is_answered_and_the_next_one_runs():
    def careful(values: np.ndarray) -> dict[str, np.ndarray]:
        if values.max() > 1:
            raise ValueError("too large")
        return {"same": values}

    running = batcher(careful)
    wrong = [running.submit(numbered(2)), running.submit(numbered(0))]
    for answer in wrong:
        with pytest.raises(ValueError, match="too large"):
            answer.result(10)
    right: Future[Any] = running.submit(numbered(1))
    assert right.result(10)["same"].tolist() == [1]
    running.close()


def test_what_nobody_waits_for_is_not_run():
    sizes: list[int] = []
    running = batcher(lambda values: {"same": values}, wait=0.3, seen=sizes)
    gone, kept = running.submit(numbered(1, 2)), running.submit(numbered(3))
    assert gone.cancel()
    assert kept.result(10)["same"].tolist() == [3]
    running.close()
    assert sizes == [1]


def test_closing_answers_what_waits():
    running = batcher(lambda values: {"same": values}, wait=60)
    answer = running.submit(numbered(1))
    running.close()
    assert answer.result(0)["same"].tolist() == [1]
    with pytest.raises(RuntimeError):
        running.submit(numbered(1))
