"""Kafka through librdkafka (confluent-kafka). `kafka://host:port/topic`; see `kafka_client.py` for the URL.

Settings: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import confluent_kafka as ck
from confluent_kafka.admin import (  # type: ignore[attr-defined] # its annotations forget one
    AdminClient,
    ConfigResource,
    NewPartitions,
    NewTopic,
)

from services.errors import InvalidInput, Overloaded, PayloadTooLarge, ServiceError, Unavailable
from services.transports.kafka_caller import KafkaTransport
from services.transports.kafka_client import (
    LIMIT_SETTING,
    MESSAGE_LIMIT,
    Acked,
    KafkaUrl,
    Membership,
    Position,
    Record,
    Standing,
    check_topic,
    parse_url,
)
from services.transports.kafka_listener import KafkaListener
from services.transports.kafka_security import OPEN, Cause, KafkaSecurity, Refused

_log = logging.getLogger(__name__)
# What the library says when a broker is away, it says once per attempt and connection; `broker_watch` says it once.
_library_log = logging.getLogger("services.transports.librdkafka")

_TIMEOUT_S = 3.0
_SLICE_S = 0.5
_CHECK_S = 1.0
_ENDS_S = 1.0
_SOCKET_MS = 5000
# A commit that nobody has said a word about for so long is given up.
_COMMIT_S = 15.0
_ERROR_PAUSE_S = 0.01
_READY_POLL_S = 0.02


def connect(url: str, security: KafkaSecurity = OPEN) -> KafkaTransport:
    """The caller's end. Raises `ConfigurationError`."""
    parsed = parse_url(url)
    return KafkaTransport(parsed, LibrdkafkaClient(parsed, security))


def listen(url: str, security: KafkaSecurity = OPEN) -> KafkaListener:
    """The callee's end. Raises `ConfigurationError`."""
    parsed = parse_url(url)
    return KafkaListener(parsed, LibrdkafkaClient(parsed, security))


# Everything else is `Unavailable`.
_ERRORS: dict[int, type[ServiceError]] = {
    ck.KafkaError.MSG_SIZE_TOO_LARGE: PayloadTooLarge,
    ck.KafkaError._QUEUE_FULL: Overloaded,
    ck.KafkaError._UNKNOWN_PARTITION: InvalidInput,
}


def _service_error(error: Any, what: str) -> ServiceError:
    return _ERRORS.get(error.code(), Unavailable)(f"{what}: {error.str()} ({error.name()})")


_FETCH: dict[str, Any] = {
    # A fetch is answered as soon as there is one byte; the wait only bounds idle polls.
    "fetch.min.bytes": 1,
    "fetch.wait.max.ms": 500,
    "fetch.error.backoff.ms": 20,
    "fetch.queue.backoff.ms": 20,
    "fetch.message.max.bytes": MESSAGE_LIMIT,
    "fetch.max.bytes": 2 * MESSAGE_LIMIT,
    "receive.message.max.bytes": 3 * MESSAGE_LIMIT,
    # What may wait in memory for a slow handler: no further fetch is begun beyond.
    "queued.max.messages.kbytes": 32768,
    "allow.auto.create.topics": False,
    "enable.auto.commit": False,
}

# Of several brokers one that was asked has not heard of a new topic yet, or that it leads it.
_NOT_YET = (
    ck.KafkaError.NOT_LEADER_FOR_PARTITION,
    ck.KafkaError.LEADER_NOT_AVAILABLE,
    ck.KafkaError.UNKNOWN_TOPIC_OR_PART,
    ck.KafkaError._UNKNOWN_TOPIC,
    ck.KafkaError._UNKNOWN_PARTITION,
)

# For questions only: it fetches nothing.
_ASKER: dict[str, Any] = {"enable.auto.commit": False, "allow.auto.create.topics": False}


