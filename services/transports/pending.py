"""Calls that wait for a reply: each ends once, with its reply, an error, or its deadline."""

from __future__ import annotations

import heapq
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future

from services.errors import DeadlineExceeded, ServiceError
from services.transports.transport import Reply

_REMEMBERED = 4096


class Pending:
    """Thread-safe. One thread of its own ends calls at their deadlines."""

    def __init__(self, what: str) -> None:
        """`what` names the link in messages."""
        self._what = what
        self._changed = threading.Condition()
        self._calls: dict[str, tuple[Future[Reply], float, float]] = {}
        self._deadlines: list[tuple[float, str]] = []
        # Ids of calls that ended, the oldest forgotten first: tells a duplicate from a late reply.
        self._ended: OrderedDict[str, bool] = OrderedDict()
        self._closed = False
        self.duplicates = 0
        self.late = 0
        self._thread = threading.Thread(target=self._expire, name="pending-expiry", daemon=True)
        self._thread.start()

    def add(self, id_: str, timeout: float) -> Future[Reply]:
        """A call that ends within `timeout` seconds."""
        future: Future[Reply] = Future()
        deadline = time.monotonic() + timeout
        with self._changed:
            self._calls[id_] = (future, deadline, timeout)
            heapq.heappush(self._deadlines, (deadline, id_))
            if self._deadlines[0][1] == id_:  # earlier than what the thread waits for
                self._changed.notify()
        return future

    def answer(self, id_: str, reply: Reply) -> None:
        """End a call with its reply; a call that has ended counts it."""
        future = self._end(id_, answered=True)
        if future is not None:
            future.set_result(reply)

    def fail(self, id_: str, error: ServiceError, *, answered: bool = False) -> None:
        """End a call with an error; `answered`: the peer's."""
        future = self._end(id_, answered=answered)
        if future is not None:
            future.set_exception(error)

    def fail_all(self, error: ServiceError) -> None:
        """End all."""
        with self._changed:
            ids = list(self._calls)
        for id_ in ids:
            self.fail(id_, error)

    def _end(self, id_: str, *, answered: bool) -> Future[Reply] | None:
        with self._changed:
            call = self._calls.pop(id_, None)
            if call is None:
                if answered:
                    if self._ended.get(id_):
                        self.duplicates += 1
                    else:
                        self.late += 1
                return None
            self._ended[id_] = answered
            while len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
            return call[0]

    def _expire(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                due = None
                while self._deadlines:
                    deadline, id_ = self._deadlines[0]
                    if id_ in self._calls and deadline > now:
                        break
                    heapq.heappop(self._deadlines)
                    if id_ in self._calls:
                        due = (id_, self._calls[id_][2])
                        break
                if due is None:
                    self._changed.wait(self._deadlines[0][0] - now if self._deadlines else None)
                    continue
            self.fail(due[0], DeadlineExceeded(f"no answer over {self._what} within {due[1]:.3f} s"))

    def close(self, error: ServiceError) -> None:
        """End all calls with `error`, and the thread."""
        self.fail_all(error)
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(5)
