"""The floor of each hop: the same bytes over the same link, idle, and nothing computed.

What a real request's transit takes beyond it is `excess`: waits for the interpreter, for a CPU, for flow control. That
split is made here and only here; what is not calibrated is not called network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from loadgen.errors import PlanError
from loadgen.target import Target
from services.accounting import Stage, monotonic_ns
from services.messages import Array


class Floor(NamedTuple):
    """Median transit of a hop in whole nanoseconds, with its 95 % interval; `n` probes.

    Over a broker, what a message waited beyond the quickest of the last seconds is no transit: that is a minimum, the
    same for probe after probe, and has no such interval (`low_ns` and `high_ns` are None).
    """

    hop: str
    p50_ns: int
    low_ns: int | None
    high_ns: int | None
    n: int


def calibrate(target: Target, tensors: Sequence[Array], n: int, pause_s: float, timeout_s: float) -> list[Floor]:
    """Probe `target` `n` times, one in flight, `pause_s` seconds apart. Raises `PlanError` where probes fail.

    `pause_s` is about what a request takes: after it, caches and sleeping threads are as a real request finds them.
    """
    transits: dict[str, list[int]] = {}
    warmup = max(3, n // 10)
    for index in range(n + warmup):
        if pause_s:
            time.sleep(pause_s)
        tensor = tensors[index % len(tensors)]
        try:
            exchange = target.send(tensor, f"probe-{index}", monotonic_ns(), probe=True).result(timeout_s)
        except TimeoutError:
            raise PlanError(f"the link cannot be calibrated: a probe was not answered within {timeout_s:g} s") from None
        if exchange.error is not None:
            raise PlanError(f"the link cannot be calibrated: a probe failed with {exchange.error}: {exchange.message}")
        if index < warmup:
            continue
        sums: dict[str, int] = {}
        for tile in exchange.tiles:
            if tile.stage is Stage.TRANSIT:
                sums[tile.where] = sums.get(tile.where, 0) + tile.duration_ns
        for hop, duration in sums.items():
            transits.setdefault(hop, []).append(duration)
    return [_median(hop, sorted(values)) for hop, values in transits.items()]


def _median(hop: str, ordered: list[int]) -> Floor:
    """With the distribution-free interval of order statistics (binomial, normal approximation)."""
    n = len(ordered)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) // 2
    # Clocks have nanoseconds: times that were measured each for itself are hardly ever equal.
    if len(set(ordered)) <= n // 2:
        return Floor(hop, middle, None, None, n)
    half = 1.96 * math.sqrt(n) / 2
    low = ordered[max(0, math.floor(n / 2 - half))]
    high = ordered[min(n - 1, math.ceil(n / 2 + half))]
    return Floor(hop, middle, low, high, n)
