"""What only links over Kafka have to keep: at-least-once, poison, brokers that die. With a real broker, and real

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic, OffsetSpec  # type: ignore[attr-defined] # its annotations forget

from services import transports
from services.errors import ConfigurationError, Rejected, Unavailable
from services.transports.kafka_client import MESSAGE_LIMIT, Position
from services.transports.transport import Delivery, Handle, Listener, Response, Transport
from tests.brokered import AWAY_S, TIMEOUT_S, Children, Gate, done, echo, error_of, eventually, kafka_client

pytestmark = [
    pytest.mark.kafka,
    # kafka-python reads its message schemas, when it is imported, in a way that Python 3.11 and 3.12 frown upon.
    pytest.mark.filterwarnings(r"ignore:(open|read)_text is deprecated:DeprecationWarning"),
    # ... and now and then leaves the socket of a refused connection to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

ROWS = [scheme for scheme in transports.TABLE if scheme.startswith("kafka")]
SESSION = "session_ms=3000"  # a killed member's work moves on after this


class Bench:
    """A fresh topic, and what a test opens on it."""

    def __init__(self, scheme: str, bootstrap: str, log: Path) -> None:
        self.bootstrap = bootstrap
        self.topic = f"it-{uuid.uuid4().hex[:12]}"
        self.url = f"{scheme}://{bootstrap}/{self.topic}?{SESSION}"
        self.children = Children(log)
        self._ends: list[Transport | Listener] = []
        self._admin: AdminClient | None = None

    @property
    def admin(self) -> AdminClient:
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self.bootstrap})
        return self._admin

    def listen(self, handle: Handle, options: str = "") -> Listener:
        listener = transports.listen(self.url + options)
        self._ends.append(listener)
        listener.serve(handle)
        return listener

    def connect(self) -> Transport:
        transport = transports.connect(self.url)
        self._ends.append(transport)
        return transport

    def committed(self) -> dict[int, tuple[int, str]]:
        """partition -> (offset, metadata), as the broker has it."""
        asked = ConsumerGroupTopicPartitions(self.topic, [TopicPartition(self.topic, n) for n in range(4)])
        (answer,) = self.admin.list_consumer_group_offsets([asked]).values()
        return {found.partition: (max(0, found.offset), found.metadata) for found in answer.result(10).topic_partitions}

    def commit(self, positions: Mapping[int, tuple[int, str]]) -> None:
        """As a group of which nobody is a member."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": self.topic})
        offsets = [TopicPartition(self.topic, number, *position) for number, position in positions.items()]
        assert all(at.error is None for at in consumer.commit(offsets=offsets, asynchronous=False) or ())
        consumer.close()

    def ends(self) -> dict[int, int]:
        """partition -> the offset after its last record; {} while one has no leader yet."""
        asked = {TopicPartition(self.topic, number): OffsetSpec.latest() for number in range(4)}  # type: ignore[no-untyped-call]
        try:
            return {at.partition: future.result(10).offset for at, future in self.admin.list_offsets(asked).items()}
        except KafkaException:
            return {}

    def create(self, partitions: Mapping[str, int], limit: int) -> None:
        topics = [
            NewTopic(name, count, 1, config={"max.message.bytes": str(limit)}) for name, count in partitions.items()
        ]
        for future in self.admin.create_topics(topics).values():
            future.result(10)

    def close(self) -> None:
        self.children.stop()
        for end in self._ends:
            end.close()


@pytest.fixture(params=ROWS)
def bench(request: pytest.FixtureRequest, broker: Any, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(request.param, broker.bootstrap, tmp_path / "children.log")
    yield bench
    bench.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def start(broker: Any) -> None:
    """Until it has been let into its cluster of one, too: a broker that only answers can neither create nor lead."""
    broker.start()
    said = ""

    def serves() -> bool:
        nonlocal said
        try:
            # Anew each time: this asks the broker, not what a client has made of its first answers.
            found = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0}).list_topics(timeout=2)
        except KafkaException as error:
            said = str(error)
        else:
            said = f"brokers: {found.brokers}"
            return bool(found.brokers)
        return False

    # Usually within a second; once, on a busy machine, half a minute was not enough.
    assert eventually(serves), said


