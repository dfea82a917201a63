"""Frames out of a broker, at a door of this process: what they are read as, what is told of them, and their time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest

from services import wire
from services.accounting import Fact, Stage, monotonic_ns, total_ns
from services.errors import ConfigurationError, InvalidInput, Overloaded, UnknownModel
from services.link import Answered, Link
from services.messages import Finished
from services.pipeline import Pipeline, preprocessing_stage
from services.preprocess.published import Published
from services.preprocess.server import HOP, Door, Entrance
from services.settings import PreprocessSettings, parse
from services.transports.kafka_client import MESSAGE_LIMIT, parse_url
from services.transports.transport import Delivery, Tried
from services.wiring import build_preprocess
from tests.unit.test_pipeline import WAIT, Engine, Identity, Numbers, Refusing

MS = 1_000_000
MESSAGE = {"content-type": b"application/x-protobuf"}


class World:
    """A door with room for nobody over gRPC, and an entrance from a broker."""

    def __init__(self, *tasks: str, default: str = "", engine: Engine | None = None) -> None:
        task = Identity()
        self.stage = preprocessing_stage(Numbers(), instances=1, max_batch=1, max_delay_s=0, capacity=8)
        links = {task.model: Link((engine or Engine()).submit, None, lambda: None)}
        pipeline = Pipeline({task.name: task}, links, self.stage)
        self.served: list[Finished] = []
        self.answered: list[Answered] = []
        self.door = Door(pipeline, admission_limit=0, default_timeout_s=WAIT, served=self._serve)
        entrance = Entrance(answered=self.answered.append, system="kafka", destination="images")
        self.handle = Published(self.door, tasks or (task.name,), default, entrance)

    def _serve(self, request: Finished) -> str:
        self.served.append(request)
        return "trace"


@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(*tasks: str, default: str = "", engine: Engine | None = None) -> World:
        made.append(World(*tasks, default=default, engine=engine))
        return made[-1]

    yield make
    for one in made:
        one.stage.close()


def record(payload: bytes, headers: Mapping[str, bytes] | None = None, **more: int | None) -> Delivery:
    now = monotonic_ns()
    given = {"attempt": 1, "appended_ns": None, **more}
    return Delivery(payload, headers or {}, now, now, now, brokered=True, position=(2, 41), **given)  # type: ignore[arg-type]


def test_a_record_is_an_image_of_the_only_task_with_its_place_for_a_name(world: Callable[..., World]) -> None:
    one = world()
    response = wire.decode_response(one.handle(record(b"7")).result(WAIT).payload)
    assert (response.model, response.id) == ("identity", "2-41")
    [first, *_] = response.tiles
    assert (first.stage, dict(first.facts)) == (Stage.ADMISSION, {Fact.PARTITION: 2, Fact.OFFSET: 41})
    assert Stage.TRANSIT not in {tile.stage for tile in response.tiles}, "its bytes were complete when it was taken"


def test_headers_name_the_task_and_the_request(world: Callable[..., World]) -> None:
    one = world("identity", "another")
    response = wire.decode_response(one.handle(record(b"7", {"task": b"identity", "id": b"mine"})).result(WAIT).payload)
    assert (response.model, response.id) == ("identity", "mine")


def test_where_there_are_several_tasks_it_must_be_said_which(world: Callable[..., World]) -> None:
    error = world("identity", "another").handle(record(b"7")).exception(WAIT)
    assert isinstance(error, InvalidInput)
    assert "none of identity, another" in error.message
    assert "--consume-task" in error.message
    assert world("identity", "another", default="identity").handle(record(b"7")).exception(WAIT) is None
    assert isinstance(world().handle(record(b"7", {"task": b"\xff"})).exception(WAIT), UnknownModel)


def test_a_message_of_the_protocol_is_read_as_one_only_if_it_says_so(world: Callable[..., World]) -> None:
    payload = wire.encode_request("identity", "asked", {"image": np.array([b"7"], dtype=object)})
    one = world()
    assert wire.decode_response(one.handle(record(payload, MESSAGE)).result(WAIT).payload).id == "asked"
    assert one.handle(record(payload)).exception(WAIT) is not None, "else it is an image, and this is none"
    assert one.handle(record(b"7", {"content-type": b"image/jpeg"})).exception(WAIT) is None, "as a camera may say"


def test_what_waits_in_a_broker_is_never_refused_at_the_door(world: Callable[..., World]) -> None:
    # Given a door that has room for nobody
    one = world()
    payload = wire.encode_request("identity", "asked", {"image": np.array([b"7"], dtype=object)})
    now = monotonic_ns()
    assert isinstance(one.door(Delivery(payload, {}, now, now, now)).exception(WAIT), Overloaded)
    # Then a record is answered all the same: its listener bounds what is in hand
    assert one.handle(record(b"7")).exception(WAIT) is None
    assert one.door.inside() == 0


def test_what_waits_in_a_broker_is_not_refused_behind_the_door_either(world: Callable[..., World]) -> None:
    # Given an engine whose queue is full at first
    one = world(engine=Refusing({"2-41": 1, "asked": 1}, Overloaded("the queue is full")))
    payload = wire.encode_request("identity", "asked", {"image": np.array([b"7"], dtype=object)})
    now = monotonic_ns()
    one.door.admission_limit = 1
    # Then who calls over gRPC is told, and a record waits
    assert isinstance(one.door(Delivery(payload, {}, now, now, now)).exception(WAIT), Overloaded)
    assert one.handle(record(b"7")).exception(WAIT) is None


def test_what_came_out_of_a_broker_takes_nobodys_place(world: Callable[..., World]) -> None:
    # Given a door with room for one over gRPC, and a record in it that does not end
    waits = Engine(answers=lambda work: ... if work.id == "2-41" else None)
    one = world(engine=waits)
    one.door.admission_limit = 1
    inside = threading.Thread(target=one.handle, args=(record(b"7")._replace(timeout=3.0),), daemon=True)
    inside.start()
    while not waits.works:
        assert inside.is_alive()
    # Then there is room for one all the same
    payload = wire.encode_request("identity", "asked", {"image": np.array([b"7"], dtype=object)})
    now = monotonic_ns()
    assert one.door(Delivery(payload, {}, now, now, now)).exception(WAIT) is None
    assert inside.is_alive()
    inside.join(WAIT)


def test_books_and_spans_learn_by_which_way_it_came(world: Callable[..., World]) -> None:
    one = world()
    later: list[Callable[[], None]] = []
    assert one.handle(record(b"7")._replace(after=later.append)).exception(WAIT) is None
    assert not one.served
    assert not one.answered
    [tell] = later
    tell()
    assert one.served[0].source == ("kafka", "images")
    assert (one.answered[0].model, one.answered[0].trace_id, one.answered[0].received_bytes) == ("identity", "trace", 1)


def test_an_answer_that_goes_into_a_broker_says_what_it_is_and_when_it_left(world: Callable[..., World]) -> None:
    begin = monotonic_ns()
    headers = world().handle(record(b"7")).result(WAIT).headers
    assert headers["content-type"] == b"application/x-protobuf"
    assert begin < int(headers["sent-ns"]) < monotonic_ns()
    assert headers["clock"]


@pytest.mark.parametrize(("attempt", "stage"), [(1, Stage.BROKER_WAIT), (2, Stage.REDELIVERY)])
def test_by_the_brokers_stamps_a_record_knows_what_it_waited_longer_than_others(
    world: Callable[..., World], attempt: int, stage: Stage
) -> None:
    # Given a record that was there at once, by a clock that is an hour behind
    one = world()
    behind = 3_600_000 * MS
    quick = one.handle(record(b"7", appended_ns=time.time_ns() - behind)).result(WAIT)
    assert stage not in {tile.stage for tile in wire.decode_response(quick.payload).tiles}
    # When another one comes 50 ms after it was appended
    late = record(b"7", appended_ns=time.time_ns() - behind - 50 * MS, attempt=attempt)
    tiles = wire.decode_response(one.handle(late).result(WAIT).payload).tiles
    # Then its ledger begins with that
    assert (tiles[0].stage, tiles[0].where) == (stage, HOP)
    assert 30 * MS < tiles[0].duration_ns < 70 * MS
    # One of another partition has another clock, so nothing is known of it
    other = late._replace(position=(3, 1), appended_ns=time.time_ns())
    first = wire.decode_response(one.handle(other).result(WAIT).payload).tiles[0]
    assert first.stage is Stage.ADMISSION


def test_what_was_tried_before_tells_of_the_time_before_also(world: Callable[..., World]) -> None:
    # Given a record that arrived an hour ago and was tried twice since, with pauses in between
    now = monotonic_ns()
    arrived, again = now - 3600 * 10**9, now - 3 * MS
    delivery = record(b"7", attempt=1)._replace(arrived_ns=arrived, tried=Tried(2, again), picked_up_ns=now - MS)
    # When it is answered
    one = world()
    tiles = wire.decode_response(one.handle(delivery).result(WAIT).payload).tiles
    # Then its ledger begins when it arrived first, and what came before this try is the first part of it
    assert [(tile.stage, tile.duration_ns) for tile in tiles[:2]] == [
        (Stage.RETRY, again - arrived),
        (Stage.ADMISSION, 2 * MS),
    ]
    assert {fact: value for tile in tiles for fact, value in tile.facts}[Fact.ATTEMPT] == 3
    # And it was answered at all: its time counts from this try
    assert one.served[0].start_ns == arrived
    # But who counts requests learns of this try only: he has counted the others
    [told] = one.answered
    assert total_ns(told.tiles) < 10**9 < total_ns(tiles)
    assert Stage.RETRY not in {tile.stage for tile in told.tiles}
    statistics = one.door.statistics(next(iter(one.door._counters)))
    assert 0 < statistics.success.ns < 10**9
    assert statistics.input.ns < 10**9


def test_a_stamp_that_was_made_up_is_no_wait(world: Callable[..., World]) -> None:
    one = world()
    for stamp in (b"%d" % monotonic_ns(), b"-9000000000000000000"):
        tiles = wire.decode_response(one.handle(record(b"7", {"sent-ns": stamp})).result(WAIT).payload).tiles
        assert tiles[0].stage is Stage.ADMISSION


def test_less_than_the_stamps_resolve_is_no_wait(world: Callable[..., World]) -> None:
    one = world()
    base = time.time_ns()
    now = monotonic_ns()
    for ahead in (0, 400_000):  # of the broker's clock, which shows whole milliseconds
        delivery = record(b"7", appended_ns=base)._replace(arrived_ns=now + ahead)
        tiles = wire.decode_response(one.handle(delivery).result(WAIT).payload).tiles
        assert tiles[0].stage is Stage.ADMISSION


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_link_with_results_makes_their_topic_as_wide_and_lets_the_broker_stamp() -> None:
    url = parse_url("kafka://host:9092/images?results=answers&partitions=6")
    assert url.topics == {"images": 6, "images.replies": 4, "images.dead": 1, "answers": 6}
    limit = {"max.message.bytes": str(MESSAGE_LIMIT)}
    assert url.configuration("images") == {**limit, "message.timestamp.type": "LogAppendTime"}
    assert url.configuration("answers") == limit
    assert parse_url("kafka://host:9092/images").configuration("images") == limit


def test_a_link_has_as_few_partitions_as_its_url_says() -> None:
    assert parse_url("kafka://host:9092/images?partitions=1&results=answers").partitions == 1
    assert parse_url("kafka://host:9092/images?partitions=1").partitions == 1  # who calls such a door
    with pytest.raises(ConfigurationError, match="the least is 1"):
        parse_url("kafka://host:9092/images?partitions=0")


@pytest.mark.parametrize("results", ["images", "images.replies", "images.dead"])
def test_results_cannot_go_where_something_else_is(results: str) -> None:
    with pytest.raises(ConfigurationError, match="a topic of the link's own"):
        parse_url(f"kafka://host:9092/images?results={results}")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--consume", "grpc://host:1"), "is no topic of a broker"),
        (("--consume", "mqtt://host:1/images"), "unknown scheme 'mqtt'"),
        (("--consume-task", "astrology"), "'astrology' is no task of this door; it has classification"),
        (("--consume", "redis://host:1/images?results=x"), "unknown option 'results'"),
    ],
)
def test_what_cannot_be_consumed_is_said_at_start(flags: tuple[str, ...], says: str) -> None:
    settings = parse(PreprocessSettings, "", ["--listen", "127.0.0.1:0", "--link", "emulated=fused:", *flags], {})
    with pytest.raises(ConfigurationError, match=says):
        build_preprocess(settings)
