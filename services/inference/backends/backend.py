"""The contract of a backend. One suite runs over every row of the table: `tests/contract/test_backends.py`."""

from __future__ import annotations

from typing import Protocol

from services.accounting import Timeline
from services.messages import Array, Tensors


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
