"""What may be committed, whatever the order in which records finish; and how a deadly record is found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.transports.kafka_offsets import PartitionOffsets, Starts, Suspicion

gaps = st.lists(st.integers(1, 5), min_size=1, max_size=40)


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, list[int], list[tuple[str, int]]]:
    """(committed position, offsets, starts in order and finishes in any order after their start)."""
    position = draw(st.integers(0, 1000))
    offsets, at = [], position
    for gap in draw(gaps):
        offsets.append(at)
        at += gap
    waiting, started, events = list(offsets), list[int](), list[tuple[str, int]]()
    while waiting or started:
        if waiting and (not started or draw(st.booleans())):
            events.append(("start", waiting[0]))
            started.append(waiting.pop(0))
        else:
            events.append(("finish", started.pop(draw(st.integers(0, len(started) - 1)))))
    return position, offsets, events


@given(runs())
def test_the_position_is_never_beyond_the_lowest_unfinished(
    run: tuple[int, list[int], list[tuple[str, int]]],
) -> None:
    position, offsets, events = run
    ledger = PartitionOffsets(position)
    unfinished, last, finished = set(offsets), position, set[int]()
    in_hand = 0
    for what, offset in events:
        if what == "start":
            ledger.start(offset)
            in_hand += 1
            assert ledger.upto == offset + 1
        else:
            ledger.finish(offset)
            unfinished.discard(offset)
            finished.add(offset)
            in_hand -= 1
        assert ledger.in_hand == in_hand
        assert ledger.position >= last, "it never goes back"
        last = ledger.position
        assert not unfinished or ledger.position <= min(unfinished)
        below = [o for o in offsets if o < ledger.position]
        assert set(below) <= finished
    assert ledger.position == offsets[-1] + 1, "all done: nothing is held back"


@given(st.integers(0, 10**17), st.integers(0, 10**17), st.integers(0, 10**17))
def test_the_metadata_survives(starts: int, alone: int, upto: int) -> None:
    assert Starts.parse(Starts(starts, alone, upto).encode()) == Starts(starts, alone, upto)


@given(st.none() | st.text())
def test_foreign_metadata_counts_as_nothing(metadata: str | None) -> None:
    assert Starts.parse(metadata) == Starts()


def test_a_partition_that_nobody_has_begun_is_not_suspicious() -> None:
    suspicion = Suspicion(100, "", end=200, window=64)
    assert suspicion.starts == 1
    assert suspicion.alone_until == 100
    assert [suspicion.attempt(offset) for offset in (100, 150, 300)] == [1, 1, 1]


def test_what_came_after_the_assignment_was_not_started_before() -> None:
    suspicion = Suspicion(100, Starts(1, 0, 110).encode(), end=120, window=64)
    assert suspicion.attempt(100) == 2
    assert suspicion.attempt(119) == 2
    assert suspicion.attempt(120) == 1, "it was not there yet"


def test_the_window_covers_what_was_not_written_down() -> None:
    suspicion = Suspicion(100, Starts(1, 0, 101).encode(), end=10_000, window=64)
    assert suspicion.attempt(164) == 2
    assert suspicion.attempt(165) == 1
    wide = Suspicion(100, Starts(1, 0, 500).encode(), end=10_000, window=64)
    assert wide.attempt(563) == 2, "one slow record, many done behind it"
    assert wide.attempt(564) == 1


def test_an_orderly_leave_leaves_no_suspicion_but_says_what_was_delivered() -> None:
    left = Suspicion(100, "", end=200, window=64).leaving(position=100, upto=105)
    assert (left.starts, left.upto) == (0, 105)
    next_ = Suspicion(100, left.encode(), end=200, window=64)
    assert next_.starts == 1
    assert next_.attempt(104) == 2
    assert next_.attempt(105) == 1


def test_an_orderly_leave_takes_only_this_process_start_back() -> None:
    suspicion = Suspicion(100, Starts(1, 0, 110).encode(), end=200, window=64)
    assert suspicion.leaving(position=100, upto=101)[:2] == (1, 0), "no progress: what was found stays"
    assert suspicion.leaving(position=101, upto=102)[:2] == (0, 0), "progress clears it"


def test_an_orderly_leave_amid_suspicion_keeps_it() -> None:
    suspicion = Suspicion(100, Starts(4, 1, 110).encode(), end=110, window=64)
    assert suspicion.leaving(position=100, upto=101)[:2] == (4, 1)
    assert suspicion.leaving(position=105, upto=106)[:2] == (4, 0), "the deadly one may be further on"
    assert suspicion.leaving(position=110, upto=110)[:2] == (0, 0), "it was not there"


def test_a_count_of_starts_alone_is_not_written_over_while_the_record_runs() -> None:
    suspicion = Suspicion(100, Starts(2, 0, 110).encode(), end=110, window=64)
    assert suspicion.before_alone(100) == Starts(3, 1, 101)
    assert suspicion.running(100, 101) == Starts(3, 1, 101)
    assert suspicion.running(101, 101) == Starts(3, 0, 101), "the next one has not been started"
    assert suspicion.before_alone(101) == Starts(3, 1, 102)


def test_progress_sets_the_count_back_to_this_process() -> None:
    suspicion = Suspicion(100, Starts(1, 0, 110).encode(), end=200, window=64)
    assert suspicion.running(100, 110).starts == 2
    assert suspicion.running(101, 110).starts == 1


def test_suspicion_lasts_through_the_window() -> None:
    suspicion = Suspicion(100, Starts(2, 0, 110).encode(), end=120, window=64)
    assert suspicion.alone_until == 120
    assert suspicion.running(110, 111).starts == 3
    assert suspicion.running(120, 121).starts == 1


@pytest.mark.parametrize("poison", [0, 1, 7, 63])
@pytest.mark.parametrize("window", [1, 8, 64])
def test_a_deadly_record_is_found_within_bounded_starts(poison: int, window: int) -> None:
    """Processes that die of one record, as the listener drives these books: in parallel, then alone."""
    end, position, metadata = 64, 0, ""
    for process in range(1, 50):
        suspicion = Suspicion(position, metadata, end, window)
        ledger = PartitionOffsets(position)
        for offset in range(position, end):
            alone = offset < suspicion.alone_until
            ledger.start(offset)
            if alone and suspicion.deadly(offset):
                assert offset == poison, "an innocent was condemned"
                assert process <= Suspicion.SUSPICIOUS_STARTS + Suspicion.ALONE_LIMIT
                return
            if alone:
                position, metadata = offset, suspicion.before_alone(offset).encode()
            elif offset == position:
                metadata = suspicion.running(position, offset + 1).encode()
            if offset == poison:
                break
            ledger.finish(offset)
            if not alone and ledger.position > position:
                position, metadata = ledger.position, suspicion.running(ledger.position, ledger.upto).encode()
        else:
            pytest.fail("the deadly record was passed")
    pytest.fail("the deadly record was never found")
