"""Sends a schedule to a target and collects what came back. Closed and open schedules; every wait has a deadline."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from loadgen.contention import own_run_delay_ns
from loadgen.schedule import Schedule
from loadgen.target import Exchange, Target
from services.accounting import Clock, monotonic_ns
from services.messages import Array

Progress = Callable[[int, int], None]  # (answered, of)

# The first of an open schedule is due a little ahead, so that it is not late by the time that it takes to get there.
_LEAD_NS = 5_000_000


class Run:
    """One schedule against one target, once. `tensors` are asked about in turn.

    `senders_run_delay_ns`: after a closed run, how long its senders could have run but had no CPU; their threads are
    gone then, and with them what the system knew.
    """

    def __init__(
        self,
        target: Target,
        tensors: Sequence[Array],
        schedule: Schedule,
        *,
        prefix: str,
        timeout_s: float,
        at_most_s: float = math.inf,
        sampled: bool = False,
        progress: Progress | None = None,
        clock: Clock = monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`prefix` makes the requests' ids. `timeout_s`: how long to wait for an answer. `at_most_s`: how long to send;

        the first request is sent in any case.
        """
        self.senders_run_delay_ns = 0
        self._target = target
        self._tensors = tensors
        self._schedule = schedule
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._at_most_ns = at_most_s * 1e9
        self._sampled = sampled
        self._progress = progress
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._sent: list[Future[Exchange]] = []
        self._answered = 0
        self._next = 0
        self._end_ns = math.inf
        self._stopped = False
        self._failed: BaseException | None = None

    def run(self) -> list[Exchange]:
        """All exchanges, in the order in which they were due. Raises `TimeoutError` when answers stay away."""
        if self._schedule.concurrency:
            self._closed()
            left_s = 0.0  # each sender has waited for its own
        else:
            self._open()
            left_s = self._timeout_s
        deadline = time.monotonic() + left_s
        try:
            exchanges = [future.result(max(0.0, deadline - time.monotonic())) for future in self._sent]
        except TimeoutError:
            raise TimeoutError(self._missing()) from None
        return sorted(exchanges, key=lambda exchange: exchange.due_ns)

    def _missing(self) -> str:
        sent, of = len(self._sent), self._schedule.requests
        unanswered = sum(1 for future in self._sent if not future.done())
        unsent = f", and {of - sent} of {of} were not sent" if sent < of else ""
        return f"{unanswered} of {sent} requests had no answer within {self._timeout_s:g} s{unsent}"

    def _send(self, index: int, due_ns: int) -> Future[Exchange]:
        future = self._target.send(
            self._tensors[index % len(self._tensors)], f"{self._prefix}{index}", due_ns, sampled=self._sampled
        )
        self._sent.append(future)  # appending is atomic
        future.add_done_callback(self._count)
        return future

    def _count(self, _: Future[Exchange]) -> None:
        with self._lock:
            self._answered += 1
            answered = self._answered
        if self._progress is not None:
            self._progress(answered, self._schedule.requests)

    def _open(self) -> None:
        start = self._clock() + _LEAD_NS
        for index, offset in enumerate(self._schedule.due_ns):
            if index and offset > self._at_most_ns:
                break
            due = start + offset
            while (left := due - self._clock()) > 0:
                self._sleep(left / 1e9)
            self._send(index, due)

    def _closed(self) -> None:
        # More senders than requests would find nothing to do.
        count = min(self._schedule.concurrency, self._schedule.requests)
        self._end_ns = self._clock() + self._at_most_ns
        threads = [threading.Thread(target=self._sender, name=f"sender-{i}", daemon=True) for i in range(count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self._stopped = True  # where this was interrupted, no sender goes on
        if self._failed is not None:
            raise self._failed

    def _sender(self) -> None:
        try:
            while not self._stopped:
                with self._lock:
                    index = self._next
                    self._next += 1
                now = self._clock()
                if index >= self._schedule.requests or (index and now > self._end_ns):
                    break
                self._send(index, now).result(self._timeout_s)
        except TimeoutError:
            self._stopped = True  # `run` says how many; the others send no more
        except BaseException as error:  # noqa: BLE001 # a thread's error would be lost
            self._failed = error
            self._stopped = True
        finally:
            delay = own_run_delay_ns()
            with self._lock:
                self.senders_run_delay_ns += delay
