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


class Deployment(NamedTuple):
    """`build(options, ports, bootstrap)` gives the processes in the order of their start, the door last.

    A process has two ports: its own, and that of its metrics. The first one is the door's.
    """

    ports: int
    needs_broker: bool
    build: Callable[[Options, Sequence[int], str], list[ProcessSpec]]


def _common(options: Options) -> list[str]:
    models = ["--models-file", options.models_file] if options.models_file else []
    spans = ["--spans", options.spans] if options.spans else []
    return ["--log-level", options.log_level, *models, *spans]


def _door(options: Options, ports: Sequence[int], url: str, *extra: str) -> ProcessSpec:
    host_port, metrics = (f"127.0.0.1:{port}" for port in ports)
    command = [sys.executable, "-m", "services.preprocess", "--listen", host_port, "--metrics", metrics]
    flags = ("--link", f"{options.model}={url}", *_common(options), *options.preprocess, *extra)
    return ProcessSpec("preprocess", (*command, *flags), host_port, metrics, door=True)


def _engine(options: Options, ports: Sequence[int], *extra: str) -> ProcessSpec:
    host_port, metrics = (f"127.0.0.1:{port}" for port in ports)
    command = [sys.executable, "-m", "services.inference", "--listen", host_port, "--metrics", metrics]
    flags = ("--model", options.model, *_common(options), *options.engine, *extra)
    return ProcessSpec("inference", (*command, *flags), host_port, metrics, door=False)


def _fused(options: Options, ports: Sequence[int], _: str) -> list[ProcessSpec]:
    return [_door(options, ports, "fused:", *options.engine)]


def _grpc(options: Options, ports: Sequence[int], _: str) -> list[ProcessSpec]:
    return [_engine(options, ports[2:]), _door(options, ports[:2], f"grpc://127.0.0.1:{ports[2]}")]


def _brokered(scheme: str, topic: str) -> Callable[[Options, Sequence[int], str], list[ProcessSpec]]:
    def build(options: Options, ports: Sequence[int], bootstrap: str) -> list[ProcessSpec]:
        url = f"{scheme}://{bootstrap}/{options.model}.{topic}"
        return [_engine(options, ports[2:], "--consume", url), _door(options, ports[:2], url)]

    return build


TABLE: dict[str, Deployment] = {
    "fused": Deployment(2, False, _fused),
    "grpc": Deployment(4, False, _grpc),
    "kafka": Deployment(4, True, _brokered("kafka", "librdkafka")),
    "kafka-python": Deployment(4, True, _brokered("kafka+python", "python")),
}
