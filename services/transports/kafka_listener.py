"""The callee's end of a Kafka link: a member of a consumer group that answers every record it commits behind.

At least once from accept to answer: a partition's offset is committed behind its lowest unfinished record only, and a
record is finished when the broker has acknowledged its reply.

Who says where the reply goes gets it there. Who does not has published something, and knows of no instance of ours: the
answer goes to the topic of results, if the link has one, to the partition of the same number (so that those of a key
stay together), with the record's key and headers, and where it came from. Nobody waits for that: what fails for want of
room, of time or of a peer is tried again, and not answered, as long as the link has patience.

Three kinds of threads. One consumes and commits; it never calls a handler, so that no handler can cost the membership
of the group. Workers call the handler. One watches the broker. `kafka_partitions.py` keeps the books.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import NamedTuple

from services.accounting import monotonic_ns
from services.errors import (
    DeadlineExceeded,
    Failure,
    Internal,
    InvalidInput,
    Overloaded,
    PayloadTooLarge,
    Rejected,
    ServiceError,
    Unavailable,
    to_failure,
)
from services.transports.broker_watch import BrokerWatch
from services.transports.kafka_client import (
    FAILURE,
    ID,
    INSTANCE,
    PREFIX,
    REPLY_PARTITION,
    RESULT_FAILURE,
    SOURCE_OFFSET,
    SOURCE_PARTITION,
    Client,
    Consumer,
    KafkaUrl,
    Position,
    Producer,
    Record,
)
from services.transports.kafka_offsets import Suspicion
from services.transports.kafka_partitions import Partition, Partitions
from services.transports.kafka_security import Cause, Refused
from services.transports.transport import Afterwards, Delivery, Handle, Response, Tried, answer_of

_log = logging.getLogger(__name__)

_CONNECT_S = 5.0
_RETRY_S = 0.5
_POLL_S = 0.1
_COMMIT_S = 0.2
# A member without partitions looks this often whether its consumer still knows the broker.
_CHECK_S = 3.0
# Full for longer than this, it pauses its partitions and polls on. Not sooner: librdkafka drops what it has fetched
# from a paused partition and fetches it again after.
_PAUSE_AFTER_S = 0.5
_FLUSH_S = 2.0
_JOIN_S = 10.0
_WORKER_JOIN_S = 2.0
_LARGEST_PARTITION = 2**31 - 1
# Of what is published: between two tries.
_LATER_S, _LATEST_S = 0.5, 15.0
_DOUBLED = 5  # times, at most: days of patience have more tries than a float has exponents
_BUDGET = "budget-ns"  # how long a caller waits (services/link.py)
# What is no fault of the record's.
_NOT_ITS_FAULT = {Unavailable.kind, Overloaded.kind, DeadlineExceeded.kind}


class _Item(NamedTuple):
    record: Record
    partition: Partition
    arrived_ns: int
    attempt: int  # by how often processes began with it
    tries: int = 0  # of this process, before this one
    again_ns: int = 0  # when this one was handed out


class _Outgoing(NamedTuple):
    """A record to be sent on an item's behalf: its reply or, with `dead`, its dead letter. `failure`: it says so."""

    item: _Item
    topic: str
    partition: int
    value: bytes
    headers: Mapping[str, bytes]
    dead: bool = False
    failure: bool = False
    key: bytes | None = None


