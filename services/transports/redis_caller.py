"""The caller's end of a Redis link: requests into a stream, replies from a stream of this caller's own.

Replies: the caller makes its stream before its first request, trims what it has read, and renews a lease on it
(EXPIRE). Listeners write into a stream that is there only (NOMKSTREAM), and at most so many entries. So a caller's
death leaks nothing: its stream expires, and what is answered after that is dropped.

Two threads, each with a connection: one sends what waits, many requests at once when there are many; one reads replies.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from services.accounting import monotonic_ns
from services.errors import (
    DeadlineExceeded,
    Overloaded,
    PayloadTooLarge,
    ServiceError,
    Unavailable,
)
from services.transports.broker_watch import BrokerWatch
from services.transports.outbox import Outbox
from services.transports.pending import Pending
from services.transports.redis_client import (
    FAILURE,
    HELLO,
    ID,
    INSTANCE,
    Command,
    Connection,
    Entry,
    Open,
    RedisUrl,
    after,
    ask,
    check_server,
    fields,
    id_numbers,
    read_entries,
)
from services.transports.redis_security import Refused
from services.transports.transport import MAX_PAYLOAD_BYTES, Reply

_log = logging.getLogger(__name__)

_CONNECT_S = 5.0
_PROBE_S = 1.5
# A first attempt that fails is repeated while there is time for another.
_PATIENCE_S = 2.5
_RETRY_S = 0.25
_AGAIN_S = 0.1
_BLOCK_MS = 200
# Beyond what a command may block.
_ANSWER_S = 2.5
_SEND_S = 5.0
_READ = 64
# Of the reply stream: how long it outlives its caller, and how often that is renewed.
LEASE_S = 60
_RENEW_S = 5.0
# What may wait to be sent, beside what is on its way.
_WAITING, _WAITING_BYTES = 4096, 512 * 1024 * 1024
_BATCH, _BATCH_BYTES = 64, 8 * 1024 * 1024
# How often a full backlog is looked at again.
_LOOK_S = 0.05
_JOIN_S = 10.0


class _Request(NamedTuple):
    id: str
    payload: bytes
    headers: Mapping[str, bytes]


class RedisTransport:
    """See `Transport`. A Redis that is away, at the start or later, fails calls at once until it is back."""

    brokered = True
    system = "redis"

    def __init__(self, url: RedisUrl, open_: Open) -> None:
        """Waits up to 5 s for Redis, then goes on trying behind. Raises `ConfigurationError` for an unfit one."""
        self._url = url
        self.destination = url.stream
        self._open = open_
        self._instance = uuid.uuid4().hex
        self._instance_field = self._instance.encode()
        self._replies = url.reply_stream(self._instance)
        self._ids = itertools.count()
        self._pending = Pending(f"Redis stream '{url.stream}'")
        self._outbox: Outbox[_Request] = Outbox(_WAITING, _WAITING_BYTES, _BATCH, _BATCH_BYTES)
        self._length = 0  # of the request stream, when it was last looked at
        self._newest_ms = 0  # by the server's clock
        self._closing = threading.Lock()
        self._closed = threading.Event()
        self._settled = threading.Event()  # the first attempt to attach has ended, one way or the other
        self._detach = threading.Event()
        self._attached = False
        self._failed: ServiceError | None = None
        self._refused: ServiceError | None = None  # by a server that is there, the last time that it was tried
        self._probing = open_(_PROBE_S)
        self._watch = BrokerWatch(url.address, lambda _: _ping(self._probing), self._lost)
        self._threads = [
            threading.Thread(target=self._run, name="redis-replies", daemon=True),
            threading.Thread(target=self._send_all, name="redis-sender", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self._settled.wait(_CONNECT_S)
        self._raise_failed()
        self._watch.start()

    def _raise_failed(self) -> None:
        if self._failed is not None:
            self.close()
            raise self._failed

    def request(self, payload: bytes, headers: Mapping[str, bytes], timeout: float) -> Future[Reply]:
        """See `Transport.request`."""
        refusal = self._refusal(payload, timeout)
        if refusal is not None:
            refused: Future[Reply] = Future()
            refused.set_exception(refusal)
            return refused
        id_ = f"{self._instance}-{next(self._ids)}"
        future = self._pending.add(id_, timeout)
        if not self._outbox.put(_Request(id_, payload, headers), len(payload)):
            self._pending.fail(id_, Overloaded(f"{_WAITING} requests wait to be sent to Redis; send less"))
        elif not self._attached:  # lost in between: `_lost` may have missed this call
            self._pending.fail(id_, self._away())
        return future

    def _refusal(self, payload: bytes, timeout: float) -> ServiceError | None:
        if len(payload) > MAX_PAYLOAD_BYTES:
            return PayloadTooLarge(f"the message has {len(payload)} bytes; this link carries {MAX_PAYLOAD_BYTES}")
        if timeout <= 0:
            return DeadlineExceeded("no time was left for the call")
        if self._closed.is_set():
            return Unavailable(f"the link to Redis stream '{self._url.stream}' is closed")
        if not self._attached:
            return self._away()
        if self._length >= self._url.backlog:
            return Overloaded(
                f"{self._length} requests are in Redis stream '{self._url.stream}'; try later, add listeners, or raise "
                "?backlog="
            )
        return None

    def _away(self) -> Unavailable:
        if self._failed is not None:
            return Unavailable(f"the link to Redis stream '{self._url.stream}' cannot be used: {self._failed.message}")
        if self._refused is not None:
            return Unavailable(self._refused.message)
        return Unavailable(
            f"the broker at {self._url.address} cannot be reached; start Redis or check the address, the network, and "
            "whether the port speaks TLS (--redis-tls); calls work again as soon as it is back"
        )

    def _lost(self) -> None:
        """Fail what waits; the reader's thread attaches anew."""
        self._attached = False
        self._detach.set()
        self._outbox.clear()
        self._pending.fail_all(self._away())

    # --- the sender --------------------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        connection = self._open(_SEND_S)
        try:
            while not self._closed.is_set():
                full = self._length >= self._url.backlog
                taken = self._outbox.take(_LOOK_S if full else _AGAIN_S)
                batch = [request for request, _ in taken if self._pending.waits(request.id)]
                if not batch and not full:
                    continue
                try:
                    self._send(connection, batch)
                except Unavailable as error:
                    # Whether they got there is not known. Who waits for an answer is told, and nothing is repeated.
                    for request in batch:
                        self._pending.fail(request.id, error)
                    self._watch.doubt()
                    self._closed.wait(_AGAIN_S if not batch else 0.0)
                except Exception as error:  # noqa: BLE001 # a bug must not silence the link for good
                    _log.exception("requests could not be sent to Redis stream '%s'", self._url.stream)
                    for request in batch:
                        self._pending.fail(request.id, Unavailable(f"the request could not be sent: {error}"))
        finally:
            connection.close()

    def _send(self, connection: Connection, batch: list[_Request]) -> None:
        commands = [self._command(request) for request in batch]
        *replies, length = connection.run(*commands, ("XLEN", self._url.stream))
        now = monotonic_ns()
        for request, reply in zip(batch, replies, strict=True):
            if isinstance(reply, ServiceError):
                self._pending.fail(request.id, reply)
            else:
                self._pending.published(request.id, now)
                self._newest_ms = id_numbers(reply)[0]
        if isinstance(length, int):
            self._length = length
        if self._newest_ms and any(isinstance(reply, Overloaded) for reply in replies):
            # XADD would trim, and is refused: what is too old makes room all the same.
            connection.run(("XTRIM", self._url.stream, "MINID", self._oldest_ms()))

    def _command(self, request: _Request) -> Command:
        # Ids begin with the server's time, so that no other clock says what is too old. Nearly (~): whole nodes only.
        trim = ("MINID", "~", self._oldest_ms()) if self._newest_ms else ()
        mine = (ID, request.id, INSTANCE, self._instance_field)
        return ("XADD", self._url.stream, *trim, "*", *mine, *fields(request.payload, request.headers))

    def _oldest_ms(self) -> int:
        return max(0, self._newest_ms - self._url.retention_s * 1000)

    # --- the reader of replies ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        begin = time.monotonic()
        while not self._closed.is_set():
            self._detach.clear()
            try:
                self._attach_and_read()
            except (Unavailable, Overloaded) as error:
                self._refused = error if isinstance(error, (Refused, Overloaded)) else None
                if not self._settled.is_set() and time.monotonic() - begin > _PATIENCE_S:
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
                _log.exception("the reader of replies on '%s' failed, and begins anew", self._replies)
                self._lost()
                self._closed.wait(_RETRY_S)

    def _attach_and_read(self) -> None:
        connection = self._open(_BLOCK_MS / 1e3 + _ANSWER_S)
        try:
            check_server(connection, self._url)
            # Its id is where reading begins, also where an earlier stream of ours has survived.
            hello, _ = connection.run(("XADD", self._replies, "*", HELLO, b"1"), ("EXPIRE", self._replies, LEASE_S))
            if isinstance(hello, ServiceError):
                raise hello
            self._attached = True
            self._refused = None
            self._watch.found()
            self._settled.set()
            self._read(connection, hello)
            connection.run(("UNLINK", self._replies))  # we go
        finally:
            self._lost()
            connection.close()

    def _read(self, connection: Connection, position: bytes) -> None:
        """Until this end closes, or Redis is away. Raises `Unavailable` where it came back without our stream."""
        renew_at = 0.0
        trimmed = position
        while not self._closed.is_set():
            if self._detach.is_set():
                raise self._away()
            commands: list[Command] = []
            if trimmed != position:
                commands.append(("XTRIM", self._replies, "MINID", after(position)))
            renewing = time.monotonic() >= renew_at
            if renewing:
                commands.append(("EXPIRE", self._replies, LEASE_S))
            read = ("XREAD", "COUNT", _READ, "BLOCK", _BLOCK_MS, "STREAMS", self._replies, position)
            try:
                replies: list[Any] = connection.run(*commands, read)
            except Unavailable:
                # It may be the connection's end only: then nothing is lost, replies wait in the stream.
                self._watch.doubt()
                renew_at = 0.0
                self._detach.wait(_AGAIN_S)
                continue
            arrived = monotonic_ns()
            trimmed = position
            if isinstance(replies[-1], ServiceError):
                raise replies[-1]
            if renewing:
                if replies[-2] == 0:
                    raise Unavailable(f"Redis at {self._url.address} has lost its data, and the replies with it")
                renew_at = time.monotonic() + _RENEW_S
            found = read_entries(replies[-1])
            for entry in found:
                self._receive(entry, arrived)
                position = entry.id
            if not found:
                renew_at = 0.0  # an idle moment costs nothing, and a stream that has gone is seen

    def _receive(self, entry: Entry, arrived_ns: int) -> None:
        if ID not in entry.fields:
            return
        id_ = entry.fields[ID].decode(errors="replace")
        failure = entry.fields.get(FAILURE)
        if failure is not None:
            self._pending.refuse(id_, failure)
            return
        self._pending.answer(id_, Reply(entry.payload, entry.headers, arrived_ns))

    def healthy(self) -> bool:
        """See `Transport.healthy`: attached to Redis, which answers."""
        return self._attached and self._watch.up and not self._closed.is_set()

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
            Unavailable(f"the link to Redis stream '{self._url.stream}' was closed while the call was in flight")
        )
        self._outbox.close()
        self._watch.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_S)
        self._probing.close()


def _ping(connection: Connection) -> None:
    ask(connection, "PING")
