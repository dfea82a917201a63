"""Sends a schedule to a target and collects what came back. Closed and open schedules; every wait has a deadline."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from loadgen.contention import own_run_delay_ns
from loadgen.schedule import Schedule
from loadgen.streams import DROPPED, Frame, Streams, as_dropped, stood_in_line
from loadgen.tally import Tally
from loadgen.target import Exchange, Target
from services.accounting import Clock, monotonic_ns
from services.messages import Array

# A target ends a request at its deadline; this is how much later who waits for it stops to believe that.
GRACE_S = 5.0
# The first of an open schedule is due a little ahead, so that it is not late by the time that it takes to get there.
_LEAD_NS = 5_000_000


class Run:
    """One schedule against one target, once. `tensors` are asked about in turn, or as the schedule says.

    `senders_run_delay_ns`: after a closed run, how long its senders could have run but had no CPU; their threads are
    gone then, and with them what the system knew. `unsent`: after an open run, requests that were due and never sent.
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
        tally: Tally | None = None,
        start_ns: int | None = None,
        clock: Clock = monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`prefix` makes the requests' ids. `timeout_s`: how long to wait for an answer. `at_most_s`: how long to send;

        the first request is sent in any case. `start_ns`: when the schedule begins (`clock`); None: now.
        """
        self.senders_run_delay_ns = 0
        self.unsent = 0
        self._target = target
        self._tensors = tensors
        self._schedule = schedule
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._at_most_ns = at_most_s * 1e9
        self._sampled = sampled
        self._tally = tally or Tally()
        self._start_ns = start_ns
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._sent: list[Future[Exchange]] = []
        self._next = 0
        self._end_ns = math.inf
        self._stopped = False
        self._failed: BaseException | None = None

    def run(self) -> list[Exchange]:
        """All exchanges, in the order in which they were due; frames that were dropped among them, as such failures.

        Raises `TimeoutError` when answers stay away.
        """
        if self._schedule.concurrency:
            self._closed()
            exchanges = self._collect(0.0)  # each sender has waited for its own
        elif self._schedule.streams:
            exchanges = self._cameras()
        else:
            self._open(self._send)
            exchanges = self._collect(self._timeout_s)
            if self._schedule.at_once:
                # Nobody is late for what is due all at once: it stands in line.
                exchanges = [stood_in_line(exchange, exchange.due_ns) for exchange in exchanges]
        return sorted(exchanges, key=lambda exchange: exchange.due_ns)

    def _collect(self, timeout_s: float) -> list[Exchange]:
        deadline = time.monotonic() + timeout_s
        try:
            return [future.result(max(0.0, deadline - time.monotonic())) for future in self._sent]
        except TimeoutError:
            raise TimeoutError(self._missing()) from None

    def _missing(self) -> str:
        sent, of = len(self._sent), self._schedule.requests
        unanswered = sum(1 for future in self._sent if not future.done())
        unsent = f", and {of - sent} of {of} were not sent" if sent < of else ""
        return f"{unanswered} of {sent} requests had no answer within {self._timeout_s:g} s{unsent}"

    def _id(self, position: int) -> str:
        return f"{self._prefix}{self._schedule.number(position)}"

    def _send(self, position: int, due_ns: int) -> Future[Exchange]:
        tensor = self._tensors[self._schedule.sample(position) % len(self._tensors)]
        self._tally.sent()
        future = self._target.send(tensor, self._id(position), due_ns, sampled=self._sampled)
        self._sent.append(future)  # appending is atomic
        future.add_done_callback(self._count)
        return future

    def _count(self, future: Future[Exchange]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._tally.answered(future.result())

    def _open(self, send: Callable[[int, int], object]) -> None:
        start = self._clock() + _LEAD_NS if self._start_ns is None else self._start_ns
        for position, offset in enumerate(self._schedule.due_ns):
            if position and offset > self._at_most_ns:
                break
            due = start + offset
            while (left := due - self._clock()) > 0:
                self._sleep(left / 1e9)
            if -left > self._timeout_s * 1e9 and position:
                # So far behind, whoever asks would have given up, and this would go on for ever.
                self.unsent = sum(1 for ns in self._schedule.due_ns[position:] if ns <= self._at_most_ns)
                break
            send(position, due)

    def _cameras(self) -> list[Exchange]:
        frames: list[Frame] = []
        streams = Streams(
            lambda frame: self._send(frame.position, frame.due_ns), self._clock, dropped=self._tally.dropped
        )

        def offer(position: int, due_ns: int) -> None:
            if streams.failed is None:
                frame = Frame(position, self._schedule.streams[position], due_ns, self._clock())
                frames.append(frame)
                streams.offer(frame)

        try:
            self._open(offer)
            # What is in flight, and then what waits behind it.
            in_time = streams.wait(2 * self._timeout_s)
        finally:
            self.unsent += len(streams.stop())
        if streams.failed is not None:
            raise streams.failed
        if not in_time:
            raise TimeoutError(self._missing())
        exchanges = [as_dropped(frame, self._id(frame.position)) for frame in streams.dropped]
        exchanges += [
            stood_in_line(frame.exchange.result(0), frame.taken_up_ns) for frame in frames if frame.exchange is not None
        ]
        return exchanges

    def _closed(self) -> None:
        # More senders than requests would find nothing to do.
        count = min(self._schedule.concurrency, self._schedule.requests)
        start = self._clock() if self._start_ns is None else self._start_ns
        while (left := start - self._clock()) > 0:
            self._sleep(left / 1e9)
        self._end_ns = start + self._at_most_ns
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
                    position = self._next
                    self._next += 1
                now = self._clock()
                if position >= self._schedule.requests or (position and now > self._end_ns):
                    break
                self._send(position, now).result(self._timeout_s)
        except TimeoutError:
            self._stopped = True  # `run` says how many; the others send no more
        except BaseException as error:  # noqa: BLE001 # a thread's error would be lost
            self._failed = error
            self._stopped = True
        finally:
            delay = own_run_delay_ns()
            with self._lock:
                self.senders_run_delay_ns += delay


def sent(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Those that were sent: without the frames that were dropped."""
    return [exchange for exchange in exchanges if exchange.error != DROPPED]
