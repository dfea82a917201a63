"""Calls that wait for a reply: each ends once, with its reply, an error, or its deadline."""

from __future__ import annotations

import heapq
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from services.errors import DeadlineExceeded, Failure, ServiceError, from_failure
from services.transports.transport import Reply

# Calls that ended, remembered to tell a duplicate from a late reply.
_REMEMBERED = 4096
# Deadlines of calls that have ended stay in the heap until they come up, or until they outnumber the others.
_STALE = 1024


@dataclass(slots=True)
class _Call:
    future: Future[Reply]
    timeout: float
    published_ns: int | None = None


class Pending:
    """Thread-safe. One thread of its own ends calls at their deadlines."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`what` names the link in messages. `clock`: seconds."""
        self._what = what
        self._clock = clock
        self._changed = threading.Condition()
        self._calls: dict[str, _Call] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._earlier = 0  # counts deadlines that came before all others
        # The oldest is forgotten first; the value: whether it ended with the peer's answer.
        self._ended: OrderedDict[str, bool] = OrderedDict()
        self._closed: ServiceError | None = None
        self._duplicates = 0
        self._late = 0
        self._thread = threading.Thread(target=self._run, name="pending-expiry", daemon=True)
        self._thread.start()

    @property
    def duplicates(self) -> int:
        """Replies to calls that had been answered."""
        return self._duplicates

    @property
    def late(self) -> int:
        """Replies to calls that had ended otherwise."""
        return self._late

    def add(self, id_: str, timeout: float) -> Future[Reply]:
        """A call that ends within `timeout` seconds; at once when this is closed."""
        future: Future[Reply] = Future()
        future.set_running_or_notify_cancel()  # a caller that cancels cannot take the future from under us
        with self._changed:
            closed = self._closed
            if closed is None:
                self._calls[id_] = _Call(future, timeout)
                if len(self._deadlines) > 2 * len(self._calls) + _STALE:
                    self._deadlines = [entry for entry in self._deadlines if entry[1] in self._calls]
                    heapq.heapify(self._deadlines)
                heapq.heappush(self._deadlines, (self._clock() + timeout, id_))
                if self._deadlines[0][1] == id_:  # earlier than what the thread waits for
                    self._earlier += 1
                    self._changed.notify()
        if closed is not None:
            future.set_exception(closed)
        return future

    def waits(self, id_: str) -> bool:
        """Whether the call has not ended."""
        return id_ in self._calls

    def published(self, id_: str, ns: int) -> None:
        """The broker has acknowledged the request, then; its reply says so, unless it was faster."""
        call = self._calls.get(id_)
        if call is not None:
            call.published_ns = ns

    def answer(self, id_: str, reply: Reply) -> None:
        """End a call with its reply; for a call that has ended, count it."""
        call = self._end(id_, answered=True)
        if call is not None:
            call.future.set_result(reply._replace(published_ns=call.published_ns))

    def fail(self, id_: str, error: ServiceError, *, answered: bool = False) -> None:
        """End a call with an error; `answered`: the peer's."""
        call = self._end(id_, answered=answered)
        if call is not None:
            call.future.set_exception(error)

    def refuse(self, id_: str, failure: bytes) -> None:
        """End a call with the error that its peer answered: the kind, a line break, the message."""
        kind, _, message = failure.decode(errors="replace").partition("\n")
        self.fail(id_, from_failure(Failure(kind, message)), answered=True)

    def fail_all(self, error: ServiceError) -> None:
        """End all."""
        with self._changed:
            ids = list(self._calls)
        for id_ in ids:
            self.fail(id_, error)

    def _end(self, id_: str, *, answered: bool) -> _Call | None:
        with self._changed:
            call = self._calls.pop(id_, None)
            if call is None:
                if answered and self._ended.get(id_):
                    self._duplicates += 1
                elif answered:
                    self._late += 1
                return None
            self._ended[id_] = answered
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
            return call

    def expire(self) -> float | None:
        """End the calls whose time is up; seconds until the next one's is, None where none waits."""
        while True:
            with self._changed:
                due = self._due()
                if due is None:
                    return max(0.0, self._deadlines[0][0] - self._clock()) if self._deadlines else None
            # Outside of the lock: callbacks of the future run here.
            self.fail(due[0], DeadlineExceeded(f"no answer over {self._what} within {due[1].timeout:.3f} s"))

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed is not None:
                    return
                earlier = self._earlier
            wait = self.expire()
            with self._changed:
                # What came while calls were ended is looked at before the wait.
                self._changed.wait_for(lambda: self._closed is not None or self._earlier != earlier, wait)  # noqa: B023

    def _due(self) -> tuple[str, _Call] | None:
        """A call whose time is up; forgets deadlines of calls that have ended. With the lock held."""
        while self._deadlines:
            deadline, id_ = self._deadlines[0]
            call = self._calls.get(id_)
            if call is not None and deadline > self._clock():
                return None
            heapq.heappop(self._deadlines)
            if call is not None:
                return id_, call
        return None

    def close(self, error: ServiceError) -> None:
        """End all calls with `error`, those to come too, and the thread."""
        with self._changed:
            self._closed = error
            self._changed.notify()
        self.fail_all(error)
        if self._thread is not threading.current_thread():
            self._thread.join(5)
