"""The real photographs that tests use, as ordinary libraries ship them, and encoders for the oddities of the world."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

Pixels = NDArray[np.uint8]

# name -> the ImageNet classes that the default classifier may call it
CLASSES = {"coffee": {967}, "flower": {985}, "china": {698}, "chelsea": {281, 282, 285}}


@cache
def pixels(name: str) -> Pixels:
    """uint8 [height, width, 3], RGB."""
    if name in ("flower", "china"):
        return np.asarray(load_sample_image(f"{name}.jpg"))
    return np.asarray(getattr(skimage.data, name)())


def encode(image: Pixels | Image.Image, format_: str = "JPEG", **options: object) -> bytes:
    """With Pillow: another library than the one under test. JPEG quality is 92 unless told otherwise."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    if format_ == "JPEG":
        options = {"quality": 92, "subsampling": 0, **options}
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


@cache
def jpeg(name: str) -> bytes:
    """The photograph as a JPEG."""
    return encode(pixels(name))
