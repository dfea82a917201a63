"""Queues are bounded, batches are collected, nothing is lost: on a fake clock, without sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest

from services.accounting import Stage, Timeline, monotonic_ns
from services.batching import Batcher, Entry
from services.errors import DeadlineExceeded, Internal, Overloaded, Unavailable

FAR = monotonic_ns() + 10**15
WAIT = 10.0

Process = Callable[[Sequence[Entry[int, int]]], None]


def batcher(process: Process, **options: object) -> Batcher[int, int]:
    return Batcher("test", lambda _: process, queue_stage=Stage.INFERENCE_QUEUE, **options)  # type: ignore[arg-type]


def double(batch: Sequence[Entry[int, int]]) -> None:
    for entry in batch:
        entry.future.set_result(entry.item * 2)


class Gate:
    """A worker that stands still until it is let through, and notes its batches."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def __call__(self, batch: Sequence[Entry[int, int]]) -> None:
        self.batches.append([entry.item for entry in batch])
        self.entered.release()
        assert self.open.acquire(timeout=WAIT)
        double(batch)


def test_every_item_is_answered_with_its_own_result() -> None:
    stage = batcher(double, workers=3, max_batch=4, max_delay_s=0.001)
    futures = [stage.submit(i, Timeline("t"), FAR) for i in range(200)]
    assert [future.result(WAIT) for future in futures] == [2 * i for i in range(200)]
    stage.close()


def test_a_batch_takes_what_is_queued_up_to_its_maximum() -> None:
    # Given a worker that is busy with one item while six more come
    gate = Gate()
    stage = batcher(gate, max_batch=4)
    first = stage.submit(0, Timeline("t"), FAR)
    assert gate.entered.acquire(timeout=WAIT)
    rest = [stage.submit(i, Timeline("t"), FAR) for i in range(1, 7)]
    # When it goes on
    for _ in range(3):
        gate.open.release()
    assert [f.result(WAIT) for f in [first, *rest]] == [0, 2, 4, 6, 8, 10, 12]
    # Then batches were full where they could be, in order
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6]]
    stage.close()


def test_a_batch_that_is_full_does_not_wait_for_its_delay() -> None:
    stage = batcher(double, max_batch=2, max_delay_s=1_000)
    futures = [stage.submit(i, Timeline("t"), FAR) for i in range(4)]
    assert [future.result(WAIT) for future in futures] == [0, 2, 4, 6]
    stage.close()


def test_a_full_queue_refuses_and_loses_nothing() -> None:
    gate = Gate()
    stage = batcher(gate, capacity=2)
    held = stage.submit(0, Timeline("t"), FAR)
    assert gate.entered.acquire(timeout=WAIT)
    queued = [stage.submit(i, Timeline("t"), FAR) for i in (1, 2)]
    with pytest.raises(Overloaded, match="full"):
        stage.submit(3, Timeline("t"), FAR).result(WAIT)
    for _ in range(3):
        gate.open.release()
    assert [f.result(WAIT) for f in [held, *queued]] == [0, 2, 4]
    stage.close()


def test_what_is_past_its_deadline_is_dropped_before_it_costs_anything() -> None:
    gate = Gate()
    stage = batcher(gate)
    held = stage.submit(0, Timeline("t"), FAR)
    assert gate.entered.acquire(timeout=WAIT)
    late = stage.submit(1, Timeline("t"), monotonic_ns())
    fine = stage.submit(2, Timeline("t"), FAR)
    gate.open.release(2)
    assert held.result(WAIT) == 0
    with pytest.raises(DeadlineExceeded, match="nothing was computed"):
        late.result(WAIT)
    assert fine.result(WAIT) == 4
    assert gate.batches == [[0], [2]]
    stage.close()


def test_a_batch_that_fails_fails_alone() -> None:
    def process(batch: Sequence[Entry[int, int]]) -> None:
        if batch[0].item == 13:
            raise ZeroDivisionError("unlucky")
        double(batch)

    stage = batcher(process)
    with pytest.raises(Internal, match="unlucky"):
        stage.submit(13, Timeline("t"), FAR).result(WAIT)
    assert stage.submit(14, Timeline("t"), FAR).result(WAIT) == 28
    stage.close()