# --- at least once ---------------------------------------------------------------------------------------------------


def test_the_work_of_a_killed_process_is_finished_by_another(bench: Bench) -> None:
    transport = bench.connect()
    children = [bench.children.start(bench.url) for _ in range(2)]
    seen: set[int] = set()
    deadline = time.monotonic() + TIMEOUT_S
    while len(seen) < 2:  # until both are members
        assert time.monotonic() < deadline
        calls = [transport.request(b"warm", {}, TIMEOUT_S) for _ in range(4)]
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


def test_the_committed_offset_never_passes_an_unfinished_record(bench: Bench, gate: Gate) -> None:
    listener = bench.listen(gate)
    transport = bench.connect()
    # Round robin over 4 partitions of a fresh topic: request n is record n // 4 of lane n % 4.
    calls = [transport.request(b"%d" % n, {}, TIMEOUT_S) for n in range(60)]
    assert gate.wait(60)
    held = {0: 2, 1: 5, 2: 0, 3: 9}  # lane -> record
    for n in reversed(range(60)):
        if held[n % 4] != n // 4:
            gate.finish(b"%d" % n)
    for n, call in enumerate(calls):
        if held[n % 4] != n // 4:
            call.result(TIMEOUT_S)
    expected = sorted(held.values())
    assert eventually(lambda: sorted(offset for offset, _ in bench.committed().values()) == expected)
    time.sleep(0.5)  # two rounds of commits more
    assert sorted(offset for offset, _ in bench.committed().values()) == expected
    gate.open()
    assert eventually(lambda: [offset for offset, _ in bench.committed().values()] == [15] * 4)
    listener.close()
    assert all(metadata.startswith("starts=0 ") for _, metadata in bench.committed().values()), "it left in order"


def test_what_is_answered_twice_is_counted_and_arrives_once(bench: Bench, gate: Gate) -> None:
    bench.listen(gate)
    transport = bench.connect()
    calls = {b"%d" % n: transport.request(b"%d" % n, {}, TIMEOUT_S) for n in range(16)}
    assert gate.wait(16)
    attempts: dict[bytes, int] = {}

    def second(delivery: Delivery) -> Future[Response]:
        attempts[delivery.payload] = delivery.attempt
        return done(Response(delivery.payload, {"by": b"second"}))

    bench.listen(second)  # takes over two of the four partitions, with the four records of each
    assert eventually(lambda: sum(call.done() for call in calls.values()) == 8), attempts
    taken_over = set(attempts)
    assert all(attempt > 1 for attempt in attempts.values()), attempts
    gate.open()  # the first one answers all of them
    for payload, call in calls.items():
        reply = call.result(TIMEOUT_S)
        assert reply.payload == payload
        assert ("by" in reply.headers) == (payload in taken_over)
    assert eventually(lambda: transport.counters()["duplicates"] >= len(taken_over)), transport.counters()


def test_in_flight_is_bounded_and_slow_work_keeps_its_membership(bench: Bench, gate: Gate) -> None:
    listener = bench.listen(gate, "&prefetch=3")
    transport = bench.connect()
    calls = [transport.request(b"%d" % n, {}, TIMEOUT_S) for n in range(12)]
    assert gate.wait(3)
    assert not gate.wait(4, timeout=2.5), "longer than it takes to pause"
    assert listener.healthy()
    deadline = time.monotonic() + TIMEOUT_S
    while not all(call.done() for call in calls):
        assert time.monotonic() < deadline
        assert sum(not future.done() for future in gate.waiting.values()) <= 3
        gate.open()
        time.sleep(0.01)
    assert set(gate.attempts.values()) == {1}, "nobody thought it dead"


def test_a_caller_leaves_nothing_behind(bench: Bench) -> None:
    """Nobody has to clean up after a door that died: replies come by one topic for all, read by a member of nothing."""
    topics = {bench.topic, f"{bench.topic}.replies", f"{bench.topic}.dead"}
    bench.listen(echo)
    for _ in range(3):
        transport = bench.connect()
        transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
        transport.close()
    found = bench.admin.list_topics(timeout=10).topics
    assert {name for name in found if name.startswith(bench.topic)} == topics
    groups = bench.admin.list_consumer_groups().result(10).valid
    assert {group.group_id for group in groups if group.group_id.startswith(bench.topic)} == {bench.topic}


