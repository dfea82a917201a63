"""What only links over Redis have to keep: at-least-once, poison, memory, servers that die. With a real Redis, and real

child processes that are killed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from services import transports
from services.errors import ConfigurationError, DeadlineExceeded, Overloaded, Rejected, Unavailable
from services.local.redis_server import REMEDY, RedisServer, RedisServerSettings, redis_server
from services.transports.redis_caller import LEASE_S
from services.transports.transport import Delivery, Handle, Listener, Response, Transport
from tests.brokered import AWAY_S, TIMEOUT_S, Children, Gate, done, echo, error_of, eventually

pytestmark = pytest.mark.skipif(redis_server() is None, reason=f"redis-server is not here: {REMEDY}")

SESSION_S = 1.5


class Bench:
    """A fresh stream, and what a test opens on it."""

    def __init__(self, server: RedisServer, log: Path) -> None:
        self.server = server
        self.stream = f"it-{uuid.uuid4().hex[:12]}"
        self.url = f"redis://{server.bootstrap}/{self.stream}?session_ms={SESSION_S * 1e3:.0f}"
        self.children = Children(log)
        host, _, port = server.bootstrap.rpartition(":")
        self.redis = redis_py.Redis(host, int(port), socket_timeout=10)
        self._ends: list[Transport | Listener] = []

    def listen(self, handle: Handle, options: str = "") -> Listener:
        listener = transports.listen(self.url + options)
        self._ends.append(listener)
        listener.serve(handle)
        return listener

    def connect(self, options: str = "") -> Transport:
        transport = transports.connect(self.url + options)
        self._ends.append(transport)
        return transport

    def waiting(self) -> int:
        """Entries of the stream."""
        return int(self.redis.xlen(self.stream))

    def deliveries(self) -> dict[bytes, int]:
        """Of each pending entry."""
        rows = self.redis.xpending_range(self.stream, self.stream, "-", "+", 1000)
        return {row["message_id"]: row["times_delivered"] for row in rows}

    def streams(self) -> set[str]:
        return {key.decode() for key in self.redis.keys(f"{self.stream}*")}

    def close(self) -> None:
        self.children.stop()
        for end in self._ends:
            end.close()
        self.redis.close()


@pytest.fixture
def bench(redis: RedisServer, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(redis, tmp_path / "children.log")
    yield bench
    bench.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def answered_at_last(transport: Transport, gate: Gate) -> bool:
    """Whether requests are answered again."""

    def answered() -> bool:
        call = transport.request(b"again", {}, 1.0)
        assert eventually(lambda: gate.open() is None and call.done())
        return call.exception(0) is None

    return eventually(answered, every=0.1)


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """A server of a test's own, by its settings."""
    benches: list[Bench] = []

    def start(**settings: Any) -> Bench:
        folder = tmp_path / f"redis-{len(benches)}"
        server = RedisServer(folder, settings=RedisServerSettings(**settings))
        server.start(30)
        benches.append(Bench(server, tmp_path / "children.log"))
        return benches[-1]

    yield start
    for bench in benches:
        bench.close()
        bench.server.discard()


# --- at least once ---------------------------------------------------------------------------------------------------


def test_the_work_of_a_killed_process_is_finished_by_another(bench: Bench) -> None:
    transport = bench.connect()
    children = [bench.children.start(bench.url) for _ in range(2)]
    seen: set[int] = set()
    deadline = time.monotonic() + TIMEOUT_S
    while len(seen) < 2:  # until both are members
        assert time.monotonic() < deadline
        calls = [transport.request(b"sleep 20", {}, TIMEOUT_S) for _ in range(4)]
        seen |= {int(call.result(TIMEOUT_S).headers["pid"]) for call in calls}
    calls = [transport.request(b"sleep 30", {"n": b"%d" % n}, TIMEOUT_S) for n in range(80)]
    assert eventually(lambda: sum(call.done() for call in calls) >= 10)
    children[0].kill()
    begin = time.monotonic()
    replies = [call.result(TIMEOUT_S) for call in calls]
    assert time.monotonic() - begin < 20
    again = [reply for reply in replies if int(reply.headers["attempt"]) > 1]
    assert again, "what the killed one had in hand was delivered anew, and says so"
    assert {int(reply.headers["pid"]) for reply in again} == {children[1].pid}
    assert eventually(lambda: bench.waiting() == 0 and not bench.deliveries())


