"""What a Kafka client library must do for us, and what a Kafka link's URL says. Two libraries do it:
`kafka_librdkafka.py` and `kafka_python.py`; `kafka_caller.py` and `kafka_listener.py` are written against this.

    kafka://host:port[,host:port]/topic?partitions=4&replies=4&acks=all&linger_ms=0&batch_bytes=0
                                       &prefetch=64&workers=1&group=NAME&session_ms=6000
                                       &results=TOPIC

`topic` carries requests, `topic.replies` replies, `topic.dead` dead letters. `partitions`, `replies`: of topics that
are created here, and the least of topics that exist.

`acks`: who has a record before it counts as sent: nobody (0), its partition's leader (1), all that are in sync with it
(all). `linger_ms`: how long a send may wait for company. `batch_bytes`: how large that company is before it leaves at
once; what is larger leaves alone. 0 is the library's own: 1,000,000 (librdkafka), 16,384 (kafka-python). The three mean
the same to both libraries, and hold for requests at the caller's end and for replies at the listener's.

`prefetch`: records in hand at a listener. `workers`: threads that call its handler. `session_ms`: silence after which a
listener counts as dead and its work moves on; brokers allow 6000 and more by default.

`results`: the topic to which a listener answers records that do not say where their reply goes: those of a producer
that is no caller. Without it they are not answered. With it, both topics may be somebody else's: of any limit, and of
as few partitions as `partitions` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl, urlsplit

from services.errors import ConfigurationError, ServiceError

# Headers of the transport itself; neither end sees them.
PREFIX = "bi-"
ID = "bi-id"
INSTANCE = "bi-instance"
REPLY_PARTITION = "bi-reply-partition"
FAILURE = "bi-failure"
# Of a result, beside the headers of its record.
RESULT_FAILURE = "failure"
SOURCE_PARTITION = "source-partition"
SOURCE_OFFSET = "source-offset"

# The largest payload that a link carries (16 MiB) and its headers; topics and clients are set to it, explicitly.
MESSAGE_LIMIT = 20 * 1024 * 1024
LIMIT_SETTING = "max.message.bytes"  # a topic's


class KafkaUrl(NamedTuple):
    """A parsed link URL."""

    url: str
    bootstrap: str
    topic: str
    partitions: int
    replies: int
    acks: str
    linger_ms: int
    batch_bytes: int
    prefetch: int
    workers: int
    session_ms: int
    group: str
    results: str  # empty: nowhere
    patience_s: int  # of what is published: so long it is tried while a model is away

    @property
    def reply_topic(self) -> str:
        """Where replies go."""
        return f"{self.topic}.replies"

    @property
    def dead_topic(self) -> str:
        """Where records go that killed their process alone, twice."""
        return f"{self.topic}.dead"

    @property
    def topics(self) -> dict[str, int]:
        """All topics of the link, with their least number of partitions."""
        of_link = {self.topic: self.partitions, self.reply_topic: self.replies, self.dead_topic: 1}
        return of_link | ({self.results: self.partitions} if self.results else {})

    @property
    def asked_for(self) -> list[str]:
        """Topics without which there is no answer."""
        return [self.topic, self.reply_topic, *([self.results] if self.results else [])]

    def configuration(self, topic: str) -> dict[str, str]:
        """What `topic` is created with.

        Whoever publishes what has results, and there may be many, each with a clock of its own: the broker stamps their
        records.
        """
        stamped = {"message.timestamp.type": "LogAppendTime"} if self.results and topic == self.topic else {}
        return {LIMIT_SETTING: str(MESSAGE_LIMIT), **stamped}


# option -> (default, least)
_NUMBERS = {
    "partitions": (4, 1),  # of one that somebody else has made, there may be fewer than consumers of ours would want
    "replies": (4, 1),
    "linger_ms": (0, 0),
    "batch_bytes": (0, 0),
    "prefetch": (64, 1),
    "workers": (1, 1),
    "session_ms": (6000, 1000),
    "patience_s": (3600, 0),
}


def parse_url(url: str) -> KafkaUrl:
    """Raises `ConfigurationError` that names what is wrong and what is known."""
    parts = urlsplit(url)
    topic = parts.path.strip("/")
    if not parts.netloc or not topic or "/" in topic:
        raise ConfigurationError(f"link '{url}' is not kafka://host:port/topic")
    for address in parts.netloc.split(","):
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigurationError(f"link '{url}': '{address}' is not host:port")
    numbers = {key: default for key, (default, _) in _NUMBERS.items()}
    words = {"acks": "all", "group": topic, "results": ""}
    given = parse_qsl(parts.query)
    for key, value in given:
        if key in _NUMBERS:
            least = _NUMBERS[key][1]
            if not value.isdigit() or int(value) < least:
                raise ConfigurationError(f"link '{url}': {key} is '{value}'; the least is {least}")
            numbers[key] = int(value)
        elif key in words:
            words[key] = value
        else:
            known = ", ".join([*_NUMBERS, *words])
            raise ConfigurationError(f"link '{url}' has unknown option '{key}'; known: {known}")
    if words["acks"] not in ("0", "1", "all"):
        raise ConfigurationError(f"link '{url}': acks is '{words['acks']}'; use 0, 1 or all")
    if words["results"] in (topic, f"{topic}.replies", f"{topic}.dead"):
        raise ConfigurationError(
            f"link '{url}': results is '{words['results']}', a topic of the link's own; name another"
        )
    return KafkaUrl(
        url=url,
        bootstrap=parts.netloc,
        topic=topic,
        partitions=numbers["partitions"],
        replies=numbers["replies"],
        acks=words["acks"],
        linger_ms=numbers["linger_ms"],
        batch_bytes=numbers["batch_bytes"],
        prefetch=numbers["prefetch"],
        workers=numbers["workers"],
        session_ms=numbers["session_ms"],
        group=words["group"],
        results=words["results"],
        patience_s=numbers["patience_s"],
    )


class Record(NamedTuple):
    """One record of a partition. `appended_ns`: when the broker took it, by its own clock, since the epoch; None where
    the topic's stamps are the producers'.
    """

    partition: int
    offset: int
    value: bytes
    headers: dict[str, bytes]
    key: bytes | None = None
    appended_ns: int | None = None


class Position(NamedTuple):
    """A committed offset (the next record to read) and the text beside it."""

    offset: int
    metadata: str


class Standing(NamedTuple):
    """Where a partition stands: what is committed (else its beginning, with empty metadata), and where it ends."""

    committed: Position
    end: int  # the offset after its last record


# Called once, on a thread of the client's: None when the broker has the record, else why it has not.
Acked = Callable[[ServiceError | None], None]


class Producer(Protocol):
    """Sends records; thread-safe."""

    def send(
        self,
        topic: str,
        partition: int,
        value: bytes,
        headers: Mapping[str, bytes],
        acked: Acked,
        key: bytes | None = None,
    ) -> None:
        """Hand a record over; never blocks for the broker. Every error goes to `acked`."""
        ...

    def close(self, timeout: float) -> None:
        """Send what is buffered within `timeout` seconds, drop the rest, stop all threads. May be called twice."""
        ...


class Consumer(Protocol):
    """Reads records of one topic. All calls come from one thread."""

    def poll(self, timeout: float, limit: int) -> Sequence[Record]:
        """Up to `limit` records, waiting at most `timeout` seconds for the first. Raises `Unavailable` when broken."""
        ...

    def owns(self, partition: int) -> bool:
        """Whether the partition is assigned to this consumer now."""
        ...

    def standing(self, partitions: Sequence[int]) -> Mapping[int, Standing]:
        """Where these partitions of the topic stand. Raises `Unavailable`."""
        ...

    def check(self) -> None:
        """Ask the broker something. Raises `Unavailable` where this consumer has lost its way to it for good."""
        ...

    def commit(self, positions: Mapping[int, Position]) -> None:
        """Commit, and wait until the broker has it. Raises `Unavailable`."""
        ...

    def commit_soon(self, positions: Mapping[int, Position]) -> None:
        """Commit without waiting, or not at all while another such commit is on its way: the next time, then.

        `Membership.committed` learns of success, nobody of failure.
        """
        ...

    def pause(self) -> None:
        """Deliver nothing until `resume`, while `poll` keeps the membership of the group."""
        ...

    def resume(self) -> None:
        """Deliver again."""
        ...

    def close(self) -> None:
        """Leave the group and stop."""
        ...


class Membership(Protocol):
    """What a member of a group learns from its client library, on whichever thread that uses; must not block."""

    def assigned(self, partitions: Sequence[int]) -> None:
        """These are this member's now. Some libraries deliver a first record just before they say so."""
        ...

    def revoked(self, partitions: Sequence[int]) -> Mapping[int, Position]:
        """The partitions go to somebody else: what is to be committed for them before."""
        ...

    def lost(self, partitions: Sequence[int]) -> None:
        """They went, unasked: nothing can be committed."""
        ...

    def committed(self, offsets: Mapping[int, int]) -> None:
        """The broker has these offsets of partitions."""
        ...


