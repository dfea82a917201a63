"""The contract of a transport: it moves bytes and headers, there and back, and knows nothing else.

One suite, `tests/contract/test_transports.py`, runs over every row of the table in `services/transports/__init__.py`.

* `request` never blocks for the peer: it returns a Future that always completes, with a `Reply` or a `ServiceError`:
  `DeadlineExceeded` when `timeout` seconds pass (within 250 ms), `Unavailable` when the peer or broker cannot be
  reached or the transport closes, `PayloadTooLarge`, or the error that the handler answered with, of the same class.
* Payloads of 0 bytes to `MAX_PAYLOAD_BYTES` arrive intact, as do headers (names: lower-case ASCII; values: bytes).
* Replies may overtake each other; each reaches its own request. The first reply wins, others are counted.
* No retries: they falsify time.
* Delivery is at least once where there is a broker, at most once elsewhere; handlers are idempotent.
* What a handler gives to `Delivery.after` is called once: when its answer, or its failure, is on its way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from typing import NamedTuple, Protocol

from services.errors import Failure, Internal, to_failure

_log = logging.getLogger(__name__)

MAX_PAYLOAD_BYTES = 16 * 1024 * 1024

# Times are integer nanoseconds of this process's monotonic clock.


class Reply(NamedTuple):
    """What came back. `arrived_ns`: when the transport had it in this process.

    `published_ns`: when the broker acknowledged the request, where there is one and it has done so by then.
    """

    payload: bytes
    headers: Mapping[str, bytes]
    arrived_ns: int
    published_ns: int | None = None


Later = Callable[[], None]


class Afterwards:
    """What waits until a delivery's answer has been handed over: bookkeeping that its caller need not wait for.

    Thread-safe. A listener has one per delivery, and runs it. What is given to it after that is called at once: the
    caller's time was spent, say, and was answered for a handler that is still at work.
    """

    __slots__ = ("_later", "_lock", "_over")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._later: list[Later] = []
        self._over = False

    def __call__(self, later: Later) -> None:
        """Call `later` when the answer is on its way; what it raises is logged, and harms nobody."""
        with self._lock:
            if not self._over:
                self._later.append(later)
                return
        _tried(later)

    def run(self) -> None:
        """The answer is on its way, or nobody waits for it any more. May be called twice."""
        with self._lock:
            self._over = True
            waiting, self._later = self._later, []
        for later in waiting:
            _tried(later)


def _tried(later: Later) -> None:
    try:
        later()
    except Exception:  # noqa: BLE001 # the request is answered, and the thread is needed for the next one
        _log.exception("what was to be done after an answer failed")


def at_once(later: Later) -> None:
    """Where nobody hands an answer over, there is nothing to wait for."""
    later()


class Tried(NamedTuple):
    """What a listener did before with a record that it keeps: it was answered `times` times with what is no answer.

    `until_ns`: when it was handed out anew.
    """

    times: int
    until_ns: int


class Delivery(NamedTuple):
    """What a listener hands to the handler.

    `arrived_ns`: the process learned of it (gRPC: the call was queued for a worker; broker: the poll returned).
    `picked_up_ns`: a worker took it. `received_ns`: its bytes were complete. In this order, never decreasing.
    `attempt`: 1, or more for a record that another process began with. `brokered`: it waited in a broker.
    `timeout`: seconds that the transport itself grants (gRPC's deadline), None where it knows of none.
    `position`: partition and offset of the record. `appended_ns`: when the broker took it, by the broker's own clock,
    since the epoch; None where that is not known. `after`: takes what is to be done when the answer is on its way; to
    be given before the handler's Future is done. `tried`: it is not the first time that this process has it in hand;
    it arrived before the first, and was picked up for this one.
    """

    payload: bytes
    headers: Mapping[str, bytes]
    arrived_ns: int
    picked_up_ns: int
    received_ns: int
    attempt: int = 1
    brokered: bool = False
    timeout: float | None = None
    position: tuple[int, int] | None = None
    appended_ns: int | None = None
    after: Callable[[Later], None] = at_once
    tried: Tried | None = None


class Response(NamedTuple):
    """What the handler answers."""

    payload: bytes
    headers: Mapping[str, bytes]


# A handler may block (it has a worker where `Listener.concurrent` says so) or return a Future that completes later.
# An error is an exception of the Future; a `ServiceError` crosses with its class, any other as `Internal`.
Handle = Callable[[Delivery], "Future[Response]"]


def fitting(response: Response) -> Response:
    """As it is. Raises `Internal` for an answer that no link carries."""
    size = len(response.payload)
    if size > MAX_PAYLOAD_BYTES:
        raise Internal(f"the answer has {size} bytes; the link carries {MAX_PAYLOAD_BYTES}")
    return response


def answer_of(done: Future[Response]) -> Response | Failure:
    """What crosses for a handler's Future that is done."""
    try:
        return fitting(done.result())
    except CancelledError:
        return to_failure(Internal("the handler's work was cancelled"))
    except BaseException as error:  # noqa: BLE001 # whatever it is, the caller must learn of it
        return to_failure(error)


class Transport(Protocol):
    """The caller's end."""

    brokered: bool  # requests wait in a broker; the link carves `broker_wait` out of `transit`
    system: str  # what moves the bytes: "memory", "grpc", "kafka"
    destination: str  # where requests go: host:port, a topic, a name

    def request(self, payload: bytes, headers: Mapping[str, bytes], timeout: float) -> Future[Reply]:
        """Send; the Future completes on a thread of the transport. Raises nothing: errors are in the Future."""
        ...

    def healthy(self) -> bool:
        """Whether the peer or the broker can be reached, as far as is known; True where only a call can tell."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Monotonic counts: `duplicates` (replies after the first), `late` (replies after the deadline), ..."""
        ...

    def close(self) -> None:
        """Fail what is in flight with `Unavailable` at once and stop all threads; may be called twice."""
        ...


class Listener(Protocol):
    """The callee's end."""

    address: str  # what a peer connects to, as a URL, the port that was really bound

    def serve(self, handle: Handle) -> None:
        """Start delivering to `handle`, on threads of the listener; returns at once. Called once."""
        ...

    def healthy(self) -> bool:
        """Whether requests can reach this listener now (a broker that is away: False)."""
        ...

    def in_hand(self) -> int:
        """Calls or records that were taken in and are not answered, those that wait for a worker included."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Monotonic counts: `dead_letters` (records put aside), ..."""
        ...

    def lag(self) -> Mapping[int, int]:
        """By partition that this listener holds: records from the lowest that is not answered to its end.

        Asks the broker: blocks for a second or two at the most, and raises `Unavailable`. Empty where there is no
        broker, or none that can be reached.
        """
        ...

    def drain(self, timeout: float) -> bool:
        """Take nothing new, finish and answer what is in hand; False if `timeout` seconds were not enough."""
        ...

    def close(self) -> None:
        """Stop all threads; what is unfinished is left to a peer (broker) or fails. May be called twice."""
        ...
