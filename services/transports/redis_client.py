"""What a Redis client library must do for us, what a link's URL says, and how messages lie in streams. `redis.py` does
it with redis-py; `redis_caller.py` and `redis_listener.py` are written against this.

    redis://host:port/stream?prefetch=64&workers=1&session_ms=6000&backlog=1024&retention_s=600

`stream` carries requests, `stream.replies.INSTANCE` the replies to one caller, `stream.dead` dead letters. `prefetch`:
entries in hand at a listener. `workers`: threads that call its handler. `session_ms`: silence after which a listener
counts as dead and its work moves on. `backlog`: requests that the stream may hold before callers are refused.
`retention_s`: a request that nobody has answered for so long goes, for its caller has long gone.

Commands: https://redis.io/docs/latest/commands/?group=stream
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl, urlsplit

from services.errors import ConfigurationError, ServiceError, Unavailable

# Fields of the transport itself; neither end sees them.
PREFIX = "bi-"
ID = "bi-id"
INSTANCE = "bi-instance"
PAYLOAD = "bi-payload"
FAILURE = "bi-failure"
HELLO = "bi-hello"

# XADD NOMKSTREAM and MINID came with 6.2; what XCLAIM does with entries that are gone, with 7.0.
_LEAST_VERSION = (7, 0)

Command = tuple[bytes | str | int, ...]


class RedisUrl(NamedTuple):
    """A parsed link URL. One group reads a stream, of the stream's own name: what is answered is deleted."""

    url: str
    host: str
    port: int
    stream: str
    prefetch: int
    workers: int
    session_ms: int
    backlog: int
    retention_s: int

    @property
    def address(self) -> str:
        """host:port."""
        return f"{self.host}:{self.port}"

    @property
    def group(self) -> str:
        """The consumer group's name."""
        return self.stream

    @property
    def dead_stream(self) -> str:
        """Where entries go that killed their process alone, twice."""
        return f"{self.stream}.dead"

    def reply_stream(self, instance: str) -> str:
        """Where replies to one caller go."""
        return f"{self.stream}.replies.{instance}"


# option -> (default, least)
_NUMBERS = {
    "prefetch": (64, 1),
    "workers": (1, 1),
    "session_ms": (6000, 1000),
    "backlog": (1024, 1),
    "retention_s": (600, 1),
}


def parse_url(url: str) -> RedisUrl:
    """Raises `ConfigurationError` that names what is wrong and what is known."""
    parts = urlsplit(url)
    if "@" in parts.netloc:  # not quoted: it may hold a password
        raise ConfigurationError(
            "a redis:// link holds a user or password, and links are logged: use --redis-user, and "
            "BEYOND_REDIS_PASSWORD or --redis-password-file"
        )
    stream = parts.path.strip("/")
    if not parts.netloc or not stream or "/" in stream:
        raise ConfigurationError(f"link '{url}' is not redis://host:port/stream")
    host, _, port = parts.netloc.rpartition(":")
    if not host or not port.isdigit() or "," in host:
        raise ConfigurationError(f"link '{url}': '{parts.netloc}' is not host:port")
    numbers = {key: default for key, (default, _) in _NUMBERS.items()}
    for key, value in parse_qsl(parts.query):
        if key not in _NUMBERS:
            raise ConfigurationError(f"link '{url}' has unknown option '{key}'; known: {', '.join(_NUMBERS)}")
        if not value.isdecimal() or int(value) < _NUMBERS[key][1]:
            raise ConfigurationError(f"link '{url}': {key} is '{value}'; the least is {_NUMBERS[key][1]}")
        numbers[key] = int(value)
    return RedisUrl(url, host.strip("[]"), int(port), stream, **numbers)


class NoGroup(Unavailable):
    """The stream, or its group, is not there (any more): Redis came back empty, say. To be made anew."""


class Connection(Protocol):
    """One connection, for one thread at a time; made when it is first needed, and anew after it broke."""

    def run(self, *commands: Command) -> list[Any]:
        """Send all at once; their replies in order, as bytes, ints, lists, None.

        What Redis refuses is a `ServiceError` in place of its reply. Raises `Unavailable` when Redis cannot be reached,
        does not know us, or does not answer in time: any of the commands may have been carried out then.
        """
        ...

    def close(self) -> None:
        """May be called twice."""
        ...


