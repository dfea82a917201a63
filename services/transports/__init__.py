"""How bytes move between services: a table from URL scheme to opener. Adding one is one file and one row.

`fused:` is not here: fused is the absence of a transport.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast
from urllib.parse import urlsplit

from services.errors import ConfigurationError
from services.transports import kafka_security, redis_security
from services.transports.kafka_security import KafkaSecurity
from services.transports.redis_security import RedisSecurity
from services.transports.transport import Listener, Transport

# scheme -> module, an `Opener`; imported when first asked for, so that a service needs only the client library of the
# transport that it uses.
TABLE: dict[str, str] = {
    "memory": "services.transports.memory",
    "grpc": "services.transports.grpc",
    "kafka": "services.transports.kafka_librdkafka",
    "kafka+python": "services.transports.kafka_python",
    "redis": "services.transports.redis",
}

Security = KafkaSecurity | RedisSecurity


class Opener(Protocol):
    """What a module in the table offers. One for a broker also takes how its links prove who they are."""

    def connect(self, url: str, *security: Security) -> Transport:
        """The caller's end of `url`."""
        ...

    def listen(self, url: str, *security: Security) -> Listener:
        """The callee's end of `url`."""
        ...


def _opener(url: str) -> Opener:
    scheme = urlsplit(url).scheme
    try:
        module = TABLE[scheme]
    except KeyError:
        known = ", ".join(f"{name}://" for name in TABLE)
        raise ConfigurationError(f"link '{url}' has unknown scheme '{scheme}'; use fused: or one of {known}") from None
    try:
        return cast(Opener, importlib.import_module(module))
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            f"link '{url}' needs the Python package '{missing.name}'; install the extra: "
            f"pip install 'beyond-inference[{scheme.split('+', maxsplit=1)[0]}]'"
        ) from missing


def connect(
    url: str, kafka: KafkaSecurity = kafka_security.OPEN, redis: RedisSecurity = redis_security.OPEN
) -> Transport:
    """The caller's end of `url`. `kafka`, `redis`: for links over them. Raises `ConfigurationError`, `Unavailable`."""
    return _opener(url).connect(url, *_security(url, kafka, redis))


def listen(
    url: str, kafka: KafkaSecurity = kafka_security.OPEN, redis: RedisSecurity = redis_security.OPEN
) -> Listener:
    """The callee's end of `url`. `kafka`, `redis`: for links over them. Raises `ConfigurationError`, `Unavailable`."""
    return _opener(url).listen(url, *_security(url, kafka, redis))


def _security(url: str, kafka: KafkaSecurity, redis: RedisSecurity) -> tuple[Security, ...]:
    return (kafka,) if url.startswith("kafka") else (redis,) if url.startswith("redis") else ()
