"""The callee's end of a Kafka link: a member of a consumer group that answers every record it commits behind.

At least once from accept to answer: a partition's offset is committed behind its lowest unfinished record only, and a
record is finished when the broker has acknowledged its reply.

Poison. Before the first record of a partition is handed out, the number of starts in the commit's metadata is raised.
A process that dies leaves it raised; progress sets it back. From the third start without progress on, records run one
at a time, each counted in the metadata before it starts; one that was started alone twice, and killed its process both
times, goes to the dead-letter topic and its caller is told (`Rejected`).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from services.accounting import monotonic_ns
from services.errors import Internal, Rejected, ServiceError, Unavailable, to_failure
from services.transports.broker_watch import BrokerWatch
from services.transports.kafka_caller import FAILURE, ID, INSTANCE, PREFIX, REPLY_PARTITION
from services.transports.kafka_client import Client, Consumer, KafkaUrl, Position, Record
from services.transports.kafka_offsets import PartitionOffsets, Starts
from services.transports.transport import MAX_PAYLOAD_BYTES, Delivery, Handle, Response

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_PAUSED_POLL_S = 0.005
_COMMIT_S = 0.2
_SUSPICIOUS_STARTS = 3
_ALONE_LIMIT = 2
_ACK_S = 30.0


class _Assigned:
    """A partition of ours."""

    def __init__(self, position: Position, window: int) -> None:
        self.offsets = PartitionOffsets(position.offset)
        self.committed = position.offset
        self.found = Starts.parse(position.metadata)
        self.found_at = position.offset
        self.raised = False
        # Records that an earlier process may have had in hand, when there was one.
        self.suspects_until = position.offset + window
        self.alone_left = window if self.found.starts + 1 >= _SUSPICIOUS_STARTS else 0


class _Item(NamedTuple):
    record: Record
    assigned: _Assigned
    arrived_ns: int
    attempt: int


class KafkaListener:
    """See `Listener`. Three kinds of threads: one consumes and commits, workers call the handler, one watches."""

    def __init__(self, url: KafkaUrl, client: Client) -> None:
        self._url = url
        self._client = client
        self.address = url.url
        self._producer = client.producer()
        self._handle: Handle | None = None
        self._work: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._in_hand = 0
        self._assigned: dict[int, _Assigned] = {}
        self._fresh: list[int] = []
        self._paused = False
        self._draining = threading.Event()
        self._drained = threading.Event()
        self._closed = threading.Event()
        self._attached = threading.Event()
        self._failed: ServiceError | None = None
        self._watch = BrokerWatch(url.bootstrap, lambda: None, lambda: None)
        self._threads = [threading.Thread(target=self._run, name="kafka-consumer", daemon=True)]
        self._threads += [
            threading.Thread(target=self._worker, name=f"kafka-worker-{i}", daemon=True) for i in range(url.workers)
        ]
        self.counts = {"dead_letters": 0, "replies_lost": 0}

    def serve(self, handle: Handle) -> None:
        """See `Listener.serve`. Waits up to 5 s for the broker. Raises `ConfigurationError` for wrong topics."""
        self._handle = handle
        for thread in self._threads:
            thread.start()
        self._attached.wait(5.0)
        if self._failed is not None:
            self.close()
            raise self._failed
        if not self._attached.is_set():
            _log.warning("the broker at %s cannot be reached; consuming begins when it is there", self._url.bootstrap)
        self._watch.start()

    def healthy(self) -> bool:
        """See `Listener.healthy`."""
        return self._attached.is_set() and self._watch.up and not self._draining.is_set() and not self._closed.is_set()

    def drain(self, timeout: float) -> bool:
        """See `Listener.drain`."""
        self._draining.set()
        deadline = time.monotonic() + timeout
        with self._idle:
            while self._in_hand:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._idle.wait(left)
        # The consumer commits what is finished, and leaves its group.
        return self._drained.wait(max(0.0, deadline - time.monotonic())) if self._attached.is_set() else True

    def close(self) -> None:
        """See `Listener.close`."""
        if self._closed.is_set():
            return
        self._closed.set()
        for _ in range(self._url.workers):
            self._work.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(15)
        self._watch.close()
        self._producer.close(2.0)

    # --- consuming ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        consumer = self._attach()
        if consumer is None:
            return
        try:
            self._consume(consumer)
        except Exception:
            _log.exception("the consumer of '%s' ended", self._url.topic)
            self._attached.clear()
        finally:
            consumer.close()
            self._drained.set()

    def _attach(self) -> Consumer | None:
        while not self._closed.is_set() and not self._draining.is_set():
            try:
                self._client.ensure_topics()
                consumer = self._client.group_consumer(self._on_assigned, self._on_revoked)
            except Unavailable as error:
                _log.debug("not attached yet: %s", error.message)
                self._closed.wait(0.5)
            except ServiceError as error:
                self._failed = error
                self._attached.set()
                return None
            else:
                self._consumer = consumer
                self._attached.set()
                return consumer
        return None

    def _consume(self, consumer: Consumer) -> None:
        commit_at = time.monotonic() + _COMMIT_S
        while not self._closed.is_set():
            if self._draining.is_set():
                with self._lock:
                    done = not self._in_hand
                if done:
                    break
            room = self._room()
            self._set_paused(consumer, room <= 0 or self._draining.is_set())
            records = consumer.poll(_PAUSED_POLL_S if self._paused else _POLL_S, max(1, room))
            arrived = monotonic_ns()
            self._take_up(consumer)
            for record in records:
                self._hand_out(consumer, record, arrived)
            if time.monotonic() >= commit_at:
                self._commit(consumer, list(self._assigned), wait=False)
                commit_at = time.monotonic() + _COMMIT_S
        self._commit(consumer, list(self._assigned), wait=True, leaving=True)

    def _room(self) -> int:
        with self._lock:
            alone = any(assigned.alone_left for assigned in self._assigned.values())
            return (1 if alone else self._url.prefetch) - self._in_hand

    def _set_paused(self, consumer: Consumer, paused: bool) -> None:  # noqa: FBT001 # a state, not an option
        if paused != self._paused:
            (consumer.pause if paused else consumer.resume)()
            self._paused = paused

    def _on_assigned(self, partitions: Sequence[int]) -> None:
        self._fresh.extend(partitions)
        self._paused = False  # a new assignment is not paused; the loop decides anew

    def _on_revoked(self, partitions: Sequence[int]) -> None:
        mine = [p for p in partitions if p in self._assigned]
        self._commit(self._consumer, mine, wait=True, leaving=True)
        with self._lock:
            for partition in partitions:
                # What is still in hand is answered too, but no longer committed: it is another's now.
                self._assigned.pop(partition, None)
        self._fresh = [p for p in self._fresh if p not in partitions]

    def _take_up(self, consumer: Consumer) -> None:
        """Learn where new partitions stand."""
        while self._fresh:
            partition = self._fresh[0]
            try:
                position = consumer.committed(partition)
            except Unavailable as error:
                _log.warning("partition %d of '%s': %s", partition, self._url.topic, error.message)
                position = Position(0, "")
            with self._lock:
                self._assigned[partition] = _Assigned(position, self._url.prefetch)
            self._fresh.pop(0)

    def _hand_out(self, consumer: Consumer, record: Record, arrived_ns: int) -> None:
        assigned = self._assigned.get(record.partition)
        if assigned is None:  # revoked within the same poll
            return
        starts = assigned.found.starts + 1
        attempt = starts if record.offset < assigned.suspects_until else 1
        with self._lock:
            assigned.offsets.start(record.offset)
            self._in_hand += 1
        if assigned.alone_left:
            alone = assigned.found.alone if record.offset == assigned.found_at else 0
            if alone >= _ALONE_LIMIT:
                self._bury(record, assigned)
                return
            # On disk before it starts: what kills the process cannot take the count with it.
            self._raise(consumer, record.partition, Position(record.offset, Starts(starts, alone + 1).encode()))
        elif not assigned.raised:
            self._raise(consumer, record.partition, Position(assigned.committed, Starts(starts).encode()))
        assigned.raised = True
        self._work.put(_Item(record, assigned, arrived_ns, attempt))

    def _raise(self, consumer: Consumer, partition: int, position: Position) -> None:
        try:
            consumer.commit({partition: position}, wait=True)
            self._assigned[partition].committed = position.offset
        except Unavailable as error:
            _log.warning("the number of starts cannot be recorded, going on without: %s", error.message)

    def _commit(self, consumer: Consumer, partitions: Sequence[int], *, wait: bool, leaving: bool = False) -> None:
        positions: dict[int, Position] = {}
        with self._lock:
            for partition in partitions:
                assigned = self._assigned[partition]
                position = assigned.offsets.position
                # With progress, what is in hand has been started once: by us. Who leaves in order leaves no suspicion.
                if position > assigned.committed or (leaving and assigned.raised):
                    starts = Starts(0 if leaving else 1)
                    positions[partition] = Position(max(position, assigned.committed), starts.encode())
        if not positions:
            return
        try:
            consumer.commit(positions, wait=wait)
        except Unavailable as error:
            _log.warning("offsets of '%s' cannot be committed now: %s", self._url.topic, error.message)
            return
        with self._lock:
            for partition, position_ in positions.items():
                self._assigned[partition].committed = position_.offset

    # --- answering ---------------------------------------------------------------------------------------------------

    def _worker(self) -> None:
        while (item := self._work.get()) is not None:
            picked_up = monotonic_ns()
            record = item.record
            headers = {n: v for n, v in record.headers.items() if not n.startswith(PREFIX)}
            delivery = Delivery(
                record.value, headers, item.arrived_ns, picked_up, picked_up, attempt=item.attempt, brokered=True
            )
            assert self._handle is not None  # noqa: S101 # `serve` has set it
            try:
                future = self._handle(delivery)
            except Exception as error:  # noqa: BLE001 # a handler that raises is answered like one that fails
                future = Future()
                future.set_exception(error)
            future.add_done_callback(lambda done, item=item: self._answer(item, done))  # type: ignore[misc]

    def _answer(self, item: _Item, done: Future[Response]) -> None:
        error = done.exception()
        if error is None:
            payload, headers = done.result()
            if len(payload) > MAX_PAYLOAD_BYTES:
                error = Internal(f"the answer has {len(payload)} bytes; the link carries {MAX_PAYLOAD_BYTES}")
        if error is not None:
            failure = to_failure(error)
            payload, headers = b"", {FAILURE: f"{failure.kind}\n{failure.message}".encode()}
        self._reply(item.record, payload, headers, item.assigned)

    def _reply(self, record: Record, payload: bytes, headers: Mapping[str, bytes], assigned: _Assigned) -> None:
        try:
            partition = int(record.headers[REPLY_PARTITION])
            addressed = {ID: record.headers[ID], INSTANCE: record.headers[INSTANCE]}
        except (KeyError, ValueError):
            _log.warning("record %d of partition %d says not where its reply goes", record.offset, record.partition)
            self._finish(record, assigned)
            return

        def acked(error: ServiceError | None) -> None:
            if error is not None:
                # The library has tried for as long as callers wait. A caller that still waits meets its deadline.
                self.counts["replies_lost"] += 1
                _log.warning("a reply could not be sent: %s", error.message)
            self._finish(record, assigned)

        self._producer.send(self._url.reply_topic, partition, payload, {**headers, **addressed}, acked)

    def _finish(self, record: Record, assigned: _Assigned) -> None:
        with self._idle:
            assigned.offsets.finish(record.offset)
            if assigned.alone_left:
                assigned.alone_left -= 1
            self._in_hand -= 1
            self._idle.notify_all()

    def _bury(self, record: Record, assigned: _Assigned) -> None:
        reason = f"it was started alone {_ALONE_LIMIT} times and killed its process each time"
        _log.error(
            "record %d of partition %d of '%s' goes to '%s': %s",
            record.offset,
            record.partition,
            self._url.topic,
            self._url.dead_topic,
            reason,
        )
        buried: Future[ServiceError | None] = Future()
        self._producer.send(
            self._url.dead_topic,
            0,
            record.value,
            {
                **record.headers,
                "reason": reason.encode(),
                "source-partition": b"%d" % record.partition,
                "source-offset": b"%d" % record.offset,
            },
            buried.set_result,
        )
        try:
            error = buried.result(_ACK_S)
        except TimeoutError:
            error = Unavailable("no acknowledgement")
        if error is not None:
            _log.error("the dead letter could not be sent, its record stays: %s", error.message)
            return
        self.counts["dead_letters"] += 1
        failure = to_failure(Rejected(f"the request is in '{self._url.dead_topic}': {reason}"))
        self._reply(record, b"", {FAILURE: f"{failure.kind}\n{failure.message}".encode()}, assigned)
