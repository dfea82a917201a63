"""What parts tell of themselves arrives as metrics, whatever happens to a request: at a link's ends, on clocks of the
test's."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from services import errors, watching
from services.errors import DeadlineExceeded, Internal, InvalidInput, Overloaded, ServiceError, Unavailable
from services.link import HOP, expose
from services.metrics import (
    BUDGET_DROPS,
    CONSUMER_LAG,
    DEAD_LETTERS,
    DELETED,
    HOP_BYTES,
    LINK_DUPLICATES,
    LINK_IN_FLIGHT,
    LINK_LATE,
    PROCESS_DURATION,
    REQUESTS,
    STAGE_DURATION,
    Distribution,
    Labels,
    Metric,
    Metrics,
    Number,
)
from services.transports.transport import Delivery, Handle
from services.watching import Seldom, Topic
from tests.unit.test_link import MS, OUTPUTS, World

URL = "kafka://broker:9092/sums?prefetch=4&group=adders"
WAIT = 10.0


class Counted(World):
    """A hop whose both ends have metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.at_engine = watching.new_metrics("inference")
        self.at_engine.add_task("adding")
        self.at_door = watching.new_metrics("preprocess")
        self.handle: Handle = expose(
            self.engine,
            OUTPUTS,
            clock="B",
            now=lambda: self.now,
            answered=watching.at_the_engine(self.at_engine, "sum", "adding", URL),
        )
        self.counts = {"late": 2, "duplicates": 3}
        self.link = self.remote()
        watching.watch_link(self.at_door, "sum", URL, self.link)

    def counters(self) -> Mapping[str, int]:
        return self.counts


def numbers(metrics: Metrics, metric: Metric) -> dict[Labels, float]:
    found = {family.metric: family.samples for family in metrics.collect()}.get(metric, ())
    return {sample.labels: sample.value for sample in found if isinstance(sample, Number)}


def distributions(metrics: Metrics, metric: Metric) -> dict[Labels, Distribution]:
    found = {family.metric: family.samples for family in metrics.collect()}.get(metric, ())
    return {sample.labels: sample for sample in found if isinstance(sample, Distribution)}


def outcomes(metrics: Metrics) -> dict[tuple[str, str], float]:
    """(task, outcome) -> how many."""
    return {(labels[1], labels[3]): n for labels, n in numbers(metrics, REQUESTS).items()}


def delivery(payload: bytes, headers: Mapping[str, bytes], at: int) -> Delivery:
    return Delivery(payload, headers, at, at, at)


def test_both_ends_of_a_hop_count_the_same_bytes_and_the_callee_its_time() -> None:
    world = Counted()
    world.link.submit(world.work()).result(0)
    world.link.submit(world.work()).result(0)
    received, sent = (
        numbers(world.at_engine, HOP_BYTES)["inference", HOP, "kafka", direction] for direction in ("received", "sent")
    )
    assert numbers(world.at_door, HOP_BYTES) == {
        ("preprocess", HOP, "kafka", "sent"): received,
        ("preprocess", HOP, "kafka", "received"): sent,
    }
    assert sent == sum(len(reply.payload) for reply in world.replies) > 0
    assert outcomes(world.at_engine) == {("adding", "ok"): 2}
    by_stage = {labels[1]: found.total for labels, found in distributions(world.at_engine, STAGE_DURATION).items()}
    assert by_stage["infer"] == 2 * world.engine_ns
    [(labels, processed)] = distributions(world.at_engine, PROCESS_DURATION).items()
    assert labels == ("kafka", "process", "sums", "adders", "")
    assert (sum(processed.counts), processed.total) == (2, 2 * world.engine_ns)


def test_what_fails_is_counted_by_its_kind_and_is_in_flight_no_more() -> None:
    world = Counted()
    for error in (Overloaded("full"), InvalidInput("wrong"), Internal("a bug")):
        world.error = error
        with pytest.raises(ServiceError):
            world.link.submit(world.work()).result(0)
    assert outcomes(world.at_engine) == {
        ("adding", "overloaded"): 1,
        ("adding", "invalid_input"): 1,
        ("adding", "internal"): 1,
    }
    assert numbers(world.at_door, LINK_IN_FLIGHT) == {("sum", "kafka"): 0}
    assert numbers(world.at_engine, HOP_BYTES)["inference", HOP, "kafka", "sent"] == 0
    stages = {labels[1]: found for labels, found in distributions(world.at_engine, STAGE_DURATION).items()}
    assert stages["unanswered"].total == 3 * world.engine_ns  # a failure's time is accounted for
    assert {labels[-1] for labels in distributions(world.at_engine, PROCESS_DURATION)} == {
        "overloaded",
        "invalid_input",
        "internal",
    }