class Client(Protocol):
    """A Kafka client library, for one link."""

    def ensure_topics(self) -> bool:
        """Create what is missing, check what is there; whether anything was missing.

        Raises `ConfigurationError`, `Unavailable`.
        """
        ...

    def probe(self, timeout: float) -> None:
        """Ask the broker for the link's topics. Raises `Unavailable` within about `timeout` seconds."""
        ...

    def producer(self) -> Producer:
        """Raises `Unavailable`."""
        ...

    def group_consumer(self, membership: Membership) -> Consumer:
        """A member of the link's group on its request topic. Raises `Unavailable`."""
        ...

    def ends(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """The offsets after the last records of these partitions of the request topic.

        From any thread, over connections of its own. Raises `Unavailable`.
        """
        ...

    def begins(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """The offsets of the first records that the broker still has. As `ends`."""
        ...

    def tail_consumer(self, partition: int) -> Consumer:
        """Reads the reply topic's `partition` from its present end, which is known on return. Raises `Unavailable`."""
        ...

    def close(self) -> None:
        """Stop what `ensure_topics`, `probe` and `ends` use."""
        ...


def check_topic(url: KafkaUrl, topic: str, partitions: int, limit: int | None) -> None:
    """Raises `ConfigurationError` for an existing topic that is too small; `limit` None: not known."""
    least = url.topics[topic]
    if partitions < least:
        raise ConfigurationError(
            f"topic '{topic}' has {partitions} partitions, the link wants {least}; "
            f"kafka-topics.sh --alter --topic {topic} --partitions {least}, or ?partitions= / ?replies= in the link"
        )
    # What is published, and its results, are as large as they are; a result that does not fit is a failure that does.
    elsewhere = (url.topic, url.results) if url.results else ()
    if limit is not None and limit < MESSAGE_LIMIT and topic not in elsewhere:
        raise ConfigurationError(
            f"topic '{topic}' takes messages of {limit} bytes, the link wants {MESSAGE_LIMIT}; kafka-configs.sh "
            f"--alter --entity-type topics --entity-name {topic} --add-config max.message.bytes={MESSAGE_LIMIT}"
        )
