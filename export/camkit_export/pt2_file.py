"""Reads a ``.pt2`` archive without trusting it: what `torch.export.load` would run as code is refused.

Of torch 2.15, `torch.export.load` unpickles weights, constants, custom objects and sample inputs as a file asks it to,
evaluates sizes as Python, and loads native libraries that it finds in the archive; the program's `module()` executes
guards. Which functions are called, and how nodes are named in the Python code that is made of them, torch checks after
a fashion. So here

- members are those of a graph with raw weights, and no pickle is among them;
- operators are torch's own functional ones, and arithmetic on sizes;
- names are plain names, sizes are made of numbers, symbols and arithmetic; there are no guards, subgraphs or objects.

What was checked is written anew, so that nothing else can be read out of the same bytes by another reader.
"""

import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from camkit.errors import CamkitError
from camkit_export.session import METADATA_FILE

_METADATA = f"extra/{METADATA_FILE}"
_GRAPHS = ("models/model.json", "data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
# raw bytes of tensors, and what describes the archive itself
_RAW = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder|version"
    r"|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
# a pickle; empty where there are no sample inputs
_SAMPLES = "data/sample_inputs/model.pt"
_NATIVE = "data/aotinductor/"

# empty, or a float that JSON has no number for
_NAME = re.compile(r"([A-Za-z_]\w*|-Infinity)?", re.ASCII)
_DOTTED = re.compile(r"(?!__)\w*(\.(?!__)\w+)*", re.ASCII)
# where a name may be a path through modules
_PATHS = ("parameter_name", "buffer_name", "tensor_constant_name", "fqn")
_VERSION = re.compile(r"[\w.+]*", re.ASCII)

_OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)", re.ASCII)
_ARITHMETIC = frozenset(
    [
        f"_operator.{name}"
        for name in [
            "add",
            "sub",
            "mul",
            "floordiv",
            "truediv",
            "mod",
            "pow",
            "neg",
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
            "and_",
            "or_",
            "not_",
        ]
    ]
    + [f"torch.{name}" for name in ["sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite"]]
    + ["math.ceil", "math.floor", "math.trunc"]
)
# An operator that reads a file of any name; there is none that writes one.
_READS_FILES = ("from_file",)

_EXPRESSION = re.compile(r"[\w'(),=+*/<> -]*", re.ASCII)
_SYMBOL = re.compile(r"[a-z]{1,3}\d+", re.ASCII)
_WORDS = frozenset(
    [
        "Symbol",
        "Integer",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "Equality",
        "Unequality",
        "StrictLessThan",
        "LessThan",
        "StrictGreaterThan",
        "GreaterThan",
        "And",
        "Or",
        "Not",
        "true",
        "false",
        "True",
        "False",
        "positive",
        "nonnegative",
        "negative",
        "integer",
        "FloorDiv",
        "ModularIndexing",
        "Where",
        "PythonMod",
        "Mod",
        "CleanDiv",
        "CeilDiv",
        "CeilToInt",
        "FloorToInt",
        "TruncToInt",
        "RoundToInt",
        "ToFloat",
        "PowByNatural",
        "IntTrueDiv",
        "Identity",
    ]
)
# The kinds of node of the trees that arguments and results are packed in; with others come the names of classes.
_TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict")


@dataclass(frozen=True)
class Contents:
    """An archive that is safe to load.

    Attributes:
        metadata: camkit's, or None: then the archive is somebody else's and nothing in it was checked.
        archive: the bytes for `torch.export.load`; empty without metadata.
    """

    metadata: str | None
    archive: bytes


