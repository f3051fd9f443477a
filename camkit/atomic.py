"""Files that are there whole or not at all."""

import os
from pathlib import Path
from uuid import uuid4

from camkit.errors import CamkitError


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Writes `content` to `path`, through a neighbouring temporary file, and makes the folder if need be.

    Returns the path. Raises `CamkitError` where the folder cannot be made or written; nothing half-written stays.
    """
    path = Path(path)
    # the name is short and random, so that a long file name, or two writers, do no harm
    temporary = path.parent / f".{uuid4().hex}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            if temporary.exists():
                temporary.unlink()
    except OSError as error:
        raise CamkitError(f"'{path}' cannot be written: {(error.strerror or str(error)).lower()}.") from error
    return path
