"""``camkit adapters suggest``: an adapter file for a model that none describes, to be read and corrected."""

from pathlib import Path
from typing import Annotated

import typer

from camkit.cli import printing
from camkit.cli.options import ModelOptions, with_model
from camkit.errors import CamkitError


@with_model()
def suggest(
    options: ModelOptions,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.toml", help="The file to write.")],
    name: Annotated[str | None, typer.Option(help="The adapter's name; by default the file's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write an adapter file for a model, from what one pass over it shows.

    Where the model is cut, how its activations are read, where its classes come from, and its stages; to be read,
    corrected, and checked with camkit adapters check.
    """
    from camkit import suggest as suggestions
    from camkit.atomic import write_bytes
    from camkit.cli.walking import example_images

    if output.exists() and not force:
        raise CamkitError(f"'{output}' exists already; name another file, or replace it with --force.")
    explainer, loaded = options.explainer()
    text = suggestions.suggest(explainer.module, example_images(explainer, loaded, None), name or output.stem)
    write_bytes(output, text.encode())
    printing.console().print(text)
    printing.line(f"Written to {output}; check it with: camkit adapters check {output} --model {loaded.spec}")
