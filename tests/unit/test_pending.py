"""Calls that wait for a reply end once: with their reply, an error, or at their deadline, in the order of deadlines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import DeadlineExceeded, Internal, Unavailable
from services.transports import pending as module
from services.transports.pending import Pending
from services.transports.transport import Reply

# Of the fake clock: far beyond what the thread of a Pending waits in real time while a test runs.
LONG_S = 1000.0


class Clock:
    """Seconds, set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pending(clock: Clock) -> Iterator[Pending]:
    pending = Pending("a test", clock)
    yield pending
    pending.close(Unavailable("the test is over"))


def reply(payload: bytes = b"") -> Reply:
    return Reply(payload, {}, 0)


def test_an_answer_reaches_its_own_call(pending: Pending) -> None:
    first, second = pending.add("1", LONG_S), pending.add("2", LONG_S)
    pending.answer("2", reply(b"two"))
    assert not first.done()
    assert second.result(0).payload == b"two"
    pending.answer("1", reply(b"one"))
    assert first.result(0).payload == b"one"


def test_calls_end_at_their_deadlines_in_that_order_whatever_the_order_they_came_in(
    pending: Pending, clock: Clock
) -> None:
    ended: list[int] = []
    for timeout in (5, 2, 9, 1, 7):
        future = pending.add(str(timeout), LONG_S * timeout)
        future.add_done_callback(lambda _, timeout=timeout: ended.append(timeout))
    clock.now = LONG_S * 5
    assert pending.expire() == LONG_S * 2
    assert ended == [1, 2, 5]
    clock.now = LONG_S * 100
    assert pending.expire() is None
    assert ended == [1, 2, 5, 7, 9]


def test_a_deadline_says_which_link_and_how_long(pending: Pending, clock: Clock) -> None:
    future = pending.add("1", LONG_S)
    clock.now = LONG_S - 0.001
    pending.expire()
    assert not future.done()
    clock.now = LONG_S
    pending.expire()
    with pytest.raises(DeadlineExceeded, match=r"a test within 1000\.000 s"):
        future.result(0)


def test_an_answer_just_before_its_deadline_is_not_overwritten(pending: Pending, clock: Clock) -> None:
    future = pending.add("1", LONG_S)
    pending.answer("1", reply(b"in time"))
    clock.now = LONG_S * 2
    pending.expire()
    assert future.result(0).payload == b"in time"
    assert (pending.duplicates, pending.late) == (0, 0)


def test_the_first_answer_wins_and_others_are_counted_as_duplicates(pending: Pending) -> None:
    future = pending.add("1", LONG_S)
    pending.answer("1", reply(b"first"))
    pending.answer("1", reply(b"second"))
    pending.fail("1", Internal("third, an error that crossed"), answered=True)
    assert future.result(0).payload == b"first"
    assert (pending.duplicates, pending.late) == (2, 0)


def test_an_error_that_crossed_is_an_answer_too(pending: Pending) -> None:
    future = pending.add("1", LONG_S)
    pending.fail("1", Internal("it crossed"), answered=True)
    pending.answer("1", reply())
    assert type(future.exception(0)) is Internal
    assert (pending.duplicates, pending.late) == (1, 0)


def test_an_answer_after_the_deadline_is_late_not_a_duplicate(pending: Pending, clock: Clock) -> None:
    pending.add("1", LONG_S)
    clock.now = LONG_S
    pending.expire()
    pending.answer("1", reply())
    assert (pending.duplicates, pending.late) == (0, 1)


def test_an_answer_to_a_call_that_failed_here_is_late(pending: Pending) -> None:
    future = pending.add("1", LONG_S)
    pending.fail("1", Unavailable("the broker went away"))
    pending.fail("1", Unavailable("again: our own failures are nobody's reply"))
    pending.answer("1", reply())
    assert type(future.exception(0)) is Unavailable
    assert (pending.duplicates, pending.late) == (0, 1)


def test_what_ended_is_forgotten_the_oldest_first(pending: Pending) -> None:
    for number in range(module._REMEMBERED + 1):
        pending.add(str(number), LONG_S)
        pending.answer(str(number), reply())
    pending.answer("0", reply())
    assert (pending.duplicates, pending.late) == (0, 1), "it cannot be told any more"
    pending.answer("1", reply())
    assert (pending.duplicates, pending.late) == (1, 1)


def test_deadlines_of_answered_calls_do_not_pile_up(pending: Pending, clock: Clock) -> None:
    """A door that answers thousands a second with time-outs of minutes must not keep each of them for minutes."""
    waiting = pending.add("waits", LONG_S)
    for number in range(3 * module._STALE):
        pending.add(f"n{number}", LONG_S * 2)
        pending.answer(f"n{number}", reply())
        assert len(pending._deadlines) <= module._STALE + 6
    clock.now = LONG_S
    pending.expire()
    assert isinstance(waiting.exception(0), DeadlineExceeded), "the one that waits is kept"


