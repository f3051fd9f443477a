"""ImageNet's synsets in the order of the 1000 classes, as timm ships them."""

from collections.abc import Sequence

CLASSES = 1000


def synset_index(class_names: Sequence[str] | None) -> dict[str, int]:
    """The class index of each synset (``n01440764``); empty for a model that has not ImageNet's 1000 classes."""
    if class_names is not None and len(class_names) != CLASSES:
        return {}
    from timm.data import ImageNetInfo

    return {synset: index for index, synset in enumerate(ImageNetInfo("imagenet-1k").label_names())}
