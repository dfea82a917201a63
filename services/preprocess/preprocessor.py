"""The contract of a preprocessor. One suite, `tests/contract/test_preprocessors.py`, runs over the table."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from services.accounting import Timeline
from services.errors import ConfigurationError
from services.messages import Array, Image, Recipe

# name -> module with `load(max_pixels, scaled)`.
TABLE: dict[str, str] = {"opencv": "services.preprocess.opencv"}


class Preprocessor(Protocol):
    """Turns encoded photographs into tensors. Called from many threads at once."""

    def decode(self, data: bytes | memoryview, timeline: Timeline, shorter: int = 0) -> Image:
        """Decode JPEG, PNG or WebP, upright, RGB; cuts `decode`.

        `shorter`: the pixels of the shorter side that the caller will use at most (0: all), so that a decoder that can
        scale while it decodes may. Raises `UndecodableImage`, `ImageTooLarge` (from the header, before decoding).
        """
        ...

    def prepare(self, image: Image, recipe: Recipe, timeline: Timeline) -> Array:
        """The recipe's tensor of `image`, [1, *recipe.shape]; cuts `resize` and `normalize`."""
        ...


class _Loader(Protocol):
    def load(self, max_pixels: int, *, scaled: bool) -> Preprocessor: ...


def load(name: str, max_pixels: int, *, scaled: bool) -> Preprocessor:
    """The preprocessor of that name. Raises `ConfigurationError`."""
    if name not in TABLE:
        raise ConfigurationError(f"unknown preprocessor '{name}'; use one of {', '.join(TABLE)}")
    return cast(_Loader, importlib.import_module(TABLE[name])).load(max_pixels, scaled=scaled)
