"""The contract of a backend. One suite runs over every row of the table: `tests/contract/test_backends.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.accounting import Timeline
from services.errors import ConfigurationError
from services.messages import Array, Tensors

FLOAT32 = "float32"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs, and how: what every row's `load` is told.

    `device`: "cpu", "cuda", "cuda:1". `precision`: what it computes in, of those of `--precision`; a row that knows
    only float32 refuses others (`only_float32`). `engine_cache`: the folder of compiled engines, "" for the default;
    `workspace_mib`: what compiling one may take of the device. `real`: the row that a replayed model is measured on,
    "" for its source's.
    """

    device: str = "cpu"
    threads: int = 1
    max_batch: int = 1
    precision: str = FLOAT32
    engine_cache: str = ""
    workspace_mib: int = 4096
    real: str = ""


def only_float32(placement: Placement, backend: str) -> None:
    """Raises `ConfigurationError` where `placement` asks for another precision."""
    if placement.precision != FLOAT32:
        raise ConfigurationError(
            f"backend {backend} computes in float32 or what its model's file says, not in '{placement.precision}'; "
            "use --precision float32, or --backend torch or tensorrt"
        )


class Backend(Protocol):
    """A loaded model. All calls come from one thread, the one that loaded it."""

    platform: str  # for ModelMetadata, e.g. "onnxruntime_onnx"
    emulated: bool  # True: its times stand in for a device; every report labels them EMULATED

    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        """Run a batch [N, ...] (the recipe's dtype, C-contiguous); named outputs, each [N, ...], owned by the caller.

        `batch` may be read-only and stays as it is.

        Cuts `upload`, `infer` and `download` on `timeline` as far as the device has them. Raises `Internal`.
        """
        ...

    def close(self) -> None:
        """Give the device's memory back."""
        ...