def test_who_comes_too_late_is_a_drop_at_arrival_and_not_who_is_late_elsewhere() -> None:
    world = Counted()
    sent = {"budget-ns": b"1000000", "sent-ns": b"0", "clock": b"B"}
    late = world.handle(delivery(b"never read", sent, 50 * MS))
    assert isinstance(late.exception(0), DeadlineExceeded)
    assert numbers(world.at_engine, BUDGET_DROPS) == {("arrival",): 1}
    assert world.computed == []
    world.error = DeadlineExceeded("in the queue")
    assert isinstance(world.link.submit(world.work()).exception(0), DeadlineExceeded)
    assert numbers(world.at_engine, BUDGET_DROPS) == {("arrival",): 1}
    assert outcomes(world.at_engine) == {("adding", "deadline_exceeded"): 2}


def test_what_cannot_be_read_and_models_that_are_none_are_counted() -> None:
    world = Counted()
    assert world.handle(delivery(b"\xff\xff", {}, world.now)).exception(0) is not None
    work = world.work()
    work.model = "of mine"
    world.error = errors.UnknownModel("none")
    assert world.link.submit(work).exception(0) is not None
    assert outcomes(world.at_engine) == {("adding", "invalid_input"): 1, ("unknown", "unknown_model"): 1}


def test_a_probe_is_none_of_the_tasks_requests() -> None:
    world = Counted()
    world.link.probe(world.work()).result(0)
    assert outcomes(world.at_engine) == {("probe", "ok"): 1}
    assert {labels[4] for labels in distributions(world.at_engine, STAGE_DURATION)} == {"probe"}


def test_a_links_late_and_second_replies_are_read_where_it_has_such() -> None:
    world = Counted()
    assert numbers(world.at_door, LINK_LATE) == {("sum", "kafka"): 2}
    assert numbers(world.at_door, LINK_DUPLICATES) == {("sum", "kafka"): 3}
    world.counts = {}
    other = watching.new_metrics("preprocess")
    watching.watch_link(other, "sum", "grpc://there:1", world.remote())
    assert numbers(other, LINK_LATE) == {}


class Consumer:
    """A listener's figures."""

    def __init__(self) -> None:
        self.asked = 0
        self.away = False

    def in_hand(self) -> int:
        return 2

    def counters(self) -> Mapping[str, int]:
        return {"dead_letters": 1, "deleted": 7}

    def lag(self) -> Mapping[int, int]:
        self.asked += 1
        if self.away:
            raise Unavailable("no broker")
        return {0: 5, 3: 7}


def test_a_consumer_is_asked_for_its_lag_by_partition_and_seldom() -> None:
    metrics, consumer = watching.new_metrics("inference"), Consumer()
    watching.watch_listener(metrics, URL, consumer)  # type: ignore[arg-type]
    for _ in range(3):
        assert numbers(metrics, CONSUMER_LAG) == {("sums", "adders", "0"): 5, ("sums", "adders", "3"): 7}
    assert consumer.asked == 1
    assert numbers(metrics, DEAD_LETTERS) == {("sums",): 1}
    assert numbers(metrics, DELETED) == {("sums",): 7}


def test_a_reading_is_old_for_a_while_and_an_old_one_is_not_given_for_a_failed_one() -> None:
    now = 0.0
    consumer = Consumer()

    def read() -> Mapping[Labels, float]:
        return {(str(number),): n for number, n in consumer.lag().items()}

    seldom = Seldom(read, 1.0, clock=lambda: now)
    assert seldom() == seldom() == {("0",): 5, ("3",): 7}
    now, consumer.away = 1.0, True
    with pytest.raises(Unavailable):
        seldom()
    assert seldom() == {}
    assert consumer.asked == 2
    now, consumer.away = 2.0, False
    assert seldom() == {("0",): 5, ("3",): 7}


@pytest.mark.parametrize(
    ("url", "topic"),
    [
        (URL, Topic("kafka", "sums", "adders")),
        ("kafka+python://a:1,b:2/sums", Topic("kafka", "sums", "sums")),
        ("grpc://host:1", Topic("grpc", "", "")),
        ("grpc:", Topic("grpc", "", "")),
    ],
)
def test_where_records_come_from_is_in_the_url(url: str, topic: Topic) -> None:
    assert Topic.of(url) == topic


def test_every_kind_of_error_has_a_name_of_its_own_in_the_counts() -> None:
    world = Counted()
    kinds = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, ServiceError)]
    for kind in kinds:
        world.at_door.request("x", (), hop=HOP, via="grpc", received_bytes=0, sent_bytes=0, error=kind.kind)
    assert {labels[3] for labels in numbers(world.at_door, REQUESTS)} == {kind.kind for kind in kinds}
