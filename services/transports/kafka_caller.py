"""The caller's end of a Kafka link: requests to a topic, replies from the one partition that this instance reads.

Replies: one fixed reply topic; an instance reads the partition hash(instance) mod R, from an end that is known before
its first send, and passes over what is for others. So its death leaks nothing: no topic, no group.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import uuid
import zlib
from collections.abc import Mapping
from concurrent.futures import Future

from services.accounting import monotonic_ns
from services.errors import DeadlineExceeded, Failure, PayloadTooLarge, ServiceError, Unavailable, from_failure
from services.transports.broker_watch import BrokerWatch
from services.transports.kafka_client import Client, Consumer, KafkaUrl, Record
from services.transports.pending import Pending
from services.transports.transport import MAX_PAYLOAD_BYTES, Reply

_log = logging.getLogger(__name__)

# Headers of the transport itself; neither end sees them.
ID = "bi-id"
INSTANCE = "bi-instance"
REPLY_PARTITION = "bi-reply-partition"
FAILURE = "bi-failure"
PREFIX = "bi-"

_CONNECT_S = 5.0
_POLL_S = 0.2
_BATCH = 64


class KafkaTransport:
    """See `Transport`. A broker that is away at the start or later fails calls at once, until it is back."""

    brokered = True

    def __init__(self, url: KafkaUrl, client: Client) -> None:
        """Waits up to 5 s for the broker, then goes on trying behind. Raises `ConfigurationError` for wrong topics."""
        self._url = url
        self._client = client
        self._instance = uuid.uuid4().hex
        self._reply_partition = zlib.crc32(self._instance.encode()) % url.replies
        self._ids = itertools.count()
        self._partitions = itertools.count(zlib.crc32(self._instance.encode()))
        self._pending = Pending(f"Kafka topic '{url.topic}'")
        self._producer = client.producer()
        self._closed = threading.Event()
        self._attached = threading.Event()
        self._failed: ServiceError | None = None
        self._watch = BrokerWatch(url.bootstrap, self._lost, lambda: None)
        self._thread = threading.Thread(target=self._run, name="kafka-replies", daemon=True)
        self._thread.start()
        self._attached.wait(_CONNECT_S)
        if self._failed is not None:
            self.close()
            raise self._failed
        if not self._attached.is_set():
            _log.warning("the broker at %s cannot be reached; calls fail until it is there", url.bootstrap)
        self._watch.start()

    def request(self, payload: bytes, headers: Mapping[str, bytes], timeout: float) -> Future[Reply]:
        """See `Transport.request`."""
        error = self._refusal(payload, timeout)
        if error is not None:
            failed: Future[Reply] = Future()
            failed.set_exception(error)
            return failed
        id_ = f"{self._instance}-{next(self._ids)}"
        future = self._pending.add(id_, timeout)
        if self._closed.is_set():  # closed in between: `close` may have missed this call
            self._pending.fail(id_, self._closed_error())
            return future
        self._producer.send(
            self._url.topic,
            # Round robin, not sticky: several consumers share the work also when there is little of it.
            next(self._partitions) % self._url.partitions,
            payload,
            {
                **headers,
                ID: id_.encode(),
                INSTANCE: self._instance.encode(),
                REPLY_PARTITION: b"%d" % self._reply_partition,
            },
            lambda error: self._pending.fail(id_, error) if error is not None else None,
        )
        return future

    def _refusal(self, payload: bytes, timeout: float) -> ServiceError | None:
        if len(payload) > MAX_PAYLOAD_BYTES:
            return PayloadTooLarge(f"the message has {len(payload)} bytes; this link carries {MAX_PAYLOAD_BYTES}")
        if timeout <= 0:
            return DeadlineExceeded("no time was left for the call")
        if self._closed.is_set():
            return self._closed_error()
        if not self._attached.is_set() or not self._watch.up:
            return self._away()
        return None

    def _closed_error(self) -> Unavailable:
        return Unavailable(f"the link to Kafka topic '{self._url.topic}' is closed")

    def _away(self) -> Unavailable:
        return Unavailable(
            f"the broker at {self._url.bootstrap} cannot be reached; the call can be made again when it is back"
        )

    def _lost(self) -> None:
        self._pending.fail_all(self._away())

    def _run(self) -> None:
        consumer = self._attach()
        if consumer is None:
            return
        try:
            while not self._closed.is_set():
                for record in consumer.poll(_POLL_S, _BATCH):
                    self._receive(record, monotonic_ns())
        except Exception:
            _log.exception("the reader of replies on '%s' ended", self._url.reply_topic)
            self._attached.clear()
            self._lost()
        finally:
            consumer.close()

    def _attach(self) -> Consumer | None:
        while not self._closed.is_set():
            try:
                self._client.ensure_topics()
                consumer = self._client.tail_consumer(self._reply_partition)
            except Unavailable as error:
                _log.debug("not attached yet: %s", error.message)
                self._closed.wait(0.5)
            except ServiceError as error:
                self._failed = error
                self._attached.set()
                _log.error("the link to Kafka topic '%s' cannot be used: %s", self._url.topic, error.message)  # noqa: TRY400 # it is expected
                return None
            else:
                self._attached.set()
                return consumer
        return None

    def _receive(self, record: Record, arrived_ns: int) -> None:
        headers = record.headers
        if headers.get(INSTANCE) != self._instance.encode() or ID not in headers:
            return
        id_ = headers[ID].decode()
        failure = headers.get(FAILURE)
        if failure is not None:
            kind, _, message = failure.decode().partition("\n")
            self._pending.fail(id_, from_failure(Failure(kind, message)), answered=True)
            return
        rest = {name: value for name, value in headers.items() if not name.startswith(PREFIX)}
        self._pending.answer(id_, Reply(record.value, rest, arrived_ns))

    def counters(self) -> Mapping[str, int]:
        """See `Transport.counters`."""
        return {"duplicates": self._pending.duplicates, "late": self._pending.late}

    def healthy(self) -> bool:
        """Whether the broker can be reached."""
        return self._attached.is_set() and self._watch.up and not self._closed.is_set()

    def close(self) -> None:
        """See `Transport.close`."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._pending.close(
            Unavailable(f"the link to Kafka topic '{self._url.topic}' was closed while the call was in flight")
        )
        self._watch.close()
        self._producer.close(0.5)
        self._thread.join(10)
        _log.debug("closed at %.3f", time.monotonic())
