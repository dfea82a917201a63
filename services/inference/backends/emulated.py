"""A service-time law that stands in for an accelerator: a batch takes `a + b * N` milliseconds. Label: EMULATED.

It computes nothing, whatever the device, so its outputs are zeros: for questions of movement and queueing, never of
accuracy.
"""

from __future__ import annotations

import time

import numpy as np

from services.accounting import Stage, Timeline
from services.errors import ConfigurationError, Internal
from services.inference.backends.backend import Placement, only_float32
from services.messages import Array, Tensors
from services.models.catalogue import ModelSpec


def load(spec: ModelSpec, placement: Placement) -> EmulatedBackend:
    """The law of `spec`. Raises `ConfigurationError`."""
    only_float32(placement, "emulated")
    if spec.law is None:
        raise ConfigurationError(
            f"model '{spec.name}' has no `law`, which backend emulated needs; "
            "give it one in the models file (law = [a, b]), or choose another --backend"
        )
    return EmulatedBackend(spec)


class EmulatedBackend:
    """Sleeps as long as a device would compute."""

    platform = "emulated"
    emulated = True

    def __init__(self, spec: ModelSpec) -> None:
        assert spec.law is not None  # noqa: S101 # `load` has checked it
        self._a_ms, self._b_ms = spec.law
        self._outputs = spec.outputs
        self._closed = False

    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        """See `Backend.infer`; zeros."""
        if self._closed:
            raise Internal("the backend is closed")
        n = len(batch)
        seconds = (self._a_ms + self._b_ms * n) / 1e3
        if seconds > 0:
            time.sleep(seconds)
        outputs = {
            name: np.zeros((n, *(max(1, d) for d in shape[1:])), dtype=dtype) for name, dtype, shape in self._outputs
        }
        timeline.cut(Stage.INFER, on_device=True)
        return outputs

    def close(self) -> None:
        """See `Backend.close`."""
        self._closed = True
