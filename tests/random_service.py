"""Services with one more backend, `random`: it sleeps for a time that is drawn from a known law. For queueing theory.

    python -m tests.random_service preprocess|inference --backend random [the service's flags]

The model's `law = [a, 0]` is the mean: four of five requests take a half of it, the fifth three times as much, so that
the squared coefficient of variation is 1, as that of an exponential, and no single request is very long. The seed is
fixed: the n-th request of a run takes as long as the n-th of any other.
"""

from __future__ import annotations

import random
import sys

from services import process
from services.accounting import Timeline
from services.inference import backends
from services.inference.backends import emulated
from services.messages import Array, Tensors
from services.models.catalogue import ModelSpec
from services.settings import InferenceSettings, PreprocessSettings
from services.wiring import build_inference, build_preprocess

NAME = "random"
# (share of requests, service time as a multiple of the mean)
LAW = ((0.8, 0.5), (0.2, 3.0))


class RandomBackend(emulated.EmulatedBackend):
    """Its times stand in for a device's, as those of `emulated`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._mean_ms = self._a_ms
        self._draw = random.Random(1)  # noqa: S311 # repeatable

    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        """See `Backend.infer`; zeros."""
        (short, factor), (_, other) = LAW
        self._a_ms = self._mean_ms * (factor if self._draw.random() < short else other)
        return super().infer(batch, timeline)


def load(spec: ModelSpec, device: str, threads: int) -> RandomBackend:
    """As the table of backends wants it."""
    return RandomBackend(spec)


def register() -> None:
    """A row of the table, in this process."""
    backends.TABLE[NAME] = "tests.random_service"


def main() -> int:
    """The exit status."""
    register()
    which, argv = sys.argv[1], sys.argv[2:]
    if which == "preprocess":
        return process.run(which, PreprocessSettings, __doc__ or "", build_preprocess, argv)
    return process.run(which, InferenceSettings, __doc__ or "", build_inference, argv)


if __name__ == "__main__":
    sys.exit(main())
