"""Typed settings from flags and environment; the only reader of the environment.

Each field of a settings class is a flag (`admission_limit` is `--admission-limit`) and an environment variable
(`BEYOND_ADMISSION_LIMIT`); the flag wins. A tuple is a flag that may be repeated, and a list separated by blanks in the
environment. `--help` is made from the fields.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints
from urllib.parse import parse_qsl

from services.errors import ConfigurationError

PREFIX = "BEYOND_"
_SPANS = (
    "where spans go: otlp://host:port (gRPC), http://host:port (OTLP over HTTP), file:PATH for OTLP JSON lines "
    "(default: nowhere)"
)
Settings = TypeVar("Settings")


def _setting(
    default: Any,
    help_: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    *,
    secret: bool = False,
) -> Any:
    """`secret`: from the environment only, for everybody on a machine sees its processes' flags; and never printed."""
    metadata = {"help": help_, "minimum": minimum, "maximum": maximum, "choices": tuple(choices), "secret": secret}
    return field(default=default, metadata=metadata, repr=not secret)


def cpu_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The CPUs that this process may use: its affinity, and in a container its cgroup's quota, at least 1.

    `cgroup`: where it is mounted, of version 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html) or 1.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for read in (_quota, _quota_of_version_1):
        try:
            cpus = read(cgroup)
        except (OSError, ValueError):
            continue  # it is of the other version, or there is none: the affinity stands
        if cpus is not None:
            count = min(count, cpus)
    return max(1, count)


def _quota(cgroup: Path) -> int | None:
    """Whole CPUs; None where there is no limit."""
    quota, period = (cgroup / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) // int(period)


