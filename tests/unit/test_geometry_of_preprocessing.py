"""Shrinking by area as a matrix, and the part of an image that a recipe takes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from services.messages import Recipe
from services.preprocess.area import area_weights
from services.preprocess.geometry import centre

RECIPE = Recipe(224, 256, (127, 127, 127), (128, 128, 128))


@pytest.mark.parametrize(("source", "target"), [(10, 10), (10, 5), (10, 3), (7, 6), (1000, 256), (3, 1)])
def test_a_matrix_of_areas_is_opencvs(source: int, target: int) -> None:
    rng = np.random.default_rng(source)
    image = rng.random((source, source + 3)).astype(np.float32)
    rows, columns = area_weights(source, target), area_weights(source + 3, target)
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-5)
    expected = cv2.resize(image, (target, target), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(rows @ image @ columns.T, expected, rtol=1e-4, atol=1e-5)


def test_the_shorter_side_becomes_the_crop_and_the_middle_is_taken() -> None:
    window = centre(400, 600, RECIPE)
    assert (window.top, window.left, window.height, window.width) == (0, 0, 400, 600)
    assert window.target == (384, 256)
    assert (window.cut_top, window.cut_left) == (16, 80)


def test_a_panorama_is_cut_before_it_is_resized() -> None:
    window = centre(10, 30_000, RECIPE)
    assert (window.top, window.left, window.height, window.width) == (0, 14_980, 10, 40)
    assert window.target == (1024, 256)
    window = centre(3000, 1, RECIPE)
    assert (window.top, window.height, window.width, window.target) == (1498, 4, 1, (256, 1024))
