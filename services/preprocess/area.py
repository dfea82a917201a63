"""Shrinking by area, as a matrix: each pixel of the result is the mean of what it covers.

Resizing an image is then two matrix products, rows and columns, which is what a GPU does best; it is the same
arithmetic as OpenCV's INTER_AREA (imgproc/src/resize.cpp, computeResizeAreaTab), which other resizing operators of GPU
libraries only resemble.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def area_weights(source: int, target: int) -> NDArray[np.float32]:
    """[target, source], rows that sum to 1; `target` is at most `source`."""
    scale = source / target
    edges = np.arange(target + 1) * scale
    pixels = np.arange(source)
    # How much of each source pixel lies within each target pixel.
    low = np.maximum(edges[:-1, None], pixels[None])
    high = np.minimum(edges[1:, None], pixels[None] + 1)
    weights: NDArray[np.float32] = (np.clip(high - low, 0, None) / scale).astype(np.float32)
    return weights
