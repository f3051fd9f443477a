"""A sample of a data set: a picture, a class, and where in the picture the class is."""

from dataclasses import dataclass

from PIL import Image

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """One question to an explanation: a picture, the class that is asked for, and where that class is.

    Boxes are (left, top, right, bottom) in pixels of the picture, right and bottom exclusive.

    Attributes:
        picture: as it lies in the file.
        class_index: the class that the picture shows; negative where nobody knows, then the model's top class is asked.
        boxes: where that class is; none where nobody knows.
        name: tells the picture from the others of its data set.
        objects: all that is known to be in the picture, the asked class too: (class index, box).
    """

    picture: Image.Image
    class_index: int
    boxes: tuple[Box, ...] = ()
    name: str = ""
    objects: tuple[tuple[int, Box], ...] = ()

    @property
    def other_boxes(self) -> tuple[Box, ...]:
        """Where other classes are than the asked one."""
        return tuple(box for index, box in self.objects if index != self.class_index)
