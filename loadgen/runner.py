"""Sends a schedule to a target and collects what came back. Closed and open schedules; every wait has a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from loadgen.schedule import Schedule
from loadgen.target import Exchange, Target
from services.accounting import monotonic_ns
from services.messages import Array

Progress = Callable[[int, int], None]  # (answered, of)


class Run:
    """One schedule against one target. `tensors` are asked about in turn."""

    def __init__(
        self,
        target: Target,
        tensors: Sequence[Array],
        schedule: Schedule,
        *,
        prefix: str,
        timeout_s: float,
        sampled: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """`prefix` makes the requests' ids. `timeout_s`: after the last is sent, how long to wait for answers."""
        self._target = target
        self._tensors = tensors
        self._schedule = schedule
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._sampled = sampled
        self._progress = progress
        self._next = 0
        self._answered = 0
        self._lock = threading.Lock()

    def run(self) -> list[Exchange]:
        """All exchanges, in the order in which they were due. Raises `TimeoutError` when answers stay away."""
        futures = self._closed() if self._schedule.concurrency else self._open()
        deadline = time.monotonic() + self._timeout_s
        exchanges = [future.result(max(0.0, deadline - time.monotonic())) for future in futures]
        return sorted(exchanges, key=lambda exchange: exchange.due_ns)

    def _send(self, index: int, due_ns: int) -> Future[Exchange]:
        future = self._target.send(
            self._tensors[index % len(self._tensors)], f"{self._prefix}{index}", due_ns, sampled=self._sampled
        )
        future.add_done_callback(self._count)
        return future

    def _count(self, _: Future[Exchange]) -> None:
        with self._lock:
            self._answered += 1
            answered = self._answered
        if self._progress is not None:
            self._progress(answered, self._schedule.requests)

    def _open(self) -> list[Future[Exchange]]:
        # A little ahead, so that the first is not late by the time that it takes to get here.
        start = monotonic_ns() + 5_000_000
        futures = []
        for index, offset in enumerate(self._schedule.due_ns):
            due = start + offset
            while (left := due - monotonic_ns()) > 0:
                time.sleep(left / 1e9)
            futures.append(self._send(index, due))
        return futures

    def _closed(self) -> list[Future[Exchange]]:
        futures: list[Future[Exchange]] = []

        def sender() -> None:
            while True:
                with self._lock:
                    index = self._next
                    self._next += 1
                if index >= self._schedule.requests:
                    return
                future = self._send(index, monotonic_ns())
                futures.append(future)  # appending is atomic
                try:
                    future.result(self._timeout_s)
                except TimeoutError:
                    return  # `run` reports it

        threads = [
            threading.Thread(target=sender, name=f"sender-{i}", daemon=True) for i in range(self._schedule.concurrency)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return futures
