"""The data set ``digit_scenes``: freshly drawn test scenes, one sample for each digit."""

from collections.abc import Iterator
from typing import Literal

from PIL import Image

from camkit import plugin
from camkit.evaluate import Sample


@plugin.dataset("digit_scenes")
def digit_scenes(
    *, count: int = 100, seed: int = 0, digits: Literal[2, 3] = 2, boxes: Literal["asked", "other"] = "asked"
) -> Iterator[Sample]:
    """Scenes of two or three digits, each asked for in turn, with the box of the asked digit, or of the others.

    The digits' handwriting was not seen in training. `count` is the number of scenes.
    """
    from camkit_adapters.demo.scenes import generate

    for scene in generate(count, "test", seed, digit_counts=(digits,)):
        picture = Image.fromarray(scene.image)
        for asked in scene.digits:
            shown = tuple(digit.box for digit in scene.digits if (digit is asked) == (boxes == "asked"))
            yield Sample(picture, asked.label, shown)
