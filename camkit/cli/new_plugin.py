"""``camkit new-plugin``: a folder with a plugin in it that works, to be changed into one's own."""

import importlib.util
import keyword
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from camkit.cli import printing
from camkit.errors import CamkitError
from camkit.version import __version__

# The files of a plugin, each with the template that it is made of.
_FILES = {
    "pyproject.toml": "pyproject.toml.j2",
    "README.md": "README.md.j2",
    ".gitignore": "gitignore.j2",
    "src/{package}/__init__.py": "package.py.j2",
    "src/{package}/methods.py": "methods.py.j2",
    "tests/test_methods.py": "test_methods.py.j2",
}


def new_plugin(
    name: Annotated[str, typer.Argument(help="Name of the distribution, such as camkit-sharp.")],
    directory: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder in which a folder of that name is made.")
    ] = Path(),
) -> None:
    """Write the skeleton of a plugin: a method, and tests that pass.

    The method is called like the distribution, without a leading camkit-.
    """
    method, package = name.removeprefix("camkit-"), name.replace("-", "_")
    _check(name, method, package)
    folder = directory / name
    # with an ending, since a method may be called as Python's own words are, or as something that its file imports
    function = f"{method.replace('-', '_')}_map"
    _write(folder, {"name": name, "package": package, "method": method, "function": function, "version": __version__})
    printing.line(f"Wrote {folder}: the method '{method}' and its tests.")
    printing.line(f'Next: cd {folder}; python -m pip install --editable ".[test]"; python -m pytest')


def _check(name: str, method: str, package: str) -> None:
    """Refuses what could not be a distribution, a package and a method at once."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z][a-z0-9]*)*", name):
        raise CamkitError(
            f"A plugin cannot be called {name!r}; write lower-case words joined by hyphens, such as camkit-sharp."
        )
    if keyword.iskeyword(package):
        raise CamkitError(f"'{name}' is a word of Python's own; choose another name, such as 'camkit-{name}'.")
    if package in sys.stdlib_module_names or importlib.util.find_spec(package) is not None:
        raise CamkitError(f"A package '{package}' is there already; choose another name than '{name}'.")
    from camkit.registry import registry

    if method in registry().names("method"):
        raise CamkitError(f"A method '{method}' is there already; choose another name than '{name}'.")


def _write(folder: Path, values: dict[str, str]) -> None:
    """Makes the folder, through a neighbouring temporary one, so that it is there whole or not at all."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if os.path.lexists(folder):
        raise CamkitError(f"'{folder}' exists already; choose another name or another --directory.")
    templates = Environment(
        loader=PackageLoader("camkit", "templates/new_plugin"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (these are sources, not web pages)
    )
    temporary = folder.parent / f".{uuid4().hex}.part"
    try:
        try:
            for path, template in _FILES.items():
                file = temporary / path.format(**values)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(templates.get_template(template).render(values), encoding="utf-8")
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CamkitError(f"'{folder}' cannot be written: {(error.strerror or str(error)).lower()}.") from error