# --- poison ----------------------------------------------------------------------------------------------------------


def test_a_record_that_kills_its_process_ends_in_the_dead_letter_topic(bench: Bench) -> None:
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
    assert f"{bench.topic}.dead" in error_of(deadly, 1).message
    assert starts <= 5, "three at once, twice alone at the most, and one that buries it"
    assert sorted(call.result(TIMEOUT_S).payload for call in neighbours) == sorted(
        b"%s %d" % (when, n) for when in (b"before", b"after") for n in range(12)
    )
    (letter,) = dead_letters(bench)
    headers = dict(letter.headers())
    assert letter.value() == b"poison"
    assert headers["mine"] == b"\0\1"
    assert headers["traceparent"] == b"00-aa-bb-01"
    assert b"alone" in headers["reason"]
    assert int(headers["source-partition"]) in range(4)
    assert int(headers["source-offset"]) == 3  # three of the first twelve are before it on each partition
    # The partition moves on, in parallel again.
    more = [transport.request(b"sleep 1", {}, TIMEOUT_S) for _ in range(8)]
    assert {call.result(TIMEOUT_S).headers["attempt"] for call in more} == {b"1"}


def test_after_two_starts_without_progress_records_run_one_at_a_time(bench: Bench, gate: Gate) -> None:
    """Whatever was polled together, and from how many partitions: what runs beside another is not alone."""
    transport = bench.connect()
    calls = [transport.request(b"%d" % n, {}, TIMEOUT_S) for n in range(12)]
    assert eventually(lambda: sum(bench.ends().values()) == 12)
    bench.commit(dict.fromkeys(range(4), (0, "starts=2 alone=0 upto=3;")))
    bench.listen(gate)
    for done_before in range(12):
        assert gate.wait(done_before + 1)
        assert not gate.wait(done_before + 2, timeout=0.1), "two at once"
        (running,) = [payload for payload, future in gate.waiting.items() if not future.done()]
        committed = bench.committed()
        assert sum(offset for offset, _ in committed.values()) <= done_before, "never past an unfinished record"
        assert sum("alone=1" in metadata for _, metadata in committed.values()) == 1, "its start is known, no other's"
        gate.finish(running)
    for call in calls:
        call.result(TIMEOUT_S)
    more = [transport.request(b"more %d" % n, {}, TIMEOUT_S) for n in range(8)]
    assert gate.wait(20), "nothing is suspicious any more: all at once"
    gate.open()
    for call in more:
        call.result(TIMEOUT_S)
    assert eventually(lambda: all("starts=1 alone=0" in text for _, text in bench.committed().values()))


def dead_letters(bench: Bench) -> list[Any]:
    consumer = Consumer({"bootstrap.servers": bench.bootstrap, "group.id": f"{bench.topic}-test"})
    try:
        consumer.assign([TopicPartition(f"{bench.topic}.dead", 0, 0)])
        _, end = consumer.get_watermark_offsets(TopicPartition(f"{bench.topic}.dead", 0), timeout=10)
        return list(consumer.consume(end, timeout=10))
    finally:
        consumer.close()


# --- brokers that die ------------------------------------------------------------------------------------------------


def test_a_broker_that_dies_under_load_and_comes_back(
    bench: Bench, broker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "services.transports")
    listener = bench.listen(echo)
    transport = bench.connect()
    transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
    stop = threading.Event()
    longest: list[tuple[float, str]] = []

    def load() -> None:
        while not stop.is_set():
            begin = time.monotonic()
            error = transport.request(bytes(50_000), {}, 30.0).exception(60)
            longest.append((time.monotonic() - begin, type(error).__name__))
            if error is not None:
                time.sleep(0.02)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        broker.kill()
        killed = time.monotonic()
        assert eventually(lambda: not listener.healthy(), AWAY_S)
        time.sleep(max(0.0, killed + AWAY_S - time.monotonic()))
        future = transport.request(b"x", {}, 30.0)
        assert future.done(), "at once"
        refused = error_of(future, 0)
        assert type(refused) is Unavailable
        assert bench.bootstrap in refused.message
    finally:
        start(broker)
        back = time.monotonic()
    try:
        assert eventually(lambda: transport.request(b"x", {}, 2.0).exception(5) is None), "it recovers by itself"
        assert eventually(listener.healthy)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert time.monotonic() - back < 30
    assert {name for _, name in longest} <= {"NoneType", "Unavailable", "DeadlineExceeded"}
    assert max(took for took, name in longest if name != "NoneType") < AWAY_S
    assert sum("cannot be used" in record.message for record in caplog.records) == 2, "each end says it once"


