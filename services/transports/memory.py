"""Within one process: `memory://name?workers=1&backlog=1024`. For tests and for runs in a single process.

The bytes cross a bounded queue to worker threads, and errors cross in their wire form, so that what works here does not
work for being too near. `workers`: threads that call the handler. `backlog`: calls that may wait for one of them.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from services.accounting import monotonic_ns
from services.errors import (
    ConfigurationError,
    DeadlineExceeded,
    Failure,
    Internal,
    Overloaded,
    PayloadTooLarge,
    ServiceError,
    Unavailable,
    from_failure,
    to_failure,
)
from services.transports.pending import Pending
from services.transports.transport import (
    MAX_PAYLOAD_BYTES,
    Afterwards,
    Delivery,
    Handle,
    Reply,
    Response,
    answer_of,
)

_JOIN_S = 2.0


class _Addresses:
    """Name -> listener."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, MemoryListener] = {}

    def bind(self, name: str, listener: MemoryListener) -> None:
        with self._lock:
            if name in self._listeners:
                raise ConfigurationError(f"memory://{name} has a listener already; close it, or use another name")
            self._listeners[name] = listener

    def release(self, name: str, listener: MemoryListener) -> None:
        with self._lock:
            if self._listeners.get(name) is listener:
                del self._listeners[name]

    def find(self, name: str) -> MemoryListener | None:
        with self._lock:
            return self._listeners.get(name)


# An address needs an address space. This is the process's, as the table of ports is the kernel's.
_ADDRESSES = _Addresses()

_OPTIONS = {"workers": 1, "backlog": 1024}


def connect(url: str) -> MemoryTransport:
    """The caller's end. A listener may come later. Raises `ConfigurationError`."""
    name, _ = _parse(url)
    return MemoryTransport(name)


def listen(url: str) -> MemoryListener:
    """The callee's end. Raises `ConfigurationError` for a name that is taken."""
    name, options = _parse(url)
    listener = MemoryListener(name, options["workers"], options["backlog"])
    _ADDRESSES.bind(name, listener)
    return listener


def _parse(url: str) -> tuple[str, dict[str, int]]:
    parts = urlsplit(url)
    if not parts.netloc or parts.path:
        raise ConfigurationError(f"link '{url}' is not memory://name")
    options = dict(_OPTIONS)
    for key, value in parse_qsl(parts.query):
        if key not in options:
            raise ConfigurationError(f"link '{url}' has unknown option '{key}'; known: {', '.join(_OPTIONS)}")
        if not value.isdecimal() or int(value) < 1:
            raise ConfigurationError(f"link '{url}': option {key} is '{value}', not a positive whole number")
        options[key] = int(value)
    return parts.netloc, options


class _Call(NamedTuple):
    payload: bytes
    headers: dict[str, bytes]
    timeout: float
    arrived_ns: int
    answer: Callable[[Response | Failure], None]


