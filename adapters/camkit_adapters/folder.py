"""The data set ``folder:PATH``: images in a folder, or in one sub-folder for each class."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from camkit import plugin
from camkit.classes import match_classes
from camkit.datasets import UNKNOWN_CLASS, Samples, chosen
from camkit.errors import CamkitError
from camkit.evaluate import Sample
from camkit.images import SUFFIXES, find_images, read_image
from camkit_adapters.synsets import synset_index

Entry = tuple[Path, int]


@plugin.dataset("folder")
def folder(
    *,
    path: Path | None = None,
    count: int | None = None,
    seed: int = 0,
    class_names: tuple[str, ...] | None = None,
    skip_unknown: bool = False,
) -> Samples[Entry]:
    """Images whose class is the name of their sub-folder; without sub-folders they have none.

    A sub-folder is called by the class's name, its number or, for ImageNet's classes, its synset. `count` images are
    drawn with `seed`. `class_names` are the model's. With `skip_unknown` classes that the model lacks are left out.

    Raises:
        CamkitError: there is no such folder, it holds no image, or its classes do not fit the model.
    """
    if path is None or not path.is_dir():
        raise CamkitError(f"There is no folder '{path}'." if path else "Say which folder: --data folder:PATH.")
    classes = {entry: sorted(filter(_is_image, entry.iterdir())) for entry in sorted(path.iterdir()) if entry.is_dir()}
    classes = {entry: files for entry, files in classes.items() if files and not entry.name.startswith(".")}
    if classes:
        labels = [entry.name for entry in classes]
        indices = match_classes(
            labels,
            class_names,
            where=str(path),
            aliases=synset_index(class_names),
            skip_unknown=skip_unknown,
        )
        entries = [
            (file, indices[entry.name]) for entry, files in classes.items() if entry.name in indices for file in files
        ]
    else:
        entries = [(file, UNKNOWN_CLASS) for file in find_images([path])]
    return Samples(chosen(entries, count, seed), partial(_read, path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _read(root: Path, entry: Entry, note: Callable[[str], None]) -> Iterator[Sample]:
    path, index = entry
    yield Sample(read_image(path), index, name=path.relative_to(root).as_posix())