def test_what_is_answered_is_gone_and_what_is_not_stays(bench: Bench, gate: Gate) -> None:
    bench.listen(gate)
    transport = bench.connect()
    calls = [transport.request(b"%d" % n, {}, TIMEOUT_S) for n in range(30)]
    assert gate.wait(30)
    held = {3, 7, 22}
    for n in reversed(range(30)):
        if n not in held:
            gate.finish(b"%d" % n)
    for n, call in enumerate(calls):
        if n not in held:
            call.result(TIMEOUT_S)
    assert eventually(lambda: bench.waiting() == len(held))
    assert len(bench.deliveries()) == len(held)
    (replies,) = (key for key in bench.streams() if ".replies." in key)
    assert eventually(lambda: bench.redis.xlen(replies) == 0), "read replies take no memory"
    gate.open()
    assert eventually(lambda: bench.waiting() == 0 and not bench.deliveries())


def test_who_wakes_up_after_its_work_was_taken_over_answers_twice_and_is_counted(bench: Bench) -> None:
    # Given a process that has work in hand and falls asleep
    transport = bench.connect()
    child = bench.children.start(bench.url)
    transport.request(b"warm", {}, TIMEOUT_S).result(TIMEOUT_S)
    calls = [transport.request(b"sleep 300", {}, TIMEOUT_S) for _ in range(4)]
    assert eventually(lambda: len(bench.deliveries()) == 4)
    os.kill(child.pid, signal.SIGSTOP)
    # When another takes its work over
    attempts: list[int] = []

    def second(delivery: Delivery) -> Future[Response]:
        attempts.append(delivery.attempt)
        return done(Response(delivery.payload, {"by": b"second"}))

    bench.listen(second)
    replies = [call.result(TIMEOUT_S) for call in calls]
    assert sum("by" in reply.headers for reply in replies) == len(attempts) >= 3
    assert set(attempts) == {2}
    # Then what the first one answers when it wakes up arrives nowhere
    os.kill(child.pid, signal.SIGCONT)
    assert eventually(lambda: transport.counters()["duplicates"] >= 1), transport.counters()
    assert eventually(lambda: bench.waiting() == 0)


def test_slow_work_is_left_to_who_does_it(bench: Bench, gate: Gate) -> None:
    listener = bench.listen(gate)
    transport = bench.connect()
    calls = [transport.request(b"%d" % n, {}, TIMEOUT_S) for n in range(3)]
    assert gate.wait(3)
    other = Gate()
    bench.listen(other)
    assert not other.wait(1, timeout=3 * SESSION_S), "nobody thought it dead"
    assert listener.healthy()
    gate.open()
    for call in calls:
        call.result(TIMEOUT_S)
    assert set(gate.attempts.values()) == {1}


def test_in_flight_is_bounded(bench: Bench, gate: Gate) -> None:
    bench.listen(gate, "&prefetch=3")
    transport = bench.connect()
    calls = [transport.request(b"%d" % n, {}, TIMEOUT_S) for n in range(12)]
    assert gate.wait(3)
    assert not gate.wait(4, timeout=1.0)
    deadline = time.monotonic() + TIMEOUT_S
    while not all(call.done() for call in calls):
        assert time.monotonic() < deadline
        assert sum(not future.done() for future in gate.waiting.values()) <= 3
        gate.open()
        time.sleep(0.01)


