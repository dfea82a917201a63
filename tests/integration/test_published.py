"""Frames that somebody publishes to Kafka, who knows nothing of us: real photographs in, results out, nothing lost."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from loadgen.target import HOP, image_tensor
from loadgen.targets import open_target
from services import transports, wire
from services.accounting import Fact, Stage, monotonic_ns, total_ns
from services.link import clock_id
from services.local.ports import free_ports
from services.serving import Service
from services.settings import InferenceSettings, PreprocessSettings, parse
from services.transports.kafka_client import MESSAGE_LIMIT
from services.wiring import build_inference, build_preprocess
from tests import faces
from tests.answers import check_answer
from tests.brokered import eventually
from tests.photographs import CLASSES, encode, jpeg
from tests.unit.test_image_header import png_claiming

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.filterwarnings(r"ignore:(open|read)_text is deprecated:DeprecationWarning"),
]

ROOT = Path(__file__).parent.parent.parent
WAIT_S = 60.0
SCHEMES = ("kafka", "kafka+python")
PARTITIONS = 4
MODEL = "efficientnet-lite0"


class Result(NamedTuple):
    partition: int
    key: bytes | None
    headers: dict[str, bytes]
    value: bytes

    @property
    def source(self) -> tuple[int, int]:
        return int(self.headers["source-partition"]), int(self.headers["source-offset"])


class Camera:
    """A producer of frames, and a reader of results, by Kafka's own client and nothing of ours."""

    def __init__(self, bootstrap: str, scheme: str) -> None:
        name = uuid.uuid4().hex[:10]
        self.images, self.results = f"images-{name}", f"results-{name}"
        self.url = f"{scheme}://{bootstrap}/{self.images}?results={self.results}"
        self.partitions = PARTITIONS
        self._bootstrap = bootstrap
        self._producer = Producer({"bootstrap.servers": bootstrap, "message.max.bytes": 20_000_000})
        self._consumer: Any = None
        self.seen: list[Result] = []

    def publish(
        self, value: bytes, headers: Mapping[str, bytes] | None = None, *, partition: int = 0, key: bytes | None = None
    ) -> None:
        self._producer.produce(self.images, value, key, partition, headers=list((headers or {}).items()))

    def sent(self) -> None:
        assert self._producer.flush(WAIT_S) == 0

    def read(self, count: int, within: float = WAIT_S) -> list[Result]:
        """All results so far, when there are at least `count`."""
        if self._consumer is None:
            self._consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": self.results})
            self._consumer.assign([TopicPartition(self.results, number, 0) for number in range(self.partitions)])
        deadline = time.monotonic() + within
        while len(self.seen) < count and time.monotonic() < deadline:
            for message in self._consumer.consume(100, 0.2):
                assert message.error() is None, message.error()
                headers = dict(message.headers() or ())
                self.seen.append(Result(message.partition(), message.key(), headers, message.value() or b""))
        assert len(self.seen) >= count, f"{len(self.seen)} results, not {count}"
        return self.seen

    def read_from(self, frames: int) -> None:
        """Read until so many different frames have a result each, or more: they are answered at least once."""
        deadline = time.monotonic() + WAIT_S
        while len({result.source for result in self.seen}) < frames:
            assert time.monotonic() < deadline, f"{len({result.source for result in self.seen})} of {frames}"
            self.read(len(self.seen) + 1)

    def uncommitted(self) -> int:
        """Frames of partition 0 that no door is done with."""
        group = Consumer({"bootstrap.servers": self._bootstrap, "group.id": self.images})
        [committed] = group.committed([TopicPartition(self.images, 0)], WAIT_S)
        _, end = group.get_watermark_offsets(TopicPartition(self.images, 0), WAIT_S)
        group.close()
        return int(end) - max(0, committed.offset)

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()


@pytest.fixture(params=SCHEMES)
def camera(request: pytest.FixtureRequest, broker: Any) -> Iterator[Camera]:
    camera = Camera(broker.bootstrap, request.param)
    yield camera
    camera.close()


Open = Callable[..., Service]


OpenEngine = Callable[[int], Service]


@pytest.fixture
def started() -> Iterator[Callable[[Service], Service]]:
    """Starts services of this process, and stops them in the end."""
    running: list[Service] = []

    def start(service: Service) -> Service:
        service.start()
        running.append(service)
        return service

    yield start
    for service in running:
        service.stop(5)


