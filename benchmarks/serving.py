"""The exported explanation in ONNX Runtime beside the plain forward of the same model, exported the same way."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import camkit
from contestants import CLASS, PLAIN, THREADS, Call, Case, make_images, ready

PLAIN_GRAPH = "plain forward, ONNX"
CAM_GRAPH = "camkit Grad-CAM, ONNX"
EAGER = f"{PLAIN}, PyTorch"

OPSET = 18


def export(model: nn.Module, case: Case, size: int, folder: Path) -> dict[str, Path]:
    """Writes the plain forward and the explanation of a model as ONNX."""
    paths = {PLAIN_GRAPH: folder / "plain.onnx", CAM_GRAPH: folder / "gradcam.onnx"}
    images = make_images(2, size)
    camkit.export(camkit.Explainer(model, layer=case.layer), paths[CAM_GRAPH], images=images, opset=OPSET)
    export_plain(model, size, paths[PLAIN_GRAPH])
    return paths


def export_plain(model: nn.Module, size: int, path: Path) -> None:
    """Writes the plain forward of a model as ONNX."""
    images = make_images(2, size)
    with _quiet():
        program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        exported = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, input_names=["image"], external_data=False, optimize=True
        )
    assert exported is not None
    exported.save(path)


def contestants(
    paths: Mapping[str, Path], model: nn.Module, case: Case, images: Tensor
) -> tuple[Call, dict[str, Callable[[], AbstractContextManager[Call]]]]:
    """The plain graph, which is the reference, and whoever is compared with it."""
    feed = {"image": images.numpy()}
    classes = {"class_index": np.full(len(images), CLASS, dtype=np.int64)}
    plain_call = partial(open_graph(paths[PLAIN_GRAPH]).run, None, feed)
    cam_call = partial(open_graph(paths[CAM_GRAPH]).run, None, feed | classes)
    return plain_call, {
        PLAIN_GRAPH: lambda: nullcontext(plain_call),
        CAM_GRAPH: lambda: nullcontext(cam_call),
        EAGER: partial(ready, PLAIN, model, case, images),
    }


def open_graph(path: Path, threads: int = THREADS) -> Any:
    """A file in ONNX Runtime, with so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # threads that wait must not use the CPU, whose time is what is measured
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)
