"""The data set ``digit_scenes``: freshly drawn test scenes, one sample for each digit."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from camkit import plugin
from camkit.datasets import Samples
from camkit.evaluate import Sample

if TYPE_CHECKING:
    from camkit_adapters.demo.scenes import Scene


@plugin.dataset("digit_scenes")
def digit_scenes(
    *, count: int = 100, seed: int = 0, digits: Literal[1, 2, 3] = 2, boxes: Literal["asked", "other"] = "asked"
) -> Samples[Any]:
    """Scenes of one to three digits, each asked for in turn, with the box of the asked digit, or of the others.

    The digits' handwriting was not seen in training. `count` is the number of scenes.
    """
    from camkit_adapters.demo.scenes import generate

    def read(entry: "tuple[int, Scene]", note: Callable[[str], None]) -> Iterator[Sample]:
        number, scene = entry
        picture = Image.fromarray(scene.image)
        objects = tuple((digit.label, digit.box) for digit in scene.digits)
        for asked in scene.digits:
            shown = tuple(digit.box for digit in scene.digits if (digit is asked) == (boxes == "asked"))
            yield Sample(picture, asked.label, shown, f"scene-{number:05}", objects)

    return Samples(list(enumerate(generate(count, "test", seed, digit_counts=(digits,)))), read)
