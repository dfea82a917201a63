"""A link accounts for every nanosecond of a hop, on clocks that are the test's; errors and late work cross it right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from services import transports, wire
from services.accounting import UNKNOWN_CPU, Fact, Stage, Tile, monotonic_ns
from services.errors import DeadlineExceeded, Internal, InvalidInput, Overloaded, ServiceError, Unavailable
from services.link import HOP, Answered, Arrivals, Remote, expose
from services.messages import Outcome, TensorSpec, Work
from services.transports.transport import Delivery, Handle, Reply, Response, Tried

MS = 1_000_000
WAIT = 10.0
OUTPUTS = (TensorSpec("logits", "float32", (-1, 3)),)


class World:
    """Two processes, a clock each (the callee's is ahead by `skew`), and what lies between them."""

    brokered = False
    system = "test"
    destination = "there"

    def __init__(self, *, skew: int = 0, same_clock: bool = False) -> None:
        self.now = 1_000 * MS
        self.skew = skew
        self.same_clock = same_clock
        self.there = 3 * MS
        self.back = 2 * MS
        self.attempt = 1
        self.published: int | None = None  # after the sending
        self.timeout: float | None = None
        self.engine_ns = 5 * MS
        self.computed: list[Work] = []
        self.engine_tiles: tuple[Tile, ...] | None = None
        self.error: Exception | None = None
        self.change: Callable[[Response], Response] = lambda response: response
        self.handle: Handle = expose(
            self.engine, OUTPUTS, clock="A" if same_clock else "B", now=lambda: self.now + self.skew
        )
        self.replies: list[Response] = []

    # the callee's engine

    def engine(self, work: Work) -> Future[Outcome]:
        self.computed.append(work)
        self.now += self.engine_ns
        future: Future[Outcome] = Future()
        if self.error is not None:
            future.set_exception(self.error)
        else:
            tiles = self.engine_tiles or (Tile(Stage.INFER, self.engine_ns, UNKNOWN_CPU, "inference"),)
            future.set_result(Outcome({"logits": np.full((1, 3), work.tensor.sum(), np.float32)}, tiles))
        return future

    # a transport that takes the time which the test says

    def request(self, payload: bytes, headers: Mapping[str, bytes], timeout: float) -> Future[Reply]:
        self.now += self.there
        arrived = self.now + self.skew
        delivery = Delivery(
            payload,
            headers,
            arrived,
            arrived,
            arrived,
            self.attempt,
            brokered=self.brokered,
            timeout=self.timeout,
            position=(3, 41) if self.brokered else None,
        )
        sent = self.now - self.there
        future: Future[Reply] = Future()
        try:
            response = self.change(self.handle(delivery).result(0))
        except ServiceError as error:
            future.set_exception(error)
            return future
        self.replies.append(response)
        self.now += self.back
        published = None if self.published is None else sent + self.published
        future.set_result(Reply(response.payload, response.headers, self.now, published))
        return future

    def healthy(self) -> bool:
        return True

    def counters(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        pass

    # the caller

    def remote(self) -> Remote:
        return Remote(self, clock="A", now=lambda: self.now)

    def work(self, value: float = 1.0, budget: int = 1_000 * MS) -> Work:
        return Work("7", "sum", np.full((1, 2), value, np.float32), self.now + budget)


class Brokered(World):
    brokered = True


def parts(outcome: Outcome) -> list[tuple[Stage, int]]:
    """What took time: (stage, ns), without the parts of no length."""
    return [(tile.stage, tile.duration_ns) for tile in outcome.tiles if tile.duration_ns]


# --- the ledger of a hop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [0, 10**15, -(10**12)])
def test_transit_is_what_the_callee_does_not_account_for_whatever_its_clock_says(skew: int) -> None:
    world = World(skew=skew)
    begin = world.now
    outcome = world.remote().submit(world.work()).result(0)
    assert outcome.outputs["logits"].tolist() == [[2, 2, 2]]
    assert parts(outcome) == [(Stage.INFER, 5 * MS), (Stage.TRANSIT, 5 * MS)]
    assert sum(tile.duration_ns for tile in outcome.tiles) == world.now - begin
    assert [(tile.stage, tile.where) for tile in outcome.tiles] == [
        (Stage.SERIALIZE, "preprocess"),
        (Stage.ADMISSION, "inference"),
        (Stage.DESERIALIZE, "inference"),
        (Stage.INFER, "inference"),
        (Stage.DISPATCH, "inference"),
        (Stage.SERIALIZE, "inference"),
        (Stage.TRANSIT, HOP),
        (Stage.DISPATCH, "preprocess"),
        (Stage.DESERIALIZE, "preprocess"),
    ]


@pytest.mark.parametrize("skew", [0, 10**15])
def test_a_wait_in_the_broker_is_carved_out_of_transit_each_way(skew: int) -> None:
    # Given a link whose floor has been seen
    world = Brokered(skew=skew)
    remote = world.remote()
    floor = remote.submit(world.work()).result(0)
    assert parts(floor) == [(Stage.INFER, 5 * MS), (Stage.TRANSIT, 5 * MS)]
    # When a message waits 30 ms longer on its way there, and 20 on its way back
    world.there += 30 * MS
    world.back += 20 * MS
    begin = world.now
    outcome = remote.submit(world.work()).result(0)
    # Then that is a wait, and transit is what it was; the sum is none the wiser
    assert parts(outcome) == [
        (Stage.BROKER_WAIT, 30 * MS),
        (Stage.INFER, 5 * MS),
        (Stage.TRANSIT, 5 * MS),
        (Stage.BROKER_WAIT, 20 * MS),
    ]
    assert {tile.where for tile in outcome.tiles if tile.stage is Stage.BROKER_WAIT} == {HOP}
    assert sum(tile.duration_ns for tile in outcome.tiles) == world.now - begin


@pytest.mark.parametrize("same_clock", [False, True])
def test_a_hop_says_what_it_carried_and_what_it_knows_of_ages(same_clock: bool) -> None:
    # Given a link over a broker, between processes on one clock or on two that differ
    world = Brokered(skew=0 if same_clock else 10**15, same_clock=same_clock)
    world.published = 1 * MS
    # When a request crosses it
    outcome = world.remote().submit(world.work()).result(0)
    # Then the ledger has sizes, record and acknowledgement; an age only where one clock read both ends
    [admission] = [dict(tile.facts) for tile in outcome.tiles if tile.stage is Stage.ADMISSION]
    [transit] = [dict(tile.facts) for tile in outcome.tiles if tile.stage is Stage.TRANSIT]
    size = len(wire.encode_request("sum", "7", {"images": np.full((1, 2), 1.0, np.float32)}))
    there = {Fact.PARTITION: 3, Fact.OFFSET: 41}
    back = {
        Fact.SYSTEM: "test",
        Fact.DESTINATION: "there",
        Fact.REQUEST_BYTES: size,
        Fact.REPLY_BYTES: len(world.replies[-1].payload),
        Fact.PUBLISH_NS: 1 * MS,
    }
    if same_clock:
        assert admission == {**there, Fact.AGE_NS: 3 * MS}
        assert transit == {**back, Fact.AGE_NS: 2 * MS}
    else:
        assert admission == there
        assert transit == back


def test_the_wait_of_a_record_that_was_delivered_before_is_redelivery() -> None:
    world = Brokered()
    remote = world.remote()
    remote.submit(world.work()).result(0)
    world.there += 6_000 * MS
    world.attempt = 2
    outcome = remote.submit(world.work(budget=10_000 * MS)).result(0)
    assert parts(outcome) == [(Stage.REDELIVERY, 6_000 * MS), (Stage.INFER, 5 * MS), (Stage.TRANSIT, 5 * MS)]


def test_where_nothing_can_wait_nothing_is_carved() -> None:
    world = World()
    remote = world.remote()
    remote.submit(world.work()).result(0)
    world.there += 30 * MS
    assert parts(remote.submit(world.work()).result(0)) == [(Stage.INFER, 5 * MS), (Stage.TRANSIT, 35 * MS)]


def test_a_probe_moves_the_same_bytes_and_computes_nothing() -> None:
    world = World()
    remote = world.remote()
    probed = remote.probe(world.work()).result(0)
    assert world.computed == []
    assert parts(probed) == [(Stage.TRANSIT, 5 * MS)]
    # Its answer is as large as a real one, or it would not be the link's floor
    real = remote.submit(world.work()).result(0)
    assert probed.outputs["logits"].shape == real.outputs["logits"].shape
    assert probed.outputs["logits"].dtype == real.outputs["logits"].dtype
    assert len(world.replies[0].payload) == len(world.replies[1].payload)


@pytest.mark.parametrize("tiles", [10, 3000])
def test_a_ledger_travels_beside_the_payload_or_where_it_is_long_in_it(tiles: int) -> None:
    world = World()
    world.engine_tiles = tuple(Tile(Stage.INFER, i, UNKNOWN_CPU, f"inference-{i % 7}") for i in range(tiles))
    outcome = world.remote().submit(world.work()).result(0)
    assert [t for t in outcome.tiles if t.where.startswith("inference-")] == list(world.engine_tiles)
    [reply] = world.replies
    assert ("ledger" in reply.headers) == (tiles == 10)
    # gRPC's metadata holds 8 KiB
    assert sum(len(name) + len(value) for name, value in reply.headers.items()) < 8192
    assert bool(wire.decode_response(reply.payload).tiles) == (tiles == 3000)


def test_a_callee_without_a_ledger_is_one_part_that_is_called_remote() -> None:
    for world in (World(), Brokered()):
        world.change = lambda response: Response(response.payload, {})
        outcome = world.remote().submit(world.work()).result(0)
        assert parts(outcome) == [(Stage.REMOTE, 10 * MS)]
        assert [t.where for t in outcome.tiles if t.stage is Stage.REMOTE] == [HOP]


# --- time that is spent ----------------------------------------------------------------------------------------------


def delivered(world: World, age: int, budget: int, payload: bytes | None = None) -> Future[Response]:
    """Deliver a request of this age, by the caller's stamp, to the callee."""
    work = world.work()
    if payload is None:
        payload = wire.encode_request(work.model, work.id, {"images": work.tensor})
    arrived = world.now + world.skew
    headers = {"sent-ns": b"%d" % (world.now - age), "budget-ns": b"%d" % budget, "clock": b"A"}
    return world.handle(Delivery(payload, headers, arrived, arrived, arrived, brokered=world.brokered))


def test_a_request_older_than_its_budget_is_dropped_before_it_costs_anything() -> None:
    world = World(same_clock=True)
    # Not even decoded: else these bytes would be the error
    with pytest.raises(DeadlineExceeded, match="nothing was computed"):
        delivered(world, age=105 * MS, budget=100 * MS, payload=b"\xff\xff").result(0)
    assert world.computed == []
    # Just within: two clocks may be off by a little
    delivered(world, age=105 * MS - 1, budget=100 * MS).result(0)
    assert len(world.computed) == 1


def test_the_engine_learns_the_deadline_on_its_own_clock() -> None:
    world = World(same_clock=True)
    delivered(world, age=40 * MS, budget=100 * MS).result(0)
    assert world.computed[0].deadline_ns == world.now - world.engine_ns + 60 * MS


def test_on_another_clock_only_the_wait_beyond_the_minimum_counts() -> None:
    # Given a caller on another machine, whose stamps mean nothing here by themselves
    world = Brokered(skew=10**15)
    delivered(world, age=3 * MS, budget=100 * MS).result(0)
    assert world.computed[0].deadline_ns == world.now - world.engine_ns + world.skew + 100 * MS
    # When a request took 104 ms longer than that one, then it is within the slack; with 105 it is late
    delivered(world, age=107 * MS, budget=100 * MS).result(0)
    with pytest.raises(DeadlineExceeded):
        delivered(world, age=108 * MS, budget=100 * MS).result(0)


class Frames:
    """Records without a caller's stamp, of a broker whose clock is an hour ahead of ours."""

    def __init__(self) -> None:
        self.now = 0
        self.set_by = 0  # our wall clock
        self.held: list[int] = []  # ms, for which we do not run amid looks at the clocks
        self.arrivals = Arrivals(60.0, "B", lambda: self.now, self._wall)

    def _wall(self) -> int:
        if self.held:
            self.now += self.held.pop(0) * MS
        return self.now + 10**18 + self.set_by

    def waited_ms(self, age_ms: int, after_ms: int = 100, *, arrived_ms: int = 0, tried: Tried | None = None) -> int:
        """Of one that comes `after_ms` after the last one, or came `arrived_ms` before that."""
        self.now += after_ms * MS
        arrived = self.now - arrived_ms * MS
        appended = arrived - age_ms * MS + 10**18 + 3_600_000 * MS
        delivery = Delivery(b"", {}, arrived, arrived, arrived, brokered=True, position=(0, 1), appended_ns=appended)
        return self.arrivals.waited_ns(delivery._replace(tried=tried)) // MS


def test_in_a_backlog_frames_say_how_long_they_waited_for_an_hour() -> None:
    # Given a record that came at once, after which all wait, ever longer
    frames = Frames()
    assert frames.waited_ms(2) == 0
    for second in range(1, 3500):
        assert frames.waited_ms(2 + 1000 * second, 1000) == 1000 * second
    # Then no more is kept of them than of some
    assert sum(map(len, frames.arrivals._stamps._minima.values())) <= 1001
    # When it is over; then what comes at once has not waited
    assert frames.waited_ms(2) == 0
    # But no clock is believed for longer: they drift
    assert frames.waited_ms(10_002, 3_700_000) == 0


def test_a_clock_that_is_set_is_no_wait() -> None:
    frames = Frames()
    assert frames.waited_ms(2) == 0
    frames.set_by = 700 * MS  # as if all had waited for so long
    assert frames.waited_ms(2) == 0
    # and what comes then is compared with what came since
    assert frames.waited_ms(42) == 40
    frames.set_by -= 20 * MS  # slewed
    assert frames.waited_ms(42) == 20


def test_a_thread_that_is_held_between_two_clocks_does_not_take_one_for_set() -> None:
    frames = Frames()
    assert frames.waited_ms(2) == 0
    # When it is held, three times amid one record's, then what that one waited is known
    frames.held = [80, 200, 90]
    assert frames.waited_ms(42) == 40
    # And when it never gets on, the best look counts
    frames.held = [80, 70, 3, 90, 90]
    assert 40 <= frames.waited_ms(42) <= 43
    assert frames.waited_ms(42) == 40


def test_what_was_tried_before_waited_as_long_as_it_did_then() -> None:
    # Given one that waited 40 ms and was tried, while others came at once
    frames = Frames()
    assert frames.waited_ms(2) == 0
    assert frames.waited_ms(42) == 40
    # When it is tried again ten minutes later, twice
    for _ in range(2):
        assert frames.waited_ms(42, 600_000, arrived_ms=600_000, tried=Tried(1, 0)) == 40
    # Then others are compared with what they were before
    assert frames.waited_ms(12) == 10


@pytest.mark.parametrize(("timeout", "granted"), [(0.25, 250 * MS), (None, 60_000 * MS)])
def test_a_client_of_the_plain_protocol_has_what_its_transport_grants(timeout: float | None, granted: int) -> None:
    world = World()
    payload = wire.encode_request("sum", "7", {"images": np.ones((1, 2), np.float32)})
    arrived = world.now
    world.handle(Delivery(payload, {"sent-ns": b"x"}, arrived, arrived, arrived, timeout=timeout)).result(0)
    assert world.computed[0].deadline_ns == arrived + granted


# --- over a real transport -------------------------------------------------------------------------------------------


class Memory:
    """A `Remote` and an engine behind `expose`, over the memory transport."""

    def __init__(self, engine: Callable[[Work], Future[Outcome]]) -> None:
        self.listener = transports.listen("memory://test-link")
        self.listener.serve(expose(engine, OUTPUTS))
        self.remote = Remote(transports.connect("memory://test-link"))

    def close(self) -> None:
        self.remote.close()
        self.listener.close()


@pytest.fixture
def memory() -> Any:
    """Makes one, and closes it."""
    made: list[Memory] = []

    def make(engine: Callable[[Work], Future[Outcome]]) -> Remote:
        made.append(Memory(engine))
        return made[-1].remote

    yield make
    for one in made:
        one.close()


def answering(result: Outcome | Exception) -> Callable[[Work], Future[Outcome]]:
    def engine(work: Work) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
        return future

    return engine


OUTCOME = Outcome({"logits": np.ones((1, 3), np.float32)}, (Tile(Stage.INFER, 1, UNKNOWN_CPU, "inference"),))


def long_from_now() -> Work:
    return Work("7", "sum", np.ones((1, 2), np.float32), monotonic_ns() + 60_000 * MS)


@pytest.mark.parametrize("error", [Overloaded("full"), InvalidInput("wrong"), ZeroDivisionError("a bug")])
def test_errors_cross_as_what_they_are(memory: Callable[..., Remote], error: Exception) -> None:
    expected = type(error) if isinstance(error, ServiceError) else Internal
    with pytest.raises(expected, match=str(error)):
        memory(answering(error)).submit(long_from_now()).result(WAIT)


def test_on_one_machine_no_part_is_negative(memory: Callable[..., Remote]) -> None:
    remote = memory(answering(OUTCOME))
    for _ in range(50):
        outcome = remote.submit(long_from_now()).result(WAIT)
        assert min(tile.duration_ns for tile in outcome.tiles) >= 0


def test_work_without_time_left_is_not_sent(memory: Callable[..., Remote]) -> None:
    computed: list[Work] = []
    remote = memory(lambda work: computed.append(work) or answering(OUTCOME)(work))  # type: ignore[func-returns-value]
    late = long_from_now()
    late.deadline_ns -= 60_001 * MS
    with pytest.raises(DeadlineExceeded):
        remote.submit(late).result(WAIT)
    assert computed == []


def test_a_link_is_healthy_while_somebody_is_there() -> None:
    link = Memory(answering(OUTCOME))
    assert link.remote.healthy()
    link.listener.close()
    assert not link.remote.healthy()
    with pytest.raises(Unavailable):
        link.remote.submit(long_from_now()).result(WAIT)
    link.close()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda r: Response(b"\xff\xff", r.headers), id="payload"),
        pytest.param(lambda r: Response(r.payload, {**r.headers, "ledger": b"\xff\xff"}), id="ledger"),
    ],
)
def test_a_malformed_reply_ends_the_call(change: Callable[[Response], Response]) -> None:
    world = World()
    world.change = change
    with pytest.raises(Internal, match="malformed"):
        world.remote().submit(world.work()).result(0)


