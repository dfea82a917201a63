"""The floor of a hop: the median of probes, its interval, and a failing probe."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.calibration import _median, calibrate
from loadgen.errors import PlanError
from loadgen.target import HOP, Exchange, image_tensor
from services.accounting import Stage, Tile
from services.messages import Array
from tests.exchanges import INNER, exchange, tile

TENSORS = [image_tensor(b"one"), image_tensor(b"two")]


class Link:
    """A target whose probes take what `answers` says, and that keeps what it was asked."""

    def __init__(self, answers: Iterator[Exchange | None]) -> None:
        self._answers = answers
        self.asked: list[tuple[Array, str, bool]] = []

    def send(
        self, image: Array, id_: str, due_ns: int, *, probe: bool = False, sampled: bool = False
    ) -> Future[Exchange]:
        self.asked.append((image, id_, probe))
        future: Future[Exchange] = Future()
        answer = next(self._answers)
        if answer is not None:
            future.set_result(answer)
        return future

    def emulated(self) -> bool:
        return False

    def close(self) -> None:
        pass


def probe(outer_ms: float, inner_ms: float | None = None) -> Exchange:
    tiles: list[Tile] = [tile(Stage.SERIALIZE, 0.1, "client"), tile(Stage.TRANSIT, outer_ms / 2, HOP)]
    if inner_ms is not None:
        tiles.append(tile(Stage.TRANSIT, inner_ms, INNER))
    return exchange([*tiles, tile(Stage.TRANSIT, outer_ms / 2, HOP)])


def test_the_floor_is_the_median_per_hop_after_warming_up() -> None:
    # Given three slow probes first, as of a cold link, and twenty more of 1.0 to 2.9 ms
    answers = [probe(50, 70)] * 3 + [probe(1 + i / 10, 2 + i / 10) for i in range(20)]
    link = Link(iter(answers))
    outer, inner = calibrate(link, TENSORS, 20, 0.0, 1.0)
    # Then the slow ones do not count, and both tiles of the outer hop do
    assert (outer.hop, outer.n, outer.p50_ns) == (HOP, 20, 1_950_000)
    assert (inner.hop, inner.n, inner.p50_ns) == (INNER, 20, 2_950_000)
    assert outer.low_ns is not None
    assert outer.high_ns is not None
    assert outer.low_ns <= outer.p50_ns <= outer.high_ns
    # And they were probes, of each image in turn
    assert all(asked[2] for asked in link.asked)
    assert [asked[0] is TENSORS[i % 2] for i, asked in enumerate(link.asked)] == [True] * 23
    assert len({asked[1] for asked in link.asked}) == 23


def test_a_target_without_a_ledger_has_no_floor() -> None:
    link = Link(iter([exchange([tile(Stage.REMOTE, 1.0, HOP)])] * 8))
    assert calibrate(link, TENSORS, 5, 0.0, 1.0) == []


def test_a_failing_probe_is_an_error_with_its_cause() -> None:
    failed = exchange([tile(Stage.UNANSWERED, 1, HOP)], error="unavailable", message="the broker is away")
    link = Link(iter([probe(1.0), failed]))
    with pytest.raises(PlanError, match="cannot be calibrated: a probe failed with unavailable: the broker is away"):
        calibrate(link, TENSORS, 10, 0.0, 1.0)


def test_a_probe_that_is_not_answered_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"a probe was not answered within 0\.01 s"):
        calibrate(Link(iter([None])), TENSORS, 10, 0.0, 0.01)


@given(st.lists(st.integers(-1000, 10**9), min_size=1, max_size=200))
def test_the_median_is_whole_and_within_its_interval(values: list[int]) -> None:
    floor = _median(HOP, sorted(values))
    assert floor.p50_ns == int(statistics.median(sorted(values)) // 1)
    if floor.low_ns is not None and floor.high_ns is not None:
        assert min(values) <= floor.low_ns <= floor.p50_ns <= floor.high_ns <= max(values)
    assert (floor.low_ns is None) == (floor.high_ns is None) == (len(set(values)) <= len(values) // 2)
    assert floor.n == len(values)


def test_the_minimum_over_a_broker_has_no_interval() -> None:
    # Given probes of which the broker's shortest wait was the same, but for two that found a shorter one
    link = Link(iter([probe(1 + i / 100, 3.0 if i < 15 else 2.9) for i in range(23)]))
    outer, inner = calibrate(link, TENSORS, 20, 0.0, 1.0)
    assert (inner.p50_ns, inner.low_ns, inner.high_ns) == (3_000_000, None, None)
    assert outer.low_ns is not None


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    generator = random.Random(5)  # noqa: S311 # probes, not secrets
    trials, n, held = 1000, 40, 0
    for _ in range(trials):
        values = sorted(round(generator.expovariate(1.0) * 1e6) for _ in range(n))
        floor = _median(HOP, values)
        assert floor.low_ns is not None
        assert floor.high_ns is not None
        held += floor.low_ns <= 693_147 <= floor.high_ns  # the median of that law is ln 2
    assert 0.93 <= held / trials <= 0.99
