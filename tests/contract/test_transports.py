"""The contract of `services/transports/transport.py`, for every row of the table."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services import transports
from services.errors import (
    ConfigurationError,
    DeadlineExceeded,
    Internal,
    PayloadTooLarge,
    ServiceError,
    Unavailable,
)
from services.transports import memory
from services.transports.transport import MAX_PAYLOAD_BYTES, Delivery, Reply, Response, Transport
from tests.contract.conftest import SERVICE_ERRORS, Link, Obedient

# kafka-python reads its message schemas, when it is imported, in a way that Python 3.11 and 3.12 frown upon.
pytestmark = pytest.mark.filterwarnings(r"ignore:(open|read)_text is deprecated:DeprecationWarning")

TIMEOUT_S = 30.0
# What the contract allows beyond a call's time-out, and what a loaded machine of two cores adds to that.
LATE_S = 1.0


def error_of(future: Future[Reply], within: float = TIMEOUT_S) -> ServiceError:
    error = future.exception(within)
    assert isinstance(error, ServiceError), repr(error)
    return error


class Gate:
    """A handler that answers when it is told to."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.waiting: list[tuple[Delivery, Future[Response]]] = []

    def __call__(self, delivery: Delivery) -> Future[Response]:
        future: Future[Response] = Future()
        self.waiting.append((delivery, future))
        self.entered.release()
        return future

    def wait_entered(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.entered.acquire(timeout=TIMEOUT_S), "the request did not arrive"

    def open(self) -> None:
        for delivery, future in self.waiting:
            if not future.done():
                future.set_result(Response(delivery.payload, {}))


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


# --- bytes and headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 150_000, 4 * 1024 * 1024 + 1, MAX_PAYLOAD_BYTES])
def test_payloads_cross_intact_both_ways(transport: Transport, size: int) -> None:
    payload = os.urandom(size)
    reply = transport.request(payload, {}, TIMEOUT_S).result(TIMEOUT_S)
    assert reply.payload == payload


def test_a_payload_above_the_limit_is_refused(transport: Transport) -> None:
    error = error_of(transport.request(bytes(MAX_PAYLOAD_BYTES + 1), {}, TIMEOUT_S))
    assert type(error) is PayloadTooLarge
    assert str(MAX_PAYLOAD_BYTES) in error.message


def test_an_answer_above_the_limit_is_a_failure_not_a_silence(transport: Transport) -> None:
    future = transport.request(b"", {"do": b"size %d" % (MAX_PAYLOAD_BYTES + 1)}, TIMEOUT_S)
    error = error_of(future)
    assert type(error) is Internal
    assert str(MAX_PAYLOAD_BYTES + 1) in error.message


def test_headers_cross_intact_both_ways(transport: Transport, obedient: Obedient) -> None:
    headers = {
        "traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "ledger": bytes(range(256)),
        "empty": b"",
        "nul": b"\0",
        "newline": b"a\nb",
        "with-dash_and.dot9": b"x",
    }
    reply = transport.request(b"p", headers, TIMEOUT_S).result(TIMEOUT_S)
    received = obedient.deliveries[-1].headers
    assert {name: received[name] for name in headers} == headers
    assert {name: reply.headers[name] for name in headers} == headers
    assert not [name for name in (*received, *reply.headers) if name.startswith("bi-")], (
        "the transport's own stay inside"
    )


names = st.from_regex(r"[a-z][a-z0-9_.-]{0,20}", fullmatch=True).filter(
    lambda name: (
        not name.startswith(("bi-", "grpc-"))
        and not name.endswith("-bin")
        and name not in ("do", "te", "connection", "host", "traceparent", "tracestate", "user-agent", "content-type")
    )
)
messages = {"payload": st.binary(max_size=2000), "headers": st.dictionaries(names, st.binary(max_size=100), max_size=8)}


@given(**messages)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_message_crosses(transport: Transport, payload: bytes, headers: dict[str, bytes]) -> None:
    reply = transport.request(payload, headers, TIMEOUT_S).result(TIMEOUT_S)
    assert reply.payload == payload
    assert {name: reply.headers.get(name) for name in headers} == headers


def test_times_are_in_order(transport: Transport, obedient: Obedient) -> None:
    before = time.monotonic_ns()
    reply = transport.request(b"x" * 1000, {}, TIMEOUT_S).result(TIMEOUT_S)
    delivery = obedient.deliveries[-1]
    times = (before, delivery.arrived_ns, delivery.picked_up_ns, delivery.received_ns)
    assert list(times) == sorted(times)
    assert delivery.received_ns < reply.arrived_ns <= time.monotonic_ns()
    assert delivery.brokered == transport.brokered
    assert delivery.attempt == 1


# --- many at once ----------------------------------------------------------------------------------------------------


def test_replies_that_overtake_each_other_reach_their_own_request(transport: Transport) -> None:
    order = random.Random(7)  # noqa: S311 # a shuffle, repeatable
    calls = {
        number: transport.request(b"%d" % number, {"do": b"later %d" % order.randrange(30)}, TIMEOUT_S)
        for number in range(200)
    }
    for number, future in calls.items():
        assert future.result(TIMEOUT_S).payload == b"%d" % number


def test_callers_on_many_threads(transport: Transport) -> None:
    wrong: list[object] = []

    def call(thread: int) -> None:
        for number in range(20):
            payload = b"%d-%d" % (thread, number)
            try:
                reply = transport.request(payload, {}, TIMEOUT_S).result(TIMEOUT_S)
            except ServiceError as error:
                wrong.append(error)
                return
            if reply.payload != payload:
                wrong.append(reply.payload)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert not wrong


def test_two_callers_and_two_listeners_share_the_work(link: Link, require: Callable[[str], None]) -> None:
    require("shares_address")
    seen: list[list[bytes]] = [[], []]

    def handler(index: int) -> Callable[[Delivery], Future[Response]]:
        def handle(delivery: Delivery) -> Future[Response]:
            seen[index].append(delivery.payload)
            future: Future[Response] = Future()
            future.set_result(Response(delivery.payload, {"from": b"%d" % index}))
            return future

        return handle

    link.listen(handler(0))
    callers = [link.connect(), link.connect()]
    callers[0].request(b"warm", {}, TIMEOUT_S).result(TIMEOUT_S)
    link.listen(handler(1))
    numbers = itertools.count()
    deadline = time.monotonic() + TIMEOUT_S
    while not all(seen) and time.monotonic() < deadline:  # until the group has rebalanced
        callers[0].request(b"warm %d" % next(numbers), {}, TIMEOUT_S).result(TIMEOUT_S)
    for payloads in seen:
        payloads.clear()
    calls = [
        (b"%d of %d" % (number, index), caller.request(b"%d of %d" % (number, index), {}, TIMEOUT_S))
        for number in range(100)
        for index, caller in enumerate(callers)
    ]
    for payload, future in calls:
        assert future.result(TIMEOUT_S).payload == payload
    assert all(seen), "both took part"
    # At least once: what is in hand when the group rebalances is handled by both, and answered once. That may be one of
    # the first requests, too, which only formed the group.
    handled = {payload for payload in seen[0] + seen[1] if not payload.startswith(b"warm")}
    assert handled == {payload for payload, _ in calls}


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_deadline_passes_in_time(transport: Transport) -> None:
    begin = time.monotonic()
    future = transport.request(b"", {"do": b"later 2500"}, 0.4)
    error = error_of(future)
    took = time.monotonic() - begin
    assert type(error) is DeadlineExceeded
    assert 0.39 <= took <= 0.4 + LATE_S


def test_no_time_at_all(transport: Transport) -> None:
    assert type(error_of(transport.request(b"", {}, 0.0))) is DeadlineExceeded
    assert type(error_of(transport.request(b"", {}, -1.0))) is DeadlineExceeded


def test_a_late_reply_completes_nothing_else(transport: Transport) -> None:
    late_before = transport.counters().get("late")
    late = [transport.request(b"late", {"do": b"later 900"}, 0.3) for _ in range(5)]
    for future in late:
        assert type(error_of(future)) is DeadlineExceeded
    others = [transport.request(b"%d" % n, {"do": b"later 1000"}, TIMEOUT_S) for n in range(20)]
    assert [future.result(TIMEOUT_S).payload for future in others] == [b"%d" % n for n in range(20)]
    if late_before is not None:  # where the transport itself can tell
        assert transport.counters()["late"] >= late_before + 5


def test_a_caller_that_cancels_harms_nothing(transport: Transport) -> None:
    futures = [transport.request(b"%d" % n, {"do": b"later 50"}, TIMEOUT_S) for n in range(3)]
    assert not any(future.cancel() for future in futures), "what is on its way cannot be called back"
    assert [future.result(TIMEOUT_S).payload for future in futures] == [b"0", b"1", b"2"]


def test_request_does_not_wait_for_the_peer(link: Link, gate: Gate) -> None:
    listener = link.listen(gate)
    transport = link.connect()
    begin = time.monotonic()
    futures = [transport.request(bytes(100_000), {}, TIMEOUT_S) for _ in range(50)]
    assert time.monotonic() - begin < 5.0, "the peer would take for ever"
    gate.wait_entered()
    assert not any(future.done() for future in futures)
    transport.close()
    gate.open()
    listener.close()


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raise", "fail"])
@pytest.mark.parametrize("kind", sorted(SERVICE_ERRORS))
def test_an_error_crosses_as_its_class(transport: Transport, kind: str, how: str) -> None:
    error = error_of(transport.request(b"x", {"do": f"{how} {kind}".encode()}, TIMEOUT_S))
    expected = Internal if SERVICE_ERRORS[kind] is ServiceError else SERVICE_ERRORS[kind]
    assert type(error) is expected
    assert error.message == f"the cause, and the remedy of {kind}"


@pytest.mark.parametrize("how", ["raise", "fail"])
def test_a_foreign_exception_crosses_as_internal(transport: Transport, how: str) -> None:
    error = error_of(transport.request(b"x", {"do": f"{how} bug".encode()}, TIMEOUT_S))
    assert type(error) is Internal
    assert "ZeroDivisionError: bug" in error.message


# --- what waits for the answer ---------------------------------------------------------------------------------------


class Bookkeeper:
    """An `Obedient` handler that gives each delivery something to do afterwards, and notes when that is done."""

    def __init__(self, obedient: Obedient) -> None:
        self._obedient = obedient
        self.done: list[bytes] = []
        self.may_go_on = threading.Event()

    def __call__(self, delivery: Delivery) -> Future[Response]:
        def book() -> None:
            assert self.may_go_on.wait(TIMEOUT_S)
            self.done.append(delivery.payload)

        delivery.after(book)
        return self._obedient(delivery)

    def wait_done(self, *payloads: bytes) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while sorted(self.done) != sorted(payloads) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sorted(self.done) == sorted(payloads)


def test_what_is_to_be_done_after_an_answer_holds_it_up_never_and_is_done_once(link: Link, obedient: Obedient) -> None:
    # Given a handler whose bookkeeping does not end before it is told to
    books = Bookkeeper(obedient)
    link.listen(books)
    transport = link.connect()
    sent: list[bytes] = []
    for verb in ("echo", "later 30", "raise overloaded", "fail internal", "raise bug", f"size {MAX_PAYLOAD_BYTES + 1}"):
        # When a request is answered, or fails, in whatever way
        books.may_go_on.clear()
        sent.append(verb.encode())
        transport.request(sent[-1], {"do": verb.encode()}, TIMEOUT_S).exception(TIMEOUT_S)
        # Then its caller knows before the bookkeeping is over, which is done then
        assert books.done == sent[:-1]
        books.may_go_on.set()
        books.wait_done(*sent)
    # And never twice
    transport.close()
    books.wait_done(*sent)


def test_bookkeeping_that_fails_loses_neither_answers_nor_other_bookkeeping(link: Link) -> None:
    done: list[bytes] = []

    def handle(delivery: Delivery) -> Future[Response]:
        delivery.after(lambda: done.append(b"first %b" % delivery.payload))
        delivery.after(lambda: int("no number"))
        delivery.after(lambda: done.append(b"last %b" % delivery.payload))
        future: Future[Response] = Future()
        future.set_result(Response(delivery.payload, {}))
        return future

    link.listen(handle)
    transport = link.connect()
    # More than a listener has workers: none of them is lost
    payloads = [b"%d" % number for number in range(80)]
    for payload, future in [(payload, transport.request(payload, {}, TIMEOUT_S)) for payload in payloads]:
        assert future.result(TIMEOUT_S).payload == payload
    deadline = time.monotonic() + TIMEOUT_S
    while len(done) < 2 * len(payloads) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(done) == sorted(b"%b %b" % (when, payload) for payload in payloads for when in (b"first", b"last"))


def test_what_is_to_be_done_afterwards_is_done_for_who_did_not_wait_and_for_who_is_left(link: Link, gate: Gate) -> None:
    # Given a call whose time is spent, one that is waited for, and a listener that closes meanwhile
    done: list[bytes] = []

    def handle(delivery: Delivery) -> Future[Response]:
        answer = gate(delivery)
        answered: Future[Response] = Future()

        def late(_: Future[Response]) -> None:
            delivery.after(lambda: done.append(delivery.payload))
            answered.set_result(answer.result())

        answer.add_done_callback(late)
        return answered

    listener = link.listen(handle)
    transport = link.connect()
    hasty = transport.request(b"hasty", {}, 0.3)
    gate.wait_entered()
    assert type(error_of(hasty)) is DeadlineExceeded
    left = transport.request(b"left", {}, TIMEOUT_S)
    gate.wait_entered()
    closing = threading.Thread(target=listener.close)
    closing.start()
    # When the handler is done with both at last
    time.sleep(0.1)
    gate.open()
    closing.join(TIMEOUT_S)
    # Then what it gives to be done afterwards is done, once
    deadline = time.monotonic() + TIMEOUT_S
    while len(done) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(done) == [b"hasty", b"left"]
    transport.close()
    assert left.done()


# --- the end ---------------------------------------------------------------------------------------------------------


def test_closing_the_caller_fails_its_calls_at_once(link: Link, gate: Gate) -> None:
    link.listen(gate)
    transport = link.connect()
    futures = [transport.request(b"x", {}, TIMEOUT_S) for _ in range(3)]
    gate.wait_entered(3)
    begin = time.monotonic()
    closing = threading.Thread(target=transport.close)
    closing.start()
    for future in futures:
        assert type(error_of(future, 2)) is Unavailable
    assert time.monotonic() - begin < 1.0
    closing.join(10)
    assert not closing.is_alive()
    transport.close()
    error = error_of(transport.request(b"x", {}, TIMEOUT_S), 1)
    assert type(error) is Unavailable


def test_a_listener_that_closes_leaves_nobody_hanging(link: Link, gate: Gate) -> None:
    listener = link.listen(gate)
    transport = link.connect()
    futures = [transport.request(b"x", {}, 3.0) for _ in range(3)]
    begin = time.monotonic()
    gate.wait_entered()
    listener.close()
    listener.close()
    assert not listener.healthy()
    for future in futures:
        assert isinstance(error_of(future, 10), (Unavailable, DeadlineExceeded))
    assert time.monotonic() - begin < 3.0 + LATE_S + 1.0


def test_nobody_listens(link: Link, obedient: Obedient) -> None:
    listener = link.listen(obedient)
    listener.close()
    transport = link.connect()
    begin = time.monotonic()
    error = error_of(transport.request(b"x", {}, 1.0), 10)
    assert time.monotonic() - begin < 1.0 + LATE_S
    if link.capabilities.absent_listener_is_known:
        assert type(error) is Unavailable
    else:
        assert type(error) is DeadlineExceeded


def test_drain_answers_what_is_in_hand(link: Link, gate: Gate) -> None:
    listener = link.listen(gate)
    transport = link.connect()
    futures = [transport.request(b"%d" % n, {}, TIMEOUT_S) for n in range(3)]
    gate.wait_entered(3)
    assert listener.healthy()
    drained: list[bool] = []
    draining = threading.Thread(target=lambda: drained.append(listener.drain(20)))
    draining.start()
    deadline = time.monotonic() + 10
    while listener.healthy() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not listener.healthy()
    gate.open()
    assert [future.result(TIMEOUT_S).payload for future in futures] == [b"0", b"1", b"2"]
    draining.join(25)
    assert drained == [True]
    refused = error_of(transport.request(b"late", {}, 1.0), 10)
    assert isinstance(refused, (Unavailable, DeadlineExceeded))
    assert len(gate.waiting) == 3, "nothing new was taken"


def test_a_listener_tells_what_is_in_hand_and_what_a_broker_has_for_it(link: Link, gate: Gate) -> None:
    listener = link.listen(gate)
    transport = link.connect()
    futures = [transport.request(b"%d" % n, {}, TIMEOUT_S) for n in range(3)]
    gate.wait_entered(3)
    assert listener.in_hand() == 3
    assert sum(listener.lag().values()) == (3 if transport.brokered else 0)
    gate.open()
    for future in futures:
        future.result(TIMEOUT_S)
    deadline = time.monotonic() + 10  # a reply may be there before its listener is told so
    while listener.in_hand() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert listener.in_hand() == 0
    assert bool(listener.lag()) == transport.brokered
    assert sum(listener.lag().values()) == 0
    assert set(listener.counters().values()) <= {0}


def test_drain_says_when_time_was_short(link: Link, gate: Gate) -> None:
    listener = link.listen(gate)
    transport = link.connect()
    transport.request(b"x", {}, TIMEOUT_S)
    gate.wait_entered()
    begin = time.monotonic()
    assert not listener.drain(0.3)
    assert time.monotonic() - begin < 2.0


def test_no_thread_is_left(link: Link, obedient: Obedient) -> None:
    listener = link.listen(obedient)
    transport = link.connect()
    for future in [transport.request(b"x", {}, TIMEOUT_S) for _ in range(20)]:
        future.result(TIMEOUT_S)
    transport.close()
    assert listener.drain(10)
    listener.close()
    assert link.leaked_threads() == set()


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("carrier-pigeon://roof/1", "unknown scheme"),
        ("memory://", "memory://name"),
        ("memory://a?colour=red", "workers"),
        ("memory://a?workers=0", "workers"),
        ("grpc://nowhere", "host:port"),
        ("grpc://127.0.0.1:1?colour=red", "workers"),
        ("kafka://host/topic", "host:port"),
        ("kafka://host:9092", "topic"),
        ("kafka://host:9092/a/b", "topic"),
        ("kafka://host:9092/t?colour=red", "linger_ms"),
        ("kafka://host:9092/t?partitions=0", "partitions"),
        ("kafka://host:9092/t?prefetch=many", "prefetch"),
        ("kafka+python://host:9092/t?acks=2", "acks"),
        ("redis://host/stream", "host:port"),
        ("redis://host:6379", "stream"),
        ("redis://host:6379/a/b", "stream"),
        ("redis://host:6379/s?colour=red", "backlog"),
        ("redis://host:6379/s?prefetch=0", "prefetch"),
        ("redis://me:secret@host:6379/s", "--redis-user"),
    ],
)
@pytest.mark.parametrize("opener", [transports.connect, transports.listen])
def test_a_wrong_address_says_what_is_wrong(opener: Callable[[str], object], url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        opener(url)


def test_a_memory_address_has_one_listener() -> None:
    listener = memory.listen("memory://taken")
    try:
        with pytest.raises(ConfigurationError, match="taken"):
            memory.listen("memory://taken")
    finally:
        listener.close()
    memory.listen("memory://taken").close()


@given(**messages)
@settings(max_examples=150, deadline=None)
def test_any_message_crosses_memory(payload: bytes, headers: dict[str, bytes]) -> None:
    def echo(delivery: Delivery) -> Future[Response]:
        future: Future[Response] = Future()
        future.set_result(Response(delivery.payload, delivery.headers))
        return future

    listener = memory.listen("memory://property")
    transport = memory.connect("memory://property")
    try:
        listener.serve(echo)
        reply = transport.request(payload, headers, TIMEOUT_S).result(TIMEOUT_S)
        assert (reply.payload, reply.headers) == (payload, headers)
    finally:
        transport.close()
        listener.close()
