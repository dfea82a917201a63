"""What moves through the suite. Pure but for numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.accounting import Tile

Array = NDArray[Any]
Tensors = dict[str, Array]  # BYTES tensors are object arrays of `bytes`
Headers = Mapping[str, bytes]


def trace_context(headers: Headers) -> dict[str, bytes]:
    """The W3C trace context in `headers`; what is no printable ASCII is none, and would not cross every transport."""
    given = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
    return {name: value for name, value in given.items() if all(0x20 <= byte <= 0x7E for byte in value)}


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded photograph, upright.

    `pixels`: uint8 [height, width, 3], RGB; may be smaller than the original when the decoder scaled it down. Where a
    preprocessor decoded it on a device, they are there, in a form of its own, until `Preprocessor.to_host`.
    `width`, `height`: of the original after its EXIF rotation, in pixels.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """Preprocessing as data: every preprocessor, on whatever device, obeys the same recipe.

    The image becomes `size` x `size` pixels, and each channel (RGB, 0..255) becomes (x - mean) / std. With dtype
    "uint8" nothing is normalized: whoever takes it does that. How it is fitted into the square, `fit`:

    * "centre": the shorter side is resized to `crop` pixels, the centre is cut out.
    * "stretch": all of it, whatever its proportions were.
    * "letterbox": all of it in its proportions, at the upper left; the rest is the mean, which normalized is 0.
    """

    size: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layout: str = "CHW"  # or "HWC"
    dtype: str = "float32"  # or "uint8", "float16"
    interpolation: str = "area"  # or "linear", "cubic"
    fit: str = "centre"  # or "stretch", "letterbox"; these two see the whole image, and `crop` is `size`

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one prepared tensor, without the batch dimension."""
        return (3, self.size, self.size) if self.layout == "CHW" else (self.size, self.size, 3)

    def extent(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in the tensor, from its upper left, of a whole image of `width` x `height` pixels."""
        if self.fit != "letterbox":
            return self.size, self.size
        scale = self.size / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    @property
    def nbytes(self) -> int:
        """Of one prepared tensor."""
        return 3 * self.size * self.size * np.dtype(self.dtype).itemsize


class TensorSpec(NamedTuple):
    """Name, numpy dtype name ("object" for BYTES) and shape (-1: any) of a model's tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(slots=True)
class Work:
    """One item for a model: a tensor with a leading batch dimension of 1.

    `deadline_ns`: on this process's monotonic clock; work past it is dropped before it costs anything.
    `headers`: what travels with it (`traceparent`).
    """

    id: str
    model: str
    tensor: Array
    deadline_ns: int
    headers: dict[str, bytes] = field(default_factory=dict)


class Outcome(NamedTuple):
    """What a model made of one `Work`: named tensors, leading dimension 1, and the tiles from submit to done."""

    outputs: Tensors
    tiles: tuple[Tile, ...]


class Answer(NamedTuple):
    """What a task answers for one image: named tensors without a batch dimension."""

    tensors: Tensors


class Finished(NamedTuple):
    """A request that is over. `start_ns`: monotonic; `headers`: those it came with; `error`: a kind, or None.

    `source`: what moved its bytes to where its ledger is ("grpc", "kafka", "redis"), and from where.
    """

    id: str
    task: str
    start_ns: int
    tiles: tuple[Tile, ...]
    headers: Headers
    error: str | None
    source: tuple[str, str] = ("grpc", "")


class BatchDone(NamedTuple):
    """A batch that a device has computed. `members`: the headers of each one's `Work`."""

    id: int
    model: str
    size: int
    start_ns: int
    tiles: tuple[Tile, ...]
    members: tuple[Headers, ...]


Submit = Callable[[Work], "Future[Outcome]"]
