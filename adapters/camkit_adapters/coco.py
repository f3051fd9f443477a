"""The data set ``coco:PATH/annotations.json``: images with the boxes of all their objects, as COCO writes them."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camkit import plugin
from camkit.classes import match_classes
from camkit.datasets import Samples, chosen
from camkit.errors import CamkitError
from camkit.evaluate import Box, Sample
from camkit.images import read_image


@dataclass(frozen=True)
class Entry:
    """An image's file, and its objects: (class index, box)."""

    name: str
    objects: tuple[tuple[int, Box], ...]


@plugin.dataset("coco")
def coco(
    *,
    path: Path | None = None,
    images: Path | None = None,
    count: int | None = None,
    seed: int = 0,
    class_names: tuple[str, ...] | None = None,
    skip_unknown: bool = False,
) -> Samples[Entry]:
    """One sample for each class that an image shows, with all boxes of that class.

    `images` is the folder of the images, otherwise they lie beside the file. Crowds (``iscrowd``) are no objects, and
    images without objects are left out. `count` images are drawn with `seed`; `class_names` are the model's. With
    `skip_unknown` categories that the model lacks are left out.

    Raises:
        CamkitError: there is no such file, it is not COCO's, or its categories do not fit the model.
    """
    if path is None:
        raise CamkitError("Say which annotations: --data coco:PATH/annotations.json.")
    content = _content(path)
    try:
        names = {one["id"]: str(one["name"]) for one in content["categories"]}
        files = {one["id"]: str(one["file_name"]) for one in content["images"]}
        marked = [
            (one["image_id"], names[one["category_id"]], _box(one["bbox"]))
            for one in content["annotations"]
            if not one.get("iscrowd")
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CamkitError(
            f"'{path}' does not hold images, annotations and categories as COCO's do ({reason})."
        ) from None
    if not marked:
        raise CamkitError(f"'{path}' marks no object.")
    indices = match_classes((name for _, name, _ in marked), class_names, where=str(path), skip_unknown=skip_unknown)
    objects: dict[Any, list[tuple[int, Box]]] = defaultdict(list)
    for image, name, box in marked:
        if name in indices:
            objects[image].append((indices[name], box))
    entries = [Entry(file, tuple(objects[image])) for image, file in files.items() if image in objects]
    lost = sorted(str(image) for image in objects.keys() - files.keys())
    remarks = [f"'{path}' marks objects in images that it does not list: {', '.join(lost)}."] if lost else []
    folder = images or path.parent

    def read(entry: Entry, note: Callable[[str], None]) -> Iterator[Sample]:
        picture = read_image(folder / entry.name)
        for asked in dict.fromkeys(index for index, _ in entry.objects):
            own = tuple(box for index, box in entry.objects if index == asked)
            yield Sample(picture, asked, own, entry.name, entry.objects)

    return Samples(chosen(entries, count, seed), read, remarks)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CamkitError(f"There is no file of annotations '{path}'.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CamkitError(f"The annotations '{path}' cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise _foreign(path)
    return content


def _foreign(path: Path, reason: str = "") -> CamkitError:
    return CamkitError(f"'{path}' does not hold images, annotations and categories as COCO's do{reason}.")


def _box(values: Any) -> Box:
    left, top, width, height = map(float, values)
    return left, top, left + width, top + height
