"""Places in a model's square input, and where they are in the photograph."""

from __future__ import annotations

import numpy as np
import pytest

from services.messages import Image, Recipe
from services.tasks.geometry import linear, nearest, to_image

STRETCH = Recipe(100, 100, (0, 0, 0), (1, 1, 1), fit="stretch")
LETTERBOX = Recipe(100, 100, (0, 0, 0), (1, 1, 1), fit="letterbox")


def image(width: int, height: int) -> Image:
    """Decoded to a quarter: what counts is the original's size."""
    return Image(np.zeros((max(1, height // 4), max(1, width // 4), 3), np.uint8), width, height)


@pytest.mark.parametrize(
    ("recipe", "size", "box", "expected"),
    [
        (STRETCH, (400, 200), (0.25, 0.5, 0.5, 1), (100, 100, 200, 200)),
        # 400 x 200 is 100 x 50 of the letterbox
        (LETTERBOX, (400, 200), (0.25, 0.25, 0.5, 0.5), (100, 100, 200, 200)),
        (LETTERBOX, (200, 400), (0.25, 0.25, 0.5, 0.5), (100, 100, 200, 200)),
        # What lies beyond the image ends at its edge
        (LETTERBOX, (400, 200), (-0.1, 0.4, 0.5, 0.9), (0, 160, 200, 200)),
    ],
)
def test_a_box_is_in_the_originals_pixels(
    recipe: Recipe, size: tuple[int, int], box: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    boxes = to_image(np.array([box], np.float32), image(*size), recipe)
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes, [expected], rtol=1e-6)


def test_no_box_is_no_box() -> None:
    assert to_image(np.zeros((0, 4), np.float32), image(4, 4), STRETCH).shape == (0, 4)


@pytest.mark.parametrize("size", [(8, 6), (400, 31), (3, 2), (1, 1)])
def test_a_mask_has_the_originals_size_and_each_pixel_the_value_at_its_centre(size: tuple[int, int]) -> None:
    # Given a plane in which each value says where it is
    plane = np.arange(50 * 50, dtype=np.int64).reshape(50, 50)
    width, height = size
    # When it is brought to the original's size
    mask = nearest(plane, image(width, height), STRETCH)
    # Then each pixel has the value in whose cell its centre lies
    expected = [
        [int((y + 0.5) * 50 / height) * 50 + int((x + 0.5) * 50 / width) for x in range(width)] for y in range(height)
    ]
    assert mask.tolist() == expected


def test_of_a_letterbox_only_the_part_that_shows_the_image_is_seen() -> None:
    plane = np.zeros((50, 50), np.uint8)
    plane[25:] = 9  # the padding of an image twice as wide as high
    wide = image(400, 200)
    assert not nearest(plane, wide, LETTERBOX).any()
    assert nearest(plane, image(200, 400), LETTERBOX).any()
    smooth = linear(plane.astype(np.float32), wide, LETTERBOX)
    assert not smooth[:-8].any()  # its last rows lie between the last one of the image and the padding


@pytest.mark.parametrize("size", [(64, 48), (20, 10), (7, 90)])
def test_between_pixels_depth_is_mixed(size: tuple[int, int]) -> None:
    # Given a plane that rises evenly
    plane = np.add.outer(np.arange(32) * 2.0, np.arange(32) * 3.0).astype(np.float32)
    width, height = size
    # When it is brought to the original's size
    depth = linear(plane, image(width, height), STRETCH)
    # Then it rises as evenly, but for what is beyond the centres of the plane's outermost pixels
    x = np.clip((np.arange(width) + 0.5) * 32 / width - 0.5, 0, 31)
    y = np.clip((np.arange(height) + 0.5) * 32 / height - 0.5, 0, 31)
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, np.add.outer(y * 2, x * 3), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "extent"), [((400, 200), (100, 50)), ((200, 400), (50, 100)), ((30000, 1), (100, 1)), ((5, 5), (100, 100))]
)
def test_a_letterbox_keeps_proportions(size: tuple[int, int], extent: tuple[int, int]) -> None:
    assert LETTERBOX.extent(*size) == extent
    assert STRETCH.extent(*size) == (100, 100)