def test_a_broker_that_falls_silent_under_load(bench: Bench, broker: Any) -> None:
    """Its connections stay open, and nothing comes: no error tells, only time-outs do."""
    listener = bench.listen(echo)
    transport = bench.connect()
    transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        calls = [transport.request(bytes(50_000), {}, 30.0) for _ in range(20)]
        for call in calls:
            assert type(error_of(call, AWAY_S)) is Unavailable
        assert eventually(lambda: not listener.healthy(), begin + AWAY_S + 1 - time.monotonic())
        assert type(error_of(transport.request(b"x", {}, 30.0), 0.2)) is Unavailable
    finally:
        os.kill(broker.pid, signal.SIGCONT)
        start(broker)
    assert eventually(lambda: transport.request(b"x", {}, 2.0).exception(5) is None)
    assert eventually(listener.healthy)


def test_a_broker_that_is_absent_at_first(bench: Bench, broker: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "services.transports")
    broker.kill()
    try:
        begin = time.monotonic()
        transport = bench.connect()
        assert time.monotonic() - begin < AWAY_S + 1
        assert any(bench.bootstrap in record.message for record in caplog.records)
        future = transport.request(b"x", {}, 30.0)
        assert future.done(), "at once"
        assert type(error_of(future, 0)) is Unavailable
        begin = time.monotonic()
        listener = bench.listen(echo)
        assert time.monotonic() - begin < 2 * AWAY_S
        assert eventually(lambda: not listener.healthy(), AWAY_S)
    finally:
        start(broker)
    assert eventually(lambda: transport.request(b"x", {}, 2.0).exception(5) is None)
    assert eventually(listener.healthy)


def test_closing_does_not_wait_for_a_broker_that_is_away(bench: Bench, broker: Any) -> None:
    listener = bench.listen(echo)
    transport = bench.connect()
    transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
    broker.kill()
    try:
        begin = time.monotonic()
        transport.close()
        assert time.monotonic() - begin < 10
        begin = time.monotonic()
        listener.close()
        assert time.monotonic() - begin < 20
    finally:
        start(broker)