HUGE = b"9" * 400  # no float holds it


@pytest.mark.parametrize("numbers", [b"", b"many", b"1e9", HUGE, b"-" + HUGE])
def test_stamps_that_are_no_numbers_are_passed_over(numbers: bytes) -> None:
    world = Brokered()
    world.change = lambda r: Response(r.payload, {**r.headers, "sent-ns": numbers, "waited-ns": numbers})
    assert parts(world.remote().submit(world.work()).result(0)) == [(Stage.INFER, 5 * MS), (Stage.TRANSIT, 5 * MS)]


@pytest.mark.parametrize("inputs", [{}, {"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)}])
def test_a_request_has_one_input(inputs: dict[str, Any]) -> None:
    world = World()
    payload = wire.encode_request("sum", "7", inputs)
    with pytest.raises(InvalidInput, match="takes one input"):
        world.handle(Delivery(payload, {}, world.now, world.now, world.now)).result(0)


def test_only_the_outputs_that_are_asked_for_come_back() -> None:
    world = World()
    tensor = {"images": np.ones((1, 2), np.float32)}
    for asked, given in (((), ["logits"]), (("logits",), ["logits"]), (("mask",), [])):
        payload = wire.encode_request("sum", "7", tensor, asked)
        response = world.handle(Delivery(payload, {}, world.now, world.now, world.now)).result(0)
        assert list(wire.decode_response(response.payload).outputs) == given


@pytest.mark.parametrize(("budget", "sent"), [(HUGE, b"1"), (b"1000", HUGE), (b"-" + HUGE, b"1"), (b"1", b"-" + HUGE)])
def test_a_request_whose_times_cannot_be_has_the_time_of_one_that_says_none(budget: bytes, sent: bytes) -> None:
    # A deadline that fits no float ended the thread that owns the device
    world = World()
    payload = wire.encode_request("sum", "7", {"images": np.ones((1, 2), np.float32)})
    headers = {"budget-ns": budget, "sent-ns": sent}
    world.handle(Delivery(payload, headers, world.now, world.now, world.now, timeout=2.0)).result(0)
    assert world.computed[0].deadline_ns == world.now - world.engine_ns + 2_000 * MS


def test_a_trace_context_that_is_no_text_goes_no_further() -> None:
    world = World()
    payload = wire.encode_request("sum", "7", {"images": np.ones((1, 2), np.float32)})
    headers = {"traceparent": b"\xff\xfe", "tracestate": b"vendor=1"}
    world.handle(Delivery(payload, headers, world.now, world.now, world.now)).result(0)
    assert world.computed[0].headers == {"tracestate": b"vendor=1"}


def test_decoding_is_charged_with_its_cpu_time_on_both_ends(memory: Callable[..., Remote]) -> None:
    tiles = memory(answering(OUTCOME)).submit(long_from_now()).result(WAIT).tiles
    known = {tile.where: tile.cpu_ns >= 0 for tile in tiles if tile.stage is Stage.DESERIALIZE}
    assert known == {"inference": True, "preprocess": True}


def test_decoding_a_reply_is_no_dispatch(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a reply that takes 3 ms to decode
    world = World()
    decode = wire.decode_response

    def slowly(payload: bytes) -> wire.InferResponse:
        world.now += 3 * MS
        return decode(payload)

    monkeypatch.setattr("services.link.wire.decode_response", slowly)
    tiles = world.remote().submit(world.work()).result(0).tiles
    # Then that time is the decoding's
    assert [(tile.stage, tile.duration_ns) for tile in tiles[-2:]] == [(Stage.DISPATCH, 0), (Stage.DESERIALIZE, 3 * MS)]


def test_whoever_keeps_the_books_hears_once_of_each_request_and_after_its_answer() -> None:
    # Given an engine's handler, and what may come of a request
    world = World()
    told: list[Answered] = []
    handle = expose(world.engine, OUTPUTS, clock="B", now=lambda: world.now, answered=told.append)
    good = wire.encode_request("sum", "7", {"images": np.ones((1, 2), np.float32)})
    spent = {"budget-ns": b"1", "sent-ns": b"0", "clock": b"B"}
    for payload, headers, failing, error, begun, probe in (
        (good, {}, None, None, True, False),
        (good, {"probe": b"1"}, None, None, False, True),
        (good, {}, Overloaded("full"), "overloaded", True, False),
        (good, spent, None, "deadline_exceeded", False, False),
        (b"\xff", {}, None, "invalid_input", False, False),
    ):
        world.error = failing
        later: list[Callable[[], None]] = []
        told.clear()
        now = world.now
        done = handle(Delivery(payload, headers, now, now, now, after=later.append))
        # Then it is answered before they are told, who are told once
        assert done.done()
        assert told == []
        (tell,) = later
        tell()
        (one,) = told
        assert (one.error, one.begun, one.probe, one.received_bytes) == (error, begun, probe, len(payload))
        assert one.sent_bytes == (0 if error else len(done.result(0).payload))
        assert sum(tile.duration_ns for tile in one.tiles) == one.end_ns - now


def test_what_belongs_to_a_request_crosses_with_it() -> None:
    world = World()
    work = world.work()
    work.headers = {"traceparent": b"00-aa-bb-01", "tracestate": b"v=1"}
    world.remote().submit(work).result(0)
    assert world.computed[0].headers == work.headers


def test_the_wait_for_a_worker_and_for_the_rest_of_the_bytes_are_told_apart() -> None:
    # Given a call that was queued, picked up 2 ms later, and whose bytes were there after 3 more
    world = World()
    payload = wire.encode_request("sum", "7", {"images": np.ones((1, 2), np.float32)})
    now = world.now
    response = world.handle(Delivery(payload, {}, now - 5 * MS, now - 3 * MS, now)).result(0)
    tiles = wire.decode_ledger(response.headers["ledger"])
    assert [(tile.stage, tile.duration_ns, tile.where) for tile in tiles[:2]] == [
        (Stage.ADMISSION, 2 * MS, "inference"),
        (Stage.TRANSIT, 3 * MS, HOP),
    ]
    assert sum(tile.duration_ns for tile in tiles) == 5 * MS + world.engine_ns
