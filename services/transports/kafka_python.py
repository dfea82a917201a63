"""Kafka through kafka-python. `kafka+python://host:port/topic`; see `kafka_client.py` for the URL.

Kept beside librdkafka because the paper's systems use it: which client runs is itself an overhead to report. Its
consumer is not thread-safe: all calls to it come from one thread, but for what it calls itself, on its own input-output
thread (rebalance callbacks: these must not block). Settings: https://kafka-python.readthedocs.io/en/master/apidoc/
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import kafka
from kafka import errors
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.net.compat import KafkaNetClient
from kafka.net.selector import NetworkSelector
from kafka.record import util as record_util

from services.errors import ConfigurationError, InvalidInput, Overloaded, PayloadTooLarge, ServiceError, Unavailable
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
from services.transports.kafka_python_fixes import ClosingSocket, HandshakeFailed, RememberedJoins, TalkativeConnections
from services.transports.kafka_security import OPEN, Cause, KafkaSecurity, Refused

_log = logging.getLogger(__name__)
# What the library says when a broker is away, it says once per attempt and connection; `broker_watch` says it once.
_QUIET = ("kafka",)

_BOOTSTRAP_MS = 1500
# Of questions to the broker. The watch asks twice before it believes that a broker is away, within 5 s in all.
_ASK_MS = 1500
_READY_MS = 3000
_READY_POLL_S = 0.02
_OFFSETS_S = 1.0
_REQUEST_MS = 5000
_COMMIT_MS = 5000
# A commit that nobody has said a word about for so long is given up.
_COMMIT_GIVEN_UP_S = 15.0
_CLOSE_MS = 3000
_LOG_APPEND_TIME = 1
_BUFFER_BYTES = 256 * 1024 * 1024
_BUFFER_RECORDS = 10000


def connect(url: str, security: KafkaSecurity = OPEN) -> KafkaTransport:
    """The caller's end. Raises `ConfigurationError`."""
    parsed = parse_url(url)
    return KafkaTransport(parsed, KafkaPythonClient(parsed, security))


def listen(url: str, security: KafkaSecurity = OPEN) -> KafkaListener:
    """The callee's end. Raises `ConfigurationError`."""
    parsed = parse_url(url)
    return KafkaListener(parsed, KafkaPythonClient(parsed, security))


def _require_crc32c() -> None:
    if record_util.crc32c_c is None:
        raise ConfigurationError(
            "kafka-python computes checksums in pure Python here, 20 ms of CPU for a message of 121 kB: "
            "pip install crc32c (it is in the extra 'kafka'), or use kafka:// (librdkafka)"
        )


# Of several brokers one that was asked has not heard of a new topic yet, or that it leads it.
_NOT_YET = (errors.UnknownTopicOrPartitionError, errors.LeaderNotAvailableError, errors.NotLeaderForPartitionError)

# Everything else is `Unavailable`.
_ERRORS: tuple[tuple[type[BaseException], type[ServiceError]], ...] = (
    (errors.MessageSizeTooLargeError, PayloadTooLarge),
    (errors.RecordListTooLargeError, PayloadTooLarge),
    (AssertionError, InvalidInput),  # a partition that the topic does not have
    (ValueError, InvalidInput),
)


def _service_error(error: BaseException, what: str) -> ServiceError:
    for theirs, ours in _ERRORS:
        if isinstance(error, theirs):
            return ours(f"{what}: {error}")
    return Unavailable(f"{what}: {type(error).__name__}: {error}")


_CREDENTIALS = (
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
)
# A connection that was made and then closed from afar: what it closed at was not understood.
_NOT_UNDERSTOOD = (errors.KafkaConnectionError, errors.KafkaProtocolError, errors.CorrelationIdError)


def _cause(error: BaseException | None) -> Cause | None:
    """Why a connection came to nothing, where that is a matter of TLS or SASL."""
    if isinstance(error, _CREDENTIALS):
        return Cause.CREDENTIALS
    if isinstance(error, HandshakeFailed):
        return Cause.TLS
    return Cause.PROTOCOL if isinstance(error, _NOT_UNDERSTOOD) else None


