"""The runner: everything is asked once, latency counts from when it was due, and nobody waits for ever."""

from __future__ import annotations

import gc
import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest

from loadgen.analysis import analyse
from loadgen.quiet import without_collector
from loadgen.runner import Run, sent
from loadgen.schedule import Schedule, parse_schedule
from loadgen.streams import Streams
from loadgen.tally import Tally
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


def test_what_goes_on_is_counted() -> None:
    tally = Tally()
    target = Target(
        lambda index, due: answered(str(index), due, due, due + 1)._replace(error="internal" if index else None)
    )
    run(target, parse_schedule("closed(1)", 3, 1), tally=tally)
    reading = tally.reading(within_s=math.inf)
    assert (reading.sent, reading.answered, reading.failed, reading.in_flight) == (3, 3, 2, 0)
    assert [total for _, total in reading.latencies] == [1]


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


class Server:
    """A server on virtual time: each answer comes `service_ms` after its request, while somebody sleeps."""

    def __init__(self, service_ms: float) -> None:
        self.clock = Clock()
        self.sent: list[tuple[str, int]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._service_ns = round(service_ms * MS)
        self._due: list[tuple[int, int, Future[Exchange], Exchange]] = []

    def send(
        self, image: Array, id_: str, due_ns: int, *, probe: bool = False, sampled: bool = False
    ) -> Future[Exchange]:
        future: Future[Exchange] = Future()
        now = self.clock.now
        self.sent.append((id_, now))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        done = now + self._service_ns
        heapq.heappush(self._due, (done, len(self.sent), future, answered(id_, due_ns, now, done)))
        return future

    def sleep(self, seconds: float) -> None:
        until = self.clock.now + round(seconds * 1e9)
        while self._due and self._due[0][0] <= until:
            self._answer()
        self.clock.now = until

    def _answer(self) -> None:
        done, _, future, exchange = heapq.heappop(self._due)
        self.clock.now = max(self.clock.now, done)
        self.in_flight -= 1
        future.set_result(exchange)

    def drain(self) -> None:
        while self._due:
            self._answer()

    def emulated(self) -> bool:
        return False

    def close(self) -> None:
        pass


def run_cameras(server: Server, schedule: Schedule) -> list[Exchange]:
    """In virtual time; when all frames are offered nobody sleeps any more, so the last answers come then."""
    wait = Streams.wait

    def drained(streams: Streams, timeout_s: float) -> bool:
        server.drain()
        return wait(streams, timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Streams, "wait", drained)
        return run(server, schedule, clock=server.clock, sleep=server.sleep)


def cameras(text: str, requests: int, service_ms: float) -> tuple[Server, list[Exchange]]:
    """The first frames of `text` against a server that takes `service_ms`."""
    server = Server(service_ms)
    return server, run_cameras(server, parse_schedule(text, requests, 1))


def test_a_camera_whose_frames_are_answered_in_time_loses_none() -> None:
    server, exchanges = cameras("cameras(3, 10)", 60, service_ms=90)
    assert len(sent(exchanges)) == len(exchanges) == 60
    assert all(e.total_ns == 90 * MS for e in exchanges)
    assert server.most_in_flight <= 3


def test_a_camera_that_waits_keeps_its_newest_frame_and_the_dropped_ones_are_told() -> None:
    # Given a camera of 10 frames/s and a server that takes 243 ms
    server, exchanges = cameras("cameras(1, 10)", 40, service_ms=243)
    # Then every frame is accounted for, with its intended instant
    gaps = {b.due_ns - a.due_ns for a, b in itertools.pairwise(exchanges)}
    assert len(exchanges) == 40
    assert {round(gap / MS) for gap in gaps} == {100}
    dropped = [e for e in exchanges if e.error == "dropped"]
    answers = sent(exchanges)
    assert len(dropped) + len(answers) == 40
    # And four frames a second are answered, each the newest that there was, never older than a frame's time
    assert len(answers) == pytest.approx(40 * 100 / 243, abs=2)
    assert server.most_in_flight == 1
    for exchange in answers[:-1]:  # after the last frame there is no newer one
        line = sum(t.duration_ns for t in exchange.tiles if t.stage is Stage.SEND_QUEUE)
        late = sum(t.duration_ns for t in exchange.tiles if t.stage is Stage.SCHEDULE_LAG)
        assert 0 <= line < 100 * MS
        assert exchange.tiles[0].stage is Stage.SCHEDULE_LAG
        assert late == 0, "to wait for one's stream is not the generator's lateness"
        assert line + 243 * MS == exchange.total_ns
    # And the dropped ones waited from their instant until a newer one came, with ledgers that add up
    for exchange in dropped:
        assert exchange.total_ns == sum(t.duration_ns for t in exchange.tiles) == 100 * MS
        assert [t.stage for t in exchange.tiles] == [Stage.UNANSWERED]


def test_a_slow_stream_does_not_hold_up_another() -> None:
    class OneSlow(Server):
        def send(self, image: Array, id_: str, due_ns: int, **more: bool) -> Future[Exchange]:  # type: ignore[override]
            self._service_ns = (500 if stream_of[int(id_.removeprefix("p-"))] == 0 else 5) * MS
            return super().send(image, id_, due_ns, **more)

    schedule = parse_schedule("cameras(2, 10)", 40, 1)
    stream_of = schedule.streams
    server = OneSlow(5)
    exchanges = run_cameras(server, schedule)
    of = {stream: [e for e in exchanges if stream_of[int(e.id.removeprefix("p-"))] == stream] for stream in (0, 1)}
    assert [e for e in of[1] if e.error] == []
    assert len([e for e in of[0] if e.error == "dropped"]) >= 12


def test_what_a_target_raises_for_a_frame_that_waited_is_not_lost() -> None:
    class Broken(Server):
        def send(self, image: Array, id_: str, due_ns: int, **more: bool) -> Future[Exchange]:  # type: ignore[override]
            if len(self.sent) == 3:
                raise ValueError("the target is broken")
            return super().send(image, id_, due_ns, **more)

    with pytest.raises(ValueError, match="the target is broken"):
        run_cameras(Broken(150), parse_schedule("cameras(1, 10)", 20, 1))


def test_frames_that_are_never_answered_are_an_error() -> None:
    clock = Clock()
    target = Target(lambda index, due: None)
    with pytest.raises(TimeoutError, match=r"2 of 2 requests had no answer within 0\.02 s, and 18 of 20 were not sent"):
        run(target, parse_schedule("cameras(2, 10)", 20, 1), timeout_s=0.02, clock=clock, sleep=clock.sleep)


def test_what_is_due_all_at_once_stands_in_line_and_nobody_is_late() -> None:
    # Given a generator that needs 1 ms to send a request
    clock = Clock()

    def answer(index: int, due_ns: int) -> Exchange:
        clock.now += MS
        return answered(str(index), due_ns, clock.now, clock.now + 5 * MS)

    exchanges = run(Target(answer), parse_schedule("offline(10)", 10, 1), clock=clock, sleep=clock.sleep)
    # Then the tenth is answered after 15 ms, 10 of which it stood in line
    assert [e.total_ns / MS for e in exchanges] == [6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    for index, exchange in enumerate(exchanges):
        assert [t.stage for t in exchange.tiles] == [Stage.SCHEDULE_LAG, Stage.SEND_QUEUE, Stage.INFER]
        assert [t.duration_ns / MS for t in exchange.tiles] == [0, index + 1, 5]


def test_a_generator_that_is_further_behind_than_a_caller_would_wait_gives_up_and_says_how_many() -> None:
    # Given 10 s of arrivals, 100 per second, and a target that lets the generator send 10 per second
    clock = Clock()

    def answer(index: int, due_ns: int) -> Exchange:
        clock.now += 100 * MS
        return answered(str(index), due_ns, clock.now, clock.now)

    measured = Run(
        Target(answer),
        TENSORS,
        parse_schedule("constant(100)", 1000, 1),
        prefix="p",
        timeout_s=1.0,
        clock=clock,
        sleep=clock.sleep,
    )
    exchanges = measured.run()
    # Then the nth is n * 90 ms late, and the thirteenth is the first that is more than a second late
    assert len(exchanges) == 12
    assert measured.unsent == 988


def test_a_part_of_a_schedule_keeps_the_numbers_and_images_of_the_whole() -> None:
    target = Target(lambda index, due: answered(str(index), due, due, due + 1))
    run(target, parse_schedule("constant(10000)", 10, 1).part(1, 3))
    assert [id_ for _, id_, _ in target.asked] == ["p-1", "p-4", "p-7"]
    assert [image for image, _, _ in target.asked] == [TENSORS[i % 3] for i in (1, 4, 7)]


@pytest.mark.parametrize("text", ["closed(2)", "constant(1000)"])
def test_a_run_begins_at_the_instant_that_it_is_given(text: str) -> None:
    clock = Clock()
    target = Target(lambda index, due: answered(str(index), due, clock.now, clock.now + 1))
    start = clock.now + 3 * 10**9
    exchanges = run(target, parse_schedule(text, 4, 1), clock=clock, sleep=clock.sleep, start_ns=start)
    assert exchanges[0].due_ns == start


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


def test_the_collector_rests_while_somebody_sends_and_is_as_it_was_afterwards() -> None:
    assert gc.isenabled()
    try:
        with without_collector():
            assert not gc.isenabled()
            with without_collector():
                pass
            assert not gc.isenabled()
        assert gc.isenabled()
    finally:
        gc.unfreeze()