@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from(["answer", "fail", "wait"])), max_size=60), st.data())
def test_each_call_ends_once_and_only_when_it_should(calls: list[tuple[int, str]], data: st.DataObject) -> None:
    clock = Clock()
    pending = Pending("a property", clock)
    try:
        futures: list[Future[Reply]] = []
        ends: list[int] = []
        for number, (timeout, what) in enumerate(calls):
            future = pending.add(str(number), LONG_S * timeout)
            future.add_done_callback(lambda _, number=number: ends.append(number))
            futures.append(future)
            if what == "answer":
                pending.answer(str(number), reply(b"%d" % number))
            elif what == "fail":
                pending.fail(str(number), Unavailable(str(number)))
        clock.now = LONG_S * data.draw(st.integers(0, 51))
        wait = pending.expire()
        left = [timeout * LONG_S - clock.now for timeout, what in calls if what == "wait"]
        for number, ((timeout, what), future) in enumerate(zip(calls, futures, strict=True)):
            if what == "answer":
                assert future.result(0).payload == b"%d" % number
            elif what == "fail":
                assert isinstance(future.exception(0), Unavailable)
            else:
                assert future.done() == (timeout * LONG_S <= clock.now)
        assert len(ends) == len(set(ends)), "a callback ran twice"
        if any(seconds > 0 for seconds in left):
            assert wait is not None
            assert wait <= min(seconds for seconds in left if seconds > 0), "it would sleep past a deadline"
    finally:
        pending.close(Unavailable("the example is over"))


def test_its_own_thread_ends_calls(pending: Pending, clock: Clock) -> None:
    """Without `expire`: an earlier deadline than the one it sleeps for wakes the thread, which finds it passed."""
    late = pending.add("late", LONG_S)
    clock.now = LONG_S / 2
    soon = pending.add("soon", 0.0)
    assert isinstance(soon.exception(10), DeadlineExceeded)
    assert not late.done()


def test_a_call_made_by_a_callback_of_a_deadline_is_not_overlooked(pending: Pending, clock: Clock) -> None:
    again: list[Future[Reply]] = []
    first = pending.add("first", LONG_S)
    first.add_done_callback(lambda _: again.append(pending.add("second", 0.0)))
    pending.add("wakes the thread", -LONG_S)
    clock.now = LONG_S
    pending.add("wakes it again", -2 * LONG_S)
    assert isinstance(first.exception(10), DeadlineExceeded)
    assert isinstance(again[0].exception(10), DeadlineExceeded)


def test_close_ends_all_calls_those_to_come_and_the_thread(clock: Clock) -> None:
    before = threading.active_count()
    pending = Pending("a test", clock)
    futures = [pending.add(str(number), LONG_S) for number in range(5)]
    pending.close(Unavailable("closed"))
    assert {type(future.exception(0)) for future in futures} == {Unavailable}
    assert type(pending.add("after", LONG_S).exception(0)) is Unavailable
    assert threading.active_count() <= before
    pending.answer("1", reply())
    assert pending.late == 1
    pending.close(Unavailable("twice does no harm"))


def test_close_from_a_callback_of_its_own_thread_does_not_wait_for_itself(clock: Clock) -> None:
    pending = Pending("a test", clock)
    closed = threading.Event()

    def close(_: Any) -> None:
        pending.close(Unavailable("closed by a callback"))
        closed.set()

    other = pending.add("other", LONG_S)
    pending.add("ends at once", 0.0).add_done_callback(close)
    assert closed.wait(10)
    assert isinstance(other.exception(10), Unavailable)


def test_a_caller_that_cancels_cannot_take_the_future_away(pending: Pending) -> None:
    future = pending.add("1", LONG_S)
    assert not future.cancel()
    pending.answer("1", reply(b"still answered"))
    assert future.result(0).payload == b"still answered"


def test_many_threads_answer_and_each_call_ends_once(pending: Pending) -> None:
    count, threads = 400, 4
    futures = [pending.add(str(number), LONG_S) for number in range(count)]
    start = threading.Barrier(threads)

    def answer() -> None:
        start.wait(10)
        for number in range(count):
            pending.answer(str(number), reply(b"%d" % number))

    workers = [threading.Thread(target=answer) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(10)
    assert [future.result(0).payload for future in futures] == [b"%d" % number for number in range(count)]
    assert pending.duplicates == count * (threads - 1)
