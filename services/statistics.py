"""Counts and durations since start, as Triton's ModelStatistics asks for them. Pure standard library."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Duration(NamedTuple):
    """How often, and how long in all (ns)."""

    times: int = 0  # `count` is a method of tuples
    ns: int = 0

    def plus(self, ns: int, count: int = 1) -> Duration:
        """With `count` more that took `ns` in all."""
        return Duration(self.times + count, self.ns + ns)


class Statistics(NamedTuple):
    """A snapshot. `batches`: size -> (input, infer, output) of executions of that size."""

    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    input: Duration = Duration()
    infer: Duration = Duration()
    output: Duration = Duration()
    executions: int = 0
    last_ms: int = 0  # since the epoch
    batches: Mapping[int, tuple[Duration, Duration, Duration]] = MappingProxyType({})


class Counter:
    """Counts; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._statistics = Statistics()

    def succeeded(
        self, totals_ns: list[int], queued_ns: list[int], input_ns: int, infer_ns: int, output_ns: int
    ) -> None:
        """One execution: of each member its total and its queueing, and what the whole batch took."""
        size = len(totals_ns)
        with self._lock:
            s = self._statistics
            up, run, down = s.batches.get(size, (Duration(), Duration(), Duration()))
            batches = {**s.batches, size: (up.plus(input_ns), run.plus(infer_ns), down.plus(output_ns))}
            self._statistics = Statistics(
                s.success.plus(sum(totals_ns), size),
                s.fail,
                s.queue.plus(sum(queued_ns), size),
                s.input.plus(input_ns * size, size),
                s.infer.plus(infer_ns * size, size),
                s.output.plus(output_ns * size, size),
                s.executions + 1,
                time.time_ns() // 1_000_000,
                batches,
            )

    def failed(self, total_ns: int) -> None:
        """One request that was not answered."""
        with self._lock:
            self._statistics = self._statistics._replace(fail=self._statistics.fail.plus(total_ns))

    def snapshot(self) -> Statistics:
        """Immutable."""
        return self._statistics


class Traffic:
    """What goes over a link and comes back, in payload bytes; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight = 0
        self._sent = 0
        self._received = 0

    def sent(self, size: int) -> None:
        """A request of `size` bytes goes out."""
        with self._lock:
            self._in_flight += 1
            self._sent += size

    def ended(self, size: int) -> None:
        """A call has ended with a reply of `size` bytes, or with none."""
        with self._lock:
            self._in_flight -= 1
            self._received += size

    def in_flight(self) -> int:
        """Calls that have not ended."""
        return self._in_flight

    def bytes(self) -> tuple[int, int]:
        """Sent and received, so far."""
        return self._sent, self._received