_REFUSALS = {
    ck.KafkaError._AUTHENTICATION: Cause.CREDENTIALS,
    ck.KafkaError.SASL_AUTHENTICATION_FAILED: Cause.CREDENTIALS,
    ck.KafkaError.UNSUPPORTED_SASL_MECHANISM: Cause.CREDENTIALS,
    ck.KafkaError._SSL: Cause.TLS,
}


class Heard:
    """What the library last said of its connections. Its calls only say that they waited in vain.

    Not a part of the client: the library would hold the client by it, and its threads would never end.
    """

    def __init__(self) -> None:
        self._last: Any = None
        self._down = False
        self._met = False  # the broker has answered once: this link and it speak the same protocol

    def __call__(self, error: Any) -> None:
        """Called by the library, from `poll`."""
        if error.code() == ck.KafkaError._ALL_BROKERS_DOWN:
            self._down = True
        else:
            self._last = error

    def forget(self) -> None:
        """The broker has answered."""
        self._last = None
        self._met = True

    def refusal(self, url: KafkaUrl, security: KafkaSecurity) -> Refused | None:
        """If it was one."""
        if self._last is None:
            # Of connections that it could not make, or that timed out, it says so; not of those that were closed.
            said = "connections are closed before anything is said"
            return Refused(url.bootstrap, security, Cause.PROTOCOL, said) if self._down and not self._met else None
        said = self._last.str()
        cause = _REFUSALS.get(self._last.code(), Cause.TLS if "SSL" in said else None)  # schemes are in lower case
        return None if cause is None else Refused(url.bootstrap, security, cause, said)


def secured(security: KafkaSecurity) -> dict[str, str]:
    """The library's settings. Raises `ConfigurationError` for files that cannot be used."""
    security.context()  # its reasons are better than the library's
    settings = {"security.protocol": security.protocol}
    if security.sasl:
        settings |= {
            "sasl.mechanism": security.mechanism,
            "sasl.username": security.user,
            "sasl.password": security.password,
        }
    files = {
        "ssl.ca.location": security.ca_file,
        "ssl.certificate.location": security.certificate_file,
        "ssl.key.location": security.key_file,
        "ssl.key.password": security.key_password,
    }
    return settings | {name: value for name, value in files.items() if value}


