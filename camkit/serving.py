"""Opening exported files: the engine for a file's suffix or format, found without pluggy and without torch."""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from camkit.errors import CamkitError, unknown


def load(path: str | Path, *, format: str | None = None) -> Any:  # noqa: A002 - what it is called everywhere
    """A session for an exported file: ``session(images, classes)`` on numpy arrays.

    The engine comes from the entry-point group ``camkit.engines``, whose names are file suffixes, or with `format` from
    the group ``camkit.formats``, whose names are those of formats. For ``.onnx`` it needs numpy and onnxruntime only.
    A file that is native code is only opened by the name of its format: ``format="aotinductor"``.

    Raises:
        CamkitError: there is no such file, no engine for it, or the engine's runtime is not installed.
    """
    path = Path(path)
    engine = _by_suffix(path) if format is None else _by_name(format)
    if not path.is_file():
        raise CamkitError(f"There is no file '{path}'.")
    try:
        session = engine.load()
    except ImportError as error:
        raise CamkitError(f"'{path.name}' cannot be opened because {error.name} is not installed.") from None
    return session(path)


def suffix_of(path: Path, suffixes: Iterable[str]) -> str | None:
    """The longest of the suffixes that the file's name ends with: ``.aoti.pt2`` before ``.pt2``."""
    ends = [suffix for suffix in suffixes if path.name.endswith(suffix) and path.name != suffix]
    return max(ends, key=len, default=None)


def _by_suffix(path: Path) -> EntryPoint:
    engines = {f".{name}": entry for name, entry in _entries("camkit.engines").items()}
    suffix = suffix_of(path, engines)
    if suffix is None:
        raise unknown("engine for files that end in", path.suffix or path.name, engines)
    return engines[suffix]


def _by_name(name: str) -> EntryPoint:
    formats = _entries("camkit.formats")
    if name not in formats:
        raise unknown("export format", name, formats)
    return formats[name]


def _entries(group: str) -> dict[str, EntryPoint]:
    # of two engines of one name, camkit's own comes last and stays
    found = sorted(entry_points(group=group), key=lambda entry: entry.dist is not None and entry.dist.name == "camkit")
    return {entry.name: entry for entry in found}
