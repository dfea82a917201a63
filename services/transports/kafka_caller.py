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
from services.errors import DeadlineExceeded, PayloadTooLarge, ServiceError, Unavailable
from services.transports.broker_watch import BrokerWatch
from services.transports.kafka_client import (
    FAILURE,
    ID,
    INSTANCE,
    PREFIX,
    REPLY_PARTITION,
    Client,
    Consumer,
    KafkaUrl,
    Producer,
    Record,
)
from services.transports.kafka_security import Refused
from services.transports.pending import Pending
from services.transports.transport import MAX_PAYLOAD_BYTES, Reply

_log = logging.getLogger(__name__)

_CONNECT_S = 5.0
# A first attempt that fails is repeated while there is time for another: a broker may just be busy with our topics.
_PATIENCE_S = 2.5
_RETRY_S = 0.5
_POLL_S = 0.2
# When no reply has come for so long, it looks whether its consumer still knows the broker.
_CHECK_S = 3.0
_BATCH = 64
_FLUSH_S = 0.5
_JOIN_S = 10.0


class KafkaTransport:
    """See `Transport`. A broker that is away, at the start or later, fails calls at once until it is back."""

    brokered = True
    system = "kafka"

    def __init__(self, url: KafkaUrl, client: Client) -> None:
        """Waits up to 5 s for the broker, then goes on trying behind. Raises `ConfigurationError` for wrong topics."""
        self._url = url
        self.destination = url.topic
        self._client = client
        self._instance = uuid.uuid4().hex
        self._instance_header = self._instance.encode()
        hashed = zlib.crc32(self._instance_header)
        self._reply_partition = hashed % url.replies
        self._ids = itertools.count()
        # Round robin, not sticky: several consumers share the work also when there is little of it. Callers begin at
        # different partitions.
        self._turns = itertools.count(hashed)
        self._pending = Pending(f"Kafka topic '{url.topic}'")
        self._closing = threading.Lock()
        self._closed = threading.Event()
        self._settled = threading.Event()  # the first attempt to attach has ended, one way or the other
        self._detach = threading.Event()
        self._producer: Producer | None = None  # there while attached
        self._failed: ServiceError | None = None
        self._refused: Refused | None = None  # by a broker that is there, the last time that it was tried
        self._watch = BrokerWatch(url.bootstrap, client.probe, self._lost)
        self._thread = threading.Thread(target=self._run, name="kafka-replies", daemon=True)
        self._thread.start()
        self._settled.wait(_CONNECT_S)
        self._raise_failed()
        self._watch.start()

    def _raise_failed(self) -> None:
        if self._failed is not None:
            self.close()
            raise self._failed

    def request(self, payload: bytes, headers: Mapping[str, bytes], timeout: float) -> Future[Reply]:
        """See `Transport.request`."""
        producer = self._producer
        refusal = self._refusal(payload, timeout)
        if refusal is None and producer is None:
            refusal = self._away()
        if producer is None or refusal is not None:
            refused: Future[Reply] = Future()
            refused.set_exception(refusal)
            return refused
        id_ = f"{self._instance}-{next(self._ids)}"
        future = self._pending.add(id_, timeout)

        def acked(error: ServiceError | None) -> None:
            if error is None:
                self._pending.published(id_, monotonic_ns())
            else:
                self._pending.fail(id_, error)
                if isinstance(error, Unavailable) and self._producer is producer:
                    # It tried for seconds. A client that found no way to the broker may never find one again.
                    self._lost()

        addressed = {
            **headers,
            ID: id_.encode(),
            INSTANCE: self._instance_header,
            REPLY_PARTITION: b"%d" % self._reply_partition,
        }
        producer.send(self._url.topic, next(self._turns) % self._url.partitions, payload, addressed, acked)
        if self._producer is not producer:  # lost in between: `_lost` may have missed this call
            self._pending.fail(id_, self._away())
        return future

    def _refusal(self, payload: bytes, timeout: float) -> ServiceError | None:
        if len(payload) > MAX_PAYLOAD_BYTES:
            return PayloadTooLarge(f"the message has {len(payload)} bytes; this link carries {MAX_PAYLOAD_BYTES}")
        if timeout <= 0:
            return DeadlineExceeded("no time was left for the call")
        if self._closed.is_set():
            return Unavailable(f"the link to Kafka topic '{self._url.topic}' is closed")
        return None

    def _away(self) -> Unavailable:
        if self._failed is not None:
            return Unavailable(f"the link to Kafka topic '{self._url.topic}' cannot be used: {self._failed.message}")
        refused = self._refused
        if refused is not None:
            return Unavailable(refused.message)
        return Unavailable(
            f"the broker at {self._url.bootstrap} cannot be reached; start it or check the address and the network; "
            "calls work again as soon as it is back"
        )

    def _lost(self) -> None:
        """Fail what waits; the reader's thread attaches anew."""
        self._producer = None
        self._detach.set()
        self._pending.fail_all(self._away())

    def _run(self) -> None:
        begin = time.monotonic()
        while not self._closed.is_set():
            self._detach.clear()
            try:
                self._attach_and_read()
            except Unavailable as error:
                self._refused = error if isinstance(error, Refused) else None
                certain = self._refused is not None and self._refused.certain
                if not self._settled.is_set() and (certain or time.monotonic() - begin > _PATIENCE_S):
                    said = "" if self._refused is not None else f"; the first attempt: {error.message}"
                    _log.warning("%s%s", self._away().message, said)
                    self._settled.set()
                self._closed.wait(_RETRY_S)
            except ServiceError as error:
                self._failed = error
                if self._settled.is_set():  # else the constructor raises it
                    _log.error("%s", self._away().message)
                self._settled.set()
                return
            except Exception:  # noqa: BLE001 # a bug must not silence the link for good
                _log.exception("the reader of replies on '%s' failed, and begins anew", self._url.reply_topic)
                self._lost()
                self._closed.wait(_RETRY_S)

    def _attach_and_read(self) -> None:
        self._client.ensure_topics()
        consumer = self._client.tail_consumer(self._reply_partition)
        try:
            # A new one every time: what the old one still held belongs to calls that have failed.
            producer = self._client.producer()
            try:
                self._producer = producer
                self._refused = None
                self._watch.found()
                self._settled.set()
                self._read(consumer)
            finally:
                self._lost()
                producer.close(_FLUSH_S if self._closed.is_set() else 0.0)
        finally:
            consumer.close()

    def _read(self, consumer: Consumer) -> None:
        check_at = time.monotonic() + _CHECK_S
        while not (self._closed.is_set() or self._detach.is_set()):
            records = consumer.poll(_POLL_S, _BATCH)
            for record in records:
                self._receive(record, monotonic_ns())
            if records:
                check_at = time.monotonic() + _CHECK_S
            elif time.monotonic() > check_at:
                consumer.check()
                check_at = time.monotonic() + _CHECK_S

    def _receive(self, record: Record, arrived_ns: int) -> None:
        headers = record.headers
        if headers.get(INSTANCE) != self._instance_header or ID not in headers:
            return
        id_ = headers[ID].decode(errors="replace")
        failure = headers.get(FAILURE)
        if failure is not None:
            self._pending.refuse(id_, failure)
            return
        rest = {name: value for name, value in headers.items() if not name.startswith(PREFIX)}
        self._pending.answer(id_, Reply(record.value, rest, arrived_ns))

    def healthy(self) -> bool:
        """See `Transport.healthy`: attached to the broker, which answers."""
        return self._producer is not None and self._watch.up and not self._closed.is_set()

    def counters(self) -> Mapping[str, int]:
        """See `Transport.counters`."""
        return {"duplicates": self._pending.duplicates, "late": self._pending.late}

    def close(self) -> None:
        """See `Transport.close`."""
        with self._closing:
            if self._closed.is_set():
                return
            self._closed.set()
        self._pending.close(
            Unavailable(f"the link to Kafka topic '{self._url.topic}' was closed while the call was in flight")
        )
        self._watch.close()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)
        self._client.close()
