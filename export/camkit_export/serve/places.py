"""How many images may be in the house: the bound of the queue."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from camkit_export.serve.refusals import QueueFull


class Places:
    """Places for images, from a request's first byte to its answer, so that what waits cannot exhaust the memory.

    Attributes:
        most: how many places there are.
        taken: how many are taken.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator["Place"]:
        """A place for one image while the context lasts.

        Raises:
            QueueFull: none is free.
        """
        place = Place(self)
        try:
            place.grow(1)
            yield place
        finally:
            self._add(-place.images)

    def _add(self, images: int) -> None:
        with self._lock:
            if images > 0 and self.taken + images > self.most:
                raise QueueFull(f"{self.taken} of at most {self.most} images are waiting already; try again later.")
            self.taken += images


class Place:
    """The place of one request; `images` is how many it holds."""

    def __init__(self, places: Places) -> None:
        self.images = 0
        self._places = places

    def grow(self, images: int) -> None:
        """Makes it a place for so many images, once it is known how many there are.

        Raises:
            QueueFull: there is no room.
        """
        self._places._add(images - self.images)
        self.images = images
