"""Redis Streams through redis-py. `redis://host:port/stream`; see `redis_client.py` for the URL.

Of the library we use the connection and its protocol, not the client around it: that one repeats commands after errors,
which falsifies time and sends requests twice, and pools connections that each have one thread here.
https://redis.readthedocs.io/en/stable/connections.html
"""

from __future__ import annotations

import ssl
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.errors import ConfigurationError, Internal, Overloaded, ServiceError, Unavailable
from services.transports.redis_caller import RedisTransport
from services.transports.redis_client import Command, NoGroup, RedisUrl, parse_url
from services.transports.redis_listener import RedisListener
from services.transports.redis_security import CREDENTIALS, OPEN, TLS, RedisSecurity, Refused

_CONNECT_S = 1.5


def connect(url: str, security: RedisSecurity = OPEN) -> RedisTransport:
    """The caller's end. Raises `ConfigurationError`."""
    parsed = parse_url(url)
    security.check()
    return RedisTransport(parsed, lambda timeout: RedisConnection(parsed, security, timeout))


def listen(url: str, security: RedisSecurity = OPEN) -> RedisListener:
    """The callee's end. Raises `ConfigurationError`."""
    parsed = parse_url(url)
    security.check()
    return RedisListener(parsed, lambda timeout: RedisConnection(parsed, security, timeout))


class RedisConnection:
    """See `Connection`."""

    def __init__(self, url: RedisUrl, security: RedisSecurity, timeout: float) -> None:
        """`timeout`: seconds that a reply may take."""
        self._url = url
        settings: dict[str, Any] = {
            "host": url.host,
            "port": url.port,
            "socket_timeout": timeout,
            "socket_connect_timeout": min(timeout, _CONNECT_S),
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
            "username": security.user or None,
            "password": security.password or None,
        }
        if security.tls:
            self._connection: Any = redis.SSLConnection(
                **settings,
                ssl_ca_certs=security.ca_file or None,
                ssl_certfile=security.certificate_file or None,
                ssl_keyfile=security.key_file or None,
                ssl_password=security.key_password,
                ssl_check_hostname=True,
                ssl_min_version=ssl.TLSVersion.TLSv1_2,
            )
        else:
            self._connection = redis.Connection(**settings)  # type: ignore[no-untyped-call] # its annotations forget

    def run(self, *commands: Command) -> list[Any]:
        """See `Connection.run`."""
        connection = self._connection
        whole = False
        try:
            connection.connect()
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            replies = [self._reply() for _ in commands]
            whole = True
        except redis.RedisError as error:
            raise self._unavailable(error) from error
        except OSError as error:
            raise Unavailable(f"Redis at {self._url.address}: {error}") from error
        finally:
            if not whole:  # what comes next over it would be the answer to something else
                connection.disconnect()
        return replies

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except redis.ResponseError as error:
            return self._refusal(error)

    def _refusal(self, error: redis.ResponseError) -> ServiceError:
        """What a command is refused with."""
        said = str(error)
        address = self._url.address
        code = said.partition(" ")[0]
        if isinstance(error, redis.exceptions.OutOfMemoryError):
            return Overloaded(f"Redis at {address} has no memory left: {said} Raise maxmemory, or send less")
        if isinstance(error, redis.exceptions.NoPermissionError):
            return Refused(address, said, CREDENTIALS)
        if code in ("NOGROUP", "UNBLOCKED"):
            return NoGroup(f"Redis at {address}: {said}")
        if code == "WRONGTYPE":
            return ConfigurationError(
                f"Redis at {address} has a key of a name that '{self._url.stream}' needs, and it is no stream: {said}"
            )
        if isinstance(error, _PASSING) or code in ("MISCONF", "NOREPLICAS"):
            return Unavailable(f"Redis at {address} does not take it now: {said}")
        return Internal(f"Redis at {address}: {said}")

    def _unavailable(self, error: redis.RedisError) -> Unavailable:
        address = self._url.address
        if isinstance(error, (redis.AuthenticationError, redis.ResponseError)):  # while connecting
            return Refused(address, str(error), CREDENTIALS)
        if isinstance(error.__context__, ssl.SSLError):
            return Refused(address, str(error.__context__.reason or error.__context__), TLS)
        return Unavailable(f"Redis at {address}: {error}")

    def close(self) -> None:
        """See `Connection.close`."""
        self._connection.disconnect()


# A replica, a node of a cluster that is not ours to follow, a failover.
_PASSING = (
    redis.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MovedError,
    redis.exceptions.TryAgainError,
)