def _quota_of_version_1(cgroup: Path) -> int | None:
    quota, period = (int((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    return quota // period if quota > 0 else None


@dataclass(frozen=True, slots=True)
class CommonSettings:
    """What every service has."""

    models_file: str = _setting("", "the models file (default: the one that comes with the project)")
    log_level: str = _setting("INFO", "least severe log line", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    metrics: str = _setting(
        "", "host:port where Prometheus may scrape, e.g. 0.0.0.0:9464; port 0: a free one (default: nowhere)"
    )
    health: str = _setting(
        "",
        "host:port of a gRPC server that answers health alone, with threads that no request can take, for whoever "
        "restarts a process that does not answer; port 0: a free one (default: only --listen answers it)",
    )
    log_format: str = _setting("json", "json: one object per line; text: for people", choices=("json", "text"))
    drain_s: float = _setting(20.0, "seconds that SIGTERM leaves to what is in hand", 0)
    connection_age_s: float = _setting(
        0.0,
        "seconds after which a gRPC connection ends gracefully, so that its caller looks for replicas anew (0: never)",
        0,
        86400,
    )


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a model runs, wherever its engine is."""

    backend: str = _setting("", "onnxruntime, torch, tensorrt, emulated or replay (default: what the model needs)")
    device: str = _setting("cpu", "cpu, cuda or cuda:N")
    precision: str = _setting(
        "float32",
        "what torch and TensorRT compute in; tf32: CUDA only",
        choices=("float32", "tf32", "float16", "bfloat16"),
    )
    engine_cache: str = _setting("", "TensorRT: the folder of compiled engines (default: one in the temporary folder)")
    workspace_mib: int = _setting(4096, "TensorRT: most memory of the GPU that a layer may use as workspace, in MiB", 1)
    threads: int = _setting(1, "CPU threads per instance", 1)
    instances: int = _setting(1, "model instances, each with its own thread", 1)
    max_batch: int = _setting(1, "most requests in a batch", 1)
    max_delay_ms: float = _setting(0.0, "longest that a batch is held open for more requests, in ms", 0)
    queue_capacity: int = _setting(256, "requests that may wait for an instance; more are refused", 1)


@dataclass(frozen=True, slots=True)
class DecodingSettings:
    """How images become tensors, wherever that is done: at the door, or behind the hop for those that cross encoded."""

    preprocessor: str = _setting(
        "opencv", "what decodes and prepares: opencv (CPU), gpu (CUDA: nvJPEG), or dali (CUDA: DALI)"
    )
    decode: str = _setting("scaled", "scaled: a JPEG may shrink while it is decoded; full", choices=("scaled", "full"))
    preprocess_instances: int = _setting(0, "decoding threads (0: the CPU limit)", 0)
    preprocess_queue_capacity: int = _setting(256, "images that may wait for a decoding thread", 1)
    max_pixels: int = _setting(100_000_000, "an image that claims more is refused from its header", 1)


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How links over Kafka know their broker, and prove who they are. The same for all links of a process."""

    kafka_protocol: str = _setting(
        "PLAINTEXT",
        "what the brokers' listener speaks; SSL is TLS",
        choices=("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
    )
    kafka_mechanism: str = _setting("SCRAM-SHA-512", "of SASL", choices=("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"))
    kafka_user: str = _setting("", "for SASL (default: none)")
    kafka_password: str = _setting("", "for SASL", secret=True)
    kafka_password_file: str = _setting("", "a file with the password for SASL (default: none)")
    kafka_ca_file: str = _setting("", "PEM: who signs the brokers' certificates (default: whom the system trusts)")
    kafka_certificate_file: str = _setting("", "PEM: a client certificate, where brokers ask for one (default: none)")
    kafka_key_file: str = _setting("", "PEM: its key (default: none)")
    kafka_key_password: str = _setting("", "where the key is encrypted", secret=True)


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """How links over Redis know their server, and prove who they are. The same for all links of a process."""

    redis_tls: str = _setting("off", "whether Redis speaks TLS", choices=("off", "on"))
    redis_user: str = _setting("", "for Redis (default: its default user)")
    redis_password: str = _setting("", "for Redis", secret=True)
    redis_password_file: str = _setting("", "a file with the password for Redis (default: none)")
    redis_ca_file: str = _setting("", "PEM: who signs Redis's certificate (default: whom the system trusts)")
    redis_certificate_file: str = _setting("", "PEM: a client certificate, where Redis asks for one (default: none)")
    redis_key_file: str = _setting("", "PEM: its key (default: none)")
    redis_key_password: str = _setting("", "where the key is encrypted", secret=True)


@dataclass(frozen=True, slots=True)
class PreprocessSettings(CommonSettings):
    """The preprocess service: the public door."""

    listen: str = _setting("127.0.0.1:8001", "host:port of the door (gRPC); port 0: a free one")
    link: tuple[str, ...] = _setting(
        (),
        "MODEL=URL, where the model's work goes: fused: (this process), grpc://host:port, kafka://host:port/topic, "
        "kafka+python://host:port/topic, redis://host:port/stream; may be repeated. fused:?max_batch=8 sets what is so "
        "of this model's engine alone (default: efficientnet-lite0=fused:)",
    )
    consume: tuple[str, ...] = _setting(
        (),
        "broker URL to take frames from, too, e.g. kafka://host:9092/images?results=results; may be repeated "
        "(docs/publish.md)",
    )
    consume_task: str = _setting("", "the task of frames whose header names none (default: the only one there is)")
    cut: tuple[str, ...] = _setting(
        (),
        "FORM or MODEL=FORM, in which images cross to inference: jpeg (as they came), u8 (resized pixels), f16 or f32 "
        "(normalized); may be repeated (default: f32)",
    )
    gallery: str = _setting(
        "", "the file of enrolled identities, which `python -m services.enroll` writes (default: none)"
    )
    preprocess_max_batch: int = _setting(1, "most images that a decoding thread takes at once", 1)
    preprocess_max_delay_ms: float = _setting(0.0, "longest that it waits for more of them, in ms", 0)
    admission_limit: int = _setting(128, "requests inside the door at once; more are refused", 1)
    door_threads: int = _setting(160, "requests handled at once, each waiting in a thread; above the limit", 1)
    timeout_s: float = _setting(30.0, "time for a request whose caller set no deadline, in s", 0.001)
    spans: str = _setting("", _SPANS)
    sample_ratio: float = _setting(0.01, "share of requests without a sampling decision that get spans, 0..1", 0, 1)
    slow_ms: float = _setting(0.0, "a request that takes longer gets spans anyhow (0: longer than the running p99)", 0)
    forced_spans_per_s: float = _setting(5.0, "most slow and failed requests that get spans, a second (0: none)", 0)
    decoding: DecodingSettings = field(default_factory=DecodingSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    redis: RedisSettings = field(default_factory=RedisSettings)


@dataclass(frozen=True, slots=True)
class InferenceSettings(CommonSettings):
    """The inference service: one model, on gRPC and, where asked, behind brokers."""

    model: str = _setting("efficientnet-lite0", "the model of the models file")
    listen: str = _setting("127.0.0.1:8002", "host:port of the gRPC server (inference, health); port 0: a free one")
    consume: tuple[str, ...] = _setting((), "broker URL to take work from, e.g. kafka://host:9092/efficientnet-lite0")
    server_threads: int = _setting(64, "gRPC calls handled at once, each waiting in a thread", 1)
    spans: str = _setting("", _SPANS + "; of batches, a request's own come from the door")
    decoding: DecodingSettings = field(default_factory=DecodingSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    redis: RedisSettings = field(default_factory=RedisSettings)


def parse(
    cls: type[Settings],
    description: str,
    argv: Sequence[str],
    environ: Mapping[str, str] | None = None,
    program: str | None = None,
) -> Settings:
    """The settings from `argv`, else `environ` (the process's), else defaults.

    Raises `ConfigurationError` that names the flag and the variable; `--help` exits, as argparse does.
    """
    environment = os.environ if environ is None else environ
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog="Each flag is also an environment variable: --log-level is BEYOND_LOG_LEVEL. The flag wins. "
        + _secrets(cls),
        allow_abbrev=False,
    )
    fields = list(_fields(cls))
    for name, type_, spec in fields:
        if spec.metadata["secret"]:
            continue
        repeated = type_ == tuple[str, ...]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            action="append" if repeated else "store",
            default=argparse.SUPPRESS,
            metavar="|".join(spec.metadata["choices"])
            or ("TEXT" if type_ is str or repeated else type_.__name__.upper()),
            help=_help(spec).replace("%", "%%"),
        )
    given = vars(parser.parse_args(argv))
    values: dict[str, Any] = {}
    for name, type_, spec in fields:
        variable = PREFIX + name.upper()
        if name in given:
            values[name] = _convert(given[name], type_, spec, f"--{name.replace('_', '-')}")
        elif variable in environment:
            raw = environment[variable]
            values[name] = _convert(raw.split() if type_ == tuple[str, ...] else raw, type_, spec, variable)
    built: Settings = _build(cls, values)
    return built


def overridden(settings: Settings, query: str, source: str) -> Settings:
    """`settings`, but for what `query` says of its fields: `max_batch=8&max_delay_ms=2`. `source` names it in errors.

    Raises `ConfigurationError`.
    """
    fields = {name: (type_, spec) for name, type_, spec in _fields(type(settings))}
    values = {}
    for name, raw in parse_qsl(query, keep_blank_values=True):
        if name not in fields:
            raise ConfigurationError(f"{source} has unknown option '{name}'; known: {', '.join(fields)}")
        values[name] = _convert(raw, *fields[name], f"{source}: {name}")
    return dataclasses.replace(settings, **values)  # type: ignore[type-var] # a class of this file


def _secrets(cls: Any) -> str:
    secrets = [
        f"{PREFIX}{name.upper()} ({spec.metadata['help']})" for name, _, spec in _fields(cls) if spec.metadata["secret"]
    ]
    return f"Secrets are environment variables only: {', '.join(secrets)}." if secrets else ""


def _help(spec: Any) -> str:
    text = str(spec.metadata["help"])
    if "(default: " in text:  # where the value says too little
        return text
    return f"{text} (default: {' '.join(spec.default) or 'none' if isinstance(spec.default, tuple) else spec.default})"


def _fields(cls: Any) -> Any:
    hints = get_type_hints(cls)
    for spec in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[spec.name]):
            yield from _fields(hints[spec.name])
        else:
            yield spec.name, hints[spec.name], spec


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls)
    return cls(
        **{
            spec.name: _build(hints[spec.name], values)
            for spec in dataclasses.fields(cls)
            if dataclasses.is_dataclass(hints[spec.name])
        },
        **{spec.name: values[spec.name] for spec in dataclasses.fields(cls) if spec.name in values},
    )


def _convert(raw: Any, type_: Any, spec: Any, source: str) -> Any:
    if type_ == tuple[str, ...]:
        return tuple(raw)
    try:
        value = type_(raw)
    except ValueError:
        raise ConfigurationError(f"{source} is '{raw}', not a number ({type_.__name__})") from None
    if type_ is float and not math.isfinite(value):
        raise ConfigurationError(f"{source} is {raw}, not a finite number")
    choices, minimum, maximum = (spec.metadata[key] for key in ("choices", "minimum", "maximum"))
    if choices and value not in choices:
        raise ConfigurationError(f"{source} is '{raw}'; use one of {', '.join(choices)}")
    if minimum is not None and value < minimum:
        raise ConfigurationError(f"{source} is {raw}; the least is {minimum}")
    if maximum is not None and value > maximum:
        raise ConfigurationError(f"{source} is {raw}; the most is {maximum}")
    return value
