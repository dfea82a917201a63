"""Kafka through librdkafka (confluent-kafka). `kafka://host:port/topic`; see `kafka_client.py` for the URL.

Settings: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from services.errors import Overloaded, PayloadTooLarge, ServiceError, Unavailable
from services.transports.kafka_caller import KafkaTransport
from services.transports.kafka_client import (
    MESSAGE_LIMIT,
    Acked,
    KafkaUrl,
    Position,
    Record,
    check_topic,
    parse_url,
)
from services.transports.kafka_listener import KafkaListener

_log = logging.getLogger(__name__)
_library_log = logging.getLogger("librdkafka")
# What it says when a broker is away: once per attempt and connection. `broker_watch` says it once.
_library_log.setLevel(logging.CRITICAL)

_TIMEOUT_S = 5.0


def connect(url: str) -> KafkaTransport:
    """The caller's end. Raises `ConfigurationError`."""
    parsed = parse_url(url)
    return KafkaTransport(parsed, LibrdkafkaClient(parsed))


def listen(url: str) -> KafkaListener:
    """The callee's end. Raises `ConfigurationError`."""
    parsed = parse_url(url)
    return KafkaListener(parsed, LibrdkafkaClient(parsed))


def _service_error(error: Any, what: str) -> ServiceError:
    code = error.code()
    if code in (
        ck.KafkaError.MSG_SIZE_TOO_LARGE,
        ck.KafkaError._MSG_SIZE_TOO_LARGE if hasattr(ck.KafkaError, "_MSG_SIZE_TOO_LARGE") else None,
    ):  # noqa: SLF001
        return PayloadTooLarge(f"{what}: {error.str()}")
    return Unavailable(f"{what}: {error.str()} ({error.name()})")


class LibrdkafkaClient:
    """See `Client`."""

    def __init__(self, url: KafkaUrl) -> None:
        self._url = url
        self._common: dict[str, Any] = {
            "bootstrap.servers": url.bootstrap,
            "client.id": "beyond-inference",
            "socket.nagle.disable": True,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 1000,
            "socket.connection.setup.timeout.ms": 3000,
            "topic.metadata.refresh.interval.ms": 30000,
            "logger": _library_log,
        }

    def producer(self) -> LibrdkafkaProducer:
        """See `Client.producer`."""
        return LibrdkafkaProducer(
            {
                **self._common,
                "linger.ms": self._url.linger_ms,
                "acks": self._url.acks,
                "message.max.bytes": MESSAGE_LIMIT,
                "message.timeout.ms": 10000,
                "queue.buffering.max.kbytes": 262144,
                "queue.buffering.max.messages": 10000,
                "compression.type": "none",
            }
        )

    def group_consumer(
        self, assigned: Callable[[Sequence[int]], None], revoked: Callable[[Sequence[int]], None]
    ) -> LibrdkafkaConsumer:
        """See `Client.group_consumer`."""
        consumer = ck.Consumer(
            {
                **self._common,
                **_FETCH,
                "group.id": self._url.group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                # A killed member's work moves on after this.
                "session.timeout.ms": 6000,
                "heartbeat.interval.ms": 1000,
                # Partitions that stay with their member stay in hand while others move.
                "partition.assignment.strategy": "cooperative-sticky",
                "max.poll.interval.ms": 300000,
            }
        )
        consumer.subscribe(
            [self._url.topic],
            on_assign=lambda _, partitions: assigned([p.partition for p in partitions]),
            on_revoke=lambda _, partitions: revoked([p.partition for p in partitions]),
            on_lost=lambda _, partitions: revoked([p.partition for p in partitions]),
        )
        return LibrdkafkaConsumer(consumer, self._url.topic)

    def tail_consumer(self, partition: int) -> LibrdkafkaConsumer:
        """See `Client.tail_consumer`."""
        consumer = ck.Consumer(
            {
                **self._common,
                **_FETCH,
                # librdkafka wants a group's name; no group is joined by `assign`, and nothing is committed.
                "group.id": f"{self._url.group}.replies",
                "enable.auto.commit": False,
                "auto.offset.reset": "latest",
            }
        )
        topic = self._url.reply_topic
        try:
            _, end = consumer.get_watermark_offsets(ck.TopicPartition(topic, partition), timeout=_TIMEOUT_S)
        except ck.KafkaException as error:
            consumer.close()
            raise Unavailable(f"the end of '{topic}' cannot be learned: {error}") from None
        consumer.assign([ck.TopicPartition(topic, partition, end)])
        return LibrdkafkaConsumer(consumer, topic)

    def ensure_topics(self) -> None:
        """See `Client.ensure_topics`."""
        admin = AdminClient(self._common)
        try:
            known = admin.list_topics(timeout=_TIMEOUT_S).topics
            missing = [name for name in self._url.topics if name not in known]
            self._create(admin, missing)
            there = [name for name in self._url.topics if name not in missing]
            limits = self._limits(admin, there)
        except ck.KafkaException as error:
            raise Unavailable(f"the broker at {self._url.bootstrap} does not answer: {error}") from None
        for name in there:
            check_topic(self._url, name, len(known[name].partitions), limits.get(name))

    def _create(self, admin: Any, names: Sequence[str]) -> None:
        if not names:
            return
        topics = [
            # -1: the cluster's own replication factor
            NewTopic(n, self._url.topics[n], -1, config={"max.message.bytes": str(MESSAGE_LIMIT)})
            for n in names
        ]
        for future in admin.create_topics(topics, operation_timeout=_TIMEOUT_S).values():
            try:
                future.result(_TIMEOUT_S)
            except ck.KafkaException as error:
                if error.args[0].code() != ck.KafkaError.TOPIC_ALREADY_EXISTS:  # a peer was faster
                    raise

    @staticmethod
    def _limits(admin: Any, names: Sequence[str]) -> dict[str, int]:
        resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
        if not resources:
            return {}
        found = admin.describe_configs(resources, request_timeout=_TIMEOUT_S)
        return {
            resource.name: int(future.result(_TIMEOUT_S)["max.message.bytes"].value)
            for resource, future in found.items()
        }


