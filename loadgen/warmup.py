"""Warm-up that is found, not guessed: a cold server, or a cold broker, gives numbers of its compiler, not of itself.

A Kafka broker that has just started carries in 27 ms what it carries in 3 ms some thousand requests later: its virtual
machine interprets at first, and its compilers take CPU from everybody else. So probes (the same bytes over the same
links, nothing computed) are sent until three windows in a row agree. The rule is perf_analyzer's, on the median.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from loadgen.analysis import quantile
from loadgen.runner import Run
from loadgen.schedule import parse_schedule
from loadgen.target import Exchange, Target
from services.messages import Array

_CONCURRENCY = 8
_WINDOW_S = 0.4
_FIRST_WINDOW = 24
_LARGEST_WINDOW = 1000
_WINDOWS = 3
_AGREE = 1.1


class Warmth(NamedTuple):
    """What it took. `stable`: the last windows agreed before the time was up."""

    probes: int
    seconds: float
    stable: bool


class _Probing:
    """A target that is only probed."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def send(
        self,
        image: Array,
        id_: str,
        due_ns: int,
        *,
        probe: bool = True,  # noqa: ARG002 # as the protocol has it
        sampled: bool = False,
    ) -> Future[Exchange]:
        return self._target.send(image, id_, due_ns, probe=True, sampled=sampled)

    def emulated(self) -> bool:
        return self._target.emulated()

    def close(self) -> None:
        """It is not ours to close."""


def warm_up(
    target: Target,
    tensors: Sequence[Array],
    budget_s: float,
    timeout_s: float,
    report: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Warmth:
    """Probe `target` until it is warm, `budget_s` seconds at most; `report` is told the number of probes so far.

    Probes that fail count for nothing: what is wrong shows when it is measured.
    """
    begin = clock()
    medians: list[float] = []
    probes, window = 0, _FIRST_WINDOW
    while True:
        started = clock()
        schedule = parse_schedule(f"closed({_CONCURRENCY})", window, 0)
        exchanges = Run(_Probing(target), tensors, schedule, prefix=f"warm-{probes}-", timeout_s=timeout_s).run()
        now = clock()
        probes += len(exchanges)
        report(probes)
        medians.append(quantile(sorted(exchange.total_ns for exchange in exchanges), 0.5))
        latest = medians[-_WINDOWS:]
        # The first window's size was a guess, and the link was never used before it.
        if len(medians) > _WINDOWS and max(latest) <= _AGREE * min(latest):
            return Warmth(probes, now - begin, stable=True)
        if now - begin >= budget_s:
            return Warmth(probes, now - begin, stable=False)
        rate = len(exchanges) / max(1e-6, now - started)
        window = min(_LARGEST_WINDOW, max(_FIRST_WINDOW, round(rate * _WINDOW_S)))
