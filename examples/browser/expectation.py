"""What camkit itself makes of the pictures that the page's tests open: the numbers that the browser must reach."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import camkit
from camkit_export.session import Session

TOP_CLASS = -1
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
# one picture that shrinks in one direction and grows in the other, and the reverse
RESIZED_TO = ((31, 80), (90, 17))


def write_expectation(model: camkit.LoadedModel, session: Session, samples: Sequence[Path], folder: Path) -> None:
    """Writes pictures and expected.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_photos(samples, folder)
    pictures = [*samples, folder / "photo.png", folder / "photo.jpg"]
    expected = {
        "pictures": {picture.name: expected_of(model, session, picture) for picture in pictures},
        "resized": expected_resizes(),
    }
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


def write_photos(samples: Sequence[Path], folder: Path) -> None:
    """A large picture of the first sample, without and with the losses of a JPEG, whose sides are no round numbers."""
    with Image.open(samples[0]) as sample:
        photo = sample.convert("RGB").resize((1237, 853), Image.Resampling.BICUBIC)
    photo.save(folder / "photo.png")
    photo.save(folder / "photo.jpg", quality=90)


def expected_of(model: camkit.LoadedModel, session: Session, picture: Path) -> dict[str, Any]:
    """The network's input for a picture, and the session's answer for its top class and the next two."""
    images = model.read(picture)[0].numpy()
    ranked = session(images).logits[0].argsort()[::-1]
    asked = [TOP_CLASS, *(int(index) for index in ranked[1:3])]
    answers = [(index, session(images, index)) for index in asked]
    return {
        "tensor": encoded(images[0]),
        "answers": [
            {
                "asked": index,
                "explained": int(answer.classes[0]),
                "logits": encoded(answer.logits[0]),
                "map": encoded(answer.maps[0]),
                "heatmap": encoded(answer.heatmaps[0]),
            }
            for index, answer in answers
        ],
    }


def expected_resizes() -> list[dict[str, Any]]:
    """Noise, resized by every filter of Pillow's: rows of bytes in base64."""
    noise = np.random.default_rng(0).integers(0, 256, (53, 37), dtype=np.uint8)
    return [
        {
            "interpolation": name,
            "from": [*noise.shape, encoded(noise)],
            "to": [*size, encoded(np.asarray(Image.fromarray(noise).resize(size[::-1], filter_of(name))))],
        }
        for name in INTERPOLATIONS
        for size in RESIZED_TO
    ]


def filter_of(name: str) -> Image.Resampling:
    return Image.Resampling[name.upper()]


def encoded(values: NDArray[Any]) -> str:
    """The bytes of an array, little-endian, in base64."""
    little = values.astype(values.dtype.newbyteorder("<"))
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode("ascii")
