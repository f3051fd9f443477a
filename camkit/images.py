"""Image files: which ones a path means, and how one is read as 8-bit RGB the way that it is meant to look."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from camkit.errors import CamkitError

# Formats that Pillow decodes itself. Its others include EPS, which it hands to an installed Ghostscript.
FORMATS = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k"),
    "MPO": (".mpo",),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
SMALLEST_SIDE = 2


def find_images(paths: Iterable[Path | str]) -> list[Path]:
    """The image files that paths stand for, in the order given.

    A file stands for itself, whatever its suffix; a folder for the images directly in it, sorted by name, hidden files
    left out.

    Raises:
        CamkitError: there is no such file or folder, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found.extend(_images_in(path))
        elif path.exists():
            found.append(path)
        else:
            raise CamkitError(f"There is no file or folder '{path}'.")
    return found


def read_image(path: Path | str) -> Image.Image:
    """The picture in a file as Pillow image of mode RGB, 8 bits per channel, sRGB-like values.

    It stands upright (EXIF orientation applied), and transparent parts show white. Grey values of more than 8 bits are
    scaled into [0, 255]: 16-bit integers from their full range; 32-bit integers and floats from [0, 1] (floats),
    [0, 255] or [0, 65535] where they keep to one of these, else from their own smallest to their largest value.
    Of several frames or pages the first is read.

    Raises:
        CamkitError: there is no such file, it is no image, it is damaged, it is smaller than 2x2 pixels, or so large
            that it may be made to exhaust the memory.
    """
    path = Path(path)
    if path.is_dir():
        raise CamkitError(f"'{path}' is a folder, not an image.")
    return _read(path, path)


def decode_image(content: bytes, name: str, *, most_pixels: int) -> Image.Image:
    """The picture in the content of an image file, as `read_image` gives it; errors call it by `name`.

    Raises:
        CamkitError: as for `read_image`, or it has more than `most_pixels`, which is found out before it is decoded.
    """
    return _read(io.BytesIO(content), name, most_pixels)


def _read(source: Path | io.BytesIO, path: Path | str, most_pixels: int | None = None) -> Image.Image:
    try:
        with Image.open(source, formats=_formats()) as image:
            _require_size(path, image.size)
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise CamkitError(
                    f"The image '{path}' is {image.width}x{image.height} pixels; at most {most_pixels} are taken."
                )
            upright = ImageOps.exif_transpose(image)
            return _rgb(upright, path)
    except CamkitError:
        raise
    except FileNotFoundError as error:
        raise CamkitError(f"There is no file '{path}'.") from error
    except PermissionError as error:
        raise CamkitError(f"The file '{path}' may not be read.") from error
    except UnidentifiedImageError as error:
        raise CamkitError(f"'{path}' is not an image in a format that can be read.") from error
    except Image.DecompressionBombError as error:
        raise CamkitError(f"The image '{path}' is too large: {error}") from error
    # Damaged files make Pillow's decoders raise whatever they stumble over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise CamkitError(f"The image '{path}' is damaged: {error}.") from error


def _images_in(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except PermissionError as error:
        raise CamkitError(f"The folder '{folder}' may not be read.") from error
    images = [e for e in entries if e.suffix.lower() in SUFFIXES and not e.name.startswith(".") and e.is_file()]
    if not images:
        raise CamkitError(f"The folder '{folder}' holds no image.")
    return images


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _require_size(path: Path | str, size: tuple[int, int]) -> None:
    if min(size) < SMALLEST_SIDE:
        width, height = size
        raise CamkitError(
            f"The image '{path}' is {width}x{height} pixels; it must be at least {SMALLEST_SIDE}x{SMALLEST_SIDE}."
        )


def _rgb(image: Image.Image, path: Path | str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image), path)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: NDArray[Any], path: Path | str) -> NDArray[np.uint8]:
    exact = values.astype(np.float64)
    if not np.isfinite(exact).all():
        raise CamkitError(f"The image '{path}' holds values that are not finite.")
    low, high = _range(exact, values.dtype)
    scaled = (exact - low) * (255 / (high - low))
    return np.rint(scaled).astype(np.uint8)


def _range(values: NDArray[np.float64], dtype: np.dtype[Any]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if dtype.itemsize == 2:
        return 0.0, 65535.0
    ceilings = (1.0, 255.0, 65535.0) if dtype.kind == "f" else (255.0, 65535.0)
    for ceiling in ceilings:
        if low >= 0 and high <= ceiling:
            return 0.0, ceiling
    return (low, high) if high > low else (low - 1, low)