def read(data: bytes) -> Contents:
    """Checks the bytes of a file.

    Raises:
        CamkitError: they are no such archive, or loading it could run code; a phrase for behind the file's name.
    """
    members = _members(data)
    if _METADATA not in members:
        return Contents(None, b"")
    for name in _GRAPHS:
        if name not in members:
            raise CamkitError("cannot be read: it holds no graph of torch.export.")
    for name in members:
        if name.startswith(_NATIVE):
            _refuse("it holds native code; if you trust who made it, load it with format='aotinductor'")
        if name not in (*_GRAPHS, _METADATA, _SAMPLES) and not _RAW.fullmatch(name):
            _refuse(f"it holds '{name}', which may be code")
    if members.get(_SAMPLES):
        _refuse("it holds sample inputs, which are a pickle and may be code")
    try:
        graphs = {name: json.loads(members[name].decode()) for name in _GRAPHS}
        metadata = members[_METADATA].decode()
        for graph in graphs.values():
            _check(graph, "")
    except (ValueError, RecursionError) as error:
        raise CamkitError(f"cannot be read: it is damaged ({type(error).__name__}).") from error
    return Contents(metadata, _archive({**members, **{name: json.dumps(graphs[name]).encode() for name in _GRAPHS}}))


def _members(data: bytes) -> dict[str, bytes]:
    """The members by their names below the archive's one folder."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # stored, not compressed, as torch writes them: no file is larger than it says
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CamkitError("cannot be read: its members are compressed.")
            found = [(name.partition("/")[2], archive.read(name)) for name in archive.namelist()]
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, NotImplementedError) as error:
        raise CamkitError("cannot be read: it is truncated or not an archive of torch.export.") from error
    if len(dict(found)) != len(found):
        _refuse("it holds two members of one name")
    return dict(found)


def _archive(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
    return buffer.getvalue()


def _refuse(reason: str) -> NoReturn:
    raise CamkitError(f"is refused: {reason}.")


def _check(value: Any, key: str) -> None:
    """Refuses what is not plain data in a value of JSON that stands under a key."""
    if key in _RULES:
        _RULES[key](value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_name(name, dotted=key == "config")
            _check(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, key)
    elif isinstance(value, str):
        _check_name(value, dotted=key in _PATHS)


def _check_name(name: str, *, dotted: bool) -> None:
    if not (_DOTTED if dotted else _NAME).fullmatch(name) or name.startswith("__"):
        _refuse(f"the name {name[:80]!r} may be code")


def _check_operator(target: Any) -> None:
    """Operators that compute something from tensors, and do nothing else."""
    if target in _ARITHMETIC:
        return
    parts = _OPERATOR.fullmatch(str(target))
    packet = getattr(torch.ops.aten, parts[1], None) if parts else None
    operator = getattr(packet, parts[2], None) if parts else None
    if parts is None or not isinstance(operator, torch._ops.OpOverload):
        _refuse(f"it uses the operator {str(target)[:80]}, which is not torch's own")
    if operator._schema.is_mutable or parts[1] in _READS_FILES:
        _refuse(f"the operator {target} does more than compute a result")


def _check_expression(text: Any) -> None:
    """A size, which torch evaluates as Python."""
    words = re.findall(r"[A-Za-z_]\w*", text) if isinstance(text, str) else []
    if not _EXPRESSION.fullmatch(str(text)) or not all(word in _WORDS or _SYMBOL.fullmatch(word) for word in words):
        _refuse(f"the size {str(text)[:80]!r} may be code")


def _check_tree(text: Any) -> None:
    """How arguments or results are packed: JSON inside JSON."""
    trees = json.loads(str(text))[1:]
    while trees:
        tree = trees.pop()
        context = json.loads(tree["context"] or "null") if isinstance(tree, dict) else tree
        if not isinstance(tree, dict) or tree["type"] not in _TREES or context:
            _refuse("its arguments are packed in classes, whose names may be code")
        trees += tree["children_spec"]


def _refuse_any(value: Any) -> None:
    if value:
        _refuse("it holds subgraphs, guards or objects, which may be code")


_RULES: Mapping[str, Callable[[Any], None]] = {
    "target": _check_operator,
    "expr_str": _check_expression,
    "in_spec": _check_tree,
    "out_spec": _check_tree,
    "torch_version": lambda value: None if _VERSION.fullmatch(str(value)) else _refuse("its version may be code"),
    **dict.fromkeys(
        (
            "use_pickle", "guards_code", "metadata", "treespec_namedtuple_fields", "custom_obj_values", "custom_obj",
            "token", "as_custom_obj", "as_graph", "as_operator", "as_string_to_argument",
        ),
        _refuse_any,
    ),
}  # fmt: skip