def test_who_leaves_in_order_hands_its_work_over_at_once(bench: Bench, gate: Gate) -> None:
    bench.url = bench.url.replace(f"session_ms={SESSION_S * 1e3:.0f}", "session_ms=20000")
    first = bench.listen(gate)
    transport = bench.connect()
    calls = [transport.request(b"%d" % n, {}, TIMEOUT_S) for n in range(3)]
    assert gate.wait(3)
    first.close()
    assert set(bench.deliveries().values()) == {0}, "its own start is taken back"
    second = Gate()
    begin = time.monotonic()
    bench.listen(second)
    assert second.wait(3, 10)
    assert time.monotonic() - begin < 10, "long before a session is over"
    assert set(second.attempts.values()) == {2}
    second.open()
    for call in calls:
        call.result(TIMEOUT_S)


# --- nothing leaks ---------------------------------------------------------------------------------------------------


def test_a_caller_leaves_nothing_behind(bench: Bench) -> None:
    listener = bench.listen(echo)
    for _ in range(3):
        transport = bench.connect()
        transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
        transport.close()
    assert eventually(lambda: bench.streams() == {bench.stream}), bench.streams()
    listener.close()
    assert bench.redis.xinfo_consumers(bench.stream, bench.stream) == []


def test_a_dead_callers_stream_expires_and_nobody_makes_it_anew(bench: Bench) -> None:
    # Given a caller's stream: it has a lease, which the caller renews
    transport = bench.connect()
    (replies,) = (key for key in bench.streams() if ".replies." in key)
    assert 0 < bench.redis.ttl(replies) <= LEASE_S
    bench.redis.expire(replies, 10)
    assert eventually(lambda: bench.redis.ttl(replies) > 10)
    # When a request's caller is gone, its stream with it
    bench.redis.xadd(bench.stream, {"bi-id": "a-1", "bi-instance": "gone", "bi-payload": "x"})
    bench.listen(echo)
    # Then it is answered to nobody
    transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
    assert eventually(lambda: bench.waiting() == 0)
    assert bench.streams() == {bench.stream, replies}


def test_members_that_died_are_forgotten(bench: Bench) -> None:
    bench.url = bench.url.replace(f"session_ms={SESSION_S * 1e3:.0f}", "session_ms=1000")
    child = bench.children.start(bench.url)
    transport = bench.connect()
    transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
    child.kill()
    child.wait(10)
    bench.listen(echo)

    def members() -> int:
        return len(bench.redis.xinfo_consumers(bench.stream, bench.stream))

    # A reader is a member when it is given something, the first time
    transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
    assert members() == 2
    # Idle ones are forgotten too, and are members again when there is something to do
    assert eventually(lambda: members() < 2, every=0.5), "ten sessions"
    transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)


def test_requests_that_nobody_reads_are_refused_beyond_the_backlog_and_go_when_they_are_old(bench: Bench) -> None:
    # Given a stream that nobody reads
    transport = bench.connect("&backlog=5&retention_s=1")
    calls = [transport.request(bytes(5000), {}, 1.0) for _ in range(5)]
    assert eventually(lambda: bench.waiting() == 5)
    # When there are as many as it may hold, then more are refused
    refused: list[Exception] = []

    def is_refused() -> bool:
        refused.append(error_of(transport.request(b"one more", {}, 0.2), 5))
        return isinstance(refused[-1], Overloaded)

    assert eventually(is_refused, every=0.2)
    assert "?backlog=" in str(refused[-1])
    for call in calls:
        assert isinstance(error_of(call, 5), DeadlineExceeded)
    # And what is too old goes when something new comes
    other = bench.connect("&backlog=100&retention_s=1")
    time.sleep(1.2)
    for _ in range(2):  # the first one learns the server's time
        error_of(other.request(bytes(5000), {}, 0.2), 5)
    assert eventually(lambda: bench.waiting() <= 3), bench.waiting()
    # And with somebody who reads, all goes on
    bench.listen(echo)
    assert eventually(lambda: transport.request(b"x", {}, 2.0).exception(5) is None)


