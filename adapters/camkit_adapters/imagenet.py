"""The data set ``imagenet:PATH``: ILSVRC's validation images with their boxes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from camkit import plugin
from camkit.classes import match_classes
from camkit.datasets import Samples, chosen
from camkit.errors import CamkitError
from camkit.evaluate import Box, Sample
from camkit.images import SUFFIXES, read_image
from camkit_adapters.synsets import synset_index

Objects = list[tuple[str, Box]]


@dataclass(frozen=True)
class Tree:
    """Where the parts lie, and what a synset means to the model."""

    images: Path
    boxes: Path
    indices: dict[str, int]

    def read(self, path: Path, note: Callable[[str], None]) -> Iterator[Sample]:
        """The sample of one image: the first class of its file of boxes, or that of its folder."""
        picture = read_image(path)
        annotation = self.boxes / f"{path.stem}.xml"
        folder = path.parent.name if path.parent != self.images else None
        try:
            objects = read_voc(annotation, picture.size)
        except CamkitError as error:
            if folder is None:
                raise
            note(f"{error} It was taken without boxes.")
            objects = []
        label = folder or (objects[0][0] if objects else "")
        if label not in self.indices:
            raise CamkitError(f"'{annotation}' names '{label}', which is no class of the model.")
        asked = self.indices[label]
        known = tuple((self.indices[name], box) for name, box in objects if name in self.indices)
        own = tuple(box for index, box in known if index == asked)
        yield Sample(picture, asked, own, path.relative_to(self.images).as_posix(), known)


@plugin.dataset("imagenet")
def imagenet(
    *,
    path: Path | None = None,
    count: int | None = None,
    seed: int = 0,
    class_names: tuple[str, ...] | None = None,
) -> Samples[Path]:
    """ILSVRC's validation images, each with its class and the boxes of the objects of that class.

    PATH holds ``Data/CLS-LOC/val`` and ``Annotations/CLS-LOC/val`` as Kaggle's archive does, or ``val`` with a folder
    for each synset and the XML files in ``bbox_val`` or ``val_annotations``. ``LOC_synset_mapping.txt`` in PATH, or
    beside it, tells the order of the classes where it is not that of the 1000 sorted synsets. `count` images are drawn
    with `seed`; `class_names` are the model's.

    Raises:
        CamkitError: there is no such tree, it holds no image, or the model has other classes.
    """
    if path is None or not path.is_dir():
        raise CamkitError(f"There is no folder '{path}'." if path else "Say where it lies: --data imagenet:PATH.")
    images = _first(path, "Data/CLS-LOC/val", "ILSVRC/Data/CLS-LOC/val", "val")
    if images is None:
        raise CamkitError(f"'{path}' holds neither Data/CLS-LOC/val nor val, where ImageNet's images are expected.")
    boxes = _first(
        path,
        "Annotations/CLS-LOC/val",
        "ILSVRC/Annotations/CLS-LOC/val",
        "bbox_val",
        "val_annotations",
    )
    found = sorted(entry for entry in images.rglob("*") if entry.suffix.lower() in SUFFIXES)
    if not found:
        raise CamkitError(f"The folder '{images}' holds no image.")
    indices = _indices(path, class_names)
    return Samples(chosen(found, count, seed), Tree(images, boxes or path / "Annotations", indices).read)


def read_voc(path: Path, size: tuple[int, int]) -> Objects:
    """The objects of a Pascal-VOC file: (name, box) in pixels of a picture of `size` (width, height).

    The file says for which size its boxes are; they are scaled where the picture has another.

    Raises:
        CamkitError: there is no such file, or it holds no objects.
    """
    try:
        # expat itself refuses entities that multiply
        root = ElementTree.parse(path).getroot()  # noqa: S314
        stated = [float(root.findtext(f"size/{side}", "0")) for side in ("width", "height")]
        wide, high = (actual / one if one > 0 else 1.0 for actual, one in zip(size, stated, strict=True))
        objects = [(one.findtext("name", "").strip(), _box(one, wide, high)) for one in root.iter("object") if len(one)]
    except FileNotFoundError:
        raise CamkitError(f"There is no file of boxes '{path}'.") from None
    except (ElementTree.ParseError, OSError, ValueError, TypeError) as error:
        raise CamkitError(f"The file of boxes '{path}' is damaged: {error}.") from None
    if not objects:
        raise CamkitError(f"The file of boxes '{path}' holds no object.")
    return objects


def _box(one: ElementTree.Element, wide: float, high: float) -> Box:
    left, top, right, bottom = (float(one.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax"))
    return left * wide, top * high, right * wide, bottom * high


def _first(path: Path, *places: str) -> Path | None:
    return next((path / place for place in places if (path / place).is_dir()), None)


def _indices(path: Path, class_names: tuple[str, ...] | None) -> dict[str, int]:
    mapping = next(
        (one for one in (path / "LOC_synset_mapping.txt", path.parent / "LOC_synset_mapping.txt") if one.is_file()),
        None,
    )
    if mapping is None:
        indices = synset_index(class_names)
        if not indices:
            raise CamkitError(
                f"The model has {len(class_names or ())} classes and not ImageNet's 1000; put LOC_synset_mapping.txt, "
                f"which says what each synset is called, into '{path}'."
            )
        return indices
    lines = [line.partition(" ") for line in mapping.read_text(encoding="utf-8").splitlines() if line.strip()]
    if class_names is None or len(lines) == len(class_names):
        return {synset: index for index, (synset, _, _) in enumerate(lines)}
    names = {synset: name.partition(",")[0].strip() for synset, _, name in lines}
    indices = match_classes(names.values(), class_names, where=str(mapping))
    return {synset: indices[name] for synset, name in names.items()}
