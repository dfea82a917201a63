"""Brokers as experiments set them: three with replication, flushed at every message, limited in what they take.

And what a link's URL says of acknowledgements and batches, which must mean the same to both client libraries.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource

from services import transports
from services.errors import ServiceError, Unavailable
from services.local.broker import Broker, BrokerSettings
from services.transports.kafka_client import Client, Producer
from tests.brokered import TIMEOUT_S, echo, eventually, kafka_client

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.timeout(240),
    # kafka-python's, while it is imported
    pytest.mark.filterwarnings(r"ignore:(open|read)_text is deprecated:DeprecationWarning"),
]

SCHEMES = ("kafka", "kafka+python")
RATE = 4_000_000
WAIT_S = 20.0


class Sender:
    """The producer of a link, with its topics made; acknowledgements come in a queue, as the second they came at."""

    def __init__(self, scheme: str, bootstrap: str, options: str) -> None:
        self.topic = f"t{uuid.uuid4().hex[:12]}"
        self._client = kafka_client(f"{scheme}://{bootstrap}/{self.topic}?{options}")
        self._client.ensure_topics()
        self._producer: Producer = self._client.producer()
        self.acked: queue.SimpleQueue[tuple[int, float, ServiceError | None]] = queue.SimpleQueue()

    def send(self, size: int, partition: int = 0) -> None:
        self._producer.send(
            self.topic, partition, bytes(size), {}, lambda error: self.acked.put((size, time.monotonic(), error))
        )

    def close(self) -> None:
        self._producer.close(1)
        self._client.close()


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sender(scheme: str) -> Iterator[Callable[[str, str], Sender]]:
    opened: list[Sender] = []

    def open_(bootstrap: str, options: str) -> Sender:
        opened.append(Sender(scheme, bootstrap, options))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


# --- three brokers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    settings = BrokerSettings(brokers=3, replication=3, min_insync_replicas=2, flush_interval_messages=1)
    brokers = Broker(tmp_path_factory.mktemp("three"), settings=settings)
    try:
        brokers.start(120)
        yield brokers
    finally:
        brokers.discard()


def described(brokers: Broker, topic: str) -> tuple[Any, dict[str, str]]:
    """Its partitions as librdkafka knows them, and its configuration."""
    admin = AdminClient({"bootstrap.servers": brokers.bootstrap})
    values: dict[str, str] = {}
    partitions: dict[int, Any] = {}

    def told() -> bool:
        [configs] = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic)]).values()
        try:
            values.update((name, str(entry.value)) for name, entry in configs.result(WAIT_S).items())
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
            return False  # of three brokers, the one that is asked has not heard of it yet
        partitions.update(admin.list_topics(topic, timeout=WAIT_S).topics[topic].partitions)
        return len(partitions) == 4 and all(partition.leader > 0 for partition in partitions.values())

    assert eventually(told, every=0.2)
    return partitions, values


def controller(brokers: Broker) -> int:
    """The id of the broker that leads the cluster: without it, a new one is elected before anything else is decided."""
    known = [
        json.loads((brokers.log_dir(index) / "__cluster_metadata-0" / "quorum-state").read_text())
        for index in range(len(brokers.members))
    ]
    return int(max(known, key=lambda state: state["leaderEpoch"])["leaderId"])


def test_a_links_topics_are_replicated_as_the_cluster_is_set(
    three: Broker, sender: Callable[[str, str], Sender]
) -> None:
    assert [member.name for member in three.members] == ["kafka", "kafka-2", "kafka-3"]
    partitions, configs = described(three, sender(three.bootstrap, "").topic)
    assert {len(set(partition.replicas)) for partition in partitions.values()} == {3}
    assert len({partition.leader for partition in partitions.values()}) > 1  # the work is shared
    assert configs["min.insync.replicas"] == "2"
    assert configs["flush.messages"] == "1"


@pytest.mark.parametrize("lost", [0, 1])
def test_with_all_acknowledgements_a_link_goes_on_without_one_broker(three: Broker, scheme: str, lost: int) -> None:
    url = f"{scheme}://{three.bootstrap}/t{uuid.uuid4().hex[:12]}?acks=all"
    with_echo = transports.listen(url)
    with_echo.serve(echo)
    transport = transports.connect(url)

    def answers(payload: bytes) -> bool:
        future = transport.request(payload, {}, 5.0)
        return future.exception(TIMEOUT_S) is None and bytes(future.result().payload) == payload

    try:
        # Given a link whose requests get through
        assert eventually(lambda: answers(b"first"))
        # When one broker of three is killed, then after a moment requests get through to every partition
        three.kill(lost)
        assert eventually(lambda: all(answers(b"%d" % n) for n in range(8)))
    finally:
        transport.close()
        with_echo.close()
        three.start(60)
    # And the killed one comes back
    assert len(three.members) == 3


def test_who_has_to_acknowledge_means_the_same_to_both_libraries(
    three: Broker, sender: Callable[[str, str], Sender]
) -> None:
    # Given a partition of one broker, and another one, which follows it and is not the controller, stopped
    everybody, leader = sender(three.bootstrap, "acks=all"), sender(three.bootstrap, "acks=1")
    stopped = next(number for number in (3, 2) if number != controller(three))
    partition = {
        one: next(p.id for p in described(three, one.topic)[0].values() if p.leader != stopped)
        for one in (everybody, leader)
    }
    for one in (everybody, leader):
        one.send(1000, partition[one])
        assert one.acked.get(timeout=WAIT_S)[2] is None
    os.kill(three.members[stopped - 1].pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        for one in (everybody, leader):
            one.send(1000, partition[one])
        # Then its leader alone acknowledges before all do
        by_one = leader.acked.get(timeout=WAIT_S)
        assert everybody.acked.empty()
        by_all = everybody.acked.get(timeout=WAIT_S)
    finally:
        os.kill(three.members[stopped - 1].pid, signal.SIGCONT)
    # And they do when the cluster has given the stopped one up
    assert (by_one[2], by_all[2]) == (None, None)
    assert by_all[1] - begin > 1.0
    assert eventually(lambda: three.running() and three._ready())


@pytest.mark.parametrize(
    "ask",
    [
        lambda link, topic: link._limits([topic]),  # as `ensure_topics` does of what another broker has told
        lambda link, topic: link.ends([0]),
        lambda link, topic: link.tail_consumer(0).close(),
    ],
    ids=["settings", "ends", "tail"],
)
def test_a_broker_that_has_not_heard_of_a_new_topic_is_asked_again(
    broker: Broker, scheme: str, ask: Callable[[Client, str], object]
) -> None:
    # Given a question about a topic that the broker does not know, as of several one does for a moment
    def answers() -> bool:
        topic = f"t{uuid.uuid4().hex[:12]}"
        link, creator = (kafka_client(f"{scheme}://{broker.bootstrap}/{topic}") for _ in range(2))
        made = threading.Timer(0.4, creator.ensure_topics)
        made.start()
        try:
            return ask(link, topic) != {}
        except (KafkaException, Unavailable):
            return False
        finally:
            made.join()
            for one in (link, creator):
                one.close()

    # When it hears of it while it is asked, then it answers (a machine may be busy for longer than a link has patience)
    assert any(answers() for _ in range(10))


def test_what_stays_unknown_is_said_and_not_waited_for(broker: Broker, scheme: str) -> None:
    topic = f"t{uuid.uuid4().hex[:12]}"
    link: Any = kafka_client(f"{scheme}://{broker.bootstrap}/{topic}")
    begin = time.monotonic()
    try:
        with pytest.raises(Unavailable, match=r"(?i)unknown|not known"):
            link.ends([0])
        # `ensure_topics` has a word of ours for what librdkafka says
        with pytest.raises((KafkaException, Unavailable), match=r"UNKNOWN_TOPIC|DescribeConfigs"):
            link._limits([topic])
    finally:
        link.close()
    assert time.monotonic() - begin < 10


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_leaves_when_it_is_large_enough_and_else_after_its_time(
    broker: Broker, sender: Callable[[str, str], Sender]
) -> None:
    it = sender(broker.bootstrap, "linger_ms=4500&batch_bytes=3000")
    # Given a record that waits for company
    it.send(1000)
    with pytest.raises(queue.Empty):
        it.acked.get(timeout=0.7)
    # When enough has come, then it leaves
    for _ in range(3):
        it.send(1000)
    assert it.acked.get(timeout=3)[2] is None
    # And what is larger than a batch waits for nobody
    it.send(20_000, partition=1)
    sizes = set()
    while 20_000 not in sizes:
        sizes.add(it.acked.get(timeout=3)[0])


# --- a log of limited bandwidth --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("limited"), settings=BrokerSettings(producer_byte_rate=RATE))
    try:
        broker.start(120)
        yield broker
    finally:
        broker.discard()


def test_no_more_is_written_than_the_limit(limited: Broker, sender: Callable[[str, str], Sender]) -> None:
    it = sender(limited.bootstrap, "acks=1")
    begin, size = time.monotonic(), 100_000
    for n in range(4):
        it.send(size, n)
    # When as much is sent as is acknowledged, for some seconds
    acked: list[tuple[float, int]] = []
    while time.monotonic() < begin + 9:
        _, at, error = it.acked.get(timeout=WAIT_S)
        assert error is None
        acked.append((at - begin, size))
        it.send(size, len(acked) % 4)
    # Then after the first of them it is what the limit says
    rate = sum(size for at, size in acked if 2 < at <= 8) / 6
    assert rate == pytest.approx(RATE, rel=0.2)
    # And the first ones were no large exception
    assert sum(size for at, size in acked if at <= 2) < 4 * RATE


def test_a_record_that_takes_longer_than_a_window_goes_all_the_same(
    limited: Broker, sender: Callable[[str, str], Sender]
) -> None:
    it = sender(limited.bootstrap, "acks=1")
    for _ in range(3):
        it.send(2 * RATE)
        assert it.acked.get(timeout=WAIT_S)[2] is None


# --- elsewhere -------------------------------------------------------------------------------------------------------


def test_the_log_can_be_elsewhere(tmp_path: Path, sender: Callable[[str, str], Sender]) -> None:
    broker = Broker(tmp_path / "stack", settings=BrokerSettings(data=tmp_path / "memory"))
    try:
        broker.start(120)
        it = sender(broker.bootstrap, "")
        it.send(10)
        assert it.acked.get(timeout=WAIT_S)[2] is None
        assert list((tmp_path / "memory").glob(f"*/*/{it.topic}-0/*.log"))
    finally:
        broker.discard()
    assert not list((tmp_path / "memory").iterdir())
