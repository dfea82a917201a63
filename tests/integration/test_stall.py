"""A server that stands still for a second is felt by an open loop as its callers would feel it, and seen where it was.

The inference service's process is stopped and continued (SIGSTOP, SIGCONT) while requests are due at a constant rate.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from loadgen.analysis import analyse
from loadgen.quiet import without_collector
from loadgen.runner import Run
from loadgen.samples import make
from loadgen.schedule import parse_schedule
from loadgen.target import Exchange, OipTarget, image_tensor
from services.accounting import Stage, monotonic_ns
from services.local.broker import Broker
from services.local.deployments import Options
from services.local.stack import Stack

RATE = 25
REQUESTS = 100
STALL_S = 1.0
AFTER_S = 1.2
WAIT_S = 20.0
HOP = "preprocess>inference"
# Until what stands in line by then is answered, on a busy machine: over Kafka it comes as one fetch of 15 MB, from a
# broker that has just been started.
BACK_S = {"grpc": 0.25, "kafka": 0.7}

pytestmark = pytest.mark.alone


class Stalled(NamedTuple):
    """`begin_ns`, `end_ns`: between them, the process stood still (on the caller's clock)."""

    exchanges: list[Exchange]
    begin_ns: int
    end_ns: int

    def due_meanwhile(self) -> list[Exchange]:
        return [e for e in self.exchanges if self.begin_ns < e.due_ns < self.end_ns]


@pytest.fixture(
    scope="module",
    params=["grpc", pytest.param("kafka", marks=pytest.mark.kafka)],
)
def stalled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Stalled]]:
    transport = str(request.param)
    folder = tmp_path_factory.mktemp("stall")
    broker: Broker | None = request.getfixturevalue("broker") if transport == "kafka" else None
    options = Options(("emulated",), log_level="WARNING")
    bootstrap = None if broker is None else broker.bootstrap
    with Stack((transport,), options, folder, kafka=bootstrap) as stack:
        target = OipTarget(stack.doors()[transport], "classification", WAIT_S)
        yield transport, stall(target, stack.pids(transport)["inference"], folder)
        target.close()


def stall(target: OipTarget, pid: int, folder: Path) -> Stalled:
    """Ask at a constant rate, and stop the process for a second after a while."""
    tensors = [image_tensor(sample.data) for sample in make("small", 8, folder=folder)]
    for index in range(40):  # what is only done the first time
        warm = target.send(tensors[index % len(tensors)], f"w-{index}", monotonic_ns()).result(WAIT_S)
        assert warm.error is None, warm.message
    stood: list[int] = []

    def stop() -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            stood.append(monotonic_ns())
            time.sleep(STALL_S)
        finally:
            stood.append(monotonic_ns())
            os.kill(pid, signal.SIGCONT)

    timer = threading.Timer(AFTER_S, stop)
    timer.start()
    try:
        with without_collector():
            schedule = parse_schedule(f"constant({RATE})", REQUESTS, 1)
            exchanges = Run(target, tensors, schedule, prefix="s-", timeout_s=WAIT_S).run()
    finally:
        timer.join(AFTER_S + STALL_S + WAIT_S)
    return Stalled(exchanges, *stood)


def test_the_requests_that_were_due_meanwhile_waited_for_the_rest_of_it(stalled: tuple[str, Stalled]) -> None:
    transport, result = stalled
    assert [e.message for e in result.exchanges if e.error is not None] == []
    # As many as are due in a second, one after the other
    delayed = result.due_meanwhile()
    length_s = (result.end_ns - result.begin_ns) / 1e9
    assert len(delayed) == pytest.approx(RATE * length_s, abs=1.5)
    # Each of them was answered after the end, and soon: its latency is what was left of the stall
    left = np.array([(result.end_ns - e.due_ns) / 1e9 for e in delayed])
    felt = np.array([e.total_ns / 1e9 for e in delayed])
    assert np.all(felt > left - 0.001)
    assert np.all(felt < left + BACK_S[transport])
    # So latencies fall in a line, from the whole of it to nothing, about a second per second
    slope, _ = np.polyfit(left, felt, 1)
    assert slope == pytest.approx(1.0, abs=BACK_S[transport])


def test_the_percentiles_are_those_of_an_open_loop(stalled: tuple[str, Stalled]) -> None:
    transport, result = stalled
    length_s, back_s = (result.end_ns - result.begin_ns) / 1e9, BACK_S[transport]
    cell = analyse(result.exchanges, (), {}, REQUESTS / RATE, True, closed=False)
    # Half a second and more for all that were due in its first half: one request in eight, where who waits for answers
    # would have seen a single one
    slow = sum(1 for e in result.exchanges if e.total_ns > 0.5e9)
    assert RATE * (length_s - 0.5) - 1 <= slow <= RATE * (length_s - 0.5 + back_s) + 1
    # The slowest 1 % are the first one or two that came: nearly the whole of it
    second = length_s - 2 / RATE
    assert second <= cell["quantiles_ms"][99] / 1e3 <= length_s + back_s
    assert cell["quantiles_ms"][50] < 100 * length_s
    # It is the server that was late, not the generator
    lags = sorted(t.duration_ns for e in result.exchanges for t in e.tiles if t.stage is Stage.SCHEDULE_LAG)
    assert lags[round(0.9 * len(lags))] < 0.1e9


def test_the_ledgers_add_up_and_say_where_it_was(stalled: tuple[str, Stalled]) -> None:
    transport, result = stalled
    for e in result.exchanges:
        assert sum(tile.duration_ns for tile in e.tiles) == e.total_ns
    # Who waited for a process that stood still waited on the hop to it: in the broker, or in what is left of the call.
    # Only what the process had in hand when it was stopped is its own.
    stage = Stage.BROKER_WAIT if transport == "kafka" else Stage.TRANSIT
    long = [e for e in result.due_meanwhile() if result.end_ns - e.due_ns > 0.3e9]
    elsewhere = [
        e.id
        for e in long
        if sum(t.duration_ns for t in e.tiles if (t.stage, t.where) == (stage, HOP)) < 0.5 * e.total_ns
    ]
    assert len(elsewhere) <= 2, elsewhere
