"""Places: between a model's square input and the image as it was sent (upright, in its original pixels)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.messages import Array, Image, Recipe

Boxes = NDArray[np.float32]  # [n, 4]: left, top, right, bottom


def to_image(boxes: Array, image: Image, recipe: Recipe) -> Boxes:
    """Boxes in shares of the input's side (0 to 1) as boxes in the image's original pixels, within the image."""
    right, bottom = recipe.extent(image.width, image.height)
    scale = np.array([recipe.size * image.width / right, recipe.size * image.height / bottom] * 2)
    limit = np.array([image.width, image.height] * 2)
    placed: Boxes = np.clip(boxes.reshape(-1, 4) * scale, 0, limit).astype(np.float32)
    return placed


def _seen(plane: Array, image: Image, recipe: Recipe) -> tuple[float, float]:
    """(width, height) of the part of `plane`, a map of the square input at any resolution, that shows the image."""
    right, bottom = recipe.extent(image.width, image.height)
    height, width = plane.shape
    return right * width / recipe.size, bottom * height / recipe.size


def nearest(plane: Array, image: Image, recipe: Recipe) -> Array:
    """[h, w] over the input's square -> [image.height, image.width]: each pixel has the value at its centre."""
    width, height = _seen(plane, image, recipe)
    columns = ((np.arange(image.width) + 0.5) * (width / image.width)).astype(np.intp)
    rows = ((np.arange(image.height) + 0.5) * (height / image.height)).astype(np.intp)
    return plane.take(columns, 1, mode="clip").take(rows, 0, mode="clip")


def linear(plane: Array, image: Image, recipe: Recipe) -> NDArray[np.float32]:
    """[h, w] over the input's square -> float32 [image.height, image.width]: bilinear between the pixels' centres."""
    width, height = _seen(plane, image, recipe)
    across = _mix(plane.astype(np.float32, copy=False), _centres(image.width, width), 1)
    return _mix(across, _centres(image.height, height), 0)


def _centres(count: int, extent: float) -> NDArray[np.float64]:
    """Where the centres of `count` pixels lie among those of `extent` pixels of the plane (the first is at 0)."""
    return np.clip((np.arange(count) + 0.5) * (extent / count) - 0.5, 0, None)


def _mix(plane: NDArray[np.float32], places: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    last = plane.shape[axis] - 1
    low = np.minimum(places.astype(np.intp), last)
    high = np.minimum(low + 1, last)
    share = np.minimum(places - low, 1).astype(np.float32)
    if axis == 0:
        share = share[:, None]
    start = plane.take(low, axis)
    mixed: NDArray[np.float32] = plane.take(high, axis)
    mixed -= start
    mixed *= share
    mixed += start
    return mixed
