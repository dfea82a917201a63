"""URL -> target. A table of what can be asked."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, parse_qs, parse_qsl, urlencode, urlsplit

from loadgen.engine_target import EngineTarget
from loadgen.errors import PlanError
from loadgen.target import NULL, NullTarget, OipTarget, Target
from services import transports
from services.credentials import kafka_security, redis_security
from services.errors import ConfigurationError
from services.settings import KafkaSettings, RedisSettings, parse
from services.transports.grpc import resolved
from services.transports.transport import Transport

_MODELS_FILE = "models-file"
_DOOR = "door"
_BROKERS = ("kafka", "kafka+python", "redis")


def open_target(
    url: str, task: str, timeout_s: float, *, holds_ledger: bool = False, sample_ratio: float = 0.0
) -> Target:
    """A door `grpc://host:port`, several as `grpc://10.0.0.1:8001,10.0.0.2:8001`; `null:`; or an inference service.

    That is `grpc://host:port/MODEL`, with `?models-file=FILE` where its model is not of the project's models file; it
    is sent tensors, prepared beforehand. `kafka://host:port/TOPIC?door=host:port` (or `kafka+python`, or `redis` with a
    stream): a door that takes requests from there, too (`--consume`), and answers on gRPC what its model is; further
    options and secrets are those of a link. `holds_ledger`: spans are made here, so the door makes none.
    `sample_ratio`: of the requests, those that are sent as sampled. Raises `PlanError`.
    """
    check_url(url)
    if url == NULL:
        return NullTarget()
    parts = urlsplit(url)
    if parts.scheme in _BROKERS:
        door, link = _brokered(parts)
        return OipTarget(
            door, task, timeout_s, holds_ledger=holds_ledger, sample_ratio=sample_ratio, over=_connected(link)
        )
    model = parts.path.strip("/")
    if model:
        file = parse_qs(parts.query).get(_MODELS_FILE)
        return EngineTarget(
            parts.netloc, model, timeout_s, models_file=Path(file[0]) if file else None, sample_ratio=sample_ratio
        )
    return OipTarget(parts.netloc, task, timeout_s, holds_ledger=holds_ledger, sample_ratio=sample_ratio)


def check_url(url: str) -> None:
    """Raises `PlanError` for what `open_target` cannot open."""
    if url == NULL:
        return
    several = url.startswith("grpc://") and "," in url
    try:
        if several:
            resolved(url.removeprefix("grpc://"))
            return
        parts = urlsplit(url)
        if parts.scheme in _BROKERS:
            _brokered(parts)
            return
        right = parts.scheme == "grpc" and bool(parts.hostname) and parts.port is not None
    except ValueError:  # a port that is no number
        right = False
    except ConfigurationError as error:
        raise PlanError(f"target '{url}': {error.message}") from None
    model, query = (parts.path.strip("/"), set(parse_qs(parts.query))) if right else ("", set())
    if not right or "/" in model or (query and not model) or query - {_MODELS_FILE}:
        raise PlanError(
            f"target '{url}' is neither grpc://host:port (a door), nor grpc://host:port/MODEL (an inference service), "
            f"nor {NULL}, nor kafka://host:port/TOPIC?door=host:port (a door that consumes)"
        )


def _brokered(parts: SplitResult) -> tuple[str, str]:
    """Where its door answers, and the link's URL. Raises `PlanError`."""
    options = parse_qsl(parts.query)
    door = dict(options).get(_DOOR, "")
    host, _, port = door.rpartition(":")
    if not host or not port.isdigit():
        raise PlanError(
            f"target '{parts.geturl()}' does not say where its door answers what its model is: add ?door=host:port"
        )
    link = parts._replace(query=urlencode([(name, value) for name, value in options if name != _DOOR]))
    if not link.netloc or not link.path.strip("/"):
        raise PlanError(f"target '{parts.geturl()}' names no topic; write {parts.scheme}://host:port/TOPIC?door={door}")
    return door, link.geturl()


def _connected(url: str) -> Transport:
    """Secrets are where a service's would be, in the environment. Raises `PlanError`."""
    try:
        return transports.connect(
            url, kafka_security(parse(KafkaSettings, "", [])), redis_security(parse(RedisSettings, "", []))
        )
    except ConfigurationError as error:
        raise PlanError(error.message) from None