class LibrdkafkaClient:
    """See `Client`."""

    def __init__(self, url: KafkaUrl, security: KafkaSecurity = OPEN) -> None:
        """Raises `ConfigurationError` for `security` that cannot be used."""
        self._url = url
        self._security = security
        self._heard = Heard()
        self._common: dict[str, Any] = {
            **secured(security),
            "error_cb": self._heard,
            "bootstrap.servers": url.bootstrap,
            "client.id": "beyond-inference",
            "socket.nagle.disable": True,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 1000,
            "socket.connection.setup.timeout.ms": 3000,
            "socket.timeout.ms": _SOCKET_MS,
            "logger": _library_log,
            "log_level": 2,
        }
        self._admin = AdminClient({**self._common, "allow.auto.create.topics": False})
        self._pause = threading.Event()  # never set: its wait is a pause
        self._asking = threading.Lock()
        self._asker: Any = None
        self._closed = False

    def ensure_topics(self) -> bool:
        """See `Client.ensure_topics`."""
        try:
            missing = self._check()
            if missing:
                self._create(missing)
                self._check()  # what a peer was faster to create, too
        except (ck.KafkaException, TimeoutError) as error:
            raise self._unavailable(error) from None
        return bool(missing)

    def _unavailable(self, error: BaseException) -> Unavailable:
        self._admin.poll(0)  # what it has to say of its connections
        said = error.args[0].str() if isinstance(error, ck.KafkaException) else f"nothing in {_TIMEOUT_S:.0f} s"
        refusal = self._heard.refusal(self._url, self._security)
        return refusal or Unavailable(f"the broker at {self._url.bootstrap} does not answer: {said}")

    def _known(self) -> Mapping[str, Any]:
        """The cluster's topics. Raises `KafkaException`."""
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            left = deadline - time.monotonic()
            try:
                known: Mapping[str, Any] = self._admin.list_topics(timeout=max(0.1, min(_SLICE_S, left))).topics
            except ck.KafkaException:
                # The library tries on until its time is up, also with a password that the broker has refused.
                self._admin.poll(0)
                refusal = self._heard.refusal(self._url, self._security)
                if left <= _SLICE_S or (refusal is not None and refusal.certain):
                    raise
                self._pause.wait(_ERROR_PAUSE_S)  # in case that it gave up before its time
            else:
                self._heard.forget()
                return known

    def grow_topics(self) -> Mapping[str, int]:
        """Add what partitions existing topics of the link lack, never take any away; topic -> how many it has now.

        Raises `Unavailable`.
        """
        try:
            known = self._known()
            lacking = {
                name: partitions
                for name, partitions in self._url.topics.items()
                if name in known and known[name].error is None and len(known[name].partitions) < partitions
            }
            if lacking:
                wanted = [NewPartitions(name, partitions) for name, partitions in lacking.items()]
                for future in self._admin.create_partitions(wanted, operation_timeout=_TIMEOUT_S).values():
                    future.result(_TIMEOUT_S)
                self._wait_ready(lacking)
        except (ck.KafkaException, TimeoutError) as error:
            raise self._unavailable(error) from None
        return lacking

    def _check(self) -> list[str]:
        """Topics that are missing. Raises `ConfigurationError` for those that are there and do not fit."""
        known = self._known()
        missing = [name for name in self._url.topics if name not in known or known[name].error is not None]
        there = [name for name in self._url.topics if name not in missing]
        limits = self._limits(there)
        for name in there:
            check_topic(self._url, name, len(known[name].partitions), limits.get(name))
        return missing

    def _create(self, names: Sequence[str]) -> None:
        topics = [
            # -1: the cluster's own replication factor
            NewTopic(n, self._url.topics[n], -1, config=self._url.configuration(n))
            for n in names
        ]
        made = {name: self._url.topics[name] for name in names}
        for name, future in self._admin.create_topics(topics, operation_timeout=_TIMEOUT_S).items():
            try:
                future.result(_TIMEOUT_S)
            except ck.KafkaException as error:
                if error.args[0].code() != ck.KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                made[name] = 1  # a peer was faster, and had its own mind of how many: that is checked after
        self._wait_ready(made)

    def _wait_ready(self, partitions: Mapping[str, int]) -> None:
        """Until these topics have so many partitions, or more. Raises `Unavailable`."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not self._ready(partitions):
            if time.monotonic() > deadline:
                raise Unavailable(f"topics {list(partitions)} were made, and have no leader after {_TIMEOUT_S:.0f} s")
            self._pause.wait(_READY_POLL_S)

    def _ready(self, partitions: Mapping[str, int]) -> bool:
        """Whether all partitions have a leader; for a moment after their creation they have none."""
        known = self._known()
        return all(
            name in known
            and known[name].error is None
            and len(known[name].partitions) >= count
            and all(partition.leader >= 0 for partition in known[name].partitions.values())
            for name, count in partitions.items()
        )

    def _limits(self, names: Sequence[str]) -> dict[str, int]:
        resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
        if not resources:
            return {}
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            found = self._admin.describe_configs(resources, request_timeout=_TIMEOUT_S)
            try:
                return {
                    resource.name: int(future.result(_TIMEOUT_S)[LIMIT_SETTING].value)
                    for resource, future in found.items()
                }
            except ck.KafkaException as error:
                if error.args[0].code() not in _NOT_YET or time.monotonic() > deadline:
                    raise
            self._pause.wait(_READY_POLL_S)

    def probe(self, timeout: float) -> None:
        """See `Client.probe`."""
        deadline = time.monotonic() + timeout
        for name in self._url.asked_for:
            try:
                error = self._admin.list_topics(name, timeout=max(0.1, deadline - time.monotonic())).topics[name].error
            except ck.KafkaException as failure:
                self._admin.poll(0)
                refusal = self._heard.refusal(self._url, self._security)
                raise refusal or Unavailable(f"asked for topic '{name}': {failure.args[0].str()}") from None
            self._heard.forget()
            if error is not None:
                raise Unavailable(f"asked for topic '{name}': {error.str()}")

    def producer(self) -> LibrdkafkaProducer:
        """See `Client.producer`."""
        return LibrdkafkaProducer(
            {
                **self._common,
                "linger.ms": self._url.linger_ms,
                "acks": self._url.acks,
                **({"batch.size": self._url.batch_bytes} if self._url.batch_bytes else {}),
                "message.max.bytes": MESSAGE_LIMIT,
                # Longer than it takes to learn that a broker is away; nobody waits for what is older.
                "message.timeout.ms": 10000,
                "queue.buffering.max.kbytes": 256 * 1024,
                "queue.buffering.max.messages": 10000,
                "allow.auto.create.topics": False,
            }
        )

    def group_consumer(self, membership: Membership) -> LibrdkafkaConsumer:
        """See `Client.group_consumer`."""
        topic = self._url.topic
        commits = _Commits(membership)

        def revoked(consumer: Any, partitions: Sequence[Any]) -> None:
            positions = membership.revoked([p.partition for p in partitions])
            if positions:
                try:
                    consumer.commit(offsets=_offsets(topic, positions), asynchronous=False)
                except ck.KafkaException as error:
                    _log.warning("offsets of '%s' cannot be committed before they go: %s", topic, error.args[0].str())

        consumer = ck.Consumer(
            {
                **self._common,
                **_FETCH,
                "group.id": self._url.group,
                "auto.offset.reset": "earliest",
                "enable.auto.offset.store": False,
                "queued.min.messages": max(16, self._url.prefetch),
                "session.timeout.ms": self._url.session_ms,
                "heartbeat.interval.ms": max(100, self._url.session_ms // 6),
                "max.poll.interval.ms": 300000,
                # Partitions that stay with their member stay in hand while others move: with an eager strategy every
                # change of the group orphans all work that is in hand anywhere. Both client libraries have it.
                "partition.assignment.strategy": "cooperative-sticky",
                "on_commit": commits.done,
            }
        )
        consumer.subscribe(
            [topic],
            on_assign=lambda _, partitions: membership.assigned([p.partition for p in partitions]),
            on_revoke=revoked,
            on_lost=lambda _, partitions: membership.lost([p.partition for p in partitions]),
        )
        asker = ck.Consumer({**self._common, **_ASKER, "group.id": self._url.group})
        return LibrdkafkaConsumer(consumer, topic, asker, commits)

    def ends(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """See `Client.ends`."""
        return {number: end for number, (_, end) in self._both(partitions).items()}

    def begins(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """See `Client.begins`."""
        return {number: first for number, (first, _) in self._both(partitions).items()}

    def _both(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """One asks at a time: a consumer that is closed meanwhile must not be asked."""
        with self._asking:
            if self._closed:
                raise Unavailable("the link is closed")
            if self._asker is None:
                self._asker = ck.Consumer({**self._common, **_ASKER, "group.id": self._url.group})
            deadline = time.monotonic() + _ENDS_S
            return {
                number: _watermarks(self._asker, self._url.topic, number, max(0.1, deadline - time.monotonic()))
                for number in partitions
            }

    def tail_consumer(self, partition: int) -> LibrdkafkaConsumer:
        """See `Client.tail_consumer`."""
        topic = self._url.reply_topic
        consumer = ck.Consumer(
            {
                **self._common,
                **_FETCH,
                # librdkafka wants a group's name; no group is joined by `assign`, and nothing is committed.
                "group.id": f"{self._url.group}.replies",
                "auto.offset.reset": "latest",
            }
        )
        try:
            _, end = _watermarks(consumer, topic, partition)
        except Unavailable:
            consumer.close()
            raise
        consumer.assign([ck.TopicPartition(topic, partition, end)])
        return LibrdkafkaConsumer(consumer, topic, consumer)

    def close(self) -> None:
        """See `Client.close`. The library's other threads end with the last reference."""
        with self._asking:
            self._closed = True
            if self._asker is not None:
                self._asker.close()
                self._asker = None


