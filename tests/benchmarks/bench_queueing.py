"""Queues in real processes against theory that knows the answer: Pollaczek and Khinchine, Lindley, Little.

    .venv/bin/python -m tests.benchmarks.bench_queueing [--requests 1000] [--only pk|little] [--out FILE]

*Waiting*: one server, no batches, Poisson arrivals through a real door, at 0.3, 0.5 and 0.7 of what it can do. The mean
of the ledger's `inference_queue` must be that of an M/G/1 queue with the *measured* moments of the service, within 5 %
or its own interval. `path`: Lindley's recursion over this run's arrivals and services: the same without chance.
`idle`: the median wait of who found nobody in line, ms that a thread takes to wake up, which no theory has.

*Little's law*: over Kafka, a listener that takes one record at a time (prefetch 1), and a second client that asks the
broker 20 times a second. The lag that belongs to `broker_wait` is that of records which were **not handed out** yet:
the partition's end less `upto`, which the listener writes beside the offset that it commits. The usual lag (end less
the committed offset) has more in it, the record in hand and what is answered and not committed yet, and is printed
beside it. The listener commits at every turn here, instead of five times a second: else what the broker knows is old.

Exit status 1 where one does not agree. With 1000 requests, ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from loadgen.target import Exchange
from services.accounting import Fact, Stage
from services.local.broker import Broker
from services.settings import InferenceSettings, parse
from services.transports import kafka_listener
from services.transports.kafka_client import parse_url
from services.transports.kafka_offsets import Starts
from services.wiring import build_inference
from tests import random_service
from tests.queueing import MODEL, Suite, ask, models_file, queue

MEAN_MS = 20.0
LOADS = (0.3, 0.5, 0.7)
ROWS = (("fused", "emulated"), ("grpc", "emulated"), ("grpc", "random"))
LAWS = {"emulated": "constant", "random": "two-point, cv 1"}
# Little's law: of a queue that is long enough to be counted.
LITTLE_LOADS = (0.6, 0.75)
LITTLE_LIMIT = 0.10
_SAMPLES_PER_S = 20
_ANSWER_S = 5.0


def waiting(requests: int, folder: Path) -> list[dict[str, Any]]:
    """A row per way to the engine, law, and load."""
    rows = []
    models = models_file(folder, MEAN_MS)
    say(
        f"{'link':<7}{'service':<17}{'load':>6}{'n':>7}{'service ms':>12}{'cv^2':>7}{'wait ms':>9}"
        f"{'95 %':>18}{'theory':>9}{'off':>8}{'path':>9}{'off':>8}{'idle':>7}"
    )
    for link, backend in ROWS:
        with Suite(link, backend, models, folder) as suite:
            for seed, load in enumerate(LOADS, 1):
                found = queue(ask(suite.door, load / MEAN_MS * 1e3, requests, seed, folder))
                interval = f"{_or_dash(found.interval.low)} to {_or_dash(found.interval.high)}"
                say(
                    f"{link:<7}{LAWS[backend]:<17}{found.load:>6.3f}{found.requests:>7}{found.service_ms:>12.3f}"
                    f"{found.service_cv2:>7.3f}{found.wait_ms:>9.2f}{interval:>18}{found.theory_ms:>9.2f}"
                    f"{found.off:>+8.1%}{found.path_ms:>9.2f}{found.wait_ms / found.path_ms - 1:>+8.1%}"
                    f"{found.idle_ms:>7.2f}{'' if found.agrees else '   DISAGREES'}"
                )
                rows.append(
                    {
                        "link": link,
                        "service": LAWS[backend],
                        "wanted_load": load,
                        **found._asdict(),
                        "interval": found.interval._asdict(),
                        "off": found.off,
                        "off_path": found.wait_ms / found.path_ms - 1,
                        "agrees": found.agrees,
                        "machine_load": os.getloadavg()[0],
                    }
                )
    return rows


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# --- Little ----------------------------------------------------------------------------------------------------------


class Lag(NamedTuple):
    """At `ns`: records of all partitions that were not handed out, and that were not committed."""

    ns: int
    waiting: int
    uncommitted: int


class Watcher:
    """A client of the broker's own, which is a member of nothing: how long are the lines?"""

    def __init__(self, url: str) -> None:
        link = parse_url(url)
        common: dict[str, Any] = {"bootstrap.servers": link.bootstrap}
        self._admin = AdminClient(common)
        self._group = Consumer({**common, "group.id": link.group, "enable.auto.commit": False})
        self._partitions = [TopicPartition(link.topic, number) for number in range(link.partitions)]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher")
        self.lags: list[Lag] = []
        self.failed: Exception | None = None

    def look(self) -> Lag:
        """Ends and commits, asked at the same time, of different threads of the broker."""
        ends = self._admin.list_offsets({at: OffsetSpec.latest() for at in self._partitions}, request_timeout=_ANSWER_S)
        now = time.monotonic_ns()
        waiting = uncommitted = 0
        committed = {at.partition: at for at in self._group.committed(self._partitions, timeout=_ANSWER_S)}
        for at, future in ends.items():
            end, position = future.result(_ANSWER_S).offset, committed[at.partition]
            offset = max(0, position.offset)  # negative: nothing was committed yet
            upto = max(offset, Starts.parse(position.metadata).upto)
            waiting += max(0, end - upto)
            uncommitted += max(0, end - offset)
        return Lag(now, waiting, uncommitted)

    def _watch(self) -> None:
        due = time.monotonic()
        try:
            while not self._ended.is_set():
                self.lags.append(self.look())
                due += 1 / _SAMPLES_PER_S
                self._ended.wait(max(0.0, due - time.monotonic()))
        except Exception as error:  # noqa: BLE001 # the main thread raises it
            self.failed = error

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> list[Lag]:
        """What was seen. Raises what ended it early."""
        self._ended.set()
        self._thread.join(10 * _ANSWER_S)
        self._group.close()
        if self.failed is not None:
            raise self.failed
        return self.lags