def secured(security: KafkaSecurity) -> dict[str, Any]:
    """The library's settings. Raises `ConfigurationError` for files that cannot be used."""
    settings: dict[str, Any] = {"security_protocol": security.protocol, "ssl_context": security.context()}
    if security.sasl:
        settings |= {
            "sasl_mechanism": security.mechanism,
            "sasl_plain_username": security.user,
            "sasl_plain_password": security.password,
        }
    return settings


class KafkaPythonClient:
    """See `Client`."""

    def __init__(self, url: KafkaUrl, security: KafkaSecurity = OPEN) -> None:
        """Raises `ConfigurationError` without crc32c, and for `security` that cannot be used."""
        _require_crc32c()
        for name in _QUIET:
            logger = logging.getLogger(name)
            if logger.level == logging.NOTSET:
                logger.setLevel(logging.CRITICAL)
        self._url = url
        self._security = security
        self._common: dict[str, Any] = {
            **secured(security),
            "bootstrap_servers": url.bootstrap.split(","),
            "client_id": "beyond-inference",
            "bootstrap_timeout_ms": _BOOTSTRAP_MS,
            "reconnect_backoff_ms": 100,
            "reconnect_backoff_max_ms": 1000,
            "proxy_url": f"{ClosingSocket.SCHEMES[0]}://",
        }
        self._lock = threading.Lock()
        self._pause = threading.Event()  # never set: its wait is a pause
        self._closed = False
        self._opened: Any = None

    def _open(self, opener: Any, **settings: Any) -> Any:
        """One of the library's clients. Where its constructor fails, what it has started is stopped: it does not do so.

        Raises `Unavailable`.
        """
        made = []

        def client(**configs: Any) -> Any:
            net = NetworkSelector(**configs)
            made.append(KafkaNetClient(net, TalkativeConnections(net, **configs)))
            return made[-1]

        try:
            return opener(kafka_client=client, **self._common, **settings)
        except (errors.KafkaError, OSError) as error:
            refusal = self._refusal(error, *made)
            for opened in made:
                opened.close()
            raise refusal or Unavailable(f"the broker at {self._url.bootstrap} does not answer: {error}") from None

    def _refusal(self, error: BaseException, *clients: Any) -> Refused | None:
        """If the broker did not come to terms with `clients`, which `error` may not say."""
        for said in (error, *(client._manager.ended for client in clients)):
            cause = _cause(said)
            # Of the call itself, a connection's end says nothing: it may be the broker's.
            if cause is not None and not (said is error and cause is Cause.PROTOCOL):
                return Refused(self._url.bootstrap, self._security, cause, str(said))
        return None

    def _admin(self) -> Any:
        with self._lock:
            if self._closed:
                raise Unavailable("the link is closed")
            if self._opened is None:
                self._opened = self._open(kafka.KafkaAdminClient, request_timeout_ms=_ASK_MS)
            return self._opened

    def ask(self, what: str, method: str, *arguments: Any, patience_s: float = 0.0, **options: Any) -> Any:
        """Call a method of the library's admin client, again for `patience_s` where a broker has not heard of a topic.

        Raises `Unavailable` naming `what`.
        """
        deadline = time.monotonic() + patience_s
        while True:
            admin = self._admin()
            try:
                return getattr(admin, method)(*arguments, **options)
            except (errors.KafkaError, OSError, RuntimeError) as error:
                if not isinstance(error, _NOT_YET) or time.monotonic() > deadline:
                    refusal = self._refusal(error, admin)
                    # The broker may have come back elsewhere, or the client may be stuck: a new one the next time.
                    self._drop_admin()
                    said = f"{what} at {self._url.bootstrap}: {type(error).__name__}: {error}"
                    raise refusal or Unavailable(said) from None
            self._pause.wait(_READY_POLL_S)

    def _drop_admin(self) -> None:
        with self._lock:
            admin, self._opened = self._opened, None
        if admin is not None:
            admin.close()

    def offsets(self, partitions: Sequence[Any], which: Any, patience_s: float = _OFFSETS_S) -> dict[Any, int]:
        """The offsets at one end of these partitions, asked of their leaders. Raises `Unavailable`."""
        if not partitions:
            return {}
        wanted = dict.fromkeys(partitions, which)
        found = self.ask("offsets", "list_partition_offsets", wanted, patience_s=patience_s)
        return {at: int(found[at].offset) for at in partitions}

    def ensure_topics(self) -> bool:
        """See `Client.ensure_topics`."""
        missing = self._check()
        if missing:
            self._create(missing)
            self._check()  # what a peer was faster to create, too
        return bool(missing)

    def _check(self) -> list[str]:
        """Topics that are missing. Raises `ConfigurationError` for those that are there and do not fit."""
        described = self.ask("describing topics", "describe_topics", list(self._url.topics))
        partitions = {topic["name"]: len(topic["partitions"]) for topic in described if topic["error_code"] == 0}
        limits = self._limits(list(partitions))
        for name, count in partitions.items():
            check_topic(self._url, name, count, limits.get(name))
        return [name for name in self._url.topics if name not in partitions]

    def _create(self, names: Sequence[str]) -> None:
        topics = {
            name: {"num_partitions": self._url.topics[name], "configs": self._url.configuration(name)} for name in names
        }
        created = self.ask("creating topics", "create_topics", topics, timeout_ms=_ASK_MS, raise_errors=False)
        for topic in created["topics"]:
            error = errors.for_code(topic["error_code"])
            if error not in (errors.NoError, errors.TopicAlreadyExistsError):  # a peer may have been faster
                raise Unavailable(f"topic '{topic['name']}' cannot be created: {error.__name__}")
        self.ask("waiting for topics", "wait_for_topics", list(names), timeout_ms=_READY_MS)

    def _limits(self, names: Sequence[str]) -> dict[str, int]:
        if not names:
            return {}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        deadline = time.monotonic() + _READY_MS / 1e3
        while True:
            found = self.ask("describing topics", "describe_configs", resources, config_filter="all")["topic"]
            # Where a broker says an error, the library says no settings: one that has not heard of a new topic yet,
            # or one that this user may not ask.
            lacking = [name for name in names if LIMIT_SETTING not in found.get(name, {})]
            if not lacking:
                return {name: int(found[name][LIMIT_SETTING]["value"]) for name in names}
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the broker at {self._url.bootstrap} does not say how topics {lacking} are set; "
                    f"does this user have DescribeConfigs on them?"
                )
            self._pause.wait(_READY_POLL_S)

    def probe(self, timeout: float) -> None:  # noqa: ARG002 # the library has one time-out for all of a client
        """See `Client.probe`."""
        described = self.ask("asking for topics", "describe_topics", self._url.asked_for)
        for topic in described:
            if topic["error_code"] != 0:
                raise Unavailable(f"asked for topic '{topic['name']}': {errors.for_code(topic['error_code']).__name__}")

    def producer(self) -> KafkaPythonProducer:
        """See `Client.producer`."""
        producer = self._open(
            kafka.KafkaProducer,
            acks=self._url.acks if self._url.acks == "all" else int(self._url.acks),
            linger_ms=self._url.linger_ms,
            **({"batch_size": self._url.batch_bytes} if self._url.batch_bytes else {}),
            max_request_size=MESSAGE_LIMIT,
            # On, it allows one request at a time per partition; a duplicate does no harm here.
            enable_idempotence=False,
            request_timeout_ms=_REQUEST_MS,
            delivery_timeout_ms=2 * _REQUEST_MS,
            allow_auto_create_topics=False,
            metrics_enabled=False,
            max_block_ms=_BOOTSTRAP_MS,
        )
        try:
            # Known from now on: `send` blocks for a topic that it does not know.
            for topic in self._url.topics:
                producer.partitions_for(topic)
        except errors.KafkaError as error:
            producer.close(timeout=0)
            raise Unavailable(f"the topics cannot be learned: {error}") from None
        return KafkaPythonProducer(producer)

    def _consumer(self, **settings: Any) -> Any:
        return self._open(
            kafka.KafkaConsumer,
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            metrics_enabled=False,
            request_timeout_ms=_REQUEST_MS,
            # A fetch is answered as soon as there is one byte; the wait only bounds idle polls.
            fetch_min_bytes=1,
            fetch_max_wait_ms=500,
            max_partition_fetch_bytes=MESSAGE_LIMIT,
            fetch_max_bytes=2 * MESSAGE_LIMIT,
            **settings,
        )

    def group_consumer(self, membership: Membership) -> KafkaPythonConsumer:
        """See `Client.group_consumer`."""
        consumer = self._consumer(
            group_id=self._url.group,
            auto_offset_reset="earliest",
            session_timeout_ms=self._url.session_ms,
            heartbeat_interval_ms=max(100, self._url.session_ms // 6),
            max_poll_interval_ms=300000,
            partition_assignment_strategy=(CooperativeStickyAssignor,),  # why: see `kafka_librdkafka.py`
        )
        RememberedJoins(consumer._coordinator)
        try:
            consumer.subscribe([self._url.topic], listener=_Listener(consumer, self._url.topic, membership))
            # Known before it joins: a leader that does not know the topic assigns nothing, and has to begin again.
            consumer.partitions_for_topic(self._url.topic)
        except errors.KafkaError as error:
            consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)
            raise Unavailable(f"the topic cannot be learned: {error}") from None
        return KafkaPythonConsumer(self, consumer, self._url.topic, self._url.group, membership)

    def ends(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """See `Client.ends`."""
        return self._at(partitions, kafka.OffsetSpec.LATEST)

    def begins(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """See `Client.begins`."""
        return self._at(partitions, kafka.OffsetSpec.EARLIEST)

    def _at(self, partitions: Sequence[int], which: Any) -> dict[int, int]:
        every = [kafka.TopicPartition(self._url.topic, number) for number in partitions]
        return {at.partition: offset for at, offset in self.offsets(every, which).items()}

    def tail_consumer(self, partition: int) -> KafkaPythonConsumer:
        """See `Client.tail_consumer`."""
        topic = self._url.reply_topic
        at = kafka.TopicPartition(topic, partition)
        end = self.offsets([at], kafka.OffsetSpec.LATEST, _READY_MS / 1e3)[at]
        consumer = self._consumer(group_id=None, auto_offset_reset="latest")
        consumer.assign([at])
        consumer.seek(at, end)
        return KafkaPythonConsumer(self, consumer, topic, "", None)

    def close(self) -> None:
        """See `Client.close`."""
        with self._lock:
            self._closed = True
        self._drop_admin()


def _offsets(topic: str, positions: Mapping[int, Position]) -> dict[Any, Any]:
    return {
        # librdkafka (2.16) reads metadata as a C string, beyond its end where no NUL is sent. It sends one itself.
        kafka.TopicPartition(topic, number): kafka.OffsetAndMetadata(at.offset, f"{at.metadata}\0", -1)
        for number, at in positions.items()
    }


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc] # the library has no types
    """Called on the library's input-output thread."""

    def __init__(self, consumer: Any, topic: str, membership: Membership) -> None:
        self._consumer = consumer
        self._topic = topic
        self._membership = membership

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Commit, then let go."""
        positions = self._membership.revoked([tp.partition for tp in revoked])
        if positions:
            try:
                await self._consumer.commit_async(_offsets(self._topic, positions))
            except errors.KafkaError as error:
                _log.warning("offsets of '%s' cannot be committed before they go: %s", self._topic, error)

    async def on_partitions_assigned(self, assigned: Any) -> None:
        """To be taken up."""
        self._membership.assigned([tp.partition for tp in assigned])

    async def on_partitions_lost(self, lost: Any) -> None:
        """Let go."""
        self._membership.lost([tp.partition for tp in lost])


class KafkaPythonProducer:
    """See `Producer`. Bounded here: the library's buffer is not."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self._lock = threading.Lock()
        self._records = 0
        self._bytes = 0
        self._closed = False

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
        size = len(value)
        with self._lock:
            closed = self._closed
            full = self._records >= _BUFFER_RECORDS or self._bytes + size > _BUFFER_BYTES
            if not (closed or full):
                self._records += 1
                self._bytes += size
        if closed:
            acked(Unavailable("the producer is closed"))
            return
        if full:
            acked(Overloaded(f"too many records wait to be sent to '{topic}'; try later, or add partitions"))
            return

        def done(error: ServiceError | None) -> None:
            with self._lock:
                self._records -= 1
                self._bytes -= size
            acked(error)

        try:
            future = self._producer.send(topic, value, key=key, headers=list(headers.items()), partition=partition)
        except (errors.KafkaError, AssertionError, ValueError) as error:
            done(_service_error(error, f"a record for '{topic}' cannot be sent"))
            return
        future.add_callback(lambda _: done(None))
        future.add_errback(lambda error: done(_service_error(error, f"the broker did not take a record for '{topic}'")))

    def close(self, timeout: float) -> None:
        """See `Producer.close`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._producer.close(timeout=timeout)
        except errors.KafkaError:  # not all was sent in time, and the library's thread lives on
            self._producer._sender.force_close()
            self._producer._closed = True
        self._producer._sender.join(2)


class KafkaPythonConsumer:
    """See `Consumer`."""

    def __init__(
        self, client: KafkaPythonClient, consumer: Any, topic: str, group: str, membership: Membership | None
    ) -> None:
        self._client = client
        self._consumer = consumer
        self._topic = topic
        self._group = group
        self._membership = membership
        self._commit_until = 0.0  # one is on its way until then, or until it is answered

    def poll(self, timeout: float, limit: int) -> Sequence[Record]:
        """See `Consumer.poll`."""
        try:
            batches = self._consumer.poll(timeout_ms=int(timeout * 1000), max_records=limit)
        except (errors.KafkaError, OSError) as error:
            raise Unavailable(f"the consumer of '{self._topic}' has failed: {type(error).__name__}: {error}") from None
        return [
            Record(
                r.partition,
                r.offset,
                bytes(r.value or b""),
                {name: value or b"" for name, value in r.headers},
                r.key,
                r.timestamp * 1_000_000 if r.timestamp_type == _LOG_APPEND_TIME else None,
            )
            for batch in batches.values()
            for r in batch
        ]

    def owns(self, partition: int) -> bool:
        """See `Consumer.owns`."""
        return kafka.TopicPartition(self._topic, partition) in (self._consumer.assignment() or ())

    def standing(self, partitions: Sequence[int]) -> Mapping[int, Standing]:
        """See `Consumer.standing`."""
        every = [kafka.TopicPartition(self._topic, number) for number in partitions]
        found = self._client.ask("committed offsets", "list_group_offsets", {self._group: every})[self._group]
        committed = {at: found[at] for at in every if at in found and found[at].offset >= 0}
        fresh = [at for at in every if at not in committed]
        begins = self._client.offsets(fresh, kafka.OffsetSpec.EARLIEST)
        ends = self._client.offsets(every, kafka.OffsetSpec.LATEST)
        return {
            at.partition: Standing(
                Position(committed[at].offset, (committed[at].metadata or "").rstrip("\0"))
                if at in committed
                else Position(begins[at], ""),
                ends[at],
            )
            for at in every
        }

    def check(self) -> None:
        """See `Consumer.check`: the library bootstraps anew by itself."""

    def commit(self, positions: Mapping[int, Position]) -> None:
        """See `Consumer.commit`."""
        try:
            self._consumer.commit(_offsets(self._topic, positions), timeout_ms=_COMMIT_MS)
        except (errors.KafkaError, OSError) as error:
            raise Unavailable(
                f"offsets of '{self._topic}' cannot be committed: {type(error).__name__}: {error}"
            ) from None

    def commit_soon(self, positions: Mapping[int, Position]) -> None:
        """See `Consumer.commit_soon`."""

        now = time.monotonic()
        if now < self._commit_until:
            return
        self._commit_until = now + _COMMIT_GIVEN_UP_S

        def committed(_: Any, answer: Any) -> None:
            self._commit_until = 0.0
            if self._membership is not None and not isinstance(answer, Exception):
                self._membership.committed({number: at.offset for number, at in positions.items()})

        try:
            self._consumer.commit_async(_offsets(self._topic, positions), callback=committed)
        except errors.KafkaError:  # the next time, then
            self._commit_until = 0.0

    def pause(self) -> None:
        """See `Consumer.pause`."""
        self._consumer.pause(*(self._consumer.assignment() or ()))

    def resume(self) -> None:
        """See `Consumer.resume`."""
        self._consumer.resume(*self._consumer.paused())

    def close(self) -> None:
        """See `Consumer.close`."""
        with contextlib.suppress(errors.KafkaError, OSError):
            self._consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)