# Of the seconds that a reply may take.
Open = Callable[[float], Connection]


def ask(connection: Connection, *command: bytes | str | int) -> Any:
    """The reply to one command. Raises what Redis refuses it with."""
    (reply,) = connection.run(command)
    if isinstance(reply, ServiceError):
        raise reply
    return reply


# --- entries ---------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One entry of a stream. `id`: `ms-n`, ordered by both numbers."""

    id: bytes
    fields: dict[str, bytes]

    @property
    def payload(self) -> bytes:
        """What was sent."""
        return self.fields.get(PAYLOAD, b"")

    @property
    def headers(self) -> dict[str, bytes]:
        """What was sent beside it; the transport's own stay inside."""
        return {name: value for name, value in self.fields.items() if not name.startswith(PREFIX)}


def fields(payload: bytes, headers: Mapping[str, bytes]) -> list[bytes | str | int]:
    """What XADD writes."""
    flat: list[bytes | str | int] = [PAYLOAD, payload]
    for name, value in headers.items():
        flat += (name, value)
    return flat


def entries(reply: Any) -> list[Entry]:
    """Of XRANGE's, XCLAIM's reply; of XREAD's and XREADGROUP's what the one stream has. Those deleted since: left out.

    `reply`: [[id, [name, value, ...]], ...].
    """
    found = []
    for id_, flat in reply or ():
        if flat is not None:
            pairs = zip(flat[::2], flat[1::2], strict=True)
            found.append(Entry(id_, {name.decode("utf-8", "replace"): value for name, value in pairs}))
    return found


def read_entries(reply: Any) -> list[Entry]:
    """Of XREAD's and XREADGROUP's reply, for one stream: [[name, [[id, fields], ...]]], or None."""
    return entries(reply[0][1]) if reply else []


def id_numbers(id_: bytes) -> tuple[int, int]:
    """(milliseconds, number) of an entry's id."""
    ms, _, number = id_.partition(b"-")
    return int(ms), int(number or 0)


def after(id_: bytes) -> bytes:
    """The least id above this one."""
    ms, number = id_numbers(id_)
    return b"%d-%d" % (ms, number + 1)


# --- the server ------------------------------------------------------------------------------------------------------


def check_server(connection: Connection, url: RedisUrl) -> None:
    """Raises `ConfigurationError` for a Redis that would lose what was accepted, or is too old; `Unavailable`.

    A user who may not ask is not told.
    """
    found: dict[str, str] = {}
    for reply in connection.run(("INFO", "server"), ("INFO", "memory")):
        if isinstance(reply, bytes):
            lines = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
            found |= {name: value for name, separator, value in lines if separator}
    version = found.get("redis_version", "")
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if version and numbers < _LEAST_VERSION:
        raise ConfigurationError(f"Redis at {url.address} is {version}; links need 7.0 or later (or Valkey)")
    policy = found.get("maxmemory_policy", "noeviction")
    if found.get("maxmemory", "0") != "0" and policy != "noeviction":
        raise ConfigurationError(
            f"Redis at {url.address} evicts keys when its memory is full (maxmemory-policy {policy}), requests among "
            "them; redis-cli CONFIG SET maxmemory-policy noeviction"
        )


def ensure_group(connection: Connection, url: RedisUrl) -> None:
    """The stream and its group, from the stream's beginning: requests may be older than their first listener.

    Raises `Unavailable`, `Overloaded`, `ConfigurationError` for a key that is no stream.
    """
    (reply,) = connection.run(("XGROUP", "CREATE", url.stream, url.group, "0", "MKSTREAM"))
    if isinstance(reply, ServiceError) and "BUSYGROUP" not in reply.message:
        raise reply


def pending_rows(reply: Any) -> Sequence[tuple[bytes, bytes, int, int]]:
    """Of XPENDING's reply: (id, consumer, milliseconds since its last delivery, deliveries)."""
    return [(id_, consumer, int(idle), int(count)) for id_, consumer, idle, count in reply or ()]
