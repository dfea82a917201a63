"""What can be started: a table from transport to the processes that it needs. Adding one is one row."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

# malloc keeps its pages: fresh ones for every large message cost more than the message (docs/adr/0004).
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_MMAP_THRESHOLD_": "268435456",
}


class ProcessSpec(NamedTuple):
    """One process. `host_port`: where it answers health; `metrics`: scrapes. `door`: requests come in here."""

    name: str
    command: tuple[str, ...]
    host_port: str
    metrics: str
    door: bool


class Options(NamedTuple):
    """What is the same for all. `engine`, `preprocess`: further flags for who holds an engine, and for the door."""

    model: str
    models_file: str
    engine: tuple[str, ...] = ()
    preprocess: tuple[str, ...] = ()
    log_level: str = "INFO"
    spans: str = ""  # where they go
    suffix: str = ""  # of topics: two deployments must not take one another's work
    redis_appendonly: bool = False  # a Redis that is started here writes to a file, too


class Replicas(NamedTuple):
    """How many processes of each service."""

    preprocess: int = 1
    inference: int = 1


class Ports(NamedTuple):
    """Of one process: its own, and that of its metrics."""

    own: int
    metrics: int


class Deployment(NamedTuple):
    """`door` gives the flags of a door, of (options, the engines' ports, bootstrap); `engine` those of an engine.

    `broker`: "kafka", "redis", or empty where there is none. `engine` None: the engine is in the door's process.
    """

    broker: str
    door: Callable[[Options, Sequence[Ports], str], Sequence[str]]
    engine: Callable[[Options, str], Sequence[str]] | None

    def build(
        self, options: Options, doors: Sequence[Ports], engines: Sequence[Ports], bootstrap: str
    ) -> list[ProcessSpec]:
        """The processes in the order of their start, doors last. Without an engine of their own, `engines` is empty."""
        specs = []
        if self.engine is not None:
            flags = ("--model", options.model, *_common(options), *options.engine, *self.engine(options, bootstrap))
            specs += [_process("inference", index, ports, flags) for index, ports in enumerate(engines)]
        flags = (*_common(options), *options.preprocess, *self.door(options, engines, bootstrap))
        return specs + [_process("preprocess", index, ports, flags) for index, ports in enumerate(doors)]


def _process(service: str, index: int, ports: Ports, flags: Sequence[str]) -> ProcessSpec:
    host_port, metrics = (f"127.0.0.1:{port}" for port in ports)
    command = [sys.executable, "-m", f"services.{service}", "--listen", host_port, "--metrics", metrics]
    name = f"{service}-{index + 1}" if index else service
    return ProcessSpec(name, (*command, *flags), host_port, metrics, door=service == "preprocess")


def _common(options: Options) -> list[str]:
    models = ["--models-file", options.models_file] if options.models_file else []
    spans = ["--spans", options.spans] if options.spans else []
    return ["--log-level", options.log_level, *models, *spans]


def _fused_door(options: Options, _: Sequence[Ports], __: str) -> list[str]:
    return ["--link", f"{options.model}=fused:", *options.engine]


def _grpc_door(options: Options, engines: Sequence[Ports], _: str) -> list[str]:
    return ["--link", f"{options.model}=grpc://" + ",".join(f"127.0.0.1:{ports.own}" for ports in engines)]


def _brokered(scheme: str, topic: str) -> Deployment:
    def url(options: Options, bootstrap: str) -> str:
        return f"{scheme}://{bootstrap}/{options.model}.{topic}{options.suffix}"

    return Deployment(
        "redis" if scheme == "redis" else "kafka",
        lambda options, _, bootstrap: ["--link", f"{options.model}={url(options, bootstrap)}"],
        lambda options, bootstrap: ["--consume", url(options, bootstrap)],
    )


TRANSPORTS: dict[str, Deployment] = {
    "fused": Deployment("", _fused_door, None),
    "grpc": Deployment("", _grpc_door, lambda _, __: ()),
    "kafka": _brokered("kafka", "librdkafka"),
    "kafka-python": _brokered("kafka+python", "python"),
    "redis": _brokered("redis", "redis"),
}

# In which images may cross the hop, beside the model's own input (docs/cut.md).
FORMS = ("jpeg", "u8", "f16")


def _cut(deployment: Deployment, form: str) -> Deployment:
    """The same, with images crossing in `form`."""
    engine = deployment.engine
    assert engine is not None  # noqa: S101 # only what has a hop is cut

    def its(options: Options) -> Options:
        return options._replace(suffix=f".{form}")

    return Deployment(
        deployment.broker,
        lambda options, engines, bootstrap: [*deployment.door(its(options), engines, bootstrap), "--cut", form],
        lambda options, bootstrap: engine(its(options), bootstrap),
    )


# The transports, and each that has a hop once more with every form: `kafka`, `kafka+u8`, ...
TABLE: dict[str, Deployment] = TRANSPORTS | {
    f"{name}+{form}": _cut(deployment, form)
    for name, deployment in TRANSPORTS.items()
    if deployment.engine is not None
    for form in FORMS
}


def transport_of(name: str) -> str:
    """Of a row of the table."""
    return name.partition("+")[0]
