"""URL -> target. A table of what can be asked."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from loadgen.engine_target import EngineTarget
from loadgen.errors import PlanError
from loadgen.target import NULL, NullTarget, OipTarget, Target
from services.errors import ConfigurationError
from services.transports.grpc import resolved

_MODELS_FILE = "models-file"


def open_target(
    url: str, task: str, timeout_s: float, *, holds_ledger: bool = False, sample_ratio: float = 0.0
) -> Target:
    """A door `grpc://host:port`, several as `grpc://10.0.0.1:8001,10.0.0.2:8001`; `null:`; or an inference service.

    That is `grpc://host:port/MODEL`, with `?models-file=FILE` where its model is not of the project's models file; it
    is sent tensors, prepared beforehand. `holds_ledger`: spans are made here, so the door makes none. `sample_ratio`:
    of the requests, those that are sent as sampled. Raises `PlanError`.
    """
    check_url(url)
    if url == NULL:
        return NullTarget()
    parts = urlsplit(url)
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
        right = parts.scheme == "grpc" and bool(parts.hostname) and parts.port is not None
    except ValueError:  # a port that is no number
        right = False
    except ConfigurationError as error:
        raise PlanError(f"target '{url}': {error.message}") from None
    model, query = (parts.path.strip("/"), set(parse_qs(parts.query))) if right else ("", set())
    if not right or "/" in model or (query and not model) or query - {_MODELS_FILE}:
        raise PlanError(
            f"target '{url}' is neither grpc://host:port (a door), nor grpc://host:port/MODEL (an inference service), "
            f"nor {NULL}"
        )
