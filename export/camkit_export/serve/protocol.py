"""The Open Inference Protocol, version 2, over HTTP: tensors in JSON, or as bytes behind it.

Bytes are the protocol's binary tensor extension: the header ``Inference-Header-Content-Length`` says where the JSON
ends, and each input's parameter ``binary_data_size`` how many bytes are its own; values are little-endian.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from camkit.errors import unknown
from camkit_export.serve.refusals import Refused
from camkit_export.session import Session

HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data",)

_TYPES: Mapping[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
# What numpy makes of the JSON values that stand for a type.
_JSON_KINDS = {"FP32": "iuf", "INT64": "iu", "UINT8": "iu", "BOOL": "b"}
_NAMES = {kind.newbyteorder("="): name for name, kind in _TYPES.items()}

Parameters = dict[str, Any]


class _Input(BaseModel):
    name: str
    datatype: str
    shape: list[Annotated[int, Field(ge=0)]]
    parameters: Parameters = {}
    data: Any = None


class _Output(BaseModel):
    name: str
    parameters: Parameters = {}


class _Request(BaseModel):
    id: str | None = None
    parameters: Parameters = {}
    inputs: list[_Input]
    outputs: list[_Output] | None = None


@dataclass(frozen=True)
class Inference:
    """What a client asks.

    Attributes:
        identity: the client's own name for the request.
        inputs: what the session takes, in its order.
        outputs: the outputs that are asked for, and whether each is to be given as bytes.
    """

    identity: str | None
    inputs: tuple[NDArray[Any], ...]
    outputs: Mapping[str, bool]


@dataclass(frozen=True)
class Answer:
    """A body and its headers."""

    body: bytes
    headers: Mapping[str, str]


def metadata(name: str, session: Session, outputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What there is to know of a model: its tensors, and as parameters what was exported; -1 is the batch,
    or a size that is open.

    `outputs` are those of any run.
    """
    inputs = dict(zip(session.inputs, session.example(), strict=True))

    def tensors(arrays: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
        return [
            {"name": name, "datatype": _NAMES[array.dtype], "shape": [-1, *session.open_shape(name, array)]}
            for name, array in arrays.items()
        ]

    return {
        "name": name,
        "platform": f"camkit_{session.path.suffix.removeprefix('.')}",
        "inputs": tensors(inputs),
        "outputs": tensors(outputs),
        "parameters": dict(session.provenance),
    }


def parse(body: bytes, header_length: str | None, session: Session) -> Inference:
    """Reads and checks a request.

    Raises:
        CamkitError: it is not one, or its tensors are not what the session takes.
    """
    head, rest = _divided(body, header_length)
    try:
        request = _Request.model_validate_json(head)
    except ValidationError as error:
        raise Refused(f"The request was not understood: {first_error(error)}.") from None
    tensors: dict[str, NDArray[Any]] = {}
    for one in request.inputs:
        if one.name not in session.inputs:
            raise unknown("input", one.name, session.inputs)
        if one.name in tensors:
            raise Refused(f"The input '{one.name}' was given twice.")
        tensors[one.name], rest = _tensor(one, _NAMES[session.input_types[one.name]], rest)
    if rest:
        raise Refused(f"{len(rest)} bytes of the body belong to no input.")
    if "image" not in tensors:
        raise Refused("The input 'image' is missing.")
    inputs = session.checked(tensors.pop("image"), tensors.pop("class_index", None), **tensors)
    return Inference(request.id, inputs, _outputs(request, session.outputs))


def answer(model: str, asked: Inference, values: Mapping[str, NDArray[Any]]) -> Answer:
    """The response to a request; `values` are the session's outputs."""
    outputs: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    for name, binary in asked.outputs.items():
        array = values[name]
        kind = _NAMES[array.dtype]
        described = {"name": name, "datatype": kind, "shape": list(array.shape)}
        if binary:
            chunks.append(array.astype(_TYPES[kind], copy=False).tobytes())
            outputs.append({**described, "parameters": {"binary_data_size": len(chunks[-1])}})
        else:
            outputs.append({**described, "data": json_values(array.reshape(-1))})
    identity = {} if asked.identity is None else {"id": asked.identity}
    head = json.dumps({"model_name": model, **identity, "outputs": outputs}).encode()
    if not chunks:
        return Answer(head, {"Content-Type": "application/json"})
    return Answer(
        b"".join([head, *chunks]), {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    )


def json_values(array: NDArray[Any]) -> list[Any]:
    """An array as nested lists; null for what is not finite, which JSON has no word for."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        finite, array = np.isfinite(array), array.astype(object)
        array[~finite] = None
    values: list[Any] = array.tolist()
    return values


def first_error(error: ValidationError) -> str:
    """The first of pydantic's complaints, as part of a sentence."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in found["loc"])
    reason = found["msg"][:1].lower() + found["msg"][1:]
    return f"{where}: {reason}" if where else reason


def _divided(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """The JSON of a request, and the bytes behind it."""
    if header_length is None:
        return body, memoryview(b"")
    # isdecimal alone would let other alphabets' digits through, and very long numbers into int
    if not header_length.isascii() or not header_length.isdecimal() or len(header_length) > 12:
        raise Refused(f"The header {HEADER_LENGTH} must be a number of bytes.")
    length = int(header_length)
    if length > len(body):
        raise Refused(f"The header {HEADER_LENGTH} is {length}, but the body has {len(body)} bytes.")
    return body[:length], memoryview(body)[length:]


def _tensor(given: _Input, kind: str, rest: memoryview) -> tuple[NDArray[Any], memoryview]:
    """An input's values in its shape, and the bytes that are left for the others."""
    if given.datatype != kind:
        raise Refused(f"The input '{given.name}' must have the datatype {kind}, not {given.datatype}.")
    count = math.prod(given.shape)
    size = given.parameters.get("binary_data_size")
    if size is None:
        return _finite(given.name, _from_json(given, count)), rest
    wanted = count * _TYPES[kind].itemsize
    if size != wanted or len(rest) < wanted:
        raise Refused(
            f"The input '{given.name}' of shape {given.shape} takes {wanted} bytes; {size} were announced and "
            f"{len(rest)} are there."
        )
    if kind == "BOOL" and any(byte > 1 for byte in rest[:wanted]):
        raise Refused(f"The bytes of the input '{given.name}' must be 0 or 1.")
    values = np.frombuffer(rest[:wanted], _TYPES[kind]).reshape(given.shape)
    return _finite(given.name, values.astype(_TYPES[kind].newbyteorder("="), copy=False)), rest[wanted:]


def _from_json(given: _Input, count: int) -> NDArray[Any]:
    try:
        values = np.asarray(given.data if isinstance(given.data, list) else None)
    except ValueError:
        raise Refused(f"The data of the input '{given.name}' are lists of different lengths.") from None
    # an empty list has no type that would tell anything
    if values.dtype.kind not in _JSON_KINDS[given.datatype] and values.size:
        what = "true and false" if given.datatype == "BOOL" else "numbers"
        raise Refused(f"The data of the input '{given.name}' must be a list of {what} of the type {given.datatype}.")
    if values.size != count or (values.ndim != 1 and list(values.shape) != given.shape):
        raise Refused(
            f"The data of the input '{given.name}' do not have its shape {given.shape}: they are {list(values.shape)}."
        )
    if given.datatype == "UINT8" and values.size and (values.min() < 0 or values.max() > 255):
        raise Refused(f"The data of the input '{given.name}' must lie between 0 and 255.")
    # whole numbers stay as they are: a class that no int64 holds is for the session to refuse
    if given.datatype == "INT64":
        return values.reshape(given.shape)
    with np.errstate(over="ignore"):
        return values.reshape(given.shape).astype(_TYPES[given.datatype].newbyteorder("="))


def _finite(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(values).all():
        raise Refused(f"The input '{name}' holds values that are not finite.")
    return values


def _outputs(request: _Request, known: tuple[str, ...]) -> dict[str, bool]:
    everything = bool(request.parameters.get("binary_data_output", False))
    if not request.outputs:
        return dict.fromkeys(known, everything)
    for one in request.outputs:
        if one.name not in known:
            raise unknown("output", one.name, known)
    return {one.name: bool(one.parameters.get("binary_data", everything)) for one in request.outputs}
