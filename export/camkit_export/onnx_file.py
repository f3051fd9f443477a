"""What an ONNX file says about itself, read from its bytes alone: metadata, operator domains, external data.

A server needs these before it trusts the file to a runtime, and without the `onnx` package. The format is Protocol
Buffers; only the few fields that are asked for are looked at, tensors are skipped over.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from camkit.errors import CamkitError

# Field numbers of onnx.proto; they never change.
_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_METADATA, _MODEL_FUNCTIONS = 7, 8, 14, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_ATTRIBUTE, _NODE_DOMAIN = 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass
class Contents:
    """The metadata of an ONNX model, the operator domains that it uses, and whether it reads other files."""

    metadata: dict[str, str] = field(default_factory=dict)
    domains: set[str] = field(default_factory=set)
    external_data: bool = False


def read(data: bytes) -> Contents:
    """The contents of a serialised ModelProto.

    Raises:
        CamkitError: the bytes are not a whole ONNX model.
    """
    contents = Contents()
    has_graph = False
    try:
        for number, value in _fields(memoryview(data)):
            if number == _MODEL_GRAPH:
                has_graph = True
                _read_graph(value, contents)
            elif number == _MODEL_METADATA:
                entry = {key: bytes(text).decode() for key, text in _fields(value)}
                contents.metadata[entry.get(1, "")] = entry.get(2, "")
            elif number == _MODEL_OPSETS:
                contents.domains.add(_text(value, 1))
            elif number == _MODEL_FUNCTIONS:
                contents.domains.add(_text(value, 10))
    except (ValueError, IndexError) as error:
        raise CamkitError("it is truncated or not an ONNX model.") from error
    if not has_graph:
        raise CamkitError("it holds no graph.")
    return contents


def _read_graph(graph: memoryview, contents: Contents) -> None:
    for number, value in _fields(graph):
        if number == _GRAPH_NODE:
            contents.domains.add(_text(value, _NODE_DOMAIN))
            for name, attribute in _fields(value):
                if name == _NODE_ATTRIBUTE:
                    _read_attribute(attribute, contents)
        elif number == _GRAPH_INITIALIZER:
            _read_tensor(value, contents)
        elif number == _GRAPH_SPARSE:
            _read_sparse(value, contents)


def _read_attribute(attribute: memoryview, contents: Contents) -> None:
    for number, value in _fields(attribute):
        if number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
            _read_graph(value, contents)
        elif number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            _read_tensor(value, contents)
        elif number in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
            _read_sparse(value, contents)


def _read_sparse(tensor: memoryview, contents: Contents) -> None:
    for number, value in _fields(tensor):
        if number in (_SPARSE_VALUES, _SPARSE_INDICES):
            _read_tensor(value, contents)


def _read_tensor(tensor: memoryview, contents: Contents) -> None:
    # a location of 0 is the default, in the file itself
    contents.external_data |= any(
        number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and bytes(value) != b"\0")
        for number, value in _fields(tensor)
    )


def _text(message: memoryview, wanted: int) -> str:
    return "".join(bytes(value).decode() for number, value in _fields(message) if number == wanted)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The (field number, content) pairs of a message; a varint's content is its bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        start = position
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind == _FIXED64:
            position += 8
        elif kind == _FIXED32:
            position += 4
        elif kind == _BYTES:
            length, start = _varint(message, position)
            position = start + length
        else:
            raise ValueError(f"wire type {kind}")
        if position > len(message):
            raise ValueError("truncated")
        yield tag >> 3, message[start:position]


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
