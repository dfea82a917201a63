"""The callee's end of a Redis link: a member of a consumer group that acknowledges what it has answered.

At least once from accept to answer: an entry is acknowledged, and deleted, after Redis has its reply. Until then it is
pending with this listener, which says every third of a session that it still works on it. What nobody has said a word
about for a whole session is taken over by a peer; `redis_claims.py` says how.

Four kinds of threads. One reads and claims, and never calls a handler. Workers call it. One writes replies and
acknowledgements, many at once when there are many. One watches Redis. Each has a connection of its own.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from typing import NamedTuple

from services.accounting import monotonic_ns
from services.errors import (
    Failure,
    Internal,
    Overloaded,
    Rejected,
    ServiceError,
    Unavailable,
    to_failure,
)
from services.transports.broker_watch import BrokerWatch
from services.transports.outbox import Outbox
from services.transports.redis_claims import ALONE_LIMIT, Abandoned, deadly, plan
from services.transports.redis_client import (
    FAILURE,
    ID,
    INSTANCE,
    PAYLOAD,
    Command,
    Connection,
    Entry,
    Open,
    RedisUrl,
    ask,
    check_server,
    ensure_group,
    entries,
    fields,
    id_numbers,
    pending_rows,
    read_entries,
)
from services.transports.redis_entries import InHand
from services.transports.transport import Afterwards, Delivery, Handle, Response, answer_of

_log = logging.getLogger(__name__)

_CONNECT_S = 5.0
_PROBE_S = 1.5
_RETRY_S = 0.25
_AGAIN_S = 0.1
_BLOCK_MS = 200
# Beyond what a command may block.
_ANSWER_S = 2.5
_SEND_S = 5.0
_LEAVE_S = 1.0
_POLL_S = 0.1
# Requests that one read brings at the most: peers share a burst, and a reply from Redis stays of a bounded size.
_READ = 16
# Acknowledgements wait so long for company. A process that dies meanwhile has its replies sent twice.
_ACK_S = 0.005
_BATCH, _BATCH_BYTES = 64, 8 * 1024 * 1024
_UNBOUNDED = 2**40  # by the outbox; what is in hand is bounded
# Rows of pending entries that are asked for at once.
_ROWS = 1000
# Replies that wait in a caller's stream. A caller that does not read them is gone before its lease is.
_REPLIES = 4096
_DEAD_LETTERS = 1000
# A member that has nothing pending, and was given nothing for so many sessions, is forgotten. One that lives, and had
# nothing to do, is a member again when it is given something.
_FORGET_SESSIONS = 10
_JOIN_S = 10.0
_WORKER_JOIN_S = 2.0

# Looks and forgets in one step: what is delivered to a member in between would be nobody's.
_FORGET = """
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local member = {}
  for i = 1, #row, 2 do member[row[i]] = row[i + 1] end
  if member['pending'] == 0 and member['idle'] > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], member['name'])
  end
