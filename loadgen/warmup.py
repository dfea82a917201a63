"""Warm-up that is found, not guessed: a cold server, or a cold broker, gives numbers of its compiler, not of itself.

A Kafka broker that has just started carries in 27 ms what it carries in 3 ms some thousand requests later: its virtual
machine interprets at first, and its compilers take CPU from everybody else. So probes (the same bytes over the same
links, nothing computed) are sent until it becomes no faster: in the median latency of a window, and in the CPU time
that a probe costs all processes together, which shows compilers at work when latency hides them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from loadgen.runner import Run
from loadgen.schedule import parse_schedule
from loadgen.statistics import quantile
from loadgen.target import Exchange, Target
from services.messages import Array

_CONCURRENCY = 8
_WINDOW_S = 0.4
_LEAST_S = 1.5
_FIRST_WINDOW = 40
_WINDOWS = 5
_FASTER = 0.1
_CHEAPER = 0.15


class Warmth(NamedTuple):
    """What it took. `stable`: it became no faster any more before the time was up; `enough`: with the least probes."""

    probes: int
    seconds: float
    stable: bool
    enough: bool = True


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

    def tensors(self, images: Sequence[bytes]) -> list[Array]:
        return self._target.tensors(images)

    def emulated(self) -> bool:
        return self._target.emulated()

    def close(self) -> None:
        """It is not ours to close."""


def warm_up(
    target: Target,
    tensors: Sequence[Array],
    budget_s: float,
    timeout_s: float,
    cpu_ns: Callable[[], int],
    least: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Warmth:
    """Probe `target` until it is warm, `budget_s` seconds at most, with at least `least` probes if they fit.

    `cpu_ns`: the CPU time so far, in nanoseconds, of all processes that a request passes through, as far as it is
    known. Probes that fail are not told from others here: what is wrong shows when it is measured.
    """
    begin = clock()
    medians: list[float] = []
    costs: list[float] = []
    probes, window = 0, _FIRST_WINDOW
    while True:
        started, cpu_before = clock(), cpu_ns()
        schedule = parse_schedule(f"closed({_CONCURRENCY})", window, 0)
        exchanges = Run(_Probing(target), tensors, schedule, prefix=f"warm-{probes}-", timeout_s=timeout_s).run()
        now = clock()
        probes += len(exchanges)
        medians.append(quantile(sorted(exchange.total_ns for exchange in exchanges), 0.5))
        costs.append((cpu_ns() - cpu_before) / len(exchanges))
        # Without the first window: its size was a guess, and the link was never used before it.
        settled = len(medians) >= _WINDOWS and _settled(medians, _FASTER) and _settled(costs, _CHEAPER)
        if settled and probes >= least and now - begin >= _LEAST_S:
            return Warmth(probes, now - begin, stable=True)
        if now - begin >= budget_s:
            return Warmth(probes, now - begin, stable=settled, enough=probes >= least)
        rate = len(exchanges) / max(1e-6, now - started)
        # A third of all so far: windows that are short beside a slow warming would agree while it goes on.
        window = max(_FIRST_WINDOW, round(rate * _WINDOW_S), probes // 3)
        window = min(window, max(_FIRST_WINDOW, round(rate * (budget_s - (now - begin)))))


def _settled(values: Sequence[float], by: float) -> bool:
    """Whether the last two windows are not better by the share `by` than the best before them: it warms no further.

    Worse does not matter: that is noise, or load, and no longer the cold.
    """
    return min(values[-2:]) >= (1 - by) * min(values[1:-2])
