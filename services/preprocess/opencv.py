"""OpenCV on the CPU. One thread per image: throughput comes from many images, not from many threads on one."""

from __future__ import annotations

import cv2
import numpy as np

from services.accounting import Stage, Timeline
from services.errors import UndecodableImage
from services.messages import Array, Image, Recipe
from services.preprocess.geometry import MAX_ASPECT
from services.preprocess.image_header import check_end, check_pixels, read_header
from services.preprocess.normalize import normalize

_SHRINK = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))


def load(max_pixels: int, *, scaled: bool) -> OpenCvPreprocessor:
    """`scaled`: let the JPEG decoder shrink while it decodes, when far more pixels are there than used."""
    cv2.setNumThreads(1)
    return OpenCvPreprocessor(max_pixels, scaled=scaled)


class OpenCvPreprocessor:
    """Stateless."""

    def __init__(self, max_pixels: int, *, scaled: bool) -> None:
        self._max_pixels = max_pixels
        self._scaled = scaled

    def decode(self, data: bytes | memoryview, timeline: Timeline, shorter: int = 0) -> Image:
        """See `Preprocessor.decode`. EXIF rotation is applied, alpha dropped, 16 bits become 8, CMYK becomes RGB."""
        header = read_header(data)
        check_pixels(header, self._max_pixels)
        check_end(data, header)
        flag = cv2.IMREAD_COLOR
        if self._scaled and shorter and header.format == "jpeg":
            for factor, reduced in _REDUCED:
                if min(header.width, header.height) // factor >= shorter:
                    flag = reduced
                    break
        try:
            bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        except cv2.error as error:
            raise UndecodableImage(f"the {header.format} cannot be decoded: {error.err}") from None
        if bgr is None:
            raise UndecodableImage(f"the {header.format} of {len(data)} bytes cannot be decoded; is it damaged?")
        pixels = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr)
        timeline.cut(Stage.DECODE)
        height, width = pixels.shape[:2]
        upright = (width >= height) == (header.width >= header.height)
        return Image(
            pixels.astype(np.uint8, copy=False),
            header.width if upright else header.height,
            header.height if upright else header.width,
        )

    def to_host(self, image: Image, timeline: Timeline) -> Image:  # noqa: ARG002 # the contract's signature
        """See `Preprocessor.to_host`: they are there."""
        return image

    def prepare(self, image: Image, recipe: Recipe, timeline: Timeline) -> Array:
        """See `Preprocessor.prepare`. Shrinking uses the recipe's interpolation, enlarging is linear."""
        if recipe.fit == "centre":
            pixels = _centre(image, recipe)
        else:
            pixels = _resize(image.pixels, recipe.extent(image.width, image.height), recipe)
        timeline.cut(Stage.RESIZE)
        tensor = normalize(pixels, recipe)
        timeline.cut(Stage.NORMALIZE)
        return tensor


def _resize(pixels: Array, target: tuple[int, int], recipe: Recipe) -> Array:
    """`target`: (width, height)."""
    height, width = pixels.shape[:2]
    if target == (width, height):
        return pixels
    shrinks = target[0] * target[1] < width * height
    return cv2.resize(pixels, target, interpolation=_SHRINK[recipe.interpolation] if shrinks else cv2.INTER_LINEAR)


def _centre(image: Image, recipe: Recipe) -> Array:
    pixels = _limit_aspect(image.pixels)
    height, width = pixels.shape[:2]
    scale = recipe.crop / min(height, width)
    pixels = _resize(pixels, (max(recipe.crop, round(width * scale)), max(recipe.crop, round(height * scale))), recipe)
    height, width = pixels.shape[:2]
    top, left = (height - recipe.size) // 2, (width - recipe.size) // 2
    return pixels[top : top + recipe.size, left : left + recipe.size]


def _limit_aspect(pixels: Array) -> Array:
    height, width = pixels.shape[:2]
    longest = MAX_ASPECT * min(height, width)
    if width > longest:
        left = (width - longest) // 2
        return pixels[:, left : left + longest]
    if height > longest:
        top = (height - longest) // 2
        return pixels[top : top + longest]
    return pixels