end
"""


class _Item(NamedTuple):
    entry: Entry
    arrived_ns: int
    attempt: int


class _Outgoing(NamedTuple):
    """What is to be written on an item's behalf: its reply or, with `dead`, its dead letter.

    `room`: its request was acknowledged and deleted before, to make room in a full memory.
    """

    item: _Item
    command: Command
    dead: bool = False
    room: bool = False


class RedisListener:
    """See `Listener`."""

    def __init__(self, url: RedisUrl, open_: Open) -> None:
        """Checks the server, if it is there. Raises `ConfigurationError` for an unfit one."""
        self._url = url
        self._open = open_
        self.address = url.url
        self._member = uuid.uuid4().hex
        self._in_hand = InHand()
        self._work: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._outbox: Outbox[_Outgoing] = Outbox(_UNBOUNDED, _UNBOUNDED, _BATCH, _BATCH_BYTES)
        self._handle: Handle | None = None
        self._session_s = url.session_ms / 1e3
        self._suspects = False  # entries that must run alone wait for it: nothing new is taken
        self._dead_letters = 0
        self._closing = threading.Lock()
        self._draining = threading.Event()
        self._left = threading.Event()
        self._closed = threading.Event()
        self._attached = threading.Event()
        self._asking = threading.Lock()
        self._questions = open_(_PROBE_S)
        self._probing = open_(_PROBE_S)
        self._watch = BrokerWatch(url.address, lambda _: _ping(self._probing), lambda: None)
        self._reading = threading.Thread(target=self._run, name="redis-consumer", daemon=True)
        self._writing = threading.Thread(target=self._write_all, name="redis-answers", daemon=True)
        self._workers = [
            threading.Thread(target=self._worker, name=f"redis-worker-{i}", daemon=True) for i in range(url.workers)
        ]
        try:
            check_server(self._probing, url)
            ensure_group(self._probing, url)
        except (Unavailable, Overloaded) as error:
            _log.warning(
                "Redis at %s cannot be used yet; reading '%s' begins when it can: %s",
                url.address,
                url.stream,
                error.message,
            )
        except ServiceError:
            self._probing.close()
            raise

    def serve(self, handle: Handle) -> None:
        """See `Listener.serve`. Waits up to 5 s until it reads."""
        self._handle = handle
        for thread in (self._reading, self._writing, *self._workers):
            thread.start()
        self._watch.start()
        deadline = time.monotonic() + _CONNECT_S
        while self._watch.up and not self._attached.wait(_POLL_S) and time.monotonic() < deadline:
            pass

    def healthy(self) -> bool:
        """See `Listener.healthy`."""
        return self._attached.is_set() and self._watch.up and not self._draining.is_set() and not self._closed.is_set()

    def counters(self) -> Mapping[str, int]:
        """See `Listener.counters`: `dead_letters`, entries that this process put aside."""
        return {"dead_letters": self._dead_letters}

    def in_hand(self) -> int:
        """See `Listener.in_hand`."""
        return self._in_hand.count

    def lag(self) -> Mapping[int, int]:
        """See `Listener.lag`. The stream is one partition, 0, that all its listeners hold: each tells its length."""
        if not self.healthy():
            return {}
        with self._asking:
            return {0: int(ask(self._questions, "XLEN", self._url.stream))}

    def drain(self, timeout: float) -> bool:
        """See `Listener.drain`."""
        deadline = time.monotonic() + timeout
        self._draining.set()
        if self._reading.ident is None:
            return True
        return self._in_hand.wait_empty(timeout) and self._left.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """See `Listener.close`."""
        with self._closing:
            if self._closed.is_set():
                return
            self._closed.set()
        self._in_hand.wake()
        self._outbox.close()
        for _ in self._workers:
            self._work.put(None)
        if self._reading.ident is not None:
            self._reading.join(_JOIN_S)
            for worker in self._workers:
                if worker is not threading.current_thread():
                    worker.join(_WORKER_JOIN_S)  # a handler that blocks on is left behind
            if self._writing is not threading.current_thread():
                self._writing.join(_JOIN_S)
            if self._watch.up:
                self._leave()
        self._watch.close()
        self._probing.close()
        with self._asking:
            self._questions.close()

    # --- the reader's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = 0.0  # before it takes over what others had: who has lost Redis, too, comes back at the same time
        try:
            while not (self._closed.is_set() or (self._draining.is_set() and not self._in_hand.count)):
                try:
                    self._join_and_read(wait_s)
                except (Unavailable, Overloaded) as error:
                    _log.debug("reading '%s': %s", self._url.stream, error.message)
                    self._watch.doubt()
                except ServiceError as error:
                    _log.error("'%s' cannot be read, trying on: %s", self._url.stream, error.message)
                except Exception:  # noqa: BLE001 # a bug must not silence the link for good
                    _log.exception("the reader of '%s' failed, and begins anew", self._url.stream)
                if self._attached.is_set():
                    wait_s = self._session_s
                self._attached.clear()
                if not self._draining.is_set() or self._in_hand.count:
                    self._closed.wait(_RETRY_S)
        finally:
            self._left.set()

    def _join_and_read(self, wait_s: float) -> None:
        connection = self._open(_BLOCK_MS / 1e3 + _ANSWER_S)
        try:
            check_server(connection, self._url)
            ensure_group(connection, self._url)
            self._watch.found()
            self._attached.set()
            self._read_all(connection, wait_s)
        finally:
            connection.close()

    def _read_all(self, connection: Connection, wait_s: float) -> None:
        now = time.monotonic()
        beat_at, claim_at, forget_at = now, now + wait_s, now + self._session_s
        while not self._closed.is_set():
            draining = self._draining.is_set()
            if draining and not self._in_hand.count:
                return
            changes = self._in_hand.changes
            now = time.monotonic()
            if now >= beat_at:
                self._beat(connection)
                beat_at = now + self._session_s / 3
            alone = self._suspects and not self._in_hand.count
            if not draining and (now >= claim_at or alone):
                self._claim(connection)
                claim_at = now + self._session_s / 4
            if now >= forget_at:
                self._forget(connection)
                forget_at = now + self._session_s * _FORGET_SESSIONS / 2
            room = 0 if draining or self._suspects else self._url.prefetch - self._in_hand.count
            if room > 0:
                self._read(connection, room)
            elif self._in_hand.count:
                self._in_hand.wait_change(changes, _POLL_S)

    def _read(self, connection: Connection, room: int) -> None:
        url = self._url
        reply = ask(
            connection,
            *("XREADGROUP", "GROUP", url.group, self._member, "COUNT", min(room, _READ), "BLOCK", _BLOCK_MS),
            *("STREAMS", url.stream, ">"),
        )
        arrived = monotonic_ns()
        self._start([_Item(entry, arrived, 1) for entry in read_entries(reply)])

    def _start(self, items: list[_Item]) -> None:
        self._in_hand.take(item.entry.id for item in items)
        for item in items:
            self._work.put(item)

    def _beat(self, connection: Connection) -> None:
        """Say that what is in hand is worked on; learn what a peer has taken over."""
        if not self._in_hand.count:
            return
        url = self._url
        reply = ask(connection, "XPENDING", url.stream, url.group, "-", "+", max(_ROWS, 2 * url.prefetch), self._member)
        ours = self._in_hand.keep({row[0] for row in pending_rows(reply)})
        if ours:
            # JUSTID: no delivery is counted.
            ask(connection, "XCLAIM", url.stream, url.group, self._member, 0, *ours, "JUSTID")

    def _claim(self, connection: Connection) -> None:
        """Take over what nobody has said a word about for a session. Raises `Unavailable`."""
        url = self._url
        reply = ask(connection, "XPENDING", url.stream, url.group, "IDLE", url.session_ms, "-", "+", _ROWS)
        abandoned = [Abandoned(id_, count) for id_, _, _, count in pending_rows(reply)]
        claims = plan(abandoned, self._in_hand.ids())
        self._suspects = bool(claims.alone)
        if claims.alone:
            if not self._in_hand.count:
                self._take_over(connection, claims.alone[:1])
            return
        room = url.prefetch - self._in_hand.count
        for begin in range(0, min(room, len(claims.together)), _READ):
            self._take_over(connection, claims.together[begin : min(room, begin + _READ)])

    def _take_over(self, connection: Connection, claims: tuple[Abandoned, ...]) -> None:
        # Who else has seen them comes too late: they are not idle any more.
        url = self._url
        ids = [claim.id for claim in claims]
        reply = ask(connection, "XCLAIM", url.stream, url.group, self._member, url.session_ms, *ids)
        arrived = monotonic_ns()
        attempts = {claim.id: claim.deliveries + 1 for claim in claims}
        # One that left in order has taken its own delivery back: still it is not the first.
        items = [_Item(entry, arrived, max(2, attempts[entry.id])) for entry in entries(reply)]
        if not items:
            return
        _log.warning(
            "%d requests of '%s' are taken over from a listener that died or hangs, as delivery %d",
            len(items),
            url.stream,
            items[0].attempt,
        )
        for item in items:
            if deadly(item.attempt):
                self._in_hand.take([item.entry.id])
                self._bury(item)
            else:
                self._start([item])

    def _forget(self, connection: Connection) -> None:
        """Take members off the group's list that died long ago."""
        idle_ms = self._url.session_ms * _FORGET_SESSIONS
        (reply,) = connection.run(("EVAL", _FORGET, 1, self._url.stream, self._url.group, idle_ms))
        if isinstance(reply, ServiceError):  # a user who may not: the list only grows by a line per process
            _log.debug("members of '%s' that died stay listed: %s", self._url.group, reply.message)

    def _leave(self) -> None:
        """Leave the group; what is unfinished goes to a peer at once, and this delivery of it does not count."""
        url = self._url
        connection = self._open(_LEAVE_S)
        try:
            rows = pending_rows(ask(connection, "XPENDING", url.stream, url.group, "-", "+", _ROWS, self._member))
            idle = url.session_ms + 1
            for id_, _, _, count in rows:
                member = (url.stream, url.group, self._member, 0, id_)
                ask(connection, "XCLAIM", *member, "IDLE", idle, "RETRYCOUNT", max(0, count - 1), "JUSTID")
            if not rows:
                ask(connection, "XGROUP", "DELCONSUMER", url.stream, url.group, self._member)
        except ServiceError as error:
            _log.debug("leaving the group of '%s': %s", url.stream, error.message)
        finally:
            connection.close()

    # --- the workers -------------------------------------------------------------------------------------------------

    def _worker(self) -> None:
        while (item := self._work.get()) is not None:
            if self._closed.is_set():
                continue  # left to a peer
            if self._in_hand.lost(item.entry.id):
                self._in_hand.release([item.entry.id])
                continue
            picked_up = monotonic_ns()
            after = Afterwards()
            delivery = Delivery(
                item.entry.payload,
                item.entry.headers,
                item.arrived_ns,
                picked_up,
                picked_up,
                attempt=item.attempt,
                brokered=True,
                position=id_numbers(item.entry.id),
                after=after,
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
            answer = answer_of(done)
            if isinstance(answer, Failure):
                self._answer_failure(item, answer)
            else:
                self._reply(item, answer.payload, answer.headers)
        finally:
            after.run()

    def _answer_failure(self, item: _Item, failure: Failure) -> None:
        self._reply(item, b"", {FAILURE: f"{failure.kind}\n{failure.message}".encode(errors="replace")})

    def _reply(self, item: _Item, payload: bytes, headers: Mapping[str, bytes]) -> None:
        self._outbox.put(_Outgoing(item, self._reply_command(item.entry, payload, headers)), len(payload))

    def _reply_command(self, entry: Entry, payload: bytes, headers: Mapping[str, bytes]) -> Command:
        sent = entry.fields
        if ID not in sent or INSTANCE not in sent:
            _log.warning(
                "entry %s of '%s' does not say where its reply goes; it is not answered",
                entry.id.decode(errors="replace"),
                self._url.stream,
            )
            return ()
        # A caller that is gone, its stream with it, is not answered.
        stream = self._url.reply_stream(sent[INSTANCE].decode(errors="replace"))
        return ("XADD", stream, "NOMKSTREAM", "MAXLEN", "~", _REPLIES, "*", ID, sent[ID], *fields(payload, headers))

    def _bury(self, item: _Item) -> None:
        entry, url = item.entry, self._url
        _log.error("entry %s of '%s' goes to '%s': %s", entry.id.decode(), url.stream, url.dead_stream, _DEADLY)
        aside: list[bytes | str | int] = [PAYLOAD, entry.payload, "reason", _DEADLY, "source-id", entry.id]
        for name, value in entry.fields.items():
            if name != PAYLOAD:
                aside += (name, value)
        command = ("XADD", url.dead_stream, "MAXLEN", "~", _DEAD_LETTERS, "*", *aside)
        self._outbox.put(_Outgoing(item, command, dead=True), len(entry.payload))

    # --- the writer's thread -----------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        connection = self._open(_SEND_S)
        answered: list[bytes] = []  # to be acknowledged
        try:
            while True:
                taken = self._outbox.take(_ACK_S if answered else _AGAIN_S)
                if not taken and not answered:
                    if self._closed.is_set():
                        return
                    continue
                try:
                    answered = self._write(connection, [outgoing for outgoing, _ in taken], answered)
                except Unavailable as error:
                    _log.debug("answering '%s': %s", self._url.stream, error.message)
                    if self._closed.is_set():
                        return
                    # Not finished before Redis has it; it counts as in hand until then.
                    self._outbox.put_back(taken)
                    self._watch.doubt()
                    self._closed.wait(_AGAIN_S)
                except Exception:  # noqa: BLE001 # a bug must not silence the link for good
                    _log.exception("%d answers to '%s' could not be written", len(taken), self._url.stream)
                    self._in_hand.release([*answered, *(outgoing.item.entry.id for outgoing, _ in taken)])
                    answered = []
        finally:
            connection.close()

    def _write(self, connection: Connection, batch: list[_Outgoing], answered: list[bytes]) -> list[bytes]:
        """Write these, acknowledge and delete `answered`. Ids to be acknowledged next. Raises `Unavailable`."""
        url = self._url
        commands: list[Command] = []
        gone = [*answered, *(outgoing.item.entry.id for outgoing in batch if outgoing.room)]
        if gone:
            commands += [("XACK", url.stream, url.group, *gone), ("XDEL", url.stream, *gone)]
        written = [outgoing for outgoing in batch if outgoing.command]
        replies = connection.run(*commands, *(outgoing.command for outgoing in written))
        for reply in replies[: len(commands)]:
            if isinstance(reply, ServiceError):  # what was written above is written twice then: the caller counts it
                raise Unavailable(reply.message)
        self._in_hand.release(answered)
        done = [outgoing.item.entry.id for outgoing in batch if not outgoing.command]
        for outgoing, reply in zip(written, replies[len(commands) :], strict=True):
            if isinstance(reply, ServiceError):
                if not self._try_on(outgoing, reply):
                    done.append(outgoing.item.entry.id)
            elif outgoing.dead:
                self._dead_letters += 1
                rejected = Rejected(f"the request is in '{url.dead_stream}': {_DEADLY}")
                self._answer_failure(outgoing.item, to_failure(rejected))
            elif outgoing.room:
                self._in_hand.release([outgoing.item.entry.id])
            else:
                done.append(outgoing.item.entry.id)
        return done

    def _try_on(self, outgoing: _Outgoing, error: ServiceError) -> bool:
        """Whether it makes sense to write what was refused once more; then it is on its way again."""
        if not isinstance(error, (Overloaded, Unavailable)):
            _log.error("an entry of '%s' cannot be answered: %s", self._url.stream, error.message)
            return False
        _log.warning("an answer to '%s' could not be written, trying on: %s", self._url.stream, error.message)
        # A memory that is full of requests has no room for replies: this one's request goes before its reply.
        makes_room = isinstance(error, Overloaded) and not outgoing.dead and not outgoing.room
        self._outbox.put(outgoing._replace(room=outgoing.room or makes_room), 0)
        if not makes_room:
            self._closed.wait(_AGAIN_S)
        return True


_DEADLY = f"it was delivered alone {ALONE_LIMIT} times and killed its process each time"


def _ping(connection: Connection) -> None:
    ask(connection, "PING")