class KafkaListener:
    """See `Listener`."""

    def __init__(self, url: KafkaUrl, client: Client) -> None:
        """Checks the topics, if the broker is there. Raises `ConfigurationError` for wrong ones."""
        self._url = url
        self._client = client
        self.address = url.url
        self._partitions = Partitions()
        self._backlog: deque[_Item] = deque()  # polled, and not handed out yet; the consumer's thread's own
        self._work: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._again: queue.SimpleQueue[_Outgoing] = queue.SimpleQueue()
        # By when they are tried again, and as they came: items do not compare.
        self._later: queue.PriorityQueue[tuple[float, int, _Item]] = queue.PriorityQueue()
        self._tries = itertools.count()
        self._waiting = False  # whether that was said
        self._handle: Handle | None = None
        self._producer: Producer | None = None
        self._paused = False
        self._check_at = 0.0
        self._dead_letters = 0
        self._deleted = 0
        self._closing = threading.Lock()
        self._draining = threading.Event()
        self._left = threading.Event()
        self._closed = threading.Event()
        self._attached = threading.Event()
        self._recheck = threading.Event()
        self._refused: Cause | None = None  # by a broker that is there, as was said last
        self._watch = BrokerWatch(url.bootstrap, client.probe, self._recheck.set)
        self._consuming = threading.Thread(target=self._run, name="kafka-consumer", daemon=True)
        self._workers = [
            threading.Thread(target=self._worker, name=f"kafka-worker-{i}", daemon=True) for i in range(url.workers)
        ]
        try:
            client.ensure_topics()
        except Unavailable as error:
            self._refused = error.cause if isinstance(error, Refused) else None
            _log.warning(
                "the broker at %s cannot be reached; consuming '%s' begins when it is there: %s",
                url.bootstrap,
                url.topic,
                error.message,
            )
        except ServiceError:
            client.close()
            raise

    def serve(self, handle: Handle) -> None:
        """See `Listener.serve`. Waits up to 5 s until it has a consumer that is about to join its group."""
        self._handle = handle
        for thread in (self._consuming, *self._workers):
            thread.start()
        self._watch.start()
        deadline = time.monotonic() + _CONNECT_S
        while self._watch.up and not self._attached.wait(_POLL_S) and time.monotonic() < deadline:
            pass

    def healthy(self) -> bool:
        """See `Listener.healthy`."""
        return self._attached.is_set() and self._watch.up and not self._draining.is_set() and not self._closed.is_set()

    def counters(self) -> Mapping[str, int]:
        """See `Listener.counters`: `dead_letters`, records that this process put aside; `deleted`, that the broker

        deleted before anybody had answered them, as this process found out.
        """
        return {"dead_letters": self._dead_letters, "deleted": self._deleted}

    def in_hand(self) -> int:
        """See `Listener.in_hand`."""
        return self._partitions.in_hand

    def lag(self) -> Mapping[int, int]:
        """See `Listener.lag`."""
        unanswered = self._partitions.unanswered()
        if not unanswered or not self.healthy():
            return {}
        ends = self._client.ends(sorted(unanswered))
        return {number: max(0, ends[number] - offset) for number, offset in unanswered.items()}

    def drain(self, timeout: float) -> bool:
        """See `Listener.drain`."""
        deadline = time.monotonic() + timeout
        self._draining.set()
        if self._consuming.ident is None:
            return True
        return self._partitions.wait_empty(timeout) and self._left.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """See `Listener.close`."""
        with self._closing:
            if self._closed.is_set():
                return
            self._closed.set()
        self._partitions.wake()
        for _ in self._workers:
            self._work.put(None)
        if self._consuming.ident is not None:
            self._consuming.join(_JOIN_S)
            until = time.monotonic() + _WORKER_JOIN_S
            for worker in self._workers:
                if worker is not threading.current_thread():
                    worker.join(max(0.0, until - time.monotonic()))  # a handler that blocks on is left behind
        self._watch.close()
        self._client.close()

    # --- the consumer's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not (self._closed.is_set() or self._draining.is_set()):
                try:
                    self._join_and_consume()
                except Unavailable as error:
                    self._say_unavailable(error)
                except ServiceError as error:
                    _log.error("'%s' cannot be consumed, trying on: %s", self._url.topic, error.message)
                except Exception:  # noqa: BLE001 # a bug must not silence the link for good
                    _log.exception("the consumer of '%s' failed, and begins anew", self._url.topic)
                self._attached.clear()
                self._backlog.clear()
                self._partitions.forget_all()
                self._closed.wait(_RETRY_S if not self._draining.is_set() else 0.0)
        finally:
            self._left.set()

    def _say_unavailable(self, error: Unavailable) -> None:
        """That the broker is away the watch says; why it refuses this link may be known only after that was said."""
        if isinstance(error, Refused) and error.certain and error.cause is not self._refused:
            self._refused = error.cause
            _log.warning("'%s' cannot be consumed, trying on: %s", self._url.topic, error.message)
        else:
            _log.debug("consuming '%s': %s", self._url.topic, error.message)

    def _join_and_consume(self) -> None:
        self._client.ensure_topics()
        self._refused = None
        self._recheck.clear()
        producer = self._client.producer()
        try:
            consumer = self._client.group_consumer(self._partitions)
            try:
                self._producer = producer
                self._paused = False
                self._check_at = time.monotonic() + _CHECK_S
                self._watch.found()
                self._attached.set()
                self._consume(consumer)
            finally:
                consumer.close()
        finally:
            self._producer = None
            producer.close(_FLUSH_S)

    def _consume(self, consumer: Consumer) -> None:
        tick = time.monotonic()
        room_at = tick  # when there was room last
        while not self._closed.is_set():
            if self._draining.is_set() and not self._partitions.in_hand:
                break
            changes = self._partitions.changes
            self._hand_out(consumer)
            room = 0 if self._draining.is_set() else self._partitions.room(self._url.prefetch) - len(self._backlog)
            now = time.monotonic()
            if room > 0:
                room_at = now
                # With hysteresis: after a pause, what was fetched before is fetched again.
                if not self._paused or room > self._url.prefetch // 2 or self._partitions.in_hand == 0:
                    self._set_paused(consumer, paused=False)
                    self._take(consumer, room)
            elif now - room_at > _PAUSE_AFTER_S:
                self._set_paused(consumer, paused=True)
            if self._paused and self._take(consumer, 1, wait=0.0):  # serves the group
                consumer.pause()  # a partition that was assigned since: it came unpaused
            if room <= 0 or self._paused:
                self._partitions.wait_change(changes, _POLL_S)
            if now - tick >= _COMMIT_S:
                tick = now
                self._tick(consumer)
        # What is finished is committed, and this process's start on it taken back.
        positions = self._partitions.leaving()
        if positions:
            try:
                consumer.commit(positions)
            except Unavailable as error:
                _log.warning("the last offsets of '%s' cannot be committed: %s", self._url.topic, error.message)

    def _set_paused(self, consumer: Consumer, *, paused: bool) -> None:
        if paused != self._paused:
            (consumer.pause if paused else consumer.resume)()
            self._paused = paused

    def _take(self, consumer: Consumer, room: int, wait: float = _POLL_S) -> int:
        """Poll, and hand out what may be; how many records came."""
        records = consumer.poll(wait, room)
        arrived = monotonic_ns()
        self._take_up(consumer)
        for record in records:
            partition = self._partitions.get(record.partition)
            if partition is None and consumer.owns(record.partition):  # its assignment has not been told yet
                self._partitions.assigned([record.partition])
                self._take_up(consumer)
                partition = self._partitions.get(record.partition)
            if partition is not None:  # else it went to somebody else meanwhile
                if record.offset > partition.next:
                    self._look_for_deleted(partition, record.offset)
                partition.next = max(partition.next, record.offset + 1)
                attempt = partition.suspicion.attempt(record.offset)
                self._backlog.append(_Item(record, partition, arrived, attempt))
        self._hand_out(consumer)
        return len(records)

    def _look_for_deleted(self, partition: Partition, offset: int) -> None:
        """The next record is not that which was to come: it was deleted, or it never was one (a transaction's mark)."""
        try:
            first = self._client.begins([partition.number])[partition.number]
        except Unavailable:
            return  # it cannot be known
        deleted = min(first, offset) - partition.next
        if deleted > 0:
            self._deleted += deleted
            _log.error(
                "the broker deleted %d records of partition %d of '%s' before they were answered, from offset %d on: "
                "they waited longer than it keeps them; raise the topic's retention.bytes and retention.ms, or have "
                "more consumers",
                deleted,
                partition.number,
                self._url.topic,
                partition.next,
            )

    def _take_up(self, consumer: Consumer) -> None:
        """Learn where new partitions stand: at once, because what comes later has not been begun by anybody.

        Raises `Unavailable`.
        """
        new = self._partitions.new()
        if not new:
            return
        for number, (position, end) in consumer.standing(new).items():
            suspicion = Suspicion(position.offset, position.metadata, end, self._url.prefetch)
            if self._partitions.add(number, position.offset, suspicion) and suspicion.alone_until > position.offset:
                _log.warning(
                    "partition %d of '%s' was begun %d times at offset %d without progress: "
                    "its records up to %d run alone",
                    number,
                    self._url.topic,
                    suspicion.starts - 1,
                    position.offset,
                    suspicion.alone_until,
                )

    def _hand_out(self, consumer: Consumer) -> None:
        """Start what was polled, as far as there is room: a suspicious partition leaves room for one at a time."""
        while self._backlog and not (self._draining.is_set() or self._closed.is_set()):
            if self._partitions.room(self._url.prefetch) <= 0:
                return
            item = self._backlog.popleft()
            if self._partitions.holds(item.partition):
                self._start(consumer, item)

    def _start(self, consumer: Consumer, item: _Item) -> None:
        partition, offset = item.partition, item.record.offset
        self._partitions.start(partition, offset)
        # Written before the start: what kills the process cannot take its count with it, nor leave it to a record that
        # ran alone just before.
        positions = self._partitions.acquitted()
        alone = offset < partition.suspicion.alone_until
        deadly = alone and partition.suspicion.deadly(offset)
        if alone and not deadly:
            positions[partition.number] = Position(offset, partition.suspicion.before_alone(offset).encode())
        elif not partition.noted:
            positions[partition.number] = self._partitions.running(partition)
        if positions:
            try:
                consumer.commit(positions)
            except Unavailable as error:
                _log.warning("a start on '%s' cannot be noted, beginning anew: %s", self._url.topic, error.message)
                self._partitions.release(partition, offset, done=False)
                raise
            self._partitions.written(positions)
        if deadly:
            self._bury(item)
        else:
            self._work.put(item)

    def _tick(self, consumer: Consumer) -> None:
        if self._partitions.lost_any:
            # A new member is begun at once, with a client that has seen nothing of what happened to the old one's.
            raise Unavailable("the membership of the group was lost")
        if self._partitions.none and time.monotonic() > self._check_at:
            self._check_at = time.monotonic() + _CHECK_S
            consumer.check()
        positions = self._partitions.progress()
        if positions:
            consumer.commit_soon(positions)
        for _ in range(self._again.qsize()):  # not what fails once more and comes back
            self._send(self._again.get())
        self._try_later_ones()
        if self._recheck.is_set() and not self._watch.up:
            # The broker was away, or the topics are. It may be back with empty disks. Until then the consumer stays as
            # it is: one that leaves now cannot say so, and the group waits for it when the broker is back.
            try:
                created = self._client.ensure_topics()
            except Unavailable:
                return
            if created:
                raise Unavailable("the topics were created anew")
            self._recheck.clear()
            self._watch.found()

    def _try_later_ones(self) -> None:
        draining = self._draining.is_set()
        while not self._later.empty():
            due, _, item = entry = self._later.get()
            if draining or not self._partitions.holds(item.partition):
                self._partitions.release(item.partition, item.record.offset, done=False)  # a peer will have it
            elif due <= time.monotonic():
                self._work.put(item._replace(again_ns=monotonic_ns()))
            else:
                self._later.put(entry)
                return

    # --- the workers -------------------------------------------------------------------------------------------------

    def _worker(self) -> None:
        while (item := self._work.get()) is not None:
            if self._closed.is_set():
                continue  # left to a peer
            picked_up = monotonic_ns()
            headers = {n: v for n, v in item.record.headers.items() if not n.startswith(PREFIX)}
            if self._published(item.record):
                headers.pop(_BUDGET, None)  # nobody waits; a stranger is not to say how long it may take
            after = Afterwards()
            delivery = Delivery(
                item.record.value,
                headers,
                item.arrived_ns,
                picked_up,
                picked_up,
                attempt=item.attempt,
                brokered=True,
                position=(item.record.partition, item.record.offset),
                appended_ns=item.record.appended_ns,
                after=after,
                tried=Tried(item.tries, item.again_ns) if item.tries else None,
            )
            try:
                if self._handle is None:
                    raise Internal("this listener does not serve yet")
                future = self._handle(delivery)
            except Exception as error:  # noqa: BLE001 # a handler that raises is answered like one that fails
                self._answer_failure(item, to_failure(error))
                after.run()
                continue
            future.add_done_callback(lambda done, item=item, after=after: self._complete(item, done, after))  # type: ignore[misc]

    # --- answering, on whatever thread completes the handler's Future ------------------------------------------------

    def _complete(self, item: _Item, done: Future[Response], after: Afterwards) -> None:
        try:
            self._answer(item, done)
        finally:
            after.run()  # the client library has the answer, and sends it on a thread of its own

    def _answer(self, item: _Item, done: Future[Response]) -> None:
        if self._published(item.record) and not self._partitions.holds(item.partition):
            # A peer has it, and answers: nobody waits for this one, which may be the worse of two.
            self._partitions.release(item.partition, item.record.offset, done=False)
            return
        answer = answer_of(done)
        if not isinstance(answer, Failure):
            self._waiting = False
            self._reply(item, answer.payload, answer.headers)
        elif not self._keep(item, answer):
            self._answer_failure(item, answer)

    def _keep(self, item: _Item, failure: Failure) -> bool:
        """Whether it is no answer for a published record, which is tried again later, by us or by a peer."""
        waited_s = (monotonic_ns() - item.arrived_ns) / 1e9
        pause_s = min(_LATER_S * 2 ** min(item.tries, _DOUBLED), _LATEST_S)
        if (
            failure.kind not in _NOT_ITS_FAULT
            or not self._published(item.record)
            or waited_s + pause_s > self._url.patience_s
        ):
            return False
        if not self._waiting:
            self._waiting = True
            _log.warning("records of '%s' wait, and are tried again: %s", self._url.topic, failure.message)
        if self._draining.is_set() or self._closed.is_set():
            self._partitions.release(item.partition, item.record.offset, done=False)
        else:
            self._later.put((time.monotonic() + pause_s, next(self._tries), item._replace(tries=item.tries + 1)))
        return True

    def _answer_failure(self, item: _Item, failure: Failure) -> None:
        said = f"{failure.kind}\n{failure.message}".encode(errors="replace")
        name = RESULT_FAILURE if self._published(item.record) else FAILURE
        self._reply(item, b"", {name: said}, failure=True)

    def _published(self, record: Record) -> bool:
        return bool(self._url.results) and REPLY_PARTITION not in record.headers

    def _reply(self, item: _Item, payload: bytes, headers: Mapping[str, bytes], *, failure: bool = False) -> None:
        sent = item.record.headers
        if self._published(item.record):
            self._send(self._result(item, payload, headers, failure=failure))
            return
        try:
            partition = int(sent[REPLY_PARTITION])
            if not 0 <= partition <= _LARGEST_PARTITION:  # the client libraries want a 32-bit number
                raise ValueError(partition)
            addressed = {**headers, ID: sent[ID], INSTANCE: sent[INSTANCE]}
        except (KeyError, ValueError):
            _log.warning(
                "record %d of partition %d of '%s' does not say where its reply goes; it is not answered",
                item.record.offset,
                item.record.partition,
                self._url.topic,
            )
            self._partitions.release(item.partition, item.record.offset, done=True)
            return
        self._send(_Outgoing(item, self._url.reply_topic, partition, payload, addressed, failure=failure))

    def _result(self, item: _Item, payload: bytes, headers: Mapping[str, bytes], *, failure: bool) -> _Outgoing:
        record, url = item.record, self._url
        told = {n: v for n, v in record.headers.items() if n != RESULT_FAILURE and not n.startswith(PREFIX)}
        source = {SOURCE_PARTITION: b"%d" % record.partition, SOURCE_OFFSET: b"%d" % record.offset}
        # There may be more partitions of records than of results, never fewer of those than the link says.
        partition = record.partition % url.partitions
        return _Outgoing(
            item, url.results, partition, payload, {**told, **headers, **source}, failure=failure, key=record.key
        )

    def _send(self, outgoing: _Outgoing) -> None:
        producer = self._producer
        if producer is None:
            self._sent(outgoing, Unavailable("the link is closed"))
            return
        producer.send(
            outgoing.topic,
            outgoing.partition,
            outgoing.value,
            outgoing.headers,
            lambda error: self._sent(outgoing, error),
            outgoing.key,
        )

    def _sent(self, outgoing: _Outgoing, error: ServiceError | None) -> None:
        item = outgoing.item
        if error is None:
            if outgoing.dead:
                self._dead_letters += 1
                rejected = Rejected(f"the request is in '{self._url.dead_topic}': {_DEADLY}")
                self._answer_failure(item, to_failure(rejected))
            else:
                self._partitions.release(item.partition, item.record.offset, done=True)
        elif isinstance(error, (PayloadTooLarge, InvalidInput)) and not (outgoing.dead or outgoing.failure):
            too_large = Internal(f"the answer is too large for the link: {error.message}")
            self._answer_failure(item, to_failure(too_large))
        elif self._closed.is_set() or not self._partitions.holds(item.partition):
            # A peer has the record, or will have it.
            self._partitions.release(item.partition, item.record.offset, done=False)
        elif isinstance(error, InvalidInput):
            # A partition that the reply topic does not have, say, or headers that fill a record: no attempt can help.
            _log.error("record %d of '%s' cannot be answered: %s", item.record.offset, outgoing.topic, error.message)
            self._partitions.release(item.partition, item.record.offset, done=True)
        else:
            # Not finished before the broker has it; it counts as in hand until then.
            _log.warning("a record for '%s' could not be sent, trying on: %s", outgoing.topic, error.message)
            self._watch.doubt()
            self._again.put(outgoing)

    def _bury(self, item: _Item) -> None:
        record = item.record
        _log.error(
            "record %d of partition %d of '%s' goes to '%s': %s",
            record.offset,
            record.partition,
            self._url.topic,
            self._url.dead_topic,
            _DEADLY,
        )
        headers = {
            **record.headers,
            "reason": _DEADLY.encode(),
            SOURCE_PARTITION: b"%d" % record.partition,
            SOURCE_OFFSET: b"%d" % record.offset,
        }
        self._send(_Outgoing(item, self._url.dead_topic, 0, record.value, headers, dead=True, key=record.key))


_DEADLY = f"it was started alone {Suspicion.ALONE_LIMIT} times and killed its process each time"
