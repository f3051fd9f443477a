"""Overlays, boxes, grids and PNG files."""

import base64
import itertools

import cv2
import numpy as np
import pytest

from camkit import visualize
from camkit.errors import CamkitError

LEVELS = np.linspace(0, 1, 1001, dtype=np.float32)[None, :]


def flat(value, width=1001):
    return np.full((1, width, 3), value, dtype=np.uint8)


def noise(height=24, width=32, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def read_png(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]


def test_overlay_grows_with_the_heatmap():
    drawn = visualize.overlay(flat(0), LEVELS, colormap="gray", alpha=1.0).astype(int)
    assert (np.diff(drawn, axis=1) >= 0).all()
    assert len(np.unique(drawn)) > 200
    assert drawn[0, -1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("colormap", [None, "viridis", "jet"])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_opacity_grows_with_the_heatmap_and_nothing_wraps(colormap, alpha):
    # over white and over black the same colour is added, so the difference is what the overlay lets through
    on_white, on_black = (
        visualize.overlay(flat(ground), LEVELS, colormap=colormap, alpha=alpha).astype(int) for ground in (255, 0)
    )
    through = on_white - on_black
    assert (np.diff(through, axis=1) <= 1).all()  # one step of rounding
    assert abs(through[0, 0] - 255).max() == 0
    assert abs(through[0, -1] - 255 * (1 - alpha)).max() <= 1
    # a wrap modulo 256 would jump by some 250 between neighbouring levels
    assert abs(np.diff(on_white, axis=1)).max() <= 12


def test_overlay_leaves_the_image_where_the_heatmap_is_zero():
    image = noise()
    heatmap = np.zeros((24, 32), dtype=np.float32)
    heatmap[5, 7] = 1
    drawn = visualize.overlay(image, heatmap)
    changed = (drawn != image).any(axis=2)
    assert changed.sum() == 1
    assert changed[5, 7]


def test_signed_overlay_is_red_above_and_blue_below_and_nothing_at_zero():
    image = flat(128, 3)
    red, green, blue = np.moveaxis(
        visualize.overlay(image, np.array([[-1.0, 0.0, 1.0]]), signed=True).astype(int), 2, 0
    )
    assert blue[0, 0] > red[0, 0] + 50
    assert red[0, 2] > blue[0, 2] + 50
    assert (red[0, 1], green[0, 1], blue[0, 1]) == (128, 128, 128)


def test_signed_strength_is_symmetric():
    values = np.linspace(-1, 1, 401, dtype=np.float32)[None, :]
    changed = visualize.overlay(flat(128, 401), values, signed=True, colormap="bwr").astype(int) - 128
    # bwr mirrored swaps red and blue
    assert abs(changed[0, ::-1, ::-1] - changed[0]).max() <= 2
    assert abs(changed).max() > 50


def test_a_value_that_is_not_a_number_is_not_drawn():
    heatmap = np.full((24, 32), np.nan)
    heatmap[0, 0] = 1
    drawn = visualize.overlay(noise(), heatmap)
    assert (drawn[1:] == noise()[1:]).all()
    assert (drawn[0, 0] != noise()[0, 0]).any()


def test_image_and_heatmap_are_not_changed():
    image, heatmap = noise(), np.random.RandomState(1).rand(24, 32)
    copies = image.copy(), heatmap.copy()
    visualize.overlay(image, heatmap)
    visualize.draw_boxes(image, [(2, 2, 9, 9)], ["a"])
    assert (image == copies[0]).all()
    assert (heatmap == copies[1]).all()


def test_unknown_colormap_names_the_nearest():
    with pytest.raises(CamkitError, match="no colormap 'virdis'; did you mean 'viridis'"):
        visualize.overlay(noise(), np.zeros((24, 32)), colormap="virdis")


@pytest.mark.parametrize(
    ("image", "heatmap", "options", "sentence"),
    [
        (noise(), np.zeros((7, 7)), {}, "of 7 x 7 cannot be drawn on an image of 24 x 32"),
        (noise().astype(np.float32), np.zeros((24, 32)), {}, "RGB uint8"),
        (noise()[..., 0], np.zeros((24, 32)), {}, "RGB uint8"),
        (noise(), np.full((24, 32), 3.0), {}, r"lies in \[0, 1\], this one in \[3, 3\]"),
        (noise(), np.full((24, 32), -0.5), {}, r"lies in \[0, 1\]"),
        (noise(), np.zeros((24, 32)), {"alpha": 1.5}, "between 0 and 1"),
    ],
)
def test_overlay_refuses_what_it_cannot_draw(image, heatmap, options, sentence):
    with pytest.raises(CamkitError, match=sentence):
        visualize.overlay(image, heatmap, **options)


def test_boxes_are_drawn_at_their_edges_and_the_highlighted_one_is_stronger():
    image = np.full((200, 200, 3), 90, dtype=np.uint8)
    boxes = [(20, 60, 80, 120), (120, 60, 180, 120)]
    drawn = visualize.draw_boxes(image, boxes, ["3", "7"], highlight="7")
    assert drawn[90, 120].tolist() == [255, 255, 255]
    assert drawn[90, 20].tolist() == [190, 190, 190]
    assert (drawn[90, 50] == 90).all()  # the inside stays free
    weak, strong = (drawn[:, :100] != 90).any(axis=2).sum(), (drawn[:, 100:] != 90).any(axis=2).sum()
    assert strong > weak
    with pytest.raises(CamkitError, match="2 boxes came with 1 names"):
        visualize.draw_boxes(image, boxes, ["3"])


def test_upscaling_keeps_the_range_and_the_places():
    image, heatmap = noise(), np.random.RandomState(2).rand(24, 32).astype(np.float32)
    assert visualize.upscale(image, 3).shape == (72, 96, 3)
    assert visualize.upscale(image, 3).dtype == np.uint8
    large = visualize.upscale(heatmap, 5)
    assert large.shape == (120, 160)
    assert large.min() >= heatmap.min()
    assert large.max() <= heatmap.max()
    peak = np.unravel_index(large.argmax(), large.shape)
    assert tuple(place // 5 for place in peak) == np.unravel_index(heatmap.argmax(), heatmap.shape)
    assert (visualize.upscale(image, 1) == image).all()
    with pytest.raises(CamkitError, match="not by 0"):
        visualize.upscale(image, 0)


def test_png_keeps_every_pixel_in_rgb_order(tmp_path):
    image = noise()
    assert (read_png(visualize.png_bytes(image)) == image).all()
    saved = visualize.save_png(tmp_path / "a" / "b.png", image)
    assert (read_png(saved.read_bytes()) == image).all()


def test_a_data_address_holds_the_picture_as_jpeg():
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    image = np.stack([*np.meshgrid(ramp, ramp), np.full((64, 64), 40, np.uint8)], axis=-1)
    head, _, body = visualize.data_uri(image).partition(",")
    assert head == "data:image/jpeg;base64"
    shown = read_png(base64.b64decode(body)).astype(int)
    assert np.abs(shown - image).mean() < 3


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CamkitError, match=r"file/x\.png' cannot be written: "):
        visualize.save_png(tmp_path / "file" / "x.png", noise())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "x.png").mkdir()  # a folder stands where the file should go
    with pytest.raises(CamkitError, match="cannot be written"):
        visualize.save_png(tmp_path / "x.png", noise())
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]