class MemoryTransport:
    """See `Transport`."""

    brokered = False
    system = "memory"

    def __init__(self, name: str) -> None:
        self._name = self.destination = name
        self._ids = itertools.count()
        self._pending = Pending(f"memory://{name}")
        self._closed = threading.Event()

    def request(self, payload: bytes, headers: Mapping[str, bytes], timeout: float) -> Future[Reply]:
        """See `Transport.request`."""
        listener = _ADDRESSES.find(self._name)
        error: ServiceError | None = None
        if len(payload) > MAX_PAYLOAD_BYTES:
            error = PayloadTooLarge(f"the message has {len(payload)} bytes; this link carries {MAX_PAYLOAD_BYTES}")
        elif timeout <= 0:
            error = DeadlineExceeded("no time was left for the call")
        elif self._closed.is_set():
            error = Unavailable(f"the link to memory://{self._name} is closed")
        elif listener is None:
            error = Unavailable(f"nothing listens on memory://{self._name} in this process")
        if listener is None or error is not None:
            refused: Future[Reply] = Future()
            refused.set_exception(error)
            return refused
        id_ = str(next(self._ids))
        future = self._pending.add(id_, timeout)

        def answer(response: Response | Failure) -> None:
            if isinstance(response, Failure):
                self._pending.fail(id_, from_failure(response), answered=True)
            else:
                self._pending.answer(id_, Reply(response.payload, dict(response.headers), monotonic_ns()))

        refusal = listener.offer(_Call(payload, dict(headers), timeout, monotonic_ns(), answer))
        if refusal is not None:
            self._pending.fail(id_, refusal)
        return future

    def healthy(self) -> bool:
        """See `Transport.healthy`."""
        return not self._closed.is_set() and _ADDRESSES.find(self._name) is not None

    def counters(self) -> Mapping[str, int]:
        """See `Transport.counters`."""
        return {"duplicates": self._pending.duplicates, "late": self._pending.late}

    def close(self) -> None:
        """See `Transport.close`."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._pending.close(Unavailable(f"the link to memory://{self._name} was closed while the call was in flight"))


class MemoryListener:
    """See `Listener`."""

    def __init__(self, name: str, workers: int, backlog: int) -> None:
        self.address = f"memory://{name}"
        self._name = name
        self._backlog = backlog
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._waiting = 0
        self._in_hand: dict[int, _Call] = {}  # by identity: taken over and not answered
        self._handle: Handle | None = None
        self._draining = False
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"memory-worker-{i}", daemon=True) for i in range(workers)
        ]

    def serve(self, handle: Handle) -> None:
        """See `Listener.serve`."""
        self._handle = handle
        for thread in self._threads:
            thread.start()

    def offer(self, call: _Call) -> ServiceError | None:
        """Queue a call, or say why not."""
        with self._changed:
            if self._draining or self._closed:
                return Unavailable(f"{self.address} is closing")
            if self._waiting >= self._backlog:
                return Overloaded(f"{self._backlog} calls wait at {self.address}; try later, or set ?backlog=")
            self._waiting += 1
            self._in_hand[id(call)] = call
            self._queue.put(call)
        return None

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            with self._changed:
                self._waiting -= 1
                if id(call) not in self._in_hand:  # closed meanwhile
                    continue
            picked_up = monotonic_ns()
            after = Afterwards()
            delivery = Delivery(
                call.payload, call.headers, call.arrived_ns, picked_up, picked_up, timeout=call.timeout, after=after
            )
            try:
                if self._handle is None:
                    raise Internal("this listener does not serve yet")
                future = self._handle(delivery)
            except Exception as error:  # noqa: BLE001 # a handler that raises is answered like one that fails
                self._finish(call, to_failure(error))
                after.run()
                continue
            future.add_done_callback(lambda done, call=call, after=after: self._complete(call, done, after))  # type: ignore[misc]

    def _complete(self, call: _Call, done: Future[Response], after: Afterwards) -> None:
        try:
            self._finish(call, answer_of(done))
        finally:
            after.run()

    def _finish(self, call: _Call, response: Response | Failure) -> None:
        with self._changed:
            if self._in_hand.pop(id(call), None) is None:
                return
            self._changed.notify_all()
        call.answer(response)

    def healthy(self) -> bool:
        """See `Listener.healthy`."""
        return self._handle is not None and not self._draining and not self._closed

    def in_hand(self) -> int:
        """See `Listener.in_hand`."""
        return len(self._in_hand)

    def counters(self) -> Mapping[str, int]:
        """See `Listener.counters`: nothing to count."""
        return {}

    def lag(self) -> Mapping[int, int]:
        """See `Listener.lag`: no broker."""
        return {}

    def drain(self, timeout: float) -> bool:
        """See `Listener.drain`."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._in_hand, timeout)

    def close(self) -> None:
        """See `Listener.close`."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            unfinished = list(self._in_hand.values())
        _ADDRESSES.release(self._name, self)
        for call in unfinished:
            self._finish(call, to_failure(Unavailable(f"{self.address} was closed while the call was in flight")))
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(_JOIN_S)  # a handler that blocks on is left behind