def test_an_error_that_cannot_be_handed_over_costs_neither_the_others_nor_the_worker() -> None:
    # Given two entries that come too late, and whose failing fails
    failed: list[int] = []

    def fail(entry: Entry[int, int], _: Exception) -> None:
        failed.append(entry.item)
        raise RuntimeError("nobody is there")

    gate = Gate()
    stage = batcher(gate, max_batch=3, fail=fail)
    stage.submit(0, Timeline("t"), FAR)
    assert gate.entered.acquire(timeout=WAIT)
    late = [stage.submit(i, Timeline("t"), 1) for i in (1, 2)]
    good = stage.submit(3, Timeline("t"), FAR)
    # When the worker turns to them
    for _ in range(2):
        gate.open.release()
    # Then each was tried, and the third is answered
    assert good.result(WAIT) == 6
    assert failed == [1, 2]
    assert not any(future.done() for future in late)
    stage.close()
    assert stage.stopped()


def test_closing_fails_what_is_queued_and_finishes_what_runs() -> None:
    gate = Gate()
    stage = batcher(gate)
    held = stage.submit(0, Timeline("t"), FAR)
    assert gate.entered.acquire(timeout=WAIT)
    queued = stage.submit(1, Timeline("t"), FAR)
    closing = threading.Thread(target=stage.close)
    closing.start()
    with pytest.raises(Unavailable):
        queued.result(WAIT)
    gate.open.release()
    assert held.result(WAIT) == 0
    closing.join(WAIT)
    stage.close()
    with pytest.raises(Unavailable):
        stage.submit(2, Timeline("t"), FAR).result(WAIT)


def test_a_worker_that_cannot_start_is_the_constructors_error() -> None:
    def make(index: int) -> Process:
        if index == 1:
            raise Internal("no such device")
        return double

    before = set(threading.enumerate())
    with pytest.raises(Internal, match="no such device"):
        Batcher("test", make, queue_stage=Stage.INFERENCE_QUEUE, workers=2)
    assert set(threading.enumerate()) <= before


def test_a_worker_that_does_not_start_in_time_is_given_up() -> None:
    never = threading.Event()

    def make(_: int) -> Process:
        never.wait(WAIT)
        return double

    with pytest.raises(Unavailable, match="not ready"):
        Batcher("test", make, queue_stage=Stage.INFERENCE_QUEUE, start_timeout_s=0.01, close_timeout_s=0.0)
    never.set()


def test_the_time_in_the_queue_is_a_tile() -> None:
    tiles: Future[list[Stage]] = Future()

    def process(batch: Sequence[Entry[int, int]]) -> None:
        tiles.set_result([tile.stage for tile in batch[0].timeline.tiles])
        double(batch)

    stage = batcher(process)
    stage.submit(1, Timeline("t"), FAR).result(WAIT)
    assert tiles.result(WAIT) == [Stage.INFERENCE_QUEUE]
    stage.close()


def test_who_comes_while_a_batch_is_collected_did_not_queue() -> None:
    # Given a worker that holds a batch open, on a clock that stands still until the second member is there
    now = 1_000
    tiles: list[list[tuple[Stage, int]]] = []

    def process(batch: Sequence[Entry[int, int]]) -> None:
        tiles.extend([(tile.stage, tile.duration_ns) for tile in entry.timeline.tiles] for entry in batch)
        double(batch)

    stage = batcher(process, max_batch=2, max_delay_s=WAIT, clock=lambda: now)
    first = stage.submit(1, Timeline("t", 400, clock=lambda: now), FAR)
    begin = time.monotonic()
    while stage.depth():  # until it has turned to the first
        assert time.monotonic() - begin < WAIT
    now = 1_700
    second = stage.submit(2, Timeline("t", clock=lambda: now), FAR)
    assert (first.result(WAIT), second.result(WAIT)) == (2, 4)
    # Then the first queued until the worker turned to it, and the second not at all: never less than nothing
    assert tiles == [[(Stage.INFERENCE_QUEUE, 600)], [(Stage.INFERENCE_QUEUE, 0)]]
    stage.close()


def test_a_batch_is_held_open_for_half_of_the_time_that_is_left_at_most() -> None:
    # Given one item, alone, with 2 s left, and a delay that would let it expire
    stage = batcher(double, max_batch=2, max_delay_s=WAIT)
    begin = monotonic_ns()
    assert stage.submit(1, Timeline("t"), begin + 2_000_000_000).result(WAIT) == 2
    # Then it is computed in time
    assert monotonic_ns() - begin >= 1_000_000_000
    stage.close()