def grid_pixels(tmp_path, cells, rows, columns, **options):
    path = visualize.comparison_grid(cells, rows=rows, columns=columns, path=tmp_path / "grid.png", **options)
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]
    return read_png(path.read_bytes())[..., -3:]


def test_grid_shows_each_cell_in_its_place(tmp_path):
    colours = [[(250, 0, 0), (0, 250, 0), (0, 0, 250)], [(250, 250, 0), None, (0, 250, 250)]]
    cells = [[None if c is None else np.full((20, 20, 3), c, np.uint8) for c in row] for row in colours]
    pixels = grid_pixels(tmp_path, cells, ["first", "second"], ["a", "b", "c"])
    centres = {}
    for colour in [c for row in colours for c in row if c is not None]:
        there = np.argwhere((pixels == colour).all(axis=2))
        assert np.ptp(there[:, 0]) == pytest.approx(np.ptp(there[:, 1]), abs=2)  # the cell is square, as the image is
        centres[colour] = there.mean(axis=0)
    assert centres[(250, 0, 0)][1] < centres[(0, 250, 0)][1] < centres[(0, 0, 250)][1]
    assert centres[(250, 0, 0)][0] == pytest.approx(centres[(0, 0, 250)][0], abs=1)
    assert centres[(250, 0, 0)][0] < centres[(250, 250, 0)][0]
    assert centres[(250, 0, 0)][1] == pytest.approx(centres[(250, 250, 0)][1], abs=1)


def test_a_grid_of_ten_columns_keeps_cells_and_labels_readable(tmp_path):
    cells = [[np.full((96, 96, 3), (200, 30, 30), np.uint8)] * 10] * 2
    columns = [f"features.denseblock{index}.denselayer16.conv2, counterfactual" for index in range(10)]
    pixels = grid_pixels(tmp_path, cells, ["bull mastiff", "tiger cat"], columns, title="A $title$ with dollars")
    cell = (pixels == (200, 30, 30)).all(axis=2)
    assert cell.sum() > 20 * 200 * 200  # no cell under 200 pixels a side
    # labels do not run into each other: some column of pixels between any two cells stays white all the way
    ink = (pixels < 200).any(axis=2)
    left = np.argwhere(cell.any(axis=0))[0, 0]
    gaps = [len(list(run)) for white, run in itertools.groupby(~ink[60:, left:].any(axis=0)) if white]
    assert len(gaps) == 10  # nine between, one at the right edge


def test_long_labels_break_after_dots_and_within_long_words():
    wrapped = visualize._wrap("features.denseblock4.denselayer16", 12).split("\n")
    assert wrapped == ["features.", "denseblock4.", "denselayer16"]
    assert visualize._wrap("x" * 25, 10).split("\n") == ["x" * 10, "x" * 10, "x" * 5]
    assert visualize._wrap("two words", 20) == "two words"
    assert visualize._wrap("a\nb", 20) == "a\nb"


@pytest.mark.parametrize(("rows", "columns"), [(["a"], ["x", "y"]), (["a", "b"], ["x"]), ([], [])])
def test_grid_refuses_labels_that_do_not_match(tmp_path, rows, columns):
    with pytest.raises(CamkitError, match="A grid with"):
        visualize.comparison_grid([[noise()]], rows=rows, columns=columns, path=tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())