def test_a_port_that_never_answers_does_not_hang(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        port = silent.getsockname()[1]
        url = bench.url.replace(bench.bootstrap, f"127.0.0.1:{port}")
        begin = time.monotonic()
        transport = transports.connect(url)
        try:
            assert time.monotonic() - begin < AWAY_S + 1
            assert type(error_of(transport.request(b"x", {}, 30.0), 1)) is Unavailable
        finally:
            begin = time.monotonic()
            transport.close()
        assert time.monotonic() - begin < 10


def test_topics_that_vanish_are_made_anew(bench: Bench) -> None:
    listener = bench.listen(echo)
    transport = bench.connect()
    transport.request(b"x", {}, TIMEOUT_S).result(TIMEOUT_S)
    for future in bench.admin.delete_topics([bench.topic, f"{bench.topic}.replies"]).values():
        future.result(10)
    assert eventually(lambda: transport.request(b"x", {}, 1.0).exception(5) is None)
    assert {bench.topic, f"{bench.topic}.replies"} <= set(bench.admin.list_topics(timeout=10).topics)
    assert eventually(listener.healthy)


# --- topics that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opener", [transports.connect, transports.listen])
def test_too_few_partitions(bench: Bench, opener: Callable[[str], Any]) -> None:
    bench.create({bench.topic: 2, f"{bench.topic}.replies": 4}, MESSAGE_LIMIT)
    with pytest.raises(ConfigurationError, match=r"2 partitions.*--partitions 4"):
        opener(bench.url)


def test_topics_that_a_peer_makes_with_too_few_partitions_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a client that has found its topics missing, and a peer that makes them
    client: Any = kafka_client(bench.url)
    check, looks = client._check, iter([list(client._url.topics)])
    monkeypatch.setattr(client, "_check", lambda: next(looks, None) or check())
    bench.create({bench.topic: 2, f"{bench.topic}.replies": 4}, MESSAGE_LIMIT)
    # When it is about to make them, then it learns what is wrong with those that are there
    try:
        with pytest.raises(ConfigurationError, match=r"2 partitions.*--partitions 4"):
            client.ensure_topics()
    finally:
        client.close()


@pytest.mark.parametrize("opener", [transports.connect, transports.listen])
def test_too_small_a_limit(bench: Bench, opener: Callable[[str], Any]) -> None:
    bench.create({bench.topic: 4, f"{bench.topic}.replies": 4}, 1_000_000)
    with pytest.raises(ConfigurationError, match=r"1000000 bytes.*max\.message\.bytes="):
        opener(bench.url)


def test_records_that_are_not_ours_do_no_harm(bench: Bench) -> None:
    from confluent_kafka import Producer

    bench.listen(echo)
    transport = bench.connect()
    foreign = Producer({"bootstrap.servers": bench.bootstrap})
    for partition in range(4):
        foreign.produce(bench.topic, b"junk", partition=partition)
        foreign.produce(bench.topic, None, partition=partition, headers=[("bi-reply-partition", b"999"), ("x", None)])
        foreign.produce(
            bench.topic,
            b"",
            partition=partition,
            headers=[("bi-id", b"i"), ("bi-instance", b"i"), ("bi-reply-partition", b"999")],
        )
        for nowhere in (b"-1", b"9" * 30, b"1.5", b"\xff"):
            headers = [("bi-id", b"i"), ("bi-instance", b"i"), ("bi-reply-partition", nowhere)]
            foreign.produce(bench.topic, b"", partition=partition, headers=headers)
        foreign.produce(f"{bench.topic}.replies", b"junk", partition=partition)
    assert foreign.flush(10) == 0
    for n in range(8):
        assert transport.request(b"%d" % n, {}, TIMEOUT_S).result(TIMEOUT_S).payload == b"%d" % n
    assert eventually(lambda: all(offset >= 9 for offset, _ in bench.committed().values())), bench.committed()


# --- the libraries ---------------------------------------------------------------------------------------------------


class Member:
    """A `Membership` that notes what it is told."""

    def __init__(self) -> None:
        self.held: set[int] = set()

    def assigned(self, partitions: Sequence[int]) -> None:
        self.held |= set(partitions)

    def revoked(self, partitions: Sequence[int]) -> Mapping[int, Position]:
        self.held -= set(partitions)
        return {}

    def lost(self, partitions: Sequence[int]) -> None:
        self.held -= set(partitions)

    def committed(self, offsets: Mapping[int, int]) -> None:
        pass


def test_kafka_python_finishes_a_join_that_is_through_between_two_polls(broker: Any, tmp_path: Path) -> None:
    # Given a member, and partitions that are added to its topic
    bench = Bench("kafka+python", broker.bootstrap, tmp_path / "children.log")
    client = kafka_client(bench.url)
    client.ensure_topics()
    member = Member()
    consumer = client.group_consumer(member)
    try:

        def polled_until(partitions: set[int], wait: float, pause: float) -> bool:
            return eventually(lambda: not consumer.poll(wait, 1) and member.held == partitions, 20, pause)

        assert polled_until({0, 1, 2, 3}, 0.1, 0.0)
        bench.admin.create_partitions([NewPartitions(bench.topic, 6)])[bench.topic].result(10)
        # When it learns of them, and never polls for as long as a join takes
        assert eventually(lambda: len(bench.admin.list_topics(bench.topic, 5).topics[bench.topic].partitions) == 6)
        consumer._consumer._client.cluster.request_update()
        # Then it has them all the same
        assert polled_until(set(range(6)), 0.001, 0.1), member.held
    finally:
        consumer.close()
        client.close()