# --- poison ----------------------------------------------------------------------------------------------------------


def test_an_entry_that_kills_its_process_ends_among_the_dead_letters(bench: Bench) -> None:
    transport = bench.connect()
    neighbours = [transport.request(b"before %d" % n, {}, 110) for n in range(12)]
    deadly = transport.request(b"poison", {"mine": b"\0\1", "traceparent": b"00-aa-bb-01"}, 110)
    neighbours += [transport.request(b"after %d" % n, {}, 110) for n in range(12)]
    starts = 0
    while not deadly.done() and starts < 8:
        child = bench.children.start(bench.url)
        starts += 1
        eventually(lambda child=child: child.poll() is not None or deadly.done(), 40)  # type: ignore[misc]
    assert type(error_of(deadly, 1)) is Rejected
    assert f"{bench.stream}.dead" in error_of(deadly, 1).message
    assert starts == 5, "two beside others, two alone, and one that buries it"
    assert sorted(call.result(TIMEOUT_S).payload for call in neighbours) == sorted(
        b"%s %d" % (when, n) for when in (b"before", b"after") for n in range(12)
    )
    ((_, letter),) = bench.redis.xrange(f"{bench.stream}.dead")
    assert letter[b"bi-payload"] == b"poison"
    assert letter[b"mine"] == b"\0\1"
    assert letter[b"traceparent"] == b"00-aa-bb-01"
    assert b"alone" in letter[b"reason"]
    assert b"-" in letter[b"source-id"]
    # And the rest goes on, many at once again
    more = [transport.request(b"sleep 1", {}, TIMEOUT_S) for _ in range(8)]
    assert {call.result(TIMEOUT_S).headers["attempt"] for call in more} == {b"1"}
    assert eventually(lambda: bench.waiting() == 0 and not bench.deliveries())


def test_after_two_deliveries_without_an_answer_entries_run_one_at_a_time(bench: Bench, gate: Gate) -> None:
    # Given entries that were delivered twice, and new ones behind them
    transport = bench.connect()
    calls = [transport.request(b"old %d" % n, {}, TIMEOUT_S) for n in range(6)]
    assert eventually(lambda: bench.waiting() == 6)
    bench.redis.xgroup_create(bench.stream, bench.stream, "0")
    ((_, entries),) = bench.redis.xreadgroup(bench.stream, "ghost", {bench.stream: ">"}, count=10)
    for id_, _ in entries:
        bench.redis.xclaim(bench.stream, bench.stream, "ghost", 0, [id_], idle=100_000, retrycount=2, justid=True)
    new = [transport.request(b"new %d" % n, {}, TIMEOUT_S) for n in range(6)]
    # When somebody takes them over, then they run one after the other, whatever else there is
    bench.listen(gate)
    for done_before in range(6):
        assert gate.wait(done_before + 1)
        assert not gate.wait(done_before + 2, timeout=0.1), "two at once"
        (running,) = [payload for payload, future in gate.waiting.items() if not future.done()]
        assert running == b"old %d" % done_before
        assert sorted(bench.deliveries().values()) == [2] * (5 - done_before) + [3], "no other's start is counted"
        gate.finish(running)
    # And then all at once
    assert gate.wait(12)
    gate.open()
    for call in calls + new:
        call.result(TIMEOUT_S)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_full_memory_refuses_and_says_so_and_all_goes_on_when_there_is_room(private: Callable[..., Bench]) -> None:
    bench = private(memory_mb=16)
    transport = bench.connect()
    # When more is sent than Redis has memory for
    calls = [transport.request(bytes(500_000), {}, 20.0) for _ in range(60)]
    assert eventually(lambda: sum(call.done() for call in calls) + bench.waiting() == len(calls))
    error = error_of(next(call for call in calls if call.done()), 5)
    # Then the rest is refused, with cause and remedy
    assert type(error) is Overloaded
    assert "maxmemory" in error.message
    accepted = [call for call in calls if not call.done()]
    assert 5 < len(accepted) < 40
    # And what was accepted is answered, though replies as large as requests have no room at first
    bench.listen(echo)
    for call in accepted:
        assert len(call.result(TIMEOUT_S).payload) == 500_000
    assert eventually(lambda: transport.request(bytes(500_000), {}, 5.0).exception(10) is None)
    assert eventually(lambda: bench.waiting() == 0 and not bench.deliveries())


