"""Between the reply and the destination: a bounded queue, one thread, and exact counts of what was lost."""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from services.accounting import monotonic_ns, total_ns
from services.errors import InvalidInput, Unavailable
from services.messages import BatchDone, Finished
from services.tracing.context import Context, parse, sampled
from services.tracing.destination import Destination
from services.tracing.sampling import Decision, Sampler
from services.tracing.tree import Root, Spans, add_batch, add_request, root_of

_log = logging.getLogger(__name__)

# Requests that wait for their spans: what is beyond is lost, and counted.
_WAITING = 4096
# Spans are sent when there are so many, or the first is so old.
_FULL = 2048
_OLD_S = 0.5
_SEND_S = 5.0
_TRIES = 3
_PAUSE_S = 0.5
_CLOSE_S = 10.0


class _Job(NamedTuple):
    request: Finished
    where: str
    root: Root
    decision: Decision


class _BatchJob(NamedTuple):
    batch: BatchDone
    members: list[Context]


class Counts(NamedTuple):
    """Of a tracer's life. `spans`: delivered. `requests_lost`: chosen, and given up for want of room.

    `spans_lost`: made, and not delivered.
    """

    requests: int
    spans: int
    requests_lost: int
    spans_lost: int

    @property
    def lost(self) -> bool:
        """Whether anything is missing."""
        return bool(self.requests_lost or self.spans_lost)


class Tracer:
    """Makes and sends span trees of chosen requests."""

    def __init__(self, destination: Destination, sampler: Sampler, version: str, where: str = "preprocess") -> None:
        """`where`: the place in the ledger of the process that this is."""
        self._destination = destination
        self._sampler = sampler
        self._version = version
        self._where = where
        self._waiting: queue.Queue[_Job | _BatchJob | None] = queue.Queue(_WAITING)
        self._lock = threading.Lock()
        self._requests = 0
        self._delivered = 0
        self._requests_lost = 0
        self._spans_lost = 0
        self._in_hand = 0  # spans made, and neither delivered nor lost
        self._abandoned = False
        self._given_up = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracer", daemon=True)
        self._thread.start()

    def offer(self, request: Finished, own: Context | None = None, patience_s: float = 0.0) -> Context | None:
        """Choose, and leave the rest to the thread: it costs microseconds. Returns who the tree's root will be.

        None where it was not chosen, or there was no room. `own`: what it was sent with, if its root is the sender's:
        the root gets those ids, and its flag is the decision then. `patience_s`: how long to wait for room.
        """
        came = sampled(request.headers) if own is None else own.sampled
        decision = self._sampler.decide(came, total_ns(request.tiles), failed=request.error is not None)
        if decision is None:
            return None
        root = root_of(parse(request.headers), decision) if own is None else Root(own)
        return root.context if self._put(_Job(request, self._where, root, decision), patience_s) else None

    def offer_batch(self, batch: BatchDone) -> bool:
        """As `offer`, for a batch of which any member has a sampled trace."""
        members = [
            context
            for headers in batch.members
            if sampled(headers) and (context := parse(headers)) is not None  # most are not sampled
        ]
        if members:
            self._put(_BatchJob(batch, members), 0.0)
        return bool(members)

    def _put(self, job: _Job | _BatchJob, patience_s: float) -> bool:
        """Whether there was room."""
        try:
            if self._closing.is_set():
                raise queue.Full
            self._waiting.put(job, patience_s > 0, patience_s or None)
        except queue.Full:
            with self._lock:
                self._requests_lost += 1
            return False
        with self._lock:
            self._requests += 1
        return True

    @property
    def ratio(self) -> float:
        """Of requests that bring no decision."""
        return self._sampler.ratio

    def counts(self) -> Counts:
        """So far."""
        with self._lock:
            return Counts(self._requests, self._delivered, self._requests_lost, self._spans_lost)

    def waiting(self) -> int:
        """Requests and batches whose spans are neither delivered nor lost."""
        return self._waiting.unfinished_tasks

    def _run(self) -> None:
        spans = Spans(self._version)
        old = 0.0  # when the first of them will be old
        taken = 0  # requests and batches that they are of
        while True:
            try:
                job = self._waiting.get(timeout=max(0.0, old - time.monotonic()) if spans.count else None)
            except queue.Empty:
                spans = self._flush(spans)
                taken = self._settled(taken)
                continue
            if job is None:
                self._flush(spans)
                return
            taken += 1
            if not spans.count:
                old = time.monotonic() + _OLD_S
            try:
                # The ledger is on the monotonic clock; spans want the time of day.
                offset = time.time_ns() - monotonic_ns()
                if isinstance(job, _Job):
                    add_request(spans, job.request, job.where, job.root, job.decision, offset)
                else:
                    add_batch(spans, job.batch, job.members, offset)
            except Exception:  # noqa: BLE001 # one request's spans must not cost all others theirs
                with self._lock:
                    self._requests_lost += 1
                _log.exception("a request has no spans")
            with self._lock:
                self._in_hand = spans.count
            if spans.count >= _FULL or (spans.count and time.monotonic() >= old):
                spans = self._flush(spans)
            if not spans.count:
                taken = self._settled(taken)

    def _settled(self, taken: int) -> int:
        """Nothing of these is on its way any more; 0 are left."""
        for _ in range(taken):
            self._waiting.task_done()
        return 0

    def _flush(self, spans: Spans) -> Spans:
        """Send, with a few tries; what cannot be sent is counted. Returns room for the next ones."""
        if not spans.count:
            return spans
        lost = spans.count
        for attempt in range(_TRIES):
            try:
                lost = self._destination.send(spans.request, _SEND_S)
                break
            except InvalidInput as error:
                _log.warning("%d spans are lost: %s", spans.count, error.message)
                break
            except Unavailable as error:
                if attempt + 1 == _TRIES or self._given_up.wait(_PAUSE_S * 2**attempt):
                    _log.warning("%d spans are lost: %s", spans.count, error.message)
                    break
            except Exception:  # noqa: BLE001 # whatever it is, the next ones get their chance
                _log.exception("%d spans are lost", spans.count)
                break
        with self._lock:
            if not self._abandoned:  # else they are counted
                self._delivered += spans.count - lost
                self._spans_lost += lost
                self._in_hand = 0
        return Spans(self._version)

    def _abandon(self) -> None:
        """There was no time to send the rest: it counts as lost, whatever becomes of it."""
        left = 0
        with contextlib.suppress(queue.Empty):
            while True:
                left += self._waiting.get_nowait() is not None
        with self._lock:
            self._abandoned = True
            self._requests_lost += left
            self._spans_lost += self._in_hand
        self._given_up.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)  # so that the thread ends when it comes back

    def close(self) -> None:
        """Send what waits, within seconds; what was lost is said. May be called twice."""
        if not self._closing.is_set():
            self._closing.set()
            deadline = time.monotonic() + _CLOSE_S
            with contextlib.suppress(queue.Full):
                self._waiting.put(None, timeout=_CLOSE_S)
            self._thread.join(max(0.0, deadline - time.monotonic()))
            if self._thread.is_alive():
                self._abandon()
            self._destination.close()
            counts = self.counts()
            if counts.lost:
                _log.warning(
                    "%d requests have no spans, they came faster than spans can be sent; %d spans were not delivered",
                    counts.requests_lost,
                    counts.spans_lost,
                )


def sampler(ratio: float, slow_ms: float, forced_per_s: float, draw: Callable[[], float] = random.random) -> Sampler:
    """The sampler of a process."""
    return Sampler(ratio, draw, slow_ms=slow_ms, forced_per_s=forced_per_s)
