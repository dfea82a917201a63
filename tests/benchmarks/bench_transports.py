"""What a hop costs, transport by transport: latency, CPU per round trip, round trips per second.

Every row of the table of transports that runs between processes, each with a server in a process of its own whose
handler answers at once: what is measured is the way there and back, and nothing else. Brokers are real ones, started
and stopped here. `make bench` runs it.

    latency     p50 and p99 of a round trip with one in flight, from `request` until the thread that waits has the
                reply: what such a hop adds to a request
    rate        round trips per second with 16 in flight
    CPU         milliseconds per round trip, of each process's CPU clock, with 16 in flight

Brokers are warmed up first: a Java machine compiles what it runs often. Rounds over all rows alternate, so that a
slow minute of the machine hits all of them; figures are the medians of the rounds. Machines differ: quote ratios
between rows of one run, not milliseconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import queue
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from loadgen import contention
from services import transports
from services.local.broker import Broker
from services.local.deployments import MALLOC
from services.local.ports import free_ports
from services.local.processes import Process
from services.local.redis_server import RedisServer
from services.transports.transport import Delivery, Reply, Response, Transport

# Between processes: a `memory://` address ends with its process.
ROWS = [scheme for scheme in transports.TABLE if scheme != "memory"]
SIZES = {"150 kB": 150_528, "602 kB": 602_112}  # 224x224x3 as bytes, and as 32-bit floats
REPLY = 4096  # 1000 classes as 32-bit floats
IN_FLIGHT = 16
TIMEOUT_S = 30.0
# A phase ends after this many bytes too: a broker writes all of them to its disk.
PHASE_BYTES = 600_000_000


@dataclasses.dataclass(frozen=True)
class Phase:
    """How long to measure what."""

    broker_s: float  # of load by each client, before anything is measured
    warm_s: float  # before each figure
    alone_s: float
    loaded_s: float
    rounds: int


FULL = Phase(broker_s=8.0, warm_s=1.0, alone_s=3.0, loaded_s=3.0, rounds=3)
QUICK = Phase(broker_s=0.5, warm_s=0.3, alone_s=0.7, loaded_s=0.7, rounds=1)


@dataclasses.dataclass
class Figures:
    """One row and size, in one round; in the end, the median of the rounds."""

    p50_ms: float
    p99_ms: float
    rate: float
    client_ms: float
    server_ms: float
    broker_ms: float  # 0 where there is none

    @property
    def cpu_ms(self) -> float:
        """Of all processes together."""
        return self.client_ms + self.server_ms + self.broker_ms


# --- the server ------------------------------------------------------------------------------------------------------


def serve(url: str, reply_bytes: int) -> None:
    """Answer every request at once, until SIGTERM."""
    answer = bytes(reply_bytes)

    def handle(delivery: Delivery) -> Future[Response]:
        future: Future[Response] = Future()
        future.set_result(Response(answer, {"size": b"%d" % len(delivery.payload)}))
        return future

    listener = transports.listen(url)
    listener.serve(handle)
    signal.sigwait({signal.SIGTERM})
    listener.close()


# --- the client ------------------------------------------------------------------------------------------------------


def drive(transport: Transport, payload: bytes, in_flight: int, seconds: float) -> tuple[list[float], float]:
    """Keep `in_flight` round trips going: (seconds that each took, seconds in all). Raises what a call failed with."""
    done: queue.SimpleQueue[tuple[float, Future[Reply]]] = queue.SimpleQueue()
    most = max(20, PHASE_BYTES // len(payload))

    def send() -> None:
        begin = time.perf_counter()
        transport.request(payload, {}, TIMEOUT_S).add_done_callback(lambda future: done.put((begin, future)))

    took: list[float] = []
    begin = time.perf_counter()
    for _ in range(in_flight):
        send()
    waiting = in_flight
    while waiting:
        sent, future = done.get()
        now = time.perf_counter()
        reply = future.result()
        if len(reply.payload) != REPLY or int(reply.headers["size"]) != len(payload):
            raise AssertionError("that is not the reply to this request")
        took.append(now - sent)
        waiting -= 1
        if now - begin < seconds and len(took) + waiting < most:
            send()
            waiting += 1
    return took, time.perf_counter() - begin


@contextmanager
def link(scheme: str, bootstrap: str, folder: Path) -> Iterator[tuple[Transport, Process]]:
    """A server, and a caller that has had a reply from it."""
    if scheme == "grpc":
        (port,) = free_ports(1)
        url = f"grpc://127.0.0.1:{port}"
    else:
        url = f"{scheme}://{bootstrap}/bench-{uuid.uuid4().hex[:8]}"
    server = Process("server", [sys.executable, __file__, "--serve", url], folder / "server.log", MALLOC)
    try:
        transport = transports.connect(url)
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while (error := transport.request(b"", {}, 2.0).exception()) is not None:
                if time.monotonic() > deadline or not server.running():
                    raise SystemExit(f"no reply over {url}: {error!r}\n{server.tail()}")
                time.sleep(0.1)
            yield transport, server
        finally:
            transport.close()
    finally:
        server.stop(10)


def measure(transport: Transport, size: int, pids: dict[str, int], phase: Phase) -> Figures:
    """One row and size, once."""
    payload = os.urandom(size)
    drive(transport, payload, IN_FLIGHT, phase.warm_s)
    alone, _ = drive(transport, payload, 1, phase.alone_s)
    before = contention.snapshot(pids)
    loaded, seconds = drive(transport, payload, IN_FLIGHT, phase.loaded_s)
    after = contention.snapshot(pids)
    cpu = {
        name: (after.processes[name].cpu_ns - reading.cpu_ns) / 1e6 / len(loaded)
        for name, reading in before.processes.items()
    }
    p50, p99 = np.percentile(alone, [50, 99]) * 1e3
    return Figures(float(p50), float(p99), len(loaded) / seconds, cpu["client"], cpu["server"], cpu.get("broker", 0.0))


def median(rounds: Sequence[Figures]) -> Figures:
    """Figure by figure."""
    return Figures(
        *(statistics.median(getattr(one, field.name) for one in rounds) for field in dataclasses.fields(Figures))
    )


def run(rows: Sequence[str], phase: Phase) -> dict[str, dict[str, Figures]]:
    """row -> size -> figures. Starts the brokers that rows need, and stops them."""
    found: dict[str, dict[str, list[Figures]]] = {row: {size: [] for size in SIZES} for row in rows}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        brokers: dict[str, Broker | RedisServer] = {}  # by row
        try:
            if any(row.startswith("kafka") for row in rows):
                say("starting Kafka")
                brokers |= dict.fromkeys((row for row in rows if row.startswith("kafka")), Broker(folder))
            if "redis" in rows:
                say("starting Redis")
                brokers["redis"] = RedisServer(folder)
            for broker in brokers.values():
                broker.start(120)
            for row, broker in brokers.items():
                say(f"warming the broker up: {row}")
                with link(row, broker.bootstrap, folder) as (transport, _):
                    for _ in range(4):  # each ends at its limit of bytes, too
                        drive(transport, bytes(SIZES["150 kB"]), IN_FLIGHT, phase.broker_s / 4)
            for number in range(phase.rounds):
                for row in rows if number % 2 == 0 else rows[::-1]:
                    say(f"round {number + 1} of {phase.rounds}: {row}")
                    own = brokers.get(row)
                    with link(row, own.bootstrap if own is not None else "", folder) as (transport, server):
                        pids = {"client": os.getpid(), "server": server.pid}
                        if own is not None and own.pid is not None:
                            pids["broker"] = own.pid
                        for size, count in SIZES.items():
                            found[row][size].append(measure(transport, count, pids, phase))
        finally:
            for broker in brokers.values():
                broker.stop()
    return {row: {size: median(rounds) for size, rounds in sizes.items()} for row, sizes in found.items()}


# --- saying it -------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """Progress, beside the table."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def table(found: dict[str, dict[str, Figures]]) -> str:
    """All figures."""
    names = ["request", "p50 ms", "p99 ms", "trips/s", "CPU ms: client", "server", "broker", "all"]
    widths = [9, 9, 9, 9, 16, 8, 8, 8]
    head = " " * 14 + "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    lines = [head]
    for row, sizes in found.items():
        for size, f in sizes.items():
            broker = f"{f.broker_ms:8.2f}" if f.broker_ms else f"{'-':>8}"
            lines.append(
                f"{row:14}{size:>9}{f.p50_ms:9.2f}{f.p99_ms:9.2f}{f.rate:9.0f}"
                f"{f.client_ms:16.2f}{f.server_ms:8.2f}{broker}{f.cpu_ms:8.2f}"
            )
    return "\n".join(lines)