class _Commits:
    """Commits on their way: one at a time.

    A pile of them, sent to a broker that was silent, can keep the library (2.16) from joining its group ever again when
    the membership was lost meanwhile: it waits for all of them in the state wait-incr-unassign-to-complete.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._since: float | None = None

    def begin(self) -> bool:
        """Whether another one may be sent."""
        now = time.monotonic()
        if self._since is not None and now - self._since < _COMMIT_S:
            return False
        self._since = now
        return True

    def done(self, error: Any, offsets: Sequence[Any]) -> None:
        """Called by the library, from `poll`."""
        self._since = None
        if error is None:
            self._membership.committed({at.partition: at.offset for at in offsets if at.error is None})


def _offsets(topic: str, positions: Mapping[int, Position]) -> list[Any]:
    return [ck.TopicPartition(topic, number, at.offset, at.metadata) for number, at in positions.items()]


def _watermarks(consumer: Any, topic: str, partition: int, timeout: float = _TIMEOUT_S) -> tuple[int, int]:
    """The offsets of the first record and after the last. Raises `Unavailable`."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            low, high = consumer.get_watermark_offsets(ck.TopicPartition(topic, partition), timeout=timeout)
            return int(low), int(high)
        except ck.KafkaException as failure:
            error = failure.args[0]
            # A topic that was just created: metadata name a leader that does not know it yet.
            if error.code() not in _NOT_YET or time.monotonic() > deadline:
                raise Unavailable(f"an offset of '{topic}' cannot be learned: {error.str()}") from None
        time.sleep(_READY_POLL_S)


