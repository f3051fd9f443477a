"""Model repositories of the Triton Inference Server: the folder that it reads an exported file from."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from camkit.errors import CamkitError
from camkit.serving import load
from camkit_export.session import Session

# Of the formats that Triton's backends run: the platform, and whether tensors go by place instead of name.
_PLATFORMS = {".onnx": ("onnxruntime_onnx", False), ".pt": ("pytorch_libtorch", True)}
_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8", "bool": "TYPE_BOOL"}

_LABELS = "labels.txt"

MAX_BATCH = 8
# How long a request waits for others to be run with it.
_DELAY_MICROSECONDS = 2000


@contextmanager
def destination(output: Path | None, repository: Path | None, name: str) -> Iterator[Path]:
    """The file that an export writes: `output`, or where only a repository is asked for, a temporary ``.onnx`` file.

    `name` is the model's name in the repository; for an output that is the file's own.

    Raises:
        CamkitError: neither is asked for, or the repository has no room for the model.
    """
    if repository is None:
        if output is None:
            raise CamkitError("There is nowhere to write to; give --output FILE, --triton DIR or both.")
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="camkit-") as folder:
        file = output or Path(folder) / f"{name}.onnx"
        require_room(repository, file.stem, file.suffix)
        yield file


def require_room(repository: Path, name: str, suffix: str) -> None:
    """Refuses, before anything is computed, what `write_model` would refuse.

    Raises:
        CamkitError: Triton does not run such files, the name is no folder's, or there is such a model already.
    """
    if suffix not in _PLATFORMS:
        raise CamkitError(f"Triton runs {' and '.join(_PLATFORMS)} files of camkit, not '{suffix}'.")
    # Triton makes paths and addresses of it
    if not re.fullmatch(r"[A-Za-z0-9_][\w.+-]*", name, re.ASCII):
        raise CamkitError(f"'{name}' cannot be the name of a model in Triton; use letters, digits and any of _.+-")
    if (repository / name).exists():
        raise CamkitError(f"The model repository '{repository}' has a model '{name}' already; remove it first.")


def write_model(file: Path, repository: Path) -> Path:
    """Adds an exported file to a model repository: ``NAME/config.pbtxt`` and ``NAME/1/model.onnx`` or ``model.pt``.

    NAME is the file's name without its suffix. Class names, if known, go into ``NAME/labels.txt``. The model's folder
    appears whole or not at all.

    Returns:
        The model's folder.

    Raises:
        CamkitError: as for `require_room`, or the folder cannot be written.
    """
    name = file.stem
    require_room(repository, name, file.suffix)
    session = load(file)
    text = config(session, name)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        # beside its place, so that renaming stays within one file system
        with tempfile.TemporaryDirectory(dir=repository, prefix=".camkit-") as folder:
            # of its own, since the rights of a temporary folder are its owner's alone
            made = Path(folder) / name
            (made / "1").mkdir(parents=True)
            shutil.copyfile(file, made / "1" / f"model{file.suffix}")
            (made / "config.pbtxt").write_text(text, encoding="utf-8")
            if _labelled(session):
                (made / _LABELS).write_text("".join(f"{name}\n" for name in _labels(session)), encoding="utf-8")
            made.rename(repository / name)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CamkitError(f"The model repository '{repository}' cannot be written: {reason}.") from error
    return repository / name


def config(session: Session, name: str) -> str:
    """The text of ``config.pbtxt``, a ModelConfig in the text format of Protocol Buffers.

    The batch is Triton's first dimension and is not written. A tensor of one number for each image is [1] to clients
    and no dimension at all to the graph.
    """
    platform, by_place = _PLATFORMS[session.path.suffix]
    inputs = session.example()
    outputs = session.run(*inputs)
    parts = [
        f"name: {_quoted(name)}",
        f"platform: {_quoted(platform)}",
        f"max_batch_size: {MAX_BATCH}",
        *_tensors("input", session, inputs, session.inputs, by_place),
        *_tensors("output", session, list(outputs.values()), list(outputs), by_place),
        f"dynamic_batching {{ max_queue_delay_microseconds: {_DELAY_MICROSECONDS} }}",
        # clients read there how images are prepared, what the classes are called, and what was exported
        f'parameters {{ key: "camkit" value {{ string_value: {_quoted(json.dumps(dict(session.provenance)))} }} }}',
    ]
    return "\n".join(parts) + "\n"


def _labelled(session: Session) -> bool:
    return session.class_names is not None and len(session.class_names) == session.classes


def _labels(session: Session) -> Iterable[str]:
    return (" ".join(name.split()) for name in session.class_names or ())


def _tensors(
    kind: str, session: Session, arrays: Sequence[NDArray[Any]], names: Sequence[str], by_place: bool
) -> Iterable[str]:
    for place, (array, name) in enumerate(zip(arrays, names, strict=True)):
        shape = session.open_shape(name, array)
        yield (
            f"{kind} {{\n"
            f"  name: {_quoted(f'{kind.upper()}__{place}' if by_place else name)}\n"
            f"  data_type: {_TYPES[array.dtype.name]}\n"
            f"  dims: {list(shape) or [1]}\n"
            + ("" if shape else "  reshape { shape: [ ] }\n")
            + (f"  label_filename: {_quoted(_LABELS)}\n" if name == "logits" and _labelled(session) else "")
            + "}"
        )


def _quoted(text: str) -> str:
    """A string in the text format, where bytes that are not ASCII's letters and signs are octal numbers."""
    return '"' + "".join(_escaped(byte) for byte in text.encode()) + '"'


def _escaped(byte: int) -> str:
    character = chr(byte)
    if character in '"\\':
        return f"\\{character}"
    return character if 32 <= byte < 127 else f"\\{byte:03o}"
