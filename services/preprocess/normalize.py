"""From pixels to numbers: the last step of a recipe, the same arithmetic on both sides of the hop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.messages import Array, Recipe


def normalize(pixels: NDArray[np.uint8], recipe: Recipe) -> Array:
    """The recipe's tensor, [1, *recipe.shape], of pixels uint8 [height, width, 3], RGB.

    Pixels that cover less than the recipe's square are at its upper left; the rest is the mean, which normalized is 0.
    """
    height, width = pixels.shape[:2]
    padded = (height, width) != (recipe.size, recipe.size)
    # In single precision, whatever becomes of it: one rounding more, not two.
    computed = "uint8" if recipe.dtype == "uint8" else "float32"
    tensor = np.empty((1, *recipe.shape), dtype=computed)
    for channel in range(3):
        plane = tensor[0, channel] if recipe.layout == "CHW" else tensor[0, :, :, channel]
        if computed == "uint8":
            if padded:
                plane[...] = min(255, max(0, round(recipe.mean[channel])))
            plane[:height, :width] = pixels[:, :, channel]
            continue
        if padded:
            plane[...] = 0
        plane = plane[:height, :width]
        np.subtract(pixels[:, :, channel], np.float32(recipe.mean[channel]), out=plane)
        np.divide(plane, np.float32(recipe.std[channel]), out=plane)
    return tensor.astype(recipe.dtype, copy=False)
