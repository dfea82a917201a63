"""The contract of a preprocessor. One suite, `tests/contract/test_preprocessors.py`, runs over the table."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from services.accounting import Timeline
from services.errors import ConfigurationError
from services.messages import Array, Image, Recipe

# name -> module with `load(max_pixels, scaled)`.
TABLE: dict[str, str] = {
    "opencv": "services.preprocess.opencv",
    "gpu": "services.preprocess.gpu",
    "dali": "services.preprocess.dali",
}
# name -> the extra that has its packages, where that is not always installed.
_EXTRA = {"gpu": "torch", "dali": "dali"}


class Preprocessor(Protocol):
    """Turns encoded photographs into tensors. Called from many threads at once."""

    def decode(self, data: bytes | memoryview, timeline: Timeline, shorter: int = 0) -> Image:
        """Decode JPEG, PNG or WebP, upright, RGB; cuts `decode`. The pixels may be on a device until `to_host`.

        `shorter`: the pixels of the shorter side that the caller will use at most (0: all), so that a decoder that can
        scale while it decodes may. Raises `UndecodableImage`, `ImageTooLarge` (from the header, before decoding).
        """
        ...

    def to_host(self, image: Image, timeline: Timeline) -> Image:
        """`image`, its pixels an array; cuts `download` where they had to be moved."""
        ...

    def prepare(self, image: Image, recipe: Recipe, timeline: Timeline) -> Array:
        """The recipe's tensor of `image`, [1, *recipe.shape], on the host; cuts `resize` and `normalize`.

        Also `upload` and `download`, where it moves something. The pixels may be an array or what `decode` gave.
        """
        ...


class _Loader(Protocol):
    def load(self, max_pixels: int, *, scaled: bool) -> Preprocessor: ...


def load(name: str, max_pixels: int, *, scaled: bool) -> Preprocessor:
    """The preprocessor of that name. Raises `ConfigurationError`."""
    if name not in TABLE:
        raise ConfigurationError(f"unknown preprocessor '{name}'; use one of {', '.join(TABLE)}")
    try:
        module = cast(_Loader, importlib.import_module(TABLE[name]))
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            f"preprocessor '{name}' needs the Python package '{missing.name}'; "
            f"install the extra: pip install 'beyond-inference[{_EXTRA.get(name, name)}]', or use --preprocessor opencv"
        ) from missing
    return module.load(max_pixels, scaled=scaled)
