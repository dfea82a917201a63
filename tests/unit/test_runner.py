"""The runner: everything is asked once, latency counts from when it was due, and nobody waits for ever."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest

from loadgen.analysis import analyse
from loadgen.runner import Run
from loadgen.schedule import Schedule, parse_schedule
from loadgen.target import Exchange, NullTarget, image_tensor
from services.accounting import Stage, Timeline
from services.messages import Array
from tests.exchanges import MS

TENSORS = [image_tensor(b"image %d" % i) for i in range(3)]


class Target:
    """A stub that answers with what `answer` makes of (index, due_ns); None: not at all."""

    def __init__(self, answer: Callable[[int, int], Exchange | None]) -> None:
        self._answer = answer
        self._index = itertools.count()
        self.asked: list[tuple[Array, str, int]] = []
        self.in_flight = self.most_in_flight = 0

    def send(
        self, image: Array, id_: str, due_ns: int, *, probe: bool = False, sampled: bool = False
    ) -> Future[Exchange]:
        self.asked.append((image, id_, due_ns))
        future: Future[Exchange] = Future()
        answer = self._answer(next(self._index), due_ns)
        if answer is not None:
            future.set_result(answer)
        return future

    def emulated(self) -> bool:
        return False

    def close(self) -> None:
        pass


def answered(id_: str, due_ns: int, sent_ns: int, done_ns: int) -> Exchange:
    timeline = Timeline("client", due_ns)
    timeline.cut_at(Stage.SCHEDULE_LAG, sent_ns)
    timeline.cut_at(Stage.INFER, done_ns)
    return Exchange(id_, due_ns, done_ns, tuple(timeline.tiles), None, "", {}, "")


def run(target: object, schedule: Schedule, timeout_s: float = 5.0, **more: object) -> list[Exchange]:
    return Run(target, TENSORS, schedule, prefix="p-", timeout_s=timeout_s, **more).run()  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["closed(1)", "closed(7)", "constant(20000)", "poisson(20000)"])
def test_every_request_is_asked_once_and_comes_back_in_the_order_of_being_due(text: str) -> None:
    exchanges = run(NullTarget(), parse_schedule(text, 50, 1))
    assert sorted(e.id for e in exchanges) == sorted(f"p-{i}" for i in range(50))
    assert [e.due_ns for e in exchanges] == sorted(e.due_ns for e in exchanges)
    assert all(e.error is None and sum(t.duration_ns for t in e.tiles) == e.total_ns for e in exchanges)


def test_images_are_asked_about_in_turn() -> None:
    target = Target(lambda index, due: answered(str(index), due, due, due + 1))
    run(target, parse_schedule("closed(1)", 7, 1))
    assert [image for image, _, _ in target.asked] == [TENSORS[i % 3] for i in range(7)]


def test_progress_counts_answers() -> None:
    seen: list[tuple[int, int]] = []
    run(NullTarget(), parse_schedule("closed(1)", 3, 1), progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


class Clock:
    """Time that passes only when somebody sleeps, or a server takes it."""

    def __init__(self) -> None:
        self.now = 10**9

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def test_an_open_schedule_is_sent_when_due() -> None:
    clock = Clock()
    target = Target(lambda index, due: answered(str(index), due, clock.now, clock.now + 1))
    exchanges = run(target, parse_schedule("poisson(100)", 40, 3), clock=clock, sleep=clock.sleep)
    due = parse_schedule("poisson(100)", 40, 3).due_ns
    start = exchanges[0].due_ns - due[0]
    assert [e.due_ns - start for e in exchanges] == list(due)
    assert all(e.tiles[0].duration_ns == 0 for e in exchanges)  # not one was late


def test_an_open_run_sends_nothing_that_is_due_after_its_time() -> None:
    clock = Clock()
    target = Target(lambda index, due: answered(str(index), due, clock.now, clock.now + 1))
    exchanges = run(target, parse_schedule("constant(100)", 50, 1), clock=clock, sleep=clock.sleep, at_most_s=0.105)
    assert len(exchanges) == 11


def test_a_closed_run_ends_when_its_time_is_over_but_not_before_the_first() -> None:
    # Given a server that takes 30 ms
    clock = Clock()

    def answer(index: int, due_ns: int) -> Exchange:
        clock.now += 30 * MS
        return answered(str(index), due_ns, due_ns, clock.now)

    # When there are 100 ms, or hardly any time
    schedule = parse_schedule("closed(1)", 50, 1)
    long = run(Target(answer), schedule, clock=clock, at_most_s=0.1)
    short = run(Target(answer), schedule, clock=clock, at_most_s=0.001)
    # Then requests at 0, 30, 60 and 90 ms are sent, and one in any case
    assert (len(long), len(short)) == (4, 1)


def test_a_sleep_that_ends_early_is_taken_up_again() -> None:
    clock = Clock()
    target = Target(lambda index, due: answered(str(index), due, clock.now, clock.now + 1))
    exchanges = run(
        target, parse_schedule("constant(100)", 5, 1), clock=clock, sleep=lambda s: clock.sleep(max(1e-9, s * 0.7))
    )
    assert all(0 <= e.tiles[0].duration_ns < 10 for e in exchanges)


class Stalling:
    """A server with one worker that takes 1 ms, and once, when asked for the 50th time, half a second.

    Its answers are those of a queue: what is asked meanwhile waits.
    """

    def __init__(self, clock: Clock, *, blocks: bool) -> None:
        self._clock = clock
        self._blocks = blocks
        self._free = 0
        self._asked = 0

    def __call__(self, index: int, due_ns: int) -> Exchange:
        self._asked += 1
        service = (500 if self._asked == 50 else 1) * MS
        sent = self._clock.now
        self._free = max(self._free, sent) + service
        if self._blocks:  # the caller cannot send while the server is busy, as through a full window
            self._clock.now = self._free
        return answered(str(index), due_ns, sent, self._free)


@pytest.mark.parametrize("blocks", [False, True], ids=["queues", "blocks the sender"])
def test_coordinated_omission_latency_counts_from_the_instant_at_which_a_request_was_due(blocks: bool) -> None:
    """A server that stalls for half a second at 100 requests/s harms fifty requests, not one."""
    clock = Clock()
    target = Target(Stalling(clock, blocks=blocks))
    exchanges = run(target, parse_schedule("constant(100)", 200, 1), clock=clock, sleep=clock.sleep)
    latencies = [e.total_ns / MS for e in exchanges]
    assert max(latencies) == pytest.approx(500, abs=2)
    # Those due during the stall waited for what was left of it: 490, 480, 470, ...
    late = [latency for latency in latencies if latency > 5]
    assert 50 <= len(late) <= 58
    assert sum(late) / len(late) == pytest.approx(250, rel=0.1)
    # Counted from the sending, as many tools do, a blocked sender would have seen one slow request.
    from_sending = [(e.total_ns - e.tiles[0].duration_ns) / MS for e in exchanges]
    assert sum(latency > 5 for latency in from_sending) == (1 if blocks else len(late))
    if blocks:
        # And a generator that was held up says that the arrivals were not those of the plan.
        cell = analyse(exchanges, [], {}, 2.0, False, closed=False)
        assert cell["verdict"] == "INVALID"
        assert cell["reasons"][0].startswith("the generator was late: schedule lag p99 4")


def test_a_closed_schedule_keeps_as_many_in_flight_as_it_says_and_not_one_more() -> None:
    lock, release = threading.Lock(), threading.Semaphore(0)
    waiting: list[tuple[Future[Exchange], str, int]] = []
    most = 0

    class Slow(Target):
        def send(self, image: Array, id_: str, due_ns: int, **_: bool) -> Future[Exchange]:  # type: ignore[override]
            nonlocal most
            future: Future[Exchange] = Future()
            with lock:
                waiting.append((future, id_, due_ns))
                most = max(most, len(waiting))
            release.release()
            return future

    def server() -> None:
        for _ in range(5):  # nothing is answered before all five senders wait
            release.acquire()
        for answer in range(40):
            with lock:
                future, id_, due = waiting.pop(0)
            future.set_result(answered(id_, due, due, due + 1))
            if answer < 35:
                release.acquire()

    thread = threading.Thread(target=server)
    thread.start()
    exchanges = run(Slow(lambda *_: None), parse_schedule("closed(5)", 40, 1))
    thread.join()
    assert len({e.id for e in exchanges}) == 40
    assert most == 5


def test_many_senders() -> None:
    exchanges = run(NullTarget(), parse_schedule("closed(500)", 2000, 1))
    assert len({e.id for e in exchanges}) == 2000
    assert not [t for t in threading.enumerate() if t.name.startswith("sender-")]


def test_more_senders_than_requests_are_not_started() -> None:
    names: set[str] = set()

    def answer(index: int, due: int) -> Exchange:
        names.add(threading.current_thread().name)
        return answered(str(index), due, due, due + 1)

    assert len(run(Target(answer), parse_schedule("closed(4000)", 3, 1))) == 3
    assert names <= {"sender-0", "sender-1", "sender-2"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("closed(1)", r"1 of 8 requests had no answer within 0\.05 s, and 12 of 20 were not sent"),
        ("constant(10000)", r"13 of 20 requests had no answer within 0\.05 s$"),
    ],
)
def test_answers_that_stay_away_are_an_error_that_says_how_many(text: str, says: str) -> None:
    target = Target(lambda index, due: answered(str(index), due, due, due + 1) if index < 7 else None)
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=says):
        run(target, parse_schedule(text, 20, 1), timeout_s=0.05)
    assert time.monotonic() - begin < 2


def test_when_one_sender_waits_in_vain_the_others_stop() -> None:
    target = Target(lambda index, due: None if index == 3 else answered(str(index), due, due, due + 1))
    with pytest.raises(TimeoutError, match=r"1 of \d+ requests had no answer"):
        # Far more than can be sent meanwhile.
        run(target, parse_schedule("closed(4)", 10**9, 1), timeout_s=0.05)


@pytest.mark.parametrize("text", ["closed(3)", "constant(1000)"])
def test_what_a_target_raises_is_not_lost(text: str) -> None:
    def fail(index: int, due: int) -> Exchange:
        if index == 4:
            raise ValueError("the target is broken")
        return answered(str(index), due, due, due + 1)

    with pytest.raises(ValueError, match="the target is broken"):
        run(Target(fail), parse_schedule(text, 50, 1))


def test_senders_stop_when_the_run_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches the main thread while it waits for the senders."""
    asked = threading.Event()
    target = Target(lambda index, due: (asked.set(), answered(str(index), due, due, due + 1))[1])  # type: ignore[func-returns-value]
    senders: Sequence[threading.Thread] = ()
    join = threading.Thread.join

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name == "sender-0":
            asked.wait(5)
            raise KeyboardInterrupt
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(target, parse_schedule("closed(2)", 10**9, 1))
    senders = [t for t in threading.enumerate() if t.name.startswith("sender-")]
    for sender in senders:
        join(sender, 5)
    assert not any(sender.is_alive() for sender in senders)


def test_the_run_delay_of_senders_is_kept_beyond_their_end() -> None:
    def work(index: int, due: int) -> Exchange:
        end = time.thread_time() + 0.004
        while time.thread_time() < end:
            pass
        return answered(str(index), due, due, due + 1)

    measured = Run(Target(work), TENSORS, parse_schedule("closed(4)", 40, 1), prefix="p", timeout_s=5)
    measured.run()
    assert measured.senders_run_delay_ns > 0
