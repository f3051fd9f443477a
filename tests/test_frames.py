"""Frames: preprocessing in tensors makes of a picture what preprocessing with Pillow makes of it."""

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from camkit.frames import Frames
from camkit.preprocessing import Preprocessing

CASES = {
    "as it is": (Preprocessing(size=(48, 64)), (48, 64)),
    "short side, centre crop": (Preprocessing(size=(48, 48), resize=56), (90, 121)),
    "bicubic, stretched": (
        Preprocessing(size=(40, 56), resize=(40, 56), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3),
        (123, 77),
    ),
    "enlarged": (Preprocessing(size=(96, 96), resize=96), (50, 61)),
    "covered": (Preprocessing(size=(48, 80), resize=(48, 80), resize_mode="cover"), (100, 100)),
    "contained, padded": (
        Preprocessing(size=(64, 64), resize=(64, 64), resize_mode="contain", fill=(124, 116, 104)),
        (50, 110),
    ),
    "grey": (Preprocessing(size=(28, 28), resize=28, channels=1, mean=(0.13,), std=(0.31,)), (70, 60)),
    "nearest": (Preprocessing(size=(30, 30), resize=30, interpolation="nearest"), (60, 45)),
    "larger than the picture": (Preprocessing(size=(64, 64), fill=(255, 0, 10)), (41, 50)),
}


def pictures(size):
    values = np.random.RandomState(0).randint(0, 256, (2, 7, 9, 3), dtype=np.uint8)
    # smooth pictures with some grain, as a camera makes them
    return [Image.fromarray(one).resize((size[1], size[0]), Image.Resampling.BICUBIC) for one in values]


@pytest.mark.parametrize("name", CASES)
def test_a_frame_becomes_what_pillow_makes_of_it(name):
    preprocessing, size = CASES[name]
    images = pictures(size)
    expected = torch.stack([preprocessing(image) for image in images])
    frames = torch.from_numpy(np.stack([np.array(image) for image in images]))
    found = Frames(preprocessing, size).images(frames, torch.float32)
    assert found.shape == expected.shape
    assert expected.std() > 0.1
    levels = (preprocessing.pixels(found) - preprocessing.pixels(expected)).abs() * 255
    # Pillow rounds to whole levels after each of its two passes
    assert levels.max() <= 1.6
    assert levels.mean() <= 0.5


@pytest.mark.parametrize("name", CASES)
def test_a_map_is_put_where_the_model_looked(name):
    preprocessing, size = CASES[name]
    frames = Frames(preprocessing, size)
    top, left, height, width = frames.region
    placed = frames.place(torch.ones(1, height, width))[0]
    assert placed.shape == size
    seen = torch.zeros(size)
    seen[max(0, top) : top + height, max(0, left) : left + width] = 1
    assert torch.equal(placed, seen)
    # a bright square in the middle of what the model sees is in the middle of its input
    picture = np.zeros((*size, 3), dtype=np.uint8)
    rows, columns = (
        slice(first + length // 3, first + 2 * length // 3) for first, length in ((top, height), (left, width))
    )
    picture[max(0, rows.start) : rows.stop, max(0, columns.start) : columns.stop] = 255
    seen_by_model = preprocessing.pixels(frames.images(torch.from_numpy(picture)[None], torch.float32))[0, 0]
    bright = (seen_by_model > 0.75).nonzero().double().mean(dim=0)
    centre = torch.tensor(preprocessing.size, dtype=torch.float64) / 2 - 0.5
    assert (bright - centre).abs().max() <= 0.05 * max(preprocessing.size)


def test_filters_that_a_graph_cannot_hold_are_refused():
    with zoo.refused("filter 'lanczos'", "bilinear"):
        Frames(Preprocessing(size=(8, 8), interpolation="lanczos"), (16, 16))