def test_a_redis_that_would_throw_requests_out_is_refused(private: Callable[..., Bench]) -> None:
    bench = private(flags=("--maxmemory-policy", "allkeys-lru"))
    for opener in (transports.connect, transports.listen):
        with pytest.raises(ConfigurationError, match="noeviction"):
            opener(bench.url)
    # And so is a key that is no stream
    bench.redis.config_set("maxmemory-policy", "noeviction")
    bench.redis.set(bench.stream, "something else")
    with pytest.raises(ConfigurationError, match="no stream"):
        transports.listen(bench.url)


# --- servers that die ------------------------------------------------------------------------------------------------


def test_a_server_that_dies_under_load_and_comes_back_empty(
    bench: Bench, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "services.transports")
    listener = bench.listen(echo)
    transport = bench.connect()
    transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
    stop = threading.Event()
    took: list[tuple[float, str]] = []

    def load() -> None:
        while not stop.is_set():
            begin = time.monotonic()
            error = transport.request(bytes(50_000), {}, 30.0).exception(60)
            took.append((time.monotonic() - begin, type(error).__name__))
            if error is not None:
                time.sleep(0.02)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        redis.kill()
        killed = time.monotonic()
        assert eventually(lambda: not listener.healthy(), AWAY_S)
        time.sleep(max(0.0, killed + AWAY_S - time.monotonic()))
        future = transport.request(b"x", {}, 30.0)
        assert future.done(), "at once"
        refused = error_of(future, 0)
        assert type(refused) is Unavailable
        assert redis.bootstrap in refused.message
    finally:
        redis.start()
    try:
        assert eventually(lambda: transport.request(b"x", {}, 2.0).exception(5) is None), "it recovers by itself"
        assert eventually(listener.healthy)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert {name for _, name in took} <= {"NoneType", "Unavailable"}
    assert max(seconds for seconds, name in took if name != "NoneType") < AWAY_S
    assert sum("cannot be used" in record.message for record in caplog.records) == 2, "each end says it once"


def test_a_server_that_is_back_at_once_and_empty_keeps_nobody_waiting(
    bench: Bench, redis: RedisServer, gate: Gate
) -> None:
    bench.listen(gate)
    transport = bench.connect()
    calls = [transport.request(b"%d" % n, {}, 30.0) for n in range(3)]
    assert gate.wait(3)
    redis.kill()
    redis.start()
    for call in calls:
        assert type(error_of(call, AWAY_S)) is Unavailable
    gate.open()
    assert answered_at_last(transport, gate)


def test_with_an_append_only_file_what_was_accepted_survives_the_server(
    private: Callable[..., Bench], gate: Gate
) -> None:
    # Given requests that were accepted, some of them in a listener's hand
    bench = private(appendfsync="everysec")
    listener = bench.listen(gate, "&prefetch=3")
    transport = bench.connect()
    for n in range(8):
        transport.request(b"%d" % n, {}, TIMEOUT_S)
    assert gate.wait(3)
    assert eventually(lambda: bench.waiting() == 8)
    time.sleep(1.5)  # until they are on the disk, every second
    # When the server is killed and started again
    bench.server.kill()
    assert eventually(lambda: not listener.healthy(), AWAY_S)
    bench.server.start()
    assert eventually(listener.healthy)
    # Then all of them are done, in the same process, once
    deadline = time.monotonic() + TIMEOUT_S
    while len(gate.waiting) < 8 or bench.waiting():
        assert time.monotonic() < deadline, (len(gate.waiting), bench.waiting())
        gate.open()
        time.sleep(0.02)
    assert set(gate.attempts.values()) == {1}
    assert not bench.deliveries()
    assert answered_at_last(transport, gate)


