"""The law of the ledger: parts sum to the total, identically, whatever happens in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.accounting import (
    CPU_STAGES,
    GROUP_OF,
    UNKNOWN_CPU,
    AgeMeter,
    Breakdown,
    Group,
    Stage,
    Tile,
    Timeline,
    carve,
)

stages = st.sampled_from(list(Stage))
tiles = st.builds(
    Tile, stages, st.integers(-(10**6), 10**12), st.integers(-1, 10**9), st.sampled_from(["client", "preprocess"])
)


class FakeClock:
    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


def test_every_stage_has_a_group() -> None:
    assert set(GROUP_OF) == set(Stage)


@given(st.lists(st.tuples(stages, st.integers(0, 10**10)), max_size=30))
def test_cuts_tile_the_total(steps: list[tuple[Stage, int]]) -> None:
    # Given a timeline on a clock that we move
    clock = FakeClock()
    timeline = Timeline("here", clock=clock)
    # When intervals are closed
    for stage, step in steps:
        clock.now += step
        timeline.cut(stage)
    # Then the tiles are these intervals, and sum to the total as integers
    assert [(t.stage, t.duration_ns) for t in timeline.tiles] == steps
    assert sum(t.duration_ns for t in timeline.tiles) == timeline.total_ns == clock.now - 1_000


@given(st.lists(tiles, max_size=10), st.integers(0, 10**12))
def test_a_call_is_the_callees_tiles_and_a_signed_remainder(theirs: list[Tile], duration: int) -> None:
    # Given a call of some duration and a callee's ledger of whatever sum (its clock is not ours)
    clock = FakeClock()
    timeline = Timeline("here", clock=clock)
    clock.now += duration
    # When it is closed
    left = timeline.call(theirs, Stage.TRANSIT, where="a>b")
    # Then the remainder makes the sum exact, negative or not, never clamped
    assert left == duration - sum(t.duration_ns for t in theirs)
    assert timeline.tiles[-1] == Tile(Stage.TRANSIT, left, UNKNOWN_CPU, "a>b")
    assert sum(t.duration_ns for t in timeline.tiles) == timeline.total_ns == duration


@given(st.lists(tiles, min_size=1, max_size=10), st.data())
def test_carving_changes_no_sum(ledger: list[Tile], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(ledger) - 1))
    amount = data.draw(st.integers(0, 10**9))
    at = data.draw(st.integers(0, len(ledger)))
    where = ledger[index].where
    before = sum(t.duration_ns for t in ledger)
    carve(ledger, index, Stage.BROKER_WAIT, amount, at)
    assert sum(t.duration_ns for t in ledger) == before
    assert ledger[at] == Tile(Stage.BROKER_WAIT, amount, UNKNOWN_CPU, where)


def test_cpu_time_is_taken_only_within_one_thread() -> None:
    # Given a CPU clock that differs per thread, as the real one does
    cpu: Iterator[int] = iter(range(0, 10_000, 10))
    timeline = Timeline("here", cpu_clock=lambda: next(cpu))
    # When one thread computes, and another one takes over
    timeline.cut(Stage.DECODE)
    other = threading.Thread(target=lambda: timeline.cut(Stage.INFER))
    other.start()
    other.join()
    # Then the first has CPU time, the second does not pretend to
    assert timeline.tiles[0].cpu_ns == 10
    assert timeline.tiles[1].cpu_ns == UNKNOWN_CPU


def test_waiting_for_a_device_is_not_cpu_time() -> None:
    timeline = Timeline("here")
    timeline.cut(Stage.INFER, on_device=True)
    timeline.cut(Stage.DOWNLOAD)
    assert timeline.tiles[0].cpu_ns == UNKNOWN_CPU
    assert timeline.tiles[1].cpu_ns != UNKNOWN_CPU


def test_resuming_takes_the_cpu_clock_anew() -> None:
    cpu = iter([0, 500, 530, 999])
    timeline = Timeline("here", cpu_clock=lambda: next(cpu))
    timeline.cut_at(Stage.PREPROCESS_QUEUE, timeline.start_ns + 5)
    timeline.resume()
    timeline.cut(Stage.DECODE)
    assert timeline.tiles[-1].cpu_ns == 30


def test_cpu_time_counts_from_where_its_clock_was_read_and_else_is_unknown() -> None:
    clock, cpu_clock = FakeClock(), FakeClock()

    def spent(ns: int) -> int:
        """The CPU time that is told where a stage took so much."""
        clock.now += 50
        cpu_clock.now += ns
        timeline.cut(Stage.DECODE)
        return timeline.tiles[-1].cpu_ns

    # A beginning that somebody else stamped
    timeline = Timeline("here", clock.now - 10, clock, cpu_clock)
    assert spent(7) == UNKNOWN_CPU
    assert spent(8) == 8
    # a boundary that somebody else stamped
    timeline.cut_at(Stage.INFERENCE_QUEUE, clock.now)
    assert spent(9) == UNKNOWN_CPU
    # a call that ended now, while this thread did other things
    cpu_clock.now += 100
    timeline.call([], Stage.DISPATCH)
    assert spent(10) == 10
    # and one that ended before
    timeline.call([], Stage.TRANSIT, clock.now - 5)
    assert spent(11) == UNKNOWN_CPU


def test_a_boundary_that_was_noted_is_drawn_after_the_one_before_it_is_known() -> None:
    # Given a reply that is taken up 7 ns after it arrived, and decoded in 20 ns, 15 of them on the CPU
    clock = FakeClock()
    cpu = iter([0, 100, 115])
    timeline = Timeline("here", clock=clock, cpu_clock=lambda: next(cpu))
    arrived_ns = clock.now = 1_050
    clock.now += 7
    taken_up = timeline.mark()
    clock.now += 20
    # When the ledger, which was in the reply, is put in
    timeline.call([Tile(Stage.INFER, 30, 3, "there")], Stage.TRANSIT, arrived_ns, "here>there")
    timeline.cut_to(Stage.DISPATCH, taken_up)
    timeline.cut(Stage.DESERIALIZE)
    # Then everything tiles, and the CPU time of decoding is counted from where it began
    assert [(t.stage, t.duration_ns, t.cpu_ns) for t in timeline.tiles] == [
        (Stage.INFER, 30, 3),
        (Stage.TRANSIT, 20, UNKNOWN_CPU),
        (Stage.DISPATCH, 7, UNKNOWN_CPU),
        (Stage.DESERIALIZE, 20, 15),
    ]
    assert timeline.total_ns == 77 == sum(t.duration_ns for t in timeline.tiles)


@pytest.mark.parametrize("stage", sorted(set(Stage) - CPU_STAGES))
def test_waiting_has_no_cpu_time(stage: Stage) -> None:
    timeline = Timeline("here")
    timeline.cut(stage)
    assert timeline.tiles[0].cpu_ns == UNKNOWN_CPU


@given(st.lists(st.lists(tiles, min_size=1, max_size=8), min_size=1, max_size=5))
def test_breakdowns_add_up(requests: list[list[Tile]]) -> None:
    breakdowns = [Breakdown.of(request) for request in requests]
    for request, breakdown in zip(requests, breakdowns, strict=True):
        assert breakdown.total_ns == sum(t.duration_ns for t in request)
        assert sum(breakdown.by_group.values()) == breakdown.total_ns
    mean = Breakdown.mean(breakdowns)
    assert sum(mean.by_stage.values()) == pytest.approx(mean.total_ns, rel=1e-9, abs=1e-3)
    assert list(mean.by_group) == [group for group in Group if group in mean.by_group]


def test_a_stall_is_wall_time_without_cpu_time() -> None:
    breakdown = Breakdown.of(
        [Tile(Stage.DECODE, 100, 70, "p"), Tile(Stage.INFER, 50, UNKNOWN_CPU, "i"), Tile(Stage.INFER, 50, 45, "i")]
    )
    # What has no CPU time says nothing about stalls: 30 in decode, 5 in infer
    assert breakdown.stalled_ns == 35


@given(st.integers(-(10**15), 10**15), st.lists(st.integers(0, 10**8), min_size=1, max_size=50))
def test_an_age_beyond_the_minimum_does_not_depend_on_the_offset(offset: int, ages: list[int]) -> None:
    # Given two meters that see the same messages, one with a sender's clock that is off
    true, off = AgeMeter(), AgeMeter()
    for index, age in enumerate(ages):
        receipt = index * 10**6
        # Then both say the same, never less than nothing
        excess = true.excess_ns("s", 100, receipt - age, receipt)
        assert excess == off.excess_ns("s", 100, receipt - age + offset, receipt)
        assert excess == age - min(ages[: index + 1])


def test_the_minimum_age_forgets_after_its_window() -> None:
    meter = AgeMeter(window_ns=1_000)
    assert meter.excess_ns("s", 1, 0, 10) == 0
    assert meter.excess_ns("s", 1, 480, 500) == 10  # 20 old, the minimum is 10
    assert meter.excess_ns("s", 1, 1_980, 2_000) == 0  # the 10 of long ago is forgotten


def test_sizes_and_senders_have_minima_of_their_own() -> None:
    meter = AgeMeter()
    assert meter.excess_ns("s", 100, 0, 10) == 0
    assert meter.excess_ns("s", 1_000_000, 0, 500) == 0
    assert meter.excess_ns("t", 100, 0, 300) == 0
    assert meter.excess_ns("s", 100, 0, 30) == 20


def test_senders_that_come_and_go_are_forgotten() -> None:
    meter = AgeMeter(window_ns=1_000_000)
    assert meter.excess_ns("stays", 1, 0, 10) == 0
    for now in range(500, 5_500):
        assert meter.excess_ns(f"s{now}", 1, 0, now) == 0
        assert meter.excess_ns("stays", 1, now - 20, now) == 10  # its minimum stands, however many others there are
    assert len(meter._minima) <= 1024