class LibrdkafkaProducer:
    """See `Producer`. A thread serves the acknowledgements."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._producer = ck.Producer(dict(settings))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="kafka-acks", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closed.is_set():
            self._producer.poll(0.2)

    def send(
        self,
        topic: str,
        partition: int,
        value: bytes,
        headers: Mapping[str, bytes],
        acked: Acked,
        key: bytes | None = None,
    ) -> None:
        """See `Producer.send`."""

        def delivered(error: Any, _: Any) -> None:
            acked(None if error is None else _service_error(error, f"the broker did not take a record for '{topic}'"))

        if self._closed.is_set():
            acked(Unavailable("the producer is closed"))
            return
        try:
            self._producer.produce(
                topic, value, key, partition=partition, headers=list(headers.items()), on_delivery=delivered
            )
        except BufferError:
            acked(Overloaded(f"too many records wait to be sent to '{topic}'; try later, or add partitions"))
        except ck.KafkaException as error:
            acked(_service_error(error.args[0], f"a record for '{topic}' cannot be sent"))

    def close(self, timeout: float) -> None:
        """See `Producer.close`."""
        if self._closed.is_set():
            return
        self._producer.flush(timeout)
        self._closed.set()
        self._producer.purge()
        if self._thread is not threading.current_thread():
            self._thread.join(5)
        self._producer.flush(0.1)  # serves the callbacks of what was purged


def _record(message: Any) -> Record:
    stamp, ms = message.timestamp()
    return Record(
        message.partition(),
        message.offset(),
        message.value() or b"",
        {name: value or b"" for name, value in message.headers() or ()},
        message.key(),
        ms * 1_000_000 if stamp == ck.TIMESTAMP_LOG_APPEND_TIME else None,
    )


class LibrdkafkaConsumer:
    """See `Consumer`."""

    def __init__(self, consumer: Any, topic: str, asker: Any, commits: _Commits | None = None) -> None:
        """`asker`, a second consumer that is a member of nothing, is asked where partitions begin and end.

        On the first one's connections that would wait behind a fetch's long poll, half a second each; what is committed
        is asked of the coordinator, over a connection of its own. The library's AdminClient cannot be asked: its
        ListConsumerGroupOffsets, asked while the broker is away, never answers again or aborts the process
        (https://github.com/confluentinc/librdkafka/issues/4605), its ListOffsets knows no leaders when it is back.
        """
        self._consumer = consumer
        self._topic = topic
        self._asker = asker
        self._commits = commits
        self._pause = threading.Event()  # never set: its wait is a pause

    def poll(self, timeout: float, limit: int) -> Sequence[Record]:
        """See `Consumer.poll`. `consume` would wait for its whole number; so one is waited for, the rest taken."""
        first = self._consumer.poll(timeout)
        if first is None:
            return ()
        messages = [first]
        if limit > 1:
            messages += self._consumer.consume(limit - 1, 0)
        records = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(_record(message))
                continue
            _log.debug("consuming '%s': %s", self._topic, error.str())
            if error.fatal():
                raise Unavailable(f"the consumer of '{self._topic}' has failed: {error.str()}")
            self._pause.wait(_ERROR_PAUSE_S)  # errors come as fast as they are polled
        return records

    def owns(self, partition: int) -> bool:
        """See `Consumer.owns`."""
        return any(p.partition == partition for p in self._consumer.assignment())

    def standing(self, partitions: Sequence[int]) -> Mapping[int, Standing]:
        """See `Consumer.standing`."""
        try:
            found = self._consumer.committed(
                [ck.TopicPartition(self._topic, number) for number in partitions], timeout=_TIMEOUT_S
            )
        except (ck.KafkaException, UnicodeDecodeError) as error:  # the latter: see `kafka_python._offsets`
            raise Unavailable(f"committed offsets of '{self._topic}' cannot be learned: {error}") from None
        standing = {}
        for at in found:
            if at.error is not None:
                raise Unavailable(f"a committed offset of '{self._topic}' cannot be learned: {at.error.str()}")
            first, end = _watermarks(self._asker, self._topic, at.partition)
            position = Position(at.offset, at.metadata or "") if at.offset >= 0 else Position(first, "")
            standing[at.partition] = Standing(position, end)
        return standing

    def check(self) -> None:
        """See `Consumer.check`.

        A broker that was silent and comes to itself may say for a moment that the cluster has no broker at all. The
        library (2.16) then forgets the one that it knows, does not ask its bootstrap address again, and polls for ever.
        """
        try:
            self._consumer.list_topics(self._topic, timeout=_CHECK_S)
        except ck.KafkaException as error:
            raise Unavailable(f"the consumer of '{self._topic}' knows no broker: {error.args[0].str()}") from None

    def commit(self, positions: Mapping[int, Position]) -> None:
        """See `Consumer.commit`."""
        try:
            for done in self._consumer.commit(offsets=_offsets(self._topic, positions), asynchronous=False) or ():
                if done.error is not None:
                    raise Unavailable(f"offsets of '{self._topic}' cannot be committed: {done.error.str()}")
        except ck.KafkaException as error:
            raise Unavailable(f"offsets of '{self._topic}' cannot be committed: {error.args[0].str()}") from None

    def commit_soon(self, positions: Mapping[int, Position]) -> None:
        """See `Consumer.commit_soon`."""
        if self._commits is not None and self._commits.begin():
            with contextlib.suppress(ck.KafkaException):  # the next time, then
                self._consumer.commit(offsets=_offsets(self._topic, positions), asynchronous=True)

    def pause(self) -> None:
        """See `Consumer.pause`."""
        self._consumer.pause(self._consumer.assignment())

    def resume(self) -> None:
        """See `Consumer.resume`."""
        self._consumer.resume(self._consumer.assignment())

    def close(self) -> None:
        """See `Consumer.close`."""
        self._consumer.close()
        if self._asker is not self._consumer:
            self._asker.close()
