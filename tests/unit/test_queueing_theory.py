"""The whole way from a schedule to a cell, in virtual time, against queues whose law is known."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest

from loadgen.analysis import analyse
from loadgen.runner import Run
from loadgen.schedule import parse_schedule
from loadgen.target import Exchange
from services.accounting import UNKNOWN_CPU, Stage, Tile
from services.messages import Array
from tests.queues import erlang_wait, pollaczek_khinchine

MS = 1_000_000
TENSORS = [np.array([b"x"], dtype=object)]


class Machine:
    """A clock that only sleeping and waiting move, and a server on it: first come, first served.

    `services_ns`: of one request after the other. `stall_ns`: (begin, end) during which nothing is begun or goes on.
    `waits`: whoever sends waits for the answer (a closed loop), so the clock goes on until then.
    """

    def __init__(
        self,
        services_ns: Sequence[int],
        servers: int = 1,
        stall_ns: tuple[int, int] = (0, 0),
        *,
        waits: bool = False,
    ) -> None:
        self.now_ns = 0
        self._services = list(services_ns)
        self._free = [0] * servers
        self._stall = stall_ns
        self._waits = waits
        self._count = 0

    def clock(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += max(1, round(seconds * 1e9))

    def send(
        self, image: Array, id_: str, due_ns: int, *, probe: bool = False, sampled: bool = False
    ) -> Future[Exchange]:
        service = self._services[self._count % len(self._services)]
        self._count += 1
        begin = self._after_stall(max(self.now_ns, heapq.heappop(self._free)))
        done = begin + service
        if begin < self._stall[0] < done:  # it is caught in the middle
            done += self._stall[1] - self._stall[0]
        heapq.heappush(self._free, done)
        tiles = (
            Tile(Stage.SCHEDULE_LAG, self.now_ns - due_ns, UNKNOWN_CPU, "client"),
            Tile(Stage.INFERENCE_QUEUE, begin - self.now_ns, UNKNOWN_CPU, "inference"),
            Tile(Stage.INFER, done - begin, UNKNOWN_CPU, "inference"),
        )
        if self._waits:
            self.now_ns = done
        future: Future[Exchange] = Future()
        future.set_result(Exchange(id_, due_ns, done, tiles, None, "", {}, ""))
        return future

    def _after_stall(self, ns: int) -> int:
        begin, end = self._stall
        return end if begin <= ns < end else ns

    def emulated(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing to close."""


def exchanges(machine: Machine, schedule: str, requests: int, seed: int = 1) -> list[Exchange]:
    return Run(
        machine,
        TENSORS,
        parse_schedule(schedule, requests, seed),
        prefix="r-",
        timeout_s=5,
        clock=machine.clock,
        sleep=machine.sleep,
    ).run()


@pytest.mark.parametrize(("law", "servers", "load"), [("M/D/1", 1, 0.6), ("M/M/1", 1, 0.5), ("M/M/3", 3, 0.7)])
def test_the_mean_wait_that_a_cell_states_is_that_of_the_theory(law: str, servers: int, load: float) -> None:
    """With the runner's Poisson arrivals and the analysis as it is. Service 10 ms on average."""
    true_ms = 10 * (pollaczek_khinchine(load, deterministic=True) if law == "M/D/1" else erlang_wait(servers, load))
    seeds, n, covered, means = 20, 2500, 0, []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        services = np.full(n, 1.0) if law == "M/D/1" else generator.exponential(1, n)
        machine = Machine([round(s * 10 * MS) for s in services], servers)
        cell = analyse(
            exchanges(machine, f"poisson({100 * load * servers:g})", n, seed), (), {}, 1.0, True, closed=False
        )
        (queueing,) = [group for group in cell["groups"] if group["group"] == "queueing"]
        covered += queueing["low_ms"] <= true_ms <= queueing["high_ms"]
        means.append(queueing["mean_ms"])
        # What was asked for is what was sent, and nobody was late.
        assert cell["schedule_lag_ms"]["max"] == 0
        assert cell["ledger"] == {"complete": n, "mismatched": 0}
    assert covered >= 0.8 * seeds
    # A single wrong factor would be seen: the mean over all seeds is within a few percent.
    assert np.mean(means) == pytest.approx(true_ms, rel=0.1)


STALL = (5_000 * MS, 6_000 * MS)


def test_a_stall_of_the_server_is_felt_by_an_open_loop_as_by_its_callers() -> None:
    # Given a server that takes 1 ms, 100 requests a second for 12 s, and a second in which it does nothing
    machine = Machine([MS], stall_ns=STALL)
    cell = analyse(exchanges(machine, "constant(100)", 1200), (), {}, 12.0, True, closed=False)
    # Then the hundred that came meanwhile waited for the rest of it, 0 to 1 s, and p99 is what the slowest 1 % of all
    # suffered: those of the first 0.12 s of it
    assert cell["latency_ms"]["p99"] == pytest.approx(900, abs=40)
    assert cell["latency_ms"]["max"] == pytest.approx(1000, abs=10)
    assert cell["latency_ms"]["p50"] == pytest.approx(1, abs=0.01)
    waited = sum(1 for ms in cell["quantiles_ms"] if ms > 10)
    assert 7 <= waited <= 10  # per cent of all
    # It is neither cut off as warm-up nor a drift, and one stall is one observation: p99 has no upper end.
    assert cell["warmup_cut"]["requests"] == 0
    assert cell["drift"]["p"] > 0.01
    assert cell["intervals"]["p99"]["high_ms"] is None
    assert cell["verdict"] == "VALID"


def test_a_stall_is_hidden_from_the_percentiles_of_a_closed_loop() -> None:
    """Who waits for an answer asks nothing meanwhile: one request of thousands is late (coordinated omission)."""
    machine = Machine([MS], stall_ns=STALL, waits=True)
    cell = analyse(exchanges(machine, "closed(1)", 11_000), (), {}, 12.0, True, closed=True)
    assert cell["latency_ms"]["p99"] == pytest.approx(1, abs=0.01)
    assert cell["latency_ms"]["max"] == pytest.approx(1001, abs=2)
    assert cell["throughput_rps"] == pytest.approx(11_000 / 12, rel=0.01)


def test_a_rate_that_is_too_high_is_said_to_be() -> None:
    # Given a server of 100 requests a second that is asked for 130
    machine = Machine([10 * MS])
    requests = exchanges(machine, "poisson(130)", 2000)
    cell = analyse(requests, (), {}, 16.0, True, closed=False, facts={"offered_rps": 130.0})
    # Then its queue grows, and neither is a secret
    assert cell["throughput_rps"] == pytest.approx(100, rel=0.01)
    assert cell["verdict"] == "CONTENDED"
    assert any(reason.startswith("offered 130.0 requests/s, answered 99.9") for reason in cell["reasons"])
    assert any(reason.startswith("latency drifted by +") for reason in cell["reasons"])
    assert cell["drift"]["change_ms"] > 1000
