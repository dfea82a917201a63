"""The books of a listener's partitions, told what comes and goes by one thread, used by the others."""

from __future__ import annotations

import queue
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from services.transports.kafka_client import Position
from services.transports.kafka_offsets import Starts, Suspicion
from services.transports.kafka_partitions import Partition, Partitions

PREFETCH = 8


@pytest.fixture
def partitions() -> Partitions:
    return Partitions()


def take_up(partitions: Partitions, number: int, position: int = 0, found: Starts | None = None) -> Partition:
    """Assigned, and begun where it is committed; `found`: what an earlier process left there."""
    partitions.assigned([number])
    metadata = found.encode() if found else ""
    end = found.upto if found else position
    partition = partitions.add(number, position, Suspicion(position, metadata, end, PREFETCH))
    assert partition is not None
    return partition


def starts(position: Position) -> tuple[int, Starts]:
    return position.offset, Starts.parse(position.metadata)


def test_a_new_partition_is_taken_up_once(partitions: Partitions) -> None:
    partitions.assigned([2, 0])
    assert partitions.new() == [0, 2]
    partition = partitions.add(0, 10, Suspicion(10, "", 10, PREFETCH))
    assert partition is not None
    assert partitions.get(0) is partition
    assert partitions.new() == [2]
    partitions.assigned([0])
    assert partitions.new() == [2], "it is held already"


def test_a_partition_that_goes_while_it_is_taken_up_is_not_held(partitions: Partitions) -> None:
    partitions.assigned([0, 1])
    partitions.revoked([0])
    partitions.lost([1])
    assert partitions.new() == []
    for number in (0, 1):
        assert partitions.add(number, 10, Suspicion(10, "", 10, PREFETCH)) is None
        assert partitions.get(number) is None


def test_a_partition_that_comes_back_is_another_one(partitions: Partitions) -> None:
    first = take_up(partitions, 0)
    partitions.revoked([0])
    second = take_up(partitions, 0)
    assert not partitions.holds(first)
    assert partitions.holds(second)


def test_room_is_counted_over_all_partitions_those_that_went_included(partitions: Partitions) -> None:
    here, gone = take_up(partitions, 0), take_up(partitions, 1)
    for offset in range(3):
        partitions.start(here, offset)
        partitions.start(gone, offset)
    assert partitions.room(PREFETCH) == 2
    partitions.revoked([1])
    assert partitions.room(PREFETCH) == 2, "its work is in hand still"
    partitions.release(gone, 0, done=True)
    partitions.release(here, 2, done=False)
    assert partitions.room(PREFETCH) == 4
    assert partitions.in_hand == 4


def test_one_suspicious_partition_leaves_room_for_one_record_in_all(partitions: Partitions) -> None:
    other = take_up(partitions, 0)
    partitions.start(other, 0)
    suspicious = take_up(partitions, 1, found=Starts(2, 0, 2))
    assert partitions.room(PREFETCH) == 0, "the other's record would run beside it"
    partitions.release(other, 0, done=True)
    assert partitions.room(PREFETCH) == 1
    for offset in range(2):
        partitions.start(suspicious, offset)
        assert partitions.room(PREFETCH) == 0
        partitions.release(suspicious, offset, done=True)
    assert partitions.room(PREFETCH) == PREFETCH, "the suspicious ones are done"


def test_progress_is_what_the_broker_does_not_have(partitions: Partitions) -> None:
    partition = take_up(partitions, 0, 10)
    assert partitions.progress() == {}
    partitions.start(partition, 10)
    partitions.start(partition, 11)
    assert {n: starts(p) for n, p in partitions.progress().items()} == {0: (10, Starts(1, 0, 12))}, "handed out"
    assert partitions.progress() == {}, "that was said"
    partitions.release(partition, 11, done=True)
    assert partitions.progress() == {}, "the first one is unfinished"
    partitions.release(partition, 10, done=True)
    assert {n: p.offset for n, p in partitions.progress().items()} == {0: 12}
    assert {n: p.offset for n, p in partitions.progress().items()} == {0: 12}, "until the broker confirms"
    partitions.committed({0: 12, 7: 3})
    assert partitions.progress() == {}


