"""Opening exported files: the engine for a file's suffix, found without pluggy and without torch."""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from camkit.errors import CamkitError, unknown


def load(path: str | Path) -> Any:
    """A session for an exported file: ``session(images, classes)`` on numpy arrays.

    The engine comes from the entry-point group ``camkit.engines``, whose names are file suffixes. For ``.onnx`` it
    needs numpy and onnxruntime only.

    Raises:
        CamkitError: there is no such file, no engine for its suffix, or the engine's runtime is not installed.
    """
    path = Path(path)
    found = entry_points(group="camkit.engines")
    # of two engines for one suffix, camkit's own comes last and stays
    engines = {
        entry.name: entry for entry in sorted(found, key=lambda e: e.dist is not None and e.dist.name == "camkit")
    }
    engine = engines.get(path.suffix.removeprefix("."))
    if engine is None:
        raise unknown("engine for files that end in", path.suffix or path.name, [f".{name}" for name in engines])
    if not path.is_file():
        raise CamkitError(f"There is no file '{path}'.")
    try:
        session = engine.load()
    except ImportError as error:
        raise CamkitError(f"'{path.name}' cannot be opened because {error.name} is not installed.") from None
    return session(path)