_FETCH: dict[str, Any] = {
    # A fetch is answered as soon as there is one byte; the wait only bounds idle polls.
    "fetch.min.bytes": 1,
    "fetch.wait.max.ms": 500,
    "fetch.error.backoff.ms": 20,
    "fetch.message.max.bytes": MESSAGE_LIMIT,
    "receive.message.max.bytes": 100 * 1024 * 1024,
    "fetch.max.bytes": 64 * 1024 * 1024,
    # What may wait in memory for a slow handler.
    "queued.max.messages.kbytes": 65536,
    "queued.min.messages": 1000,
    "allow.auto.create.topics": False,
}


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

    def send(self, topic: str, partition: int, value: bytes, headers: Mapping[str, bytes], acked: Acked) -> None:
        """See `Producer.send`."""

        def delivered(error: Any, _: Any) -> None:
            acked(None if error is None else _service_error(error, f"the broker did not take a record for '{topic}'"))

        try:
            self._producer.produce(
                topic, value, partition=partition, headers=list(headers.items()), on_delivery=delivered
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
        self._thread.join(5)
        self._producer.purge()
        self._producer.poll(0)


class LibrdkafkaConsumer:
    """See `Consumer`."""

    def __init__(self, consumer: Any, topic: str) -> None:
        self._consumer = consumer
        self._topic = topic

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
                headers = {name: value or b"" for name, value in message.headers() or ()}
                records.append(Record(message.partition(), message.offset(), message.value() or b"", headers))
            elif error.code() != ck.KafkaError._PARTITION_EOF:  # noqa: SLF001 # so the library names it
                _log.debug("consuming '%s': %s", self._topic, error.str())
                if error.fatal():
                    raise Unavailable(f"the consumer of '{self._topic}' has failed: {error.str()}")
                time.sleep(0.01)  # errors come as fast as they are polled
        return records

    def committed(self, partition: int) -> Position:
        """See `Consumer.committed`."""
        asked = ck.TopicPartition(self._topic, partition)
        try:
            (found,) = self._consumer.committed([asked], timeout=_TIMEOUT_S)
            if found.error is not None:
                raise Unavailable(f"the committed offset cannot be learned: {found.error.str()}")
            if found.offset >= 0:
                return Position(found.offset, found.metadata or "")
            low, _ = self._consumer.get_watermark_offsets(asked, timeout=_TIMEOUT_S)
        except ck.KafkaException as error:
            raise Unavailable(f"the committed offset cannot be learned: {error}") from None
        return Position(low, "")

    def commit(self, positions: Mapping[int, Position], *, wait: bool) -> None:
        """See `Consumer.commit`."""
        offsets = [ck.TopicPartition(self._topic, p, at.offset, at.metadata) for p, at in positions.items()]
        try:
            for done in self._consumer.commit(offsets=offsets, asynchronous=not wait) or ():
                if done.error is not None:
                    raise Unavailable(f"offsets cannot be committed: {done.error.str()}")
        except ck.KafkaException as error:
            raise Unavailable(f"offsets cannot be committed: {error}") from None

    def pause(self) -> None:
        """See `Consumer.pause`."""
        self._consumer.pause(self._consumer.assignment())

    def resume(self) -> None:
        """See `Consumer.resume`."""
        self._consumer.resume(self._consumer.assignment())

    def close(self) -> None:
        """See `Consumer.close`."""
        self._consumer.close()