def test_a_server_that_falls_silent_under_load(bench: Bench, redis: RedisServer) -> None:
    """Its connections stay open, and nothing comes: no error tells, only time-outs do."""
    listener = bench.listen(echo)
    transport = bench.connect()
    transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
    assert redis.pid is not None
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        calls = [transport.request(bytes(50_000), {}, 30.0) for _ in range(20)]
        for call in calls:
            assert type(error_of(call, AWAY_S)) is Unavailable
        assert eventually(lambda: not listener.healthy(), begin + AWAY_S + 1 - time.monotonic())
        assert type(error_of(transport.request(b"x", {}, 30.0), 0.2)) is Unavailable
    finally:
        os.kill(redis.pid, signal.SIGCONT)
    assert eventually(lambda: transport.request(b"x", {}, 2.0).exception(5) is None)
    assert eventually(listener.healthy)


def test_a_server_that_is_absent_at_first(bench: Bench, redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "services.transports")
    redis.kill()
    try:
        begin = time.monotonic()
        transport = bench.connect()
        assert time.monotonic() - begin < AWAY_S + 1
        assert any(redis.bootstrap in record.message for record in caplog.records)
        future = transport.request(b"x", {}, 30.0)
        assert future.done(), "at once"
        assert type(error_of(future, 0)) is Unavailable
        begin = time.monotonic()
        listener = bench.listen(echo)
        assert time.monotonic() - begin < 2 * AWAY_S
        assert eventually(lambda: not listener.healthy(), AWAY_S)
    finally:
        redis.start()
    assert eventually(lambda: transport.request(b"x", {}, 2.0).exception(5) is None)
    assert eventually(listener.healthy)


def test_closing_does_not_wait_for_a_server_that_is_away(bench: Bench, redis: RedisServer) -> None:
    listener = bench.listen(echo)
    transport = bench.connect()
    transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
    redis.kill()
    try:
        for end in (transport, listener):
            begin = time.monotonic()
            end.close()
            assert time.monotonic() - begin < 10
    finally:
        redis.start()


def test_a_port_that_never_answers_does_not_hang(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        url = bench.url.replace(bench.server.bootstrap, f"127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        transport = transports.connect(url)
        try:
            assert time.monotonic() - begin < AWAY_S + 1
            assert type(error_of(transport.request(b"x", {}, 30.0), 1)) is Unavailable
        finally:
            begin = time.monotonic()
            transport.close()
        assert time.monotonic() - begin < 10


def test_streams_that_vanish_are_made_anew(bench: Bench) -> None:
    listener = bench.listen(echo)
    transport = bench.connect()
    transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
    bench.redis.delete(*bench.streams())
    assert eventually(lambda: transport.request(b"x", {}, 1.0).exception(5) is None)
    assert eventually(listener.healthy)


def test_entries_that_are_not_ours_do_no_harm(bench: Bench) -> None:
    bench.redis.xadd(bench.stream, {"some": "thing"})
    bench.redis.xadd(bench.stream, {b"\xff\xfe": b"\0"})
    bench.redis.xadd(bench.stream, {"bi-id": "x", "bi-instance": b"\xff"})
    listener = bench.listen(echo)
    transport = bench.connect()
    assert transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S).payload == b"x"
    (replies,) = (key for key in bench.streams() if ".replies." in key)
    bench.redis.xadd(replies, {"some": "thing"})
    bench.redis.xadd(replies, {"bi-id": b"\xff", "bi-failure": b"\xff"})
    assert transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S).payload == b"x"
    assert eventually(lambda: bench.waiting() == 0 and listener.in_hand() == 0)
