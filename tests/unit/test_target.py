"""Targets: every request comes back as an exchange whose tiles add up, whatever the server does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future

import numpy as np
import pytest

from loadgen.errors import PlanError
from loadgen.target import HOP, Exchange, NullTarget, OipTarget, image_tensor
from loadgen.targets import check_url, open_target
from services import wire
from services.accounting import Stage, Tile, monotonic_ns
from services.errors import Overloaded
from services.transports import grpc as grpc_transport
from services.transports.transport import Delivery, Handle, Response

Answer = Callable[[Delivery], Response]
IMAGE = image_tensor(b"an image" * 100)
LEDGER = [Tile(Stage.DECODE, 40_000, 30_000, "preprocess"), Tile(Stage.INFER, 60_000, 60_000, "inference")]


@pytest.fixture
def door() -> Iterator[Callable[[Answer], OipTarget]]:
    """A real gRPC server that answers as told, and a target for it."""
    opened: list[object] = []

    def open_(answer: Answer) -> OipTarget:
        def handle(delivery: Delivery) -> Future[Response]:
            future: Future[Response] = Future()
            try:
                future.set_result(answer(delivery))
            except Exception as error:  # noqa: BLE001 # the transport carries it
                future.set_exception(error)
            return future

        listener = grpc_transport.listen("grpc://127.0.0.1:0")
        listener.serve(handle)
        target = OipTarget(listener.host_port, "classification", 5.0)
        opened.extend((target, listener))
        return target

    yield open_
    for item in opened:
        item.close()  # type: ignore[attr-defined]


def reply(tiles: list[Tile] | None = LEDGER, extra: bytes = b"") -> Response:
    payload = wire.encode_response("classification", "r", {"scores": np.array([[0.5]], np.float32)})
    return Response(payload + (wire.ledger_parameter(tiles) if tiles else b"") + extra, {})


def ask(target: OipTarget | NullTarget, **more: bool) -> Exchange:
    exchange = target.send(IMAGE, "r-1", monotonic_ns() - 2_000_000, **more).result(10)
    assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns  # for every request, whatever came
    assert exchange.id == "r-1"
    return exchange


def test_an_answer_has_its_outputs_and_a_ledger_from_due_to_decoded(door: Callable[[Answer], OipTarget]) -> None:
    exchange = ask(door(lambda _: reply()))
    assert exchange.error is None
    assert exchange.outputs["scores"][0, 0] == np.float32(0.5)
    assert [t.stage for t in exchange.tiles] == [
        *(Stage.SCHEDULE_LAG, Stage.SERIALIZE),
        *(Stage.DECODE, Stage.INFER),  # the door's
        *(Stage.TRANSIT, Stage.DISPATCH, Stage.DESERIALIZE),
    ]
    assert list(exchange.tiles[2:4]) == LEDGER
    assert exchange.tiles[0].duration_ns >= 2_000_000  # it was due two milliseconds before it was sent
    assert exchange.tiles[4].where == HOP


def test_decoding_the_reply_is_charged_with_its_cpu_time(door: Callable[[Answer], OipTarget]) -> None:
    """The ledger is in the reply: its decoding comes before the boundary that it begins at."""
    many = {"labels": np.full((1, 200_000), b"espresso", dtype=object)}  # each element is decoded: tens of milliseconds
    payload = wire.encode_response("classification", "r", many) + wire.ledger_parameter(LEDGER)
    last = ask(door(lambda _: Response(payload, {}))).tiles[-1]
    assert last.stage is Stage.DESERIALIZE
    assert last.duration_ns > 5_000_000
    assert last.cpu_ns > 2_000_000  # of nothing it would be microseconds; how much it was slowed down is not the point


def test_what_is_sent_is_the_open_inference_protocol(door: Callable[[Answer], OipTarget]) -> None:
    seen: list[tuple[wire.InferRequest, Mapping[str, bytes]]] = []

    def answer(delivery: Delivery) -> Response:
        seen.append((wire.decode_request(bytes(delivery.payload)), dict(delivery.headers)))
        return reply()

    target = door(answer)
    exchanges = [ask(target), ask(target, probe=True), ask(target, sampled=True)]
    (plain, headers), (probe, _), (_, sampled) = seen
    assert (plain.model, plain.id) == ("classification", "r-1")
    assert bytes(plain.inputs["image"][0]) == IMAGE[0]
    assert not plain.parameters.get("probe")
    assert probe.parameters["probe"] is True
    assert headers["traceparent"].decode() == exchanges[0].traceparent
    assert headers["traceparent"].endswith(b"-00")
    assert sampled["traceparent"].endswith(b"-01")
    assert len({exchange.traceparent for exchange in exchanges}) == 3


@pytest.mark.parametrize("holds", [True, False])
def test_who_makes_the_spans_says_so(holds: bool) -> None:
    seen: list[Delivery] = []

    def handle(delivery: Delivery) -> Future[Response]:
        seen.append(delivery)
        future: Future[Response] = Future()
        future.set_result(reply())
        return future

    listener = grpc_transport.listen("grpc://127.0.0.1:0")
    listener.serve(handle)
    target = open_target(listener.address, "classification", 5.0, holds_ledger=holds)
    try:
        ask(target)  # type: ignore[arg-type]
    finally:
        target.close()
        listener.close()
    assert ("ledger-holder" in seen[0].headers) == holds


def test_a_server_without_a_ledger_is_remote(door: Callable[[Answer], OipTarget]) -> None:
    exchange = ask(door(lambda _: reply(None)))
    assert exchange.error is None
    assert [t.stage for t in exchange.tiles][2:] == [Stage.REMOTE, Stage.DISPATCH, Stage.DESERIALIZE]


def test_an_error_is_an_exchange_whose_time_was_not_answered(door: Callable[[Answer], OipTarget]) -> None:
    def refuse(_: Delivery) -> Response:
        raise Overloaded("the queue is full; try later")

    exchange = ask(door(refuse))
    assert (exchange.error, exchange.outputs) == ("overloaded", {})
    assert "the queue is full" in exchange.message
    assert [t.stage for t in exchange.tiles] == [Stage.SCHEDULE_LAG, Stage.SERIALIZE, Stage.UNANSWERED]


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xff this is not protobuf",
        reply().payload[:-10],
        # A ledger that is not base64: parameter "ledger" with string_param "x".
        reply(None, b"\x22\x0e\x0a\x06ledger\x12\x04\x1a\x02x!").payload,
    ],
    ids=["text", "cut off", "no ledger"],
)
def test_an_answer_that_makes_no_sense_ends_its_request(door: Callable[[Answer], OipTarget], payload: bytes) -> None:
    exchange = ask(door(lambda _: Response(payload, {})))
    assert exchange.error == "internal"
    assert exchange.message
    assert exchange.tiles[-1].stage is Stage.UNANSWERED


def test_a_server_that_is_not_there_is_an_exchange_too() -> None:
    target = OipTarget("127.0.0.1:1", "classification", 5.0)
    try:
        exchange = ask(target)
    finally:
        target.close()
    assert exchange.error == "unavailable"
    assert ask(target).error == "unavailable"  # closed


def test_the_null_target_is_the_generator_itself() -> None:
    exchange = ask(NullTarget())
    assert exchange.error is None
    assert [t.stage for t in exchange.tiles] == [Stage.SCHEDULE_LAG, Stage.SERIALIZE]
    assert NullTarget().emulated() is False


def test_urls() -> None:
    assert isinstance(open_target("null:", "classification", 1.0), NullTarget)
    target = open_target("grpc://127.0.0.1:8001", "classification", 1.0)
    assert isinstance(target, OipTarget)
    target.close()


@pytest.mark.parametrize(
    "url",
    [
        "", "null", "127.0.0.1:8001", "http://127.0.0.1:8001", "grpc://", "grpc://host", "grpc://:8001",
        "grpc://host:port", "grpc://host:99999", "grpc://host:1/path/further", "grpc://host:1?x=2",
        "grpc://host:1/model?x=2", "grpc://host:1?models-file=x",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_target_is_said(url: str) -> None:
    with pytest.raises(PlanError, match=r"is neither grpc://host:port \(a door\)"):
        check_url(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka://host:9092/images", r"add \?door=host:port"),
        ("kafka://host:9092/images?door=host", r"add \?door=host:port"),
        ("redis://host:6379?door=door:8001", r"names no topic; write redis://host:port/TOPIC\?door=door:8001"),
        ("kafka+python:///images?door=door:8001", "names no topic"),
    ],
)
def test_a_door_over_a_broker_has_a_topic_and_an_address(url: str, says: str) -> None:
    check_url("kafka://host:9092,other:9092/images?door=door:8001&acks=1")
    with pytest.raises(PlanError, match=says):
        check_url(url)


def test_several_doors_are_a_list_of_addresses() -> None:
    check_url("grpc://127.0.0.1:8001,127.0.0.2:8001")
    for url in ("grpc://127.0.0.1:8001,", "grpc://127.0.0.1:8001,host:8001", "grpc://127.0.0.1:8001,127.0.0.1:0"):
        with pytest.raises(PlanError, match="is no IPv4 address with a port"):
            check_url(url)


def test_requests_go_to_several_doors_in_turn() -> None:
    # Given two servers that tell who they are
    listeners = [grpc_transport.listen("grpc://127.0.0.1:0") for _ in range(2)]
    taken = [0, 0]

    def counting(index: int) -> Handle:
        def handle(delivery: Delivery) -> Future[Response]:
            taken[index] += 1
            answer: Future[Response] = Future()
            answer.set_result(Response(delivery.payload, {}))
            return answer

        return handle

    for index, listener in enumerate(listeners):
        listener.serve(counting(index))
    link = grpc_transport.connect("grpc://" + ",".join(one.address.removeprefix("grpc://") for one in listeners))
    try:
        # When one client asks, both answer, once it is connected to both
        deadline = time.monotonic() + 30
        while not all(taken) and time.monotonic() < deadline:
            link.request(b"?", {}, 10).result(11)
        before = list(taken)
        for _ in range(10):
            link.request(b"?", {}, 10).result(11)
        assert [now - then for now, then in zip(taken, before, strict=True)] == [5, 5]
    finally:
        link.close()
        for listener in listeners:
            listener.close()
