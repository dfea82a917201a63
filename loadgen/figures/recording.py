"""Accelerated models see every image once before anything is measured: then they take what the real ones take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic_ns

from loadgen.progress import Display
from loadgen.samples import Sample
from loadgen.targets import open_target
from services.errors import ServiceError

_GRACE_S = 1.0


def record(
    urls: Mapping[str, str], task: str, samples: Sequence[Sample], timeout_s: float, what: str, display: Display
) -> None:
    """Ask each of `urls` for each image, one after the other. What was recorded before takes no time.

    `what`: begins the progress lines. Raises `ServiceError`.
    """
    for name, url in urls.items():
        target = open_target(url, task, timeout_s)
        try:
            tensors = target.tensors([sample.data for sample in samples])
            for done, (sample, tensor) in enumerate(zip(samples, tensors, strict=True)):
                display(f"{what}: what the real network takes, over {name}", done, len(samples))
                exchange = target.send(tensor, sample.name, monotonic_ns()).result(timeout_s + _GRACE_S)
                if exchange.error is not None:
                    raise ServiceError(f"{sample.name}, over {name}: {exchange.error}: {exchange.message}")
        finally:
            target.close()
