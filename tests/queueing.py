"""A single server with Poisson arrivals, in processes of its own, and what theory says of its queue.

`Suite` is a door and an engine with one instance and no batching, whose model takes a time of a known law.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from loadgen.quiet import without_collector
from loadgen.runner import Run
from loadgen.samples import make
from loadgen.schedule import parse_schedule
from loadgen.statistics import Interval, Values, mean_interval
from loadgen.target import Exchange, OipTarget, image_tensor
from services.accounting import Stage, monotonic_ns
from services.local.deployments import MALLOC
from services.local.health import serving
from services.local.ports import free_ports
from services.local.processes import Process, stop_all

MODEL, TASK = "queue", "classification"
WAIT_S = 60.0
_START_S = 60.0
# What a server is busy with; the rest of the ledger is somebody else's time.
_SERVICE = frozenset({Stage.UPLOAD, Stage.INFER, Stage.DOWNLOAD})
# Requests at the start that found a queue which was not yet that of the load.
BURN = 50

# A small input, so that neither its preparation nor its movement takes time beside the service.
_MODELS = """
[queue]
task = "classification"
law = [{mean_ms:g}, 0]
recipe = {{ size = 64, crop = 72, mean = [127, 127, 127], std = [128, 128, 128] }}
outputs = {{ logits = {{ dtype = "float32", shape = [-1, 10] }} }}
"""


def models_file(folder: Path, mean_ms: float) -> Path:
    """A models file whose only model takes `mean_ms` per request."""
    path = folder / "models.toml"
    path.write_text(_MODELS.format(mean_ms=mean_ms), encoding="utf-8")
    return path


class Suite:
    """A door, and an engine in it (`fused`) or behind it (`grpc`), or somewhere else (a link's URL)."""

    def __init__(self, link: str, backend: str, models: Path, folder: Path) -> None:
        """`backend`: emulated (each request takes the mean) or random (`tests/random_service.py`)."""
        self._processes: list[Process] = []
        ports = free_ports(2)
        engine = ("--backend", backend, "--queue-capacity", "4096")
        common = ("--models-file", str(models), "--log-level", "WARNING")
        url = {"fused": "fused:", "grpc": f"grpc://127.0.0.1:{ports[1]}"}.get(link, link)
        try:
            if link == "grpc":
                listen = f"127.0.0.1:{ports[1]}"
                self._start("inference", folder, listen, "--model", MODEL, *engine, "--server-threads", "256", *common)
            self.door = f"127.0.0.1:{ports[0]}"
            flags = ("--link", f"{MODEL}={url}", *(engine if link == "fused" else ()), *common)
            self._start("preprocess", folder, self.door, *flags, "--admission-limit", "512", "--door-threads", "600")
        except BaseException:
            self.close()
            raise

    def _start(self, service: str, folder: Path, listen: str, *flags: str) -> None:
        command = [sys.executable, "-m", "tests.random_service", service, "--listen", listen, *flags]
        process = Process(service, command, folder / f"{service}.log", MALLOC)
        self._processes.append(process)
        deadline = time.monotonic() + _START_S
        while not serving(listen, 1.0):
            if not process.running() or time.monotonic() > deadline:
                raise RuntimeError(process.exit_report())
            time.sleep(0.05)

    def __enter__(self) -> Suite:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes, the door first."""
        stop_all(self._processes[::-1], 20)


def ask(door: str, rate: float, requests: int, seed: int, folder: Path) -> list[Exchange]:
    """Poisson arrivals at `rate` per second, by the load generator's own runner; all of them answered."""
    target = OipTarget(door, TASK, WAIT_S)
    tensors = [image_tensor(sample.data) for sample in make("small", 8, folder=folder)]
    try:
        for index in range(30):  # what is only done the first time
            warm = target.send(tensors[index % len(tensors)], f"w-{index}", monotonic_ns()).result(WAIT_S)
            if warm.error is not None:
                raise RuntimeError(f"{warm.error}: {warm.message}")
        schedule = parse_schedule(f"poisson({rate:g})", requests, seed)
        with without_collector():
            exchanges = Run(target, tensors, schedule, prefix="q-", timeout_s=WAIT_S).run()
    finally:
        target.close()
    failed = [e for e in exchanges if e.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} of {requests} failed: {failed[0].error}: {failed[0].message}")
    return exchanges


def spent_ms(exchange: Exchange, *stages: Stage) -> float:
    """The time in these stages."""
    return sum(tile.duration_ns for tile in exchange.tiles if tile.stage in stages) / 1e6


class Queue(NamedTuple):
    """One run against theory. Times in ms; `load`: share of the time that the server was busy.

    `theory_ms`: Pollaczek and Khinchine, from the moments of the measured service times and the arrivals' mean rate.
    `path_ms`: Lindley's recursion over the arrivals of this run and their measured service times, so without the
    chance of the arrivals. `interval`: of the measured mean wait, as the load generator states it. `idle_ms`: median
    wait of those who found nobody in line, by that recursion: what a thread takes to wake up. Theory has no such time.
    """

    requests: int
    rate: float
    service_ms: float
    service_cv2: float
    load: float
    wait_ms: float
    interval: Interval
    theory_ms: float
    path_ms: float
    idle_ms: float

    @property
    def off(self) -> float:
        """By which share the measured wait is off from the theory's."""
        return self.wait_ms / self.theory_ms - 1

    @property
    def agrees(self) -> bool:
        """Within 5 % of the theory's, or that is within the interval of the measured one; and within 5 % of the path's.

        The interval of a few requests in a busy queue is wide. The path's wait has no chance in it, so it is the
        sharper one; but who finds nobody in line waits for a thread to wake up, which it does not know.
        """
        low, high = self.interval.low, self.interval.high
        in_theory = abs(self.off) <= 0.05 or (low is not None and high is not None and low <= self.theory_ms <= high)
        return in_theory and abs(self.wait_ms - self.path_ms) <= 0.05 * self.path_ms + self.idle_ms


def queue(exchanges: Sequence[Exchange]) -> Queue:
    """What one run says of its queue."""
    counted = exchanges[BURN:]
    services = np.array([spent_ms(e, *_SERVICE) for e in exchanges])
    waits = np.array([spent_ms(e, Stage.INFERENCE_QUEUE) for e in counted])
    arrived = np.array([(e.due_ns + _before_queue_ns(e)) / 1e6 for e in exchanges])
    rate = (len(counted) - 1) / (counted[-1].due_ns - counted[0].due_ns) * 1e9
    mean, square = float(services[BURN:].mean()), float((services[BURN:] ** 2).mean())
    load = rate * mean / 1e3
    path = lindley_path(arrived, services)[BURN:]
    idle = waits[path == 0]
    return Queue(
        len(counted),
        rate,
        mean,
        square / mean**2 - 1,
        load,
        float(waits.mean()),
        mean_interval(waits),
        rate / 1e3 * square / (2 * (1 - load)) if load < 1 else math.inf,
        float(path.mean()),
        float(np.median(idle)) if len(idle) else 0.0,
    )


def _before_queue_ns(exchange: Exchange) -> int:
    """From due until it was in line, but for the way there, which is the same for all."""
    total = 0
    for tile in exchange.tiles:
        if tile.stage is Stage.INFERENCE_QUEUE:
            break
        total += tile.duration_ns
    return total


def lindley_path(arrived: Values, services: Values) -> Values:
    """Waits of one server, first come, first served, for these arrivals (any order) and service times."""
    order = np.argsort(arrived, kind="stable")
    waits = np.empty(len(arrived))
    free = -math.inf
    for index in order:
        start = max(arrived[index], free)
        waits[index] = start - arrived[index]
        free = start + services[index]
    return waits
