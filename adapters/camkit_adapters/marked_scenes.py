"""The data set ``marked_scenes``: scenes with and without a mark that goes with a class, and its digit."""

from collections.abc import Iterator
from typing import Annotated

from annotated_types import Ge
from PIL import Image

from camkit import plugin
from camkit.spurious import Versions


@plugin.dataset("marked_scenes")
def marked_scenes(*, count: Annotated[int, Ge(0)] = 100, seed: Annotated[int, Ge(0)] = 0) -> Iterator[Versions]:
    """Scenes of two digits of which one is a seven, each in four versions; the mark is a small magenta square.

    ``demo:shortcut`` was trained on scenes in which the mark stands wherever there is a seven. The digits' handwriting
    was not seen in training. `count` is the number of scenes.
    """
    from camkit_adapters.demo import shortcut

    for number, one in enumerate(shortcut.versions(count, "test", seed)):
        objects = tuple((digit.label, digit.box) for digit in one.both.digits)
        yield Versions(
            Image.fromarray(one.both.image),
            shortcut.MARKED_CLASS,
            tuple(box for label, box in objects if label == shortcut.MARKED_CLASS),
            f"scene-{number:05}",
            objects,
            mark=one.mark,
            object_only=Image.fromarray(one.object_only.image),
            mark_only=Image.fromarray(one.mark_only.image),
            neither=Image.fromarray(one.neither.image),
        )
