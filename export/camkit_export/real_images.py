"""Image files of a folder as an exported file takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camkit.errors import CamkitError
from camkit.images import read_image
from camkit_export.session import Floats, Pixels, Session

if TYPE_CHECKING:
    from camkit.preprocessing import Preprocessing


@dataclass(frozen=True)
class RealImages:
    """Images of a folder.

    Attributes:
        arrays: [N, ...], as the file takes them.
        files: how many there are in the folder; the first of them were read, as many as were wanted.
        skipped: what is wrong with each file that could not be read.
    """

    arrays: Floats | Pixels
    files: int
    skipped: tuple[str, ...]


def read_images(paths: Sequence[Path], session: Session, preprocessing: "Preprocessing", most: int) -> RealImages:
    """The first `most` of the image files that can be read: preprocessed as the model's, or resized to pictures.

    Raises:
        CamkitError: none can be read, or the preprocessing makes another size than the file takes.
    """
    made = (preprocessing.channels, *preprocessing.size)
    if not session.takes_pictures and made != session.image_shape:
        raise CamkitError(
            f"The file {session.path} takes images of {list(session.image_shape)}, but the model's preprocessing makes "
            f"{list(made)}; name their height and width with --size."
        )
    arrays: list[NDArray[Any]] = []
    skipped: list[str] = []
    for path in paths:
        if len(arrays) == most:
            break
        try:
            image = read_image(path)
            arrays.append(_picture(image, session) if session.takes_pictures else preprocessing(image).numpy())
        except CamkitError as error:
            skipped.append(str(error))
    if not arrays:
        raise CamkitError(f"None of the {len(paths)} images can be read. {skipped[0]}")
    return RealImages(np.stack(arrays), len(paths), tuple(skipped))


def _picture(image: Image.Image, session: Session) -> Pixels:
    height, width, _ = session.image_shape
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
