"""Class names from a file."""

import json
from pathlib import Path

from camkit.errors import CamkitError


def read_labels(path: Path | str) -> tuple[str, ...]:
    """The class names in a file, in the order of the model's outputs.

    A ``.json`` file holds a list of names or an object ``{"0": name, "1": name, ...}``; any other file one name per
    line.

    Raises:
        CamkitError: there is no such file, or it holds something else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise CamkitError(f"There is no file of class names '{path}'.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CamkitError(f"The class names in '{path}' cannot be read: {error}.") from error
    names = _from_json(text, path) if path.suffix.lower() == ".json" else _from_lines(text)
    if not names or not all(names):
        raise CamkitError(f"The file '{path}' must hold one class name per class, none of them empty.")
    return names


def _from_lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.rstrip().splitlines())


def _from_json(text: str, path: Path) -> tuple[str, ...]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise CamkitError(f"The file of class names '{path}' is not JSON: {error}.") from error
    if isinstance(content, dict):
        indices = [str(index) for index in range(len(content))]
        if set(content) != set(indices):
            raise CamkitError(f"The class names in '{path}' must be numbered from 0 to {len(content) - 1}.")
        content = [content[index] for index in indices]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise CamkitError(f"The file '{path}' must hold a list of class names or an object from index to name.")
    return tuple(name.strip() for name in content)