def little(requests: int, folder: Path) -> list[dict[str, Any]]:
    """A row per load."""
    random_service.register()
    models = models_file(folder, MEAN_MS)
    broker = Broker(folder / "broker")
    rows = []
    say(
        f"{'load':>6}{'n':>7}{'rate':>8}{'broker_wait ms':>16}{'rate x wait':>13}{'lag':>8}{'off':>8}"
        f"{'with least age':>16}{'off':>8}{'uncommitted':>13}{'samples':>9}"
    )
    try:
        broker.start()
        for seed, load in enumerate(LITTLE_LOADS, 1):
            url = f"kafka://{broker.bootstrap}/little-{uuid.uuid4().hex[:8]}?prefetch=1"
            flags = ["--listen", "127.0.0.1:0", "--model", MODEL, "--models-file", str(models), "--backend", "random"]
            engine = build_inference(parse(InferenceSettings, "", [*flags, "--consume", url], {}))
            with mock.patch.object(kafka_listener, "_COMMIT_S", 0.0):
                engine.start()
                try:
                    with Suite(url, "random", models, folder) as suite:
                        rows.append(_little(suite, url, load, requests, seed, folder))
                finally:
                    engine.stop(5)
    finally:
        broker.stop()
    return rows


def _little(suite: Suite, url: str, load: float, requests: int, seed: int, folder: Path) -> dict[str, Any]:
    ask(suite.door, 40.0, 200, 99, folder)  # a broker that has just started is slow
    watcher = Watcher(url)
    watcher.start()
    exchanges = ask(suite.door, load / MEAN_MS * 1e3, requests, seed, folder)
    lags = watcher.stop()
    # From when the first was due until the last was answered there was nobody in line at either end, so that the sum of
    # all waits is the line's length over that time, exactly: Little's law without a limit.
    begin, end = exchanges[0].due_ns, max(e.done_ns for e in exchanges)
    seen = [lag for lag in lags if begin <= lag.ns <= end]
    rate = requests / (end - begin) * 1e9
    wait_ms = float(np.mean([_waited_ms(e) for e in exchanges]))
    age_ms = float(np.mean([_age_ms(e) for e in exchanges]))
    lag = float(np.mean([at.waiting for at in seen]))
    uncommitted = float(np.mean([at.uncommitted for at in seen]))
    expected, with_age = rate * wait_ms / 1e3, rate * age_ms / 1e3
    off = lag / expected - 1
    agrees = abs(off) <= LITTLE_LIMIT
    say(
        f"{load:>6.2f}{requests:>7}{rate:>8.2f}{wait_ms:>16.2f}{expected:>13.3f}{lag:>8.3f}{off:>+8.1%}"
        f"{with_age:>16.3f}{lag / with_age - 1:>+8.1%}{uncommitted:>13.3f}{len(seen):>9}"
        f"{'' if agrees else '   DISAGREES'}"
    )
    return {
        "wanted_load": load,
        "requests": requests,
        "rate": rate,
        "broker_wait_ms": wait_ms,
        "age_ms": age_ms,
        "expected_lag": expected,
        "expected_lag_with_least_age": with_age,
        "lag": lag,
        "lag_uncommitted": uncommitted,
        "samples": len(seen),
        "off": off,
        "agrees": agrees,
        "machine_load": os.getloadavg()[0],
    }


def _waited_ms(exchange: Exchange) -> float:
    """The request's wait in the broker: that before the engine's own tiles, not its reply's after them."""
    for tile in exchange.tiles:
        if tile.stage is Stage.BROKER_WAIT:
            return float(tile.duration_ns / 1e6)
        if tile.where == "inference":
            break
    return 0.0


def _age_ms(exchange: Exchange) -> float:
    """How old the request was when it was taken out of the broker: its wait, and the least that it takes."""
    for tile in exchange.tiles:
        facts = dict(tile.facts)
        if Fact.PARTITION in facts:
            return float(facts[Fact.AGE_NS] / 1e6)
    raise ValueError(f"{exchange.id} came through no broker")


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="per row (default: %(default)s)")
    parser.add_argument("--only", choices=("pk", "little"), help="default: both")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "little":
            found["waiting"] = waiting(arguments.requests, Path(folder))
        if arguments.only != "pk":
            found["little"] = little(arguments.requests, Path(folder))
    rows = [row for part in found.values() for row in part]
    wrong = sum(not row["agrees"] for row in rows)
    say(f"{len(rows)} rows, {len(rows) - wrong} agree; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def say(line: str) -> None:
    """A line of the table."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
