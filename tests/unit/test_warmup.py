"""Warm-up: it ends when three windows agree, and says so when they never did."""

from __future__ import annotations

import math
from concurrent.futures import Future

import numpy as np
import pytest

from loadgen.experiment import Deployment, _may_compile
from loadgen.target import Exchange
from loadgen.warmup import warm_up
from services.messages import Array

TENSORS = [np.array([b"x"], dtype=object)]


class Server:
    """Gets faster with every probe; one CPU, on which its compiler may be at work as well. Both fade exponentially."""

    def __init__(self, latency_ns: int, cold_ns: int = 0, compile_ns: int = 0, fade: float = 500.0) -> None:
        """`fade`: probes after which 1/e of `cold_ns` and of `compile_ns` is left."""
        self.now_ns = 0
        self.cpu_ns = 0
        self.probes = 0
        self.asked_for_real = 0
        self._latency_ns = latency_ns
        self._cold_ns = cold_ns
        self._compile_ns = compile_ns
        self._fade = fade

    def send(
        self, image: Array, id_: str, due_ns: int, *, probe: bool = False, sampled: bool = False
    ) -> Future[Exchange]:
        self.asked_for_real += not probe
        left = math.exp(-self.probes / self._fade)
        took = self._latency_ns + int(self._cold_ns * left)
        self.probes += 1
        self.now_ns += took
        self.cpu_ns += took // 2 + int(self._compile_ns * left)
        future: Future[Exchange] = Future()
        future.set_result(Exchange(id_, 0, took, (), None, "", {}, ""))
        return future

    def clock(self) -> float:
        return self.now_ns / 1e9

    def emulated(self) -> bool:
        return False

    def close(self) -> None:
        raise AssertionError("the target is not the warm-up's to close")


def test_it_goes_on_until_windows_agree() -> None:
    # Given a server that is ten times slower when it is cold
    server = Server(latency_ns=2_000_000, cold_ns=20_000_000)
    # When it is warmed up
    warmth = warm_up(server, TENSORS, 1000.0, 5.0, lambda: server.cpu_ns, clock=server.clock)
    # Then it is within a few percent of warm, and nothing but probes was sent
    assert warmth.stable
    assert server.probes == warmth.probes
    assert 10 * math.exp(-server.probes / 500) < 0.05
    assert server.asked_for_real == 0


def test_a_warm_server_costs_little() -> None:
    server = Server(latency_ns=2_000_000)
    warmth = warm_up(server, TENSORS, 1000.0, 5.0, lambda: server.cpu_ns, clock=server.clock)
    assert warmth.stable
    assert warmth.seconds < 3


def test_latency_alone_does_not_make_it_warm_while_a_compiler_runs() -> None:
    # Given a server whose latency is steady while its compiler takes ever less CPU
    server = Server(latency_ns=2_000_000, compile_ns=20_000_000)
    warmth = warm_up(server, TENSORS, 1000.0, 5.0, lambda: server.cpu_ns, clock=server.clock)
    # Then the warm-up lasts until compiling is a small part of what a probe costs
    assert warmth.stable
    assert 20 * math.exp(-server.probes / 500) < 0.3


def test_a_budget_ends_it_and_it_says_that_it_was_not_warm() -> None:
    server = Server(latency_ns=1_000_000, cold_ns=50_000_000, fade=100)
    warmth = warm_up(server, TENSORS, 3.0, 5.0, lambda: server.cpu_ns, clock=server.clock)
    assert not warmth.stable
    assert 3.0 <= warmth.seconds < 6.0


def test_unknown_cpu_time_leaves_latency_to_decide() -> None:
    server = Server(latency_ns=2_000_000)
    assert warm_up(server, TENSORS, 1000.0, 5.0, lambda: 0, clock=server.clock).stable


def test_at_least_so_many_probes_are_sent_if_they_fit() -> None:
    server = Server(latency_ns=2_000_000)
    assert warm_up(server, TENSORS, 1000.0, 5.0, lambda: 0, 5000, server.clock).probes >= 5000
    short = Server(latency_ns=2_000_000)
    # Where they do not fit, that is said, and what else is known
    warmth = warm_up(short, TENSORS, 2.0, 5.0, lambda: 0, 5000, short.clock)
    assert (warmth.stable, warmth.enough) == (True, False)
    assert warm_up(short, TENSORS, 1000.0, 5.0, lambda: 0, 10, short.clock).enough


@pytest.mark.parametrize(
    ("pids", "may"),
    [
        ({"client": 1}, True),  # nothing is known of it
        ({"client": 1, "preprocess": 2, "inference": 3, "redis": 4}, False),
        ({"client": 1, "preprocess": 2, "kafka-2": 3}, True),
    ],
)
def test_only_where_a_virtual_machine_may_be_it_gets_the_probes_that_it_takes(pids: dict[str, int], may: bool) -> None:
    assert _may_compile(Deployment("grpc://127.0.0.1:1", pids)) is may
