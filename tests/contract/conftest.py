"""What the contract suite of the transports runs on: one link per row of the table, and what a row cannot do."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pytest

from services import errors, transports
from services.errors import ServiceError
from services.transports.transport import Delivery, Handle, Listener, Response, Transport


class Capabilities(NamedTuple):
    """What a row may opt out of, each with its reason."""

    shares_address: bool  # several listeners on one address share the work
    absent_listener_is_known: bool  # a call that nobody listens to fails as Unavailable, before its deadline


CAPABILITIES: dict[str, Capabilities] = {
    # An address is one listener's, as a port is one process's.
    "memory": Capabilities(shares_address=False, absent_listener_is_known=True),
    # A port is one process's (SO_REUSEPORT is off); a Service in front of pods shares, which is not ours to test.
    "grpc": Capabilities(shares_address=False, absent_listener_is_known=True),
    # A broker keeps requests for listeners that are yet to come: only the deadline says that nobody came.
    "kafka": Capabilities(shares_address=True, absent_listener_is_known=False),
    "kafka+python": Capabilities(shares_address=True, absent_listener_is_known=False),
    "redis": Capabilities(shares_address=True, absent_listener_is_known=False),
}

# Every row of the table is here, by construction: a new one without capabilities fails the collection.
ROWS = [
    pytest.param(scheme, marks=[pytest.mark.kafka] if scheme.startswith("kafka") else [], id=scheme)
    for scheme in transports.TABLE
    if CAPABILITIES[scheme]
]

SERVICE_ERRORS = {
    cls.kind: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, ServiceError) and cls.kind != "configuration"
}


class Link:
    """One address of a row, with as many ends as a test asks for."""

    def __init__(self, scheme: str, bootstrap: str | None) -> None:
        self.scheme = scheme
        self.capabilities = CAPABILITIES[scheme]
        self._threads = set(threading.enumerate())
        name = f"contract-{uuid.uuid4().hex[:12]}"
        self._url = {
            "memory": f"memory://{name}?workers=4",
            "grpc": "grpc://127.0.0.1:0",
        }.get(scheme) or f"{scheme}://{bootstrap}/{name}?workers=4&session_ms=3000"
        self._address: str | None = None
        self._ends: list[Transport | Listener] = []

    def listen(self, handle: Handle) -> Listener:
        listener = transports.listen(self._url)
        self._ends.append(listener)
        listener.serve(handle)
        self._address = listener.address
        return listener

    def connect(self) -> Transport:
        transport = transports.connect(self._address or self._url)
        self._ends.append(transport)
        return transport

    def close(self) -> None:
        for end in self._ends:  # listeners first, as they came: a caller must survive it
            end.close()

    def leaked_threads(self, deadline_s: float = 10.0) -> set[threading.Thread]:
        """Threads that this link has started and that are there still when `deadline_s` has passed."""
        deadline = time.monotonic() + deadline_s
        while leaked := set(threading.enumerate()) - self._threads:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return leaked


class Obedient:
    """A handler that does what the header `do` says: `echo`, `raise KIND`, `fail KIND`, `later MS`, `size N`."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="obedient")

    def __call__(self, delivery: Delivery) -> Future[Response]:
        self.deliveries.append(delivery)
        verb, _, argument = delivery.headers.get("do", b"echo").decode().partition(" ")
        future: Future[Response] = Future()
        answer = Response(delivery.payload, delivery.headers)
        if verb == "raise":
            raise self._error(argument)
        if verb == "fail":
            future.set_exception(self._error(argument))
        elif verb == "later":
            self._pool.submit(self._later, future, int(argument) / 1e3, answer)
        elif verb == "size":
            future.set_result(Response(bytes(int(argument)), {}))
        else:
            future.set_result(answer)
        return future

    @staticmethod
    def _later(future: Future[Response], delay_s: float, answer: Response) -> None:
        time.sleep(delay_s)
        future.set_result(answer)

    @staticmethod
    def _error(kind: str) -> Exception:
        cls = SERVICE_ERRORS.get(kind)
        return cls(f"the cause, and the remedy of {kind}") if cls is not None else ZeroDivisionError(kind)

    def close(self) -> None:
        self._pool.shutdown()


def _bootstrap(request: pytest.FixtureRequest, scheme: str) -> str | None:
    broker = "broker" if scheme.startswith("kafka") else scheme if scheme == "redis" else None
    return None if broker is None else str(request.getfixturevalue(broker).bootstrap)


@pytest.fixture(params=ROWS, scope="module")
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def obedient() -> Iterator[Obedient]:
    handler = Obedient()
    yield handler
    handler.close()


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest, scheme: str) -> Iterator[Link]:
    """A link for tests that leave it as it is."""
    link = Link(scheme, _bootstrap(request, scheme))
    yield link
    link.close()


@pytest.fixture(scope="module")
def transport(shared: Link, obedient: Obedient) -> Transport:
    """A caller whose requests an `Obedient` handler answers."""
    shared.listen(obedient)
    transport = shared.connect()
    transport.request(b"", {}, 30).result(30)  # a group has formed
    return transport


@pytest.fixture
def link(request: pytest.FixtureRequest, scheme: str, obedient: Obedient) -> Iterator[Link]:
    """A link for tests that close, kill, or count."""
    link = Link(scheme, _bootstrap(request, scheme))
    yield link
    link.close()


@pytest.fixture
def require(link: Link) -> Callable[[str], None]:
    """Skip where the row has declared that it cannot."""

    def check(capability: str) -> None:
        if not getattr(link.capabilities, capability):
            pytest.skip(f"{link.scheme}: not '{capability}', see CAPABILITIES")

    return check