def test_what_is_out_of_hand_unanswered_holds_the_offset_back(partitions: Partitions) -> None:
    partition = take_up(partitions, 0)
    for offset in range(3):
        partitions.start(partition, offset)
        partitions.release(partition, offset, done=offset != 1)
    assert {n: p.offset for n, p in partitions.progress().items()} == {0: 1}


def test_a_record_that_ran_alone_is_acquitted_before_anything_else_starts(partitions: Partitions) -> None:
    partition = take_up(partitions, 0, found=Starts(2, 0, 2))
    partitions.start(partition, 0)
    before = Position(0, partition.suspicion.before_alone(0).encode())
    partitions.written({0: before})
    assert partitions.acquitted() == {}, "it runs"
    assert partitions.progress() == {}, "nothing may write over its count"
    partitions.release(partition, 0, done=True)
    acquittal = partitions.acquitted()
    assert {n: starts(p) for n, p in acquittal.items()} == {0: (1, Starts(3, 0, 1))}
    assert partitions.acquitted() == acquittal, "until it is written"
    partitions.written(acquittal)
    assert partitions.acquitted() == {}


def test_an_acquittal_may_be_confirmed_on_the_way(partitions: Partitions) -> None:
    partition = take_up(partitions, 0, found=Starts(2, 0, 2))
    partitions.start(partition, 0)
    partitions.written({0: Position(0, partition.suspicion.before_alone(0).encode())})
    partitions.release(partition, 0, done=True)
    partitions.committed({0: 1})  # what `progress` sent
    assert partitions.acquitted() == {}


def test_leaving_commits_only_what_this_process_has_begun(partitions: Partitions) -> None:
    begun, untouched = take_up(partitions, 0, found=Starts(1, 0, 4)), take_up(partitions, 1, found=Starts(1, 0, 4))
    partitions.start(begun, 0)
    partitions.written({0: partitions.running(begun)})
    assert {n: starts(p) for n, p in partitions.leaving().items()} == {0: (0, Starts(1, 0, 4))}, "its start taken back"
    partitions.release(begun, 0, done=True)
    revoked = partitions.revoked([0, 1, 5])
    assert {n: starts(p) for n, p in revoked.items()} == {0: (1, Starts(0, 0, 1))}
    assert not partitions.holds(begun)
    assert not partitions.holds(untouched)
    assert partitions.leaving() == {}


def test_what_is_lost_is_not_committed(partitions: Partitions) -> None:
    partition = take_up(partitions, 0)
    partitions.start(partition, 0)
    partitions.written({0: partitions.running(partition)})
    partitions.lost([0])
    partitions.release(partition, 0, done=True)
    partitions.written({0: Position(1, "")})
    assert partitions.progress() == partitions.leaving() == {}


def test_waiting_ends_with_a_change_also_with_one_that_came_before(partitions: Partitions) -> None:
    partition = take_up(partitions, 0)
    partitions.start(partition, 0)
    since = partitions.changes
    partitions.release(partition, 0, done=True)
    done = threading.Event()
    waiting = threading.Thread(target=lambda: (partitions.wait_change(since, 60), done.set()))
    waiting.start()
    assert done.wait(10), "it came between the look and the wait"
    waiting.join(10)
    waiting = threading.Thread(target=lambda: (partitions.wait_change(partitions.changes, 60), done.set()))
    done.clear()
    waiting.start()
    while not done.is_set():
        partitions.wake()
    waiting.join(10)


def test_waiting_for_empty_hands(partitions: Partitions) -> None:
    partition = take_up(partitions, 0)
    assert partitions.wait_empty(0)
    partitions.start(partition, 0)
    assert not partitions.wait_empty(0)
    empty: list[bool] = []
    waiting = threading.Thread(target=lambda: empty.append(partitions.wait_empty(60)))
    waiting.start()
    partitions.release(partition, 0, done=False)
    waiting.join(10)
    assert empty == [True]


