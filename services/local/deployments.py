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
    """One process. `host_port`: where it answers health. `door`: requests come in here."""

    name: str
    command: tuple[str, ...]
    host_port: str
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
    """`build(options, ports, bootstrap)` gives the processes in the order of their start, the door last."""

    ports: int
    needs_broker: bool
    build: Callable[[Options, Sequence[int], str], list[ProcessSpec]]


def _common(options: Options) -> list[str]:
    models = ["--models-file", options.models_file] if options.models_file else []
    spans = ["--spans", options.spans] if options.spans else []
    return ["--log-level", options.log_level, *models, *spans]


def _door(options: Options, port: int, url: str, *extra: str) -> ProcessSpec:
    host_port = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "services.preprocess", "--listen", host_port, "--link", f"{options.model}={url}"]
    return ProcessSpec("preprocess", (*command, *_common(options), *options.preprocess, *extra), host_port, door=True)


def _engine(options: Options, port: int, *extra: str) -> ProcessSpec:
    host_port = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "services.inference", "--listen", host_port, "--model", options.model]
    return ProcessSpec("inference", (*command, *_common(options), *options.engine, *extra), host_port, door=False)


def _fused(options: Options, ports: Sequence[int], _: str) -> list[ProcessSpec]:
    return [_door(options, ports[0], "fused:", *options.engine)]


def _grpc(options: Options, ports: Sequence[int], _: str) -> list[ProcessSpec]:
    return [_engine(options, ports[1]), _door(options, ports[0], f"grpc://127.0.0.1:{ports[1]}")]


def _brokered(scheme: str, topic: str) -> Callable[[Options, Sequence[int], str], list[ProcessSpec]]:
    def build(options: Options, ports: Sequence[int], bootstrap: str) -> list[ProcessSpec]:
        url = f"{scheme}://{bootstrap}/{options.model}.{topic}"
        return [_engine(options, ports[1], "--consume", url), _door(options, ports[0], url)]

    return build


TABLE: dict[str, Deployment] = {
    "fused": Deployment(1, False, _fused),
    "grpc": Deployment(2, False, _grpc),
    "kafka": Deployment(2, True, _brokered("kafka", "librdkafka")),
    "kafka-python": Deployment(2, True, _brokered("kafka+python", "python")),
}