@pytest.fixture
def engine(started: Callable[[Service], Service]) -> OpenEngine:
    """Opens inference services, at a port."""
    return lambda port: started(build_inference(parse(InferenceSettings, "", ["--listen", f"127.0.0.1:{port}"], {})))


@pytest.fixture
def door(started: Callable[[Service], Service]) -> Open:
    """Opens doors."""
    return lambda *flags: started(
        build_preprocess(parse(PreprocessSettings, "", ["--listen", "127.0.0.1:0", *flags], {}))
    )


def test_photographs_are_answered_with_their_ledger(camera: Camera, door: Open) -> None:
    # Given a door that takes frames from Kafka, of one task
    door("--consume", camera.url)
    # When a camera publishes four photographs, twice each, by key
    for n in range(2):
        for index, name in enumerate(CLASSES):
            headers = {"camera": name.encode(), "traceparent": b"00-%032x-%016x-00" % (n + 1, index + 1)}
            camera.publish(jpeg(name), headers, partition=index, key=name.encode())
    camera.sent()
    # Then there are eight results, each where and what it should be
    results = camera.read(8)
    assert len(results) == 8
    assert len({result.source for result in results}) == 8
    for result in results:
        name = result.key.decode() if result.key else ""
        assert result.headers["camera"] == result.key, "a result has the headers of its frame"
        assert result.headers["content-type"] == b"application/x-protobuf"
        assert result.headers["traceparent"].startswith(b"00-")
        assert not any(header.startswith("bi-") for header in result.headers)
        assert result.partition == result.source[0] == list(CLASSES).index(name), "cameras stay in their partition"
        response = wire.decode_response(result.value)
        assert response.model == "classification"
        assert response.id == "{}-{}".format(*result.source)
        assert int(response.outputs["classes"][0, 0]) in CLASSES[name]
        # With the same ledger as over gRPC, but for the bytes' way in
        stages = [(tile.stage, tile.where) for tile in response.tiles if tile.stage is not Stage.BROKER_WAIT]
        assert stages[0] == (Stage.ADMISSION, "preprocess")
        assert {Stage.DESERIALIZE, Stage.DECODE, Stage.RESIZE, Stage.INFER, Stage.INTERPRET} <= {s for s, _ in stages}
        assert stages[-1] == (Stage.SERIALIZE, "preprocess")
        assert all(tile.duration_ns >= 0 for tile in response.tiles)


def test_it_is_the_answer_that_the_same_door_gives_over_grpc(camera: Camera, door: Open) -> None:
    service = door("--consume", camera.url)
    asked = transports.connect(f"grpc://{service.host_port}")
    for name in CLASSES:
        camera.publish(jpeg(name), {"id": name.encode()})
    camera.sent()
    answers = {}
    for result in camera.read(len(CLASSES)):
        response = wire.decode_response(result.value)
        answers[response.id] = response.outputs
    for name in CLASSES:
        payload = wire.encode_request("classification", name, {"image": image_tensor(jpeg(name))})
        expected = wire.decode_response(asked.request(payload, {}, WAIT_S).result(WAIT_S).payload)
        assert set(answers[name]) == set(expected.outputs)
        for output, tensor in expected.outputs.items():
            assert np.array_equal(answers[name][output], tensor), (name, output)
        check_answer(name, answers[name])
    asked.close()


