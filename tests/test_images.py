"""Image files of every kind that people have, made here with known colours."""

import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from camkit.errors import CamkitError
from camkit.images import find_images, read_image

TEAL = (20, 140, 120)
RAMP = np.linspace(0, 65535, 64 * 64).reshape(64, 64)


def colour(image: Image.Image, where: tuple[int, int] = (5, 5)) -> tuple[int, ...]:
    assert image.mode == "RGB"
    found = image.getpixel(where)
    assert isinstance(found, tuple)
    return found


def near(found: tuple[int, ...], expected: tuple[int, ...], tolerance: int = 3) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, expected, strict=True))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise = np.random.RandomState(0).randint(0, 256, (80, 120, 3), dtype=np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(noise).save(path)
    return path


def test_orientation_is_applied(tmp_path: Path) -> None:
    upright = Image.new("RGB", (40, 20), TEAL)
    upright.paste((250, 250, 0), (0, 0, 10, 20))
    # 6 says that the picture is shown after a quarter turn clockwise, so it is stored turned the other way.
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=98)
    read = read_image(tmp_path / "turned.jpg")
    assert read.size == (40, 20)
    assert near(colour(read, (3, 10)), (250, 250, 0), 12)
    assert near(colour(read, (30, 10)), TEAL, 12)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_not_inverted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"print.{suffix}"
    Image.new("RGB", (32, 32), TEAL).convert("CMYK").save(path)
    assert near(colour(read_image(path)), TEAL)


def test_cmyk_jpeg_carries_adobes_inverted_values(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    Image.new("RGB", (32, 32), TEAL).convert("CMYK").save(path)
    assert b"Adobe" in path.read_bytes()[:64]
    decoded = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert near(tuple(int(v) for v in decoded[5, 5][::-1]), TEAL, 8)
    assert near(colour(read_image(path)), TEAL)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan.{suffix}"
    cv2.imwrite(str(path), RAMP.astype(np.uint16))
    read = np.asarray(read_image(path))
    np.testing.assert_allclose(read[..., 0], RAMP / 257, atol=0.51)
    np.testing.assert_array_equal(read[..., 0], read[..., 2])


def test_sixteen_bit_colour_is_scaled(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.stack([RAMP.astype(np.uint16)] * 3, axis=-1))
    read = np.asarray(read_image(tmp_path / "deep.png")).astype(float)
    np.testing.assert_allclose(read[..., 1], RAMP / 257, atol=1.01)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP.astype(np.int32), RAMP / 257),
        ((RAMP / 257).astype(np.int32), RAMP / 257),
        ((RAMP * 100 - 5000).astype(np.int32), RAMP / 257),
        ((RAMP / 65535).astype(np.float32), RAMP / 257),
        ((RAMP / 257).astype(np.float32), RAMP / 257),
        ((RAMP * 10 - 20).astype(np.float32), RAMP / 257),
        (np.full((8, 8), -3.0, dtype=np.float32), np.full((8, 8), 255.0)),
    ],
    ids=["int16range", "int8range", "intwide", "unit", "bytes", "wide", "flat"],
)
def test_thirty_two_bit_grey_is_scaled(tmp_path: Path, values: np.ndarray, expected: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "values.tif")
    np.testing.assert_allclose(np.asarray(read_image(tmp_path / "values.tif"))[..., 0], expected, atol=1.01)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    values = np.full((8, 8), np.nan, dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "values.tif")
    with pytest.raises(CamkitError, match="not finite"):
        read_image(tmp_path / "values.tif")


def test_transparency_shows_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (16, 16), (*TEAL, 255))
    rgba.paste((0, 0, 0, 0), (0, 0, 8, 16))
    rgba.putpixel((15, 15), (0, 0, 0, 128))
    rgba.save(tmp_path / "rgba.png")
    rgba.convert("LA").save(tmp_path / "la.png")
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([0, 0, 0, *TEAL])
    palette.paste(1, (8, 0, 16, 16))
    palette.save(tmp_path / "palette.png", transparency=b"\x00\x80")
    palette.save(tmp_path / "palette.gif", transparency=0)
    Image.new("RGB", (16, 16), TEAL).save(tmp_path / "key.png", transparency=TEAL)
    for name in ("rgba.png", "la.png", "palette.png", "palette.gif", "key.png"):
        assert colour(read_image(tmp_path / name), (2, 2)) == (255, 255, 255), name
    assert colour(read_image(tmp_path / "rgba.png"), (12, 5)) == TEAL
    assert near(colour(read_image(tmp_path / "rgba.png"), (15, 15)), (127, 127, 127), 1)
    assert near(colour(read_image(tmp_path / "palette.png"), (12, 5)), (137, 197, 187), 1)
    assert colour(read_image(tmp_path / "palette.gif"), (12, 5)) == TEAL


def test_plain_modes(tmp_path: Path) -> None:
    Image.new("L", (9, 7), 77).save(tmp_path / "grey.png")
    Image.new("1", (9, 7), 1).save(tmp_path / "bit.png")
    Image.new("RGB", (9, 7), TEAL).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    Image.new("RGB", (9, 7), TEAL).save(tmp_path / "colour.webp", lossless=True)
    assert colour(read_image(tmp_path / "grey.png")) == (77, 77, 77)
    assert colour(read_image(tmp_path / "bit.png")) == (255, 255, 255)
    assert colour(read_image(tmp_path / "palette.png")) == TEAL
    assert colour(read_image(tmp_path / "colour.webp")) == TEAL


def test_smallest_image(tmp_path: Path) -> None:
    for size, accepted in (((1, 1), False), ((1, 50), False), ((2, 2), True)):
        Image.new("RGB", size).save(tmp_path / "small.png")
        if accepted:
            assert read_image(tmp_path / "small.png").size == size
        else:
            with pytest.raises(CamkitError, match=f"{size[0]}x{size[1]} pixels; it must be at least 2x2"):
                read_image(tmp_path / "small.png")


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello\n")
    (tmp_path / "empty.png").touch()
    # Pillow would hand this one to Ghostscript.
    (tmp_path / "program.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    for name in ("text.png", "empty.png", "program.png"):
        with pytest.raises(CamkitError, match=rf"{name}' is not an image in a format that can be read\.$"):
            read_image(tmp_path / name)
    with pytest.raises(CamkitError, match=r"There is no file '.*absent\.jpg'\.$"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(CamkitError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.05])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp"])
def test_truncated_file_is_refused(photo: Path, suffix: str, kept: float) -> None:
    whole = photo.with_name(f"whole.{suffix}")
    Image.open(photo).save(whole)
    content = whole.read_bytes()
    cut = photo.with_name(f"cut.{suffix}")
    cut.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CamkitError, match=r"damaged|not an image") as caught:
        read_image(cut)
    assert "\n" not in str(caught.value)


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(CamkitError, match="too large"):
        read_image(tmp_path / "bomb.png")


def test_folder_gives_its_images_sorted(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp", ".hidden.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "inner").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "inner" / "d.png")
    found = find_images([tmp_path / "inner" / "d.png", tmp_path])
    assert [path.name for path in found] == ["d.png", "a.JPG", "b.png", "c.webp"]


def test_paths_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(CamkitError, match=re.escape(f"The folder '{tmp_path}' holds no image.")):
        find_images([tmp_path])
    with pytest.raises(CamkitError, match="There is no file or folder"):
        find_images([tmp_path / "absent"])