def verdict(found: dict[str, dict[str, Figures]]) -> list[str]:
    """Which Kafka client costs less CPU per request: it is the default, `kafka://` (docs/adr/0003-kafka-client.md)."""
    if not {"kafka", "kafka+python"} <= found.keys():
        return []
    lines = []
    for size in SIZES:
        ours, theirs = found["kafka"][size], found["kafka+python"][size]
        both = [("in all", ours.cpu_ms, theirs.cpu_ms)]
        both.append(("client and server", ours.client_ms + ours.server_ms, theirs.client_ms + theirs.server_ms))
        said = [
            f"{'kafka' if a < b else 'kafka+python'} costs {max(a, b) / min(a, b):.1f} times less CPU {what}"
            for what, a, b in both
        ]
        lines.append(f"{size}: {'; '.join(said)}")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench_transports.py"
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="which rows of the table (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one short round: to see that it works, not for figures")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON too")
    parser.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, REPLY)
        return
    rows = arguments.rows.split(",")
    if unknown := sorted(set(rows) - set(ROWS)):
        parser.error(f"unknown rows: {', '.join(unknown)}; known: {', '.join(ROWS)}")
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        # glibc reads these when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})  # noqa: S606 # ourselves
    found = run(rows, QUICK if arguments.quick else FULL)
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"
    lines = [f"round trips between two processes on one machine ({machine}); replies of 4 kB; MEASURED", table(found)]
    lines += verdict(found)
    print("\n".join(lines))  # noqa: T201
    if arguments.out:
        document = {
            "machine": machine,
            "quick": arguments.quick,
            "in_flight": IN_FLIGHT,
            "reply_bytes": REPLY,
            "rows": {
                row: {size: {**dataclasses.asdict(f), "cpu_ms": f.cpu_ms} for size, f in sizes.items()}
                for row, sizes in found.items()
            },
            "verdict": verdict(found),
        }
        arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