def test_what_is_no_image_is_said_and_harms_nobody(camera: Camera, door: Open) -> None:
    door("--consume", camera.url)
    whole = jpeg("coffee")
    bad = {
        b"truncated": (whole[: len(whole) // 2], {}, "undecodable_image"),
        b"text": (b"not an image at all", {}, "undecodable_image"),
        b"empty": (b"", {}, "undecodable_image"),
        b"claims": (png_claiming(30000, 30000), {}, "image_too_large"),
        b"unknown task": (whole, {"task": b"astrology"}, "unknown_model"),
        b"no message": (whole, {"content-type": b"application/x-protobuf"}, "invalid_input"),
    }
    for name, (value, headers, _) in bad.items():
        camera.publish(value, {"id": name, **headers})
    camera.publish(whole, {"id": b"good"})
    camera.sent()
    results = {result.headers["id"]: result for result in camera.read(7)}
    assert set(results) == {*bad, b"good"}
    for name, (_, _, expected) in bad.items():
        kind, _, message = results[name].headers["failure"].decode().partition("\n")
        assert (kind, results[name].value) == (expected, b"")
        assert len(message) > 10
    assert "failure" not in results[b"good"].headers
    check_answer("coffee", wire.decode_response(results[b"good"].value).outputs)


def test_a_frame_whose_headers_leave_no_room_for_a_result_is_given_up_and_holds_up_nobody(
    camera: Camera, door: Open, broker: Any
) -> None:
    door("--consume", camera.url)
    camera.publish(jpeg("coffee"), {"id": b"before"})
    camera.sent()
    camera.read(1)
    # Given a record that is nothing but headers, as large as the topic takes
    limit = {"bootstrap.servers": broker.bootstrap, "message.max.bytes": MESSAGE_LIMIT}
    taken: list[Any] = []
    producer = Producer(limit)
    producer.produce(
        camera.images,
        b"",
        partition=0,
        headers=[("x", bytes(MESSAGE_LIMIT - 90))],
        on_delivery=lambda error, _: taken.append(error),
    )
    assert producer.flush(WAIT_S) == 0
    assert taken == [None]
    camera.publish(jpeg("flower"), {"id": b"after"})
    camera.sent()
    deadline = time.monotonic() + WAIT_S
    while b"after" not in {result.headers.get("id") for result in camera.seen}:
        assert time.monotonic() < deadline
        camera.read(len(camera.seen) + 1)
    # And nothing is tried on for ever: what is committed is all there is
    assert eventually(lambda: camera.uncommitted() == 0)


def test_topics_that_are_there_already_are_taken_as_they_are(camera: Camera, door: Open, broker: Any) -> None:
    # Given topics of one partition and of Kafka's own limit, as somebody has them
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    topics = [NewTopic(name, 1, 1, config={"max.message.bytes": "1048588"}) for name in (camera.images, camera.results)]
    for future in admin.create_topics(topics).values():
        future.result(WAIT_S)
    door("--consume", f"{camera.url}&partitions=1")
    # When frames come whose header looks like one of ours, and is not
    camera.publish(jpeg("coffee"), {"bi-id": b"7", "id": b"mine"})
    camera.sent()
    # Then they are answered all the same, and what is ours is not told
    camera.partitions = 1
    [result] = camera.read(1)
    assert result.headers["id"] == b"mine"
    assert "bi-id" not in result.headers
    check_answer("coffee", wire.decode_response(result.value).outputs)


def test_a_request_of_the_protocol_is_one_wherever_it_is_published(camera: Camera, door: Open) -> None:
    door("--consume", camera.url)
    images = np.empty(2, dtype=np.object_)
    images[:] = [jpeg("coffee"), jpeg("flower")]
    payload = wire.encode_request("classification", "two at once", {"image": images}, ("classes",))
    camera.publish(payload, {"content-type": b"application/x-protobuf"})
    camera.sent()
    [result] = camera.read(1)
    response = wire.decode_response(result.value)
    assert response.id == "two at once"
    assert [int(row[0]) for row in response.outputs["classes"]] == [967, 985]


def test_who_says_where_the_reply_goes_is_answered_there(camera: Camera, door: Open) -> None:
    door("--consume", camera.url)
    caller = transports.connect(camera.url)
    payload = wire.encode_request("classification", "mine", {"image": image_tensor(jpeg("china"))})
    sent = monotonic_ns()
    headers = {
        "content-type": b"application/x-protobuf",
        "sent-ns": b"%d" % sent,
        "budget-ns": b"%d" % int(WAIT_S * 1e9),
        "clock": clock_id().encode(),
    }
    reply = caller.request(payload, headers, WAIT_S).result(WAIT_S)
    response = wire.decode_response(reply.payload)
    assert response.id == "mine"
    # The door's part is not more than the whole
    assert 0 < sum(tile.duration_ns for tile in response.tiles) <= reply.arrived_ns - sent
    # Who has no time left is told so, and nothing is computed
    late = caller.request(payload, {**headers, "budget-ns": b"1", "sent-ns": b"%d" % (sent - 10**9)}, WAIT_S)
    assert type(late.exception(WAIT_S)).__name__ == "DeadlineExceeded"
    caller.close()
    assert not camera.seen


SCHEMES_OF_CALLERS = (*SCHEMES, "redis")


@pytest.mark.parametrize("scheme", SCHEMES_OF_CALLERS)
def test_a_generator_loads_a_door_over_a_broker(request: pytest.FixtureRequest, door: Open, scheme: str) -> None:
    # Given a door that takes requests from a broker, and a target that sends them there
    server = request.getfixturevalue("redis" if scheme == "redis" else "broker")
    url = f"{scheme}://{server.bootstrap}/images-{uuid.uuid4().hex[:10]}"
    service = door("--consume", url)
    target = open_target(f"{url}?door={service.host_port}", "classification", WAIT_S)
    assert target.emulated() is False
    try:
        # When it sends one at a time, and then many
        names = list(CLASSES)
        exchanges = [
            target.send(image_tensor(jpeg(name)), name, monotonic_ns()).result(WAIT_S) for name in [*names, *names]
        ]
        begun = [target.send(image_tensor(jpeg(names[n % 4])), names[n % 4], monotonic_ns()) for n in range(40)]
        exchanges += [future.result(WAIT_S) for future in begun]
    finally:
        target.close()
    # Then every answer is its own image's, every sum exact, and only the remainder could be below 0
    for exchange in exchanges:
        assert exchange.error is None, exchange.message
        check_answer(exchange.id, exchange.outputs)
        assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns
        assert all(tile.duration_ns >= 0 for tile in exchange.tiles if tile.stage is not Stage.TRANSIT)
        [hop] = [tile for tile in exchange.tiles if (tile.stage, tile.where) == (Stage.TRANSIT, HOP)]
        assert dict(hop.facts)[Fact.SYSTEM] == scheme.partition("+")[0]
        assert hop.duration_ns > -1_000_000
    # And a probe costs the way and nothing else
    probing = open_target(f"{url}?door={service.host_port}", "classification", WAIT_S)
    probe = probing.send(image_tensor(jpeg("coffee")), "p", monotonic_ns(), probe=True).result(WAIT_S)
    probing.close()
    assert probe.error is None
    assert Stage.INFER not in {tile.stage for tile in probe.tiles}


def waited_ns(result: Result) -> int:
    tiles = wire.decode_response(result.value).tiles
    return sum(tile.duration_ns for tile in tiles if tile.stage is Stage.BROKER_WAIT)


def test_frames_that_wait_in_the_broker_say_for_how_long(camera: Camera, door: Open) -> None:
    # Given a door that has one frame in hand at a time, and has seen how quick the way can be
    door("--consume", f"{camera.url}&prefetch=1")
    for n in range(4):
        camera.publish(jpeg("coffee"), {"id": b"alone %d" % n})
        camera.sent()
        camera.read(n + 1)
    # When many come at once
    begin = time.monotonic_ns()
    for n in range(20):
        camera.publish(jpeg("coffee"), {"id": b"%d" % n})
    camera.sent()
    camera.read(24)
    lasted = time.monotonic_ns() - begin
    # Then those behind say that they waited, the last one nearly as long as all of it took
    waits = {result.headers["id"]: waited_ns(result) for result in camera.seen}
    assert 0.5 * lasted < waits[b"19"] < lasted
    assert waits[b"5"] < waits[b"12"] < waits[b"19"]
    # And the ledger begins with that
    last = next(result for result in camera.seen if result.headers["id"] == b"19")
    first = wire.decode_response(last.value).tiles[0]
    assert (first.stage, first.where) == (Stage.BROKER_WAIT, "client>preprocess")


def test_frames_without_a_task_at_a_door_of_several(camera: Camera, door: Open) -> None:
    links = ("--link", "mtcnn=fused:", "--link", "emulated-identifier=fused:")
    door("--consume", camera.url, *links)
    camera.publish(jpeg("coffee"), {"id": b"which?"})
    camera.publish(jpeg("coffee"), {"id": b"faces", "task": b"faces"})
    camera.sent()
    results = {result.headers["id"]: result for result in camera.read(2)}
    assert b"faces, identification" in results[b"which?"].headers["failure"]
    assert wire.decode_response(results[b"faces"].value).outputs["boxes"].shape == (1, 0, 4)


# --- doors that die, brokers that go ---------------------------------------------------------------------------------

# With one client: what both do then is in `test_kafka_contract.py`.
one_client = pytest.mark.parametrize("camera", SCHEMES[:1], indirect=True)


class Doors:
    """In processes of their own."""

    def __init__(self, url: str, log: Path) -> None:
        self._url, self._log = url, log
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            self._processes.append(
                subprocess.Popen(  # noqa: S603 # ourselves
                    [sys.executable, "-m", "services.preprocess", "--listen", "127.0.0.1:0", "--consume", self._url],
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                )
            )
        return self._processes[-1]

    def stop(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)


@one_client
@pytest.mark.skipif(not faces.MTCNN.is_file(), reason="models/mtcnn.onnx is not built: make models")
def test_many_faces_of_many_frames_wait_for_a_second_network_with_little_room(
    camera: Camera, door: Open, tmp_path: Path
) -> None:
    # Given an identifier in whose queue a frame's faces have no room, never mind those of twelve frames at once
    flags = ["--models-file", str(faces.models_file(tmp_path)), "--link", "mtcnn=fused:", "--link", "looks=fused:"]
    door(*flags, "--queue-capacity", "4", "--consume-task", "faces", "--consume", camera.url)
    # When they are published
    crowd = encode(faces.crowd(4, 4))
    for number in range(12):
        camera.publish(crowd, partition=number % PARTITIONS)
    camera.sent()
    # Then each has all of its faces, and none is refused
    results = camera.read(12)
    assert {row.headers.get("failure") for row in results} == {None}
    answers = [wire.decode_response(row.value) for row in results]
    assert {answer.outputs["embeddings"].shape[1] for answer in answers} == {16}
    assert any(tile.stage is Stage.RETRY and tile.duration_ns > 10**6 for a in answers for tile in a.tiles)


def test_frames_wait_for_an_inference_service_that_is_away_longer_than_they_may_take(
    camera: Camera, door: Open, engine: OpenEngine
) -> None:
    # Given a door whose inference service is not there
    [port] = free_ports(1)
    waiting = door("--consume", camera.url, "--link", f"{MODEL}=grpc://127.0.0.1:{port}", "--timeout-s", "0.5")
    for number in range(8):
        camera.publish(jpeg(list(CLASSES)[number % 4]), partition=number % PARTITIONS)
    camera.sent()
    assert eventually(lambda: sum(listener.in_hand() for listener, _ in waiting._listeners) == 8)
    # When it stays away for several times as long as a frame may take
    with pytest.raises(AssertionError, match="0 results"):
        camera.read(1, within=2.5)
    engine(port)
    # Then no frame is spent on that, and none is answered twice
    results = camera.read(8)
    assert [row.headers.get("failure") for row in results] == [None] * 8
    for row in results:
        # And its ledger says that it was tried before
        tiles = wire.decode_response(row.value).tiles
        assert max(value for tile in tiles for fact, value in tile.facts if fact is Fact.ATTEMPT) > 1
        # And for how long
        assert total_ns(tile for tile in tiles if tile.stage is Stage.RETRY) > 10**9
    with contextlib.suppress(AssertionError):  # what may come after
        camera.read(100, within=1.0)
    assert {row.headers.get("failure") for row in camera.seen} == {None}


def test_patience_has_an_end_that_may_be_set(camera: Camera, door: Open) -> None:
    [port] = free_ports(1)
    door("--consume", f"{camera.url}&patience_s=1", "--link", f"{MODEL}=grpc://127.0.0.1:{port}", "--timeout-s", "0.5")
    camera.publish(jpeg("coffee"))
    camera.sent()
    [result] = camera.read(1)
    assert result.headers["failure"].split(b"\n")[0] in (b"unavailable", b"deadline_exceeded")


def test_what_a_door_only_holds_is_answered_by_the_one_that_gets_it_and_by_nobody_else(
    camera: Camera, door: Open, engine: OpenEngine
) -> None:
    # Given a door that cannot answer, and has forty frames in hand
    [dead, living] = free_ports(2)
    engine(living)
    stuck = door("--consume", camera.url, "--link", f"{MODEL}=grpc://127.0.0.1:{dead}", "--timeout-s", "3")
    for number in range(40):
        camera.publish(jpeg(list(CLASSES)[number % 4]), partition=number % PARTITIONS)
    camera.sent()
    with pytest.raises(AssertionError, match="0 results"):
        camera.read(1, within=1.5)
    # When another one comes, that can, and gets some of the partitions
    door("--consume", camera.url, "--link", f"{MODEL}=grpc://127.0.0.1:{living}")
    camera.read(10)
    # And the first one is told to end
    begin = time.monotonic()
    stuck.stop(20)
    # Then that does not wait for what cannot be done
    assert time.monotonic() - begin < 10
    # And all have an answer (perhaps two, of who was about to commit when partitions moved), and every one is good
    camera.read_from(40)
    with contextlib.suppress(AssertionError):  # what may come after
        camera.read(len(camera.seen) + 100, within=2.0)
    assert {row.headers.get("failure") for row in camera.seen} == {None}


@one_client
def test_a_topic_of_results_that_is_deleted_is_made_anew(camera: Camera, door: Open, broker: Any) -> None:
    door("--consume", camera.url)
    camera.publish(jpeg("coffee"))
    camera.sent()
    camera.read(1)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    [deleted] = admin.delete_topics([camera.results]).values()
    deleted.result(WAIT_S)
    camera.close()
    camera.publish(jpeg("flower"))
    camera.sent()
    again = Camera(broker.bootstrap, "kafka")
    again.results = camera.results
    assert eventually(lambda: _there(broker, camera.results))
    try:
        assert [row.source[1] for row in again.read(1)] == [1]
    finally:
        again.close()


def _there(broker: Any, topic: str) -> bool:
    found = AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics(topic, timeout=5).topics[topic]
    return found.error is None and len(found.partitions) > 0


def test_frames_that_the_broker_deleted_unread_are_said(
    camera: Camera, door: Open, broker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a topic that keeps next to nothing, and a door that has answered one frame of it
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    little = {"segment.bytes": "1048576", "retention.bytes": "1048576", "file.delete.delay.ms": "0"}
    [created] = admin.create_topics([NewTopic(camera.images, 1, 1, config=little)]).values()
    created.result(WAIT_S)
    first = door("--consume", f"{camera.url}&partitions=1")
    camera.partitions = 1
    camera.publish(jpeg("coffee"))
    camera.sent()
    camera.read(1)
    assert eventually(lambda: camera.uncommitted() == 0)
    first.stop(10)
    # When more is published than is kept, while no door is there
    noise = bytes(400_000)
    for _ in range(20):
        camera.publish(noise)
    camera.sent()
    asker = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "asker"})
    assert eventually(lambda: asker.get_watermark_offsets(TopicPartition(camera.images, 0))[0] > 4)
    begin, _ = asker.get_watermark_offsets(TopicPartition(camera.images, 0))
    # Then a door that comes says how many nobody will see, and goes on with the others
    service = door("--consume", f"{camera.url}&partitions=1", "--metrics", "127.0.0.1:0")
    camera.read(2)
    said = [record.getMessage() for record in caplog.records if "deleted" in record.getMessage()]
    end, _ = asker.get_watermark_offsets(TopicPartition(camera.images, 0))
    asker.close()
    assert len(said) == 1
    found = re.search(rf"the broker deleted (\d+) records of partition 0 of '{camera.images}'", said[0])
    assert found is not None
    assert begin - 1 <= int(found[1]) <= end - 1
    assert "retention.bytes" in said[0]
    service.stop(10)


@one_client
def test_a_door_that_is_killed_loses_no_frame(camera: Camera, tmp_path: Path) -> None:
    # Given two doors that share the frames
    doors = Doors(camera.url, tmp_path / "doors.log")
    try:
        first, _ = doors.start(), doors.start()
        camera.publish(jpeg("coffee"), {"id": b"warm"})
        camera.sent()
        camera.read(1)
        # When one is killed in the midst of 60
        for n in range(60):
            camera.publish(jpeg(list(CLASSES)[n % 4]), {"id": b"%d" % n}, partition=n % PARTITIONS)
        camera.sent()
        camera.read(10)
        os.kill(first.pid, signal.SIGKILL)
        # Then every frame has a result: some perhaps two, which say the same of where they come from
        camera.read_from(61)
        wanted = {b"warm", *(b"%d" % n for n in range(60))}
        assert {result.headers["id"] for result in camera.seen} == wanted
        for result in camera.seen:
            assert "failure" not in result.headers
    finally:
        doors.stop()


@one_client
def test_a_broker_that_dies_is_served_again_when_it_is_back(camera: Camera, door: Open, broker: Any) -> None:
    service = door("--consume", camera.url)
    camera.publish(jpeg("coffee"), {"id": b"before"})
    camera.sent()
    camera.read(1)
    asked = transports.connect(f"grpc://{service.host_port}")
    payload = wire.encode_request("classification", "x", {"image": image_tensor(jpeg("china"))})
    broker.kill()
    try:
        # Who asks over gRPC meanwhile is answered
        assert wire.decode_response(asked.request(payload, {}, WAIT_S).result(WAIT_S).payload).outputs
    finally:
        broker.start()
        asked.close()
    camera.publish(jpeg("flower"), {"id": b"after"})
    camera.sent()
    # Then what is published after is answered; the frame before perhaps twice, if the broker had its result and died
    # before it had its offset
    camera.read_from(2)
    assert {result.headers["id"] for result in camera.seen} == {b"before", b"after"}