def test_many_threads_release_what_one_hands_out(partitions: Partitions) -> None:
    """The consumer's thread starts and commits, workers finish in any order, rebalances go in between."""
    records, workers = 3000, 4
    held = [take_up(partitions, number) for number in range(4)]
    waiting: queue.LifoQueue[tuple[Partition, int] | None] = queue.LifoQueue()  # the last first: out of order
    wrong: list[str] = []

    def work() -> None:
        while (item := waiting.get()) is not None:
            partitions.release(*item, done=True)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    last = [0] * 4
    for n in range(records):
        since = partitions.changes
        while partitions.room(PREFETCH) <= 0:
            partitions.wait_change(since, 10)
            since = partitions.changes
        partitions.start(held[n % 4], n // 4)
        waiting.put((held[n % 4], n // 4))
        if partitions.in_hand > PREFETCH:
            wrong.append(f"{partitions.in_hand} in hand")
        for number, position in partitions.progress().items():
            if position.offset < last[number] or position.offset > n // 4 + 1:
                wrong.append(f"partition {number} went from {last[number]} to {position.offset} at record {n}")
            last[number] = position.offset
            partitions.committed({number: position.offset})
    assert partitions.wait_empty(10)
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join(10)
    assert not wrong
    assert [partition.offsets.position for partition in held] == [records // 4] * 4
    assert partitions.room(PREFETCH) == PREFETCH


class Books(RuleBasedStateMachine):
    """Any order of assignments, starts, releases, commits and losses, against a model that keeps every record."""

    in_hand = Bundle("in_hand")

    def __init__(self) -> None:
        super().__init__()
        self.partitions = Partitions()
        self.held: dict[int, Partition] = {}
        self.finished: dict[int, set[int]] = {}
        self.next: dict[int, int] = {}
        self.count = 0

    @rule(number=st.integers(0, 2), position=st.integers(0, 5))
    def assign(self, number: int, position: int) -> None:
        if number not in self.held:
            self.held[number] = take_up(self.partitions, number, position)
            self.finished[number] = set(range(position))
            self.next[number] = position

    @precondition(lambda self: self.held)
    @rule(target=in_hand, data=st.data(), gap=st.integers(0, 2))
    def start(self, data: st.DataObject, gap: int) -> tuple[Partition, int]:
        number = data.draw(st.sampled_from(sorted(self.held)))
        offset = self.next[number] + gap
        self.finished[number] |= set(range(self.next[number], offset))  # compacted away: nobody will ever see them
        self.next[number] = offset + 1
        self.partitions.start(self.held[number], offset)
        self.count += 1
        return self.held[number], offset

    @rule(item=consumes(in_hand), done=st.booleans())
    def release(self, item: tuple[Partition, int], done: bool) -> None:
        partition, offset = item
        self.partitions.release(partition, offset, done=done)
        self.count -= 1
        if done and self.held.get(partition.number) is partition:
            self.finished[partition.number].add(offset)

    @rule(confirmed=st.booleans())
    def commit(self, confirmed: bool) -> None:
        positions = self.partitions.progress()
        for number, position in positions.items():
            assert set(range(position.offset)) <= self.finished[number], "beyond an unfinished record"
        if confirmed:
            self.partitions.committed({number: position.offset for number, position in positions.items()})
            assert all(position.offset == self.held[number].confirmed for number, position in positions.items())

    @precondition(lambda self: self.held)
    @rule(data=st.data(), orderly=st.booleans())
    def leave(self, data: st.DataObject, orderly: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        if orderly:
            for position in self.partitions.revoked([number]).values():
                assert set(range(position.offset)) <= self.finished[number]
        else:
            self.partitions.lost([number])
        del self.held[number]

    @invariant()
    def adds_up(self) -> None:
        assert self.partitions.in_hand == self.count
        assert all(self.partitions.holds(partition) for partition in self.held.values())


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
