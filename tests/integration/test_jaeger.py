"""Traces of real requests over every transport, as a real Jaeger has them: whole, exact, right about what is slow."""

from __future__ import annotations

import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadgen.samples import photographs
from loadgen.target import Exchange, OipTarget, image_tensor
from services.accounting import Fact, Stage, monotonic_ns
from services.local.broker import container_engine
from services.local.deployments import Options
from services.local.jaeger import Jaeger, binary
from services.local.preflight import absent
from services.local.stack import Stack
from services.messages import Finished
from services.tracing.context import parse
from services.tracing.conventions import DURATION, OF_FACT, REQUEST_ID, STAGE
from services.tracing.destination import open_destination
from services.tracing.sampling import Sampler
from services.tracing.tracer import Tracer
from tests.critical_path import Node, critical_path, nodes, shares

pytestmark = [pytest.mark.jaeger, pytest.mark.kafka]

TRANSPORTS = ("fused", "grpc", "kafka", "kafka-python", "redis")
BROKERED = TRANSPORTS[2:]
ABSENT = absent(TRANSPORTS)
REQUESTS = 24
WAIT_S = 30.0


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """Built, the first time: minutes."""
    if binary() is None and container_engine() is None and shutil.which("go") is None:
        pytest.skip("neither Go, which builds Jaeger, nor docker or podman, which run its image, is here")
    server = Jaeger(tmp_path_factory.mktemp("jaeger"))
    server.start(say=print)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def stack(jaeger: Jaeger, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    options = Options(("efficientnet-lite0",), "", ("--max-batch", "2"), spans=jaeger.otlp)
    with Stack([name for name in TRANSPORTS if name not in ABSENT], options, tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(scope="module", params=TRANSPORTS)
def exchanges(request: pytest.FixtureRequest, stack: Stack, jaeger: Jaeger) -> tuple[str, list[Exchange]]:
    """Requests of one transport whose spans Jaeger has been sent, each of them, with the client at the root."""
    if request.param in ABSENT:
        pytest.skip(ABSENT[request.param])
    photos = [image_tensor(sample.data) for sample in photographs()]
    target = OipTarget(stack.doors()[request.param], "classification", WAIT_S, holds_ledger=True, sample_ratio=1.0)
    answers = []
    for index in range(REQUESTS):
        id_ = f"{request.param}-{index}"
        answers.append(target.send(photos[index % len(photos)], id_, monotonic_ns()).result(WAIT_S))
    target.close()
    tracer = Tracer(open_destination(jaeger.otlp), Sampler(0.0, lambda: 1.0, forced_per_s=0), "test", "client")
    for e in answers:
        assert e.error is None, e.message
        own = parse({"traceparent": e.traceparent.encode()})
        assert tracer.offer(Finished(e.id, "classification", e.due_ns, e.tiles, {}, e.error), own, 10.0)
    tracer.close()
    assert not tracer.counts().lost
    return request.param, answers


def ask(jaeger: Jaeger, path: str) -> Any:
    with urllib.request.urlopen(f"{jaeger.url}/api/{path}", timeout=10) as answer:  # noqa: S310 # loopback
        return json.load(answer)["data"]


def trace_of(jaeger: Jaeger, exchange: Exchange) -> dict[str, Node]:
    """What Jaeger has of a request; it takes a moment to store it."""
    trace_id = exchange.traceparent.split("-")[1]
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            [trace] = ask(jaeger, f"traces/{trace_id}")
            return nodes(trace)
        except urllib.error.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_a_trace_is_one_tree_that_says_what_the_ledger_says(
    jaeger: Jaeger, exchanges: tuple[str, list[Exchange]]
) -> None:
    transport, answers = exchanges
    services = {"loadgen", "preprocess"} if transport == "fused" else {"loadgen", "preprocess", "inference"}
    for exchange in answers:
        spans = trace_of(jaeger, exchange)
        # One tree, nobody without a parent but the client's request
        [root] = [node for node in spans.values() if node.parent not in spans]
        assert (root.service, root.parent, root.tags[REQUEST_ID]) == ("loadgen", "", exchange.id)
        assert root.id == exchange.traceparent.split("-")[2]
        assert {node.service for node in spans.values()} == services
        for node in spans.values():
            if node is not root:
                parent = spans[node.parent]
                assert parent.begin <= node.begin <= node.end <= parent.end, node.name
        # Every part of the ledger, in its order, to the nanosecond, and nothing else
        stages = [node for node in spans.values() if STAGE in node.tags]
        ledger = [(tile.stage.value, tile.duration_ns) for tile in exchange.tiles]
        assert sorted((node.tags[STAGE], node.tags[DURATION]) for node in stages) == sorted(ledger)
        visible = [name for name, ns in ledger if ns > 10_000]
        in_order = [n.tags[STAGE] for n in sorted(stages, key=lambda n: n.begin) if n.tags[DURATION] > 10_000]
        assert in_order == visible
        assert root.tags[DURATION] == exchange.total_ns


def test_what_computed_is_under_the_service_that_did(jaeger: Jaeger, exchanges: tuple[str, list[Exchange]]) -> None:
    transport, answers = exchanges
    spans = trace_of(jaeger, answers[0])
    by_stage = {node.tags[STAGE]: node for node in spans.values() if STAGE in node.tags}
    assert by_stage["decode"].service == "preprocess"
    assert by_stage["infer"].service == ("preprocess" if transport == "fused" else "inference")
    kinds = {(node.service, node.kind) for node in spans.values() if node.kind != "internal"}
    hop = {
        "fused": set(),
        "grpc": {("preprocess", "client"), ("inference", "server")},
    }.get(transport, {("preprocess", "producer"), ("inference", "consumer")})
    assert kinds == {("loadgen", "client"), ("preprocess", "server"), *hop}
    if transport in BROKERED:
        [send] = [node for node in spans.values() if node.kind == "producer"]
        [process] = [node for node in spans.values() if node.kind == "consumer"]
        assert (answers[0].traceparent.split("-")[1], send.id) in process.links
        assert process.tags["messaging.destination.name"] == send.tags["messaging.destination.name"]
        if transport == "redis":  # the time in ms, and a number
            assert re.fullmatch(r"\d{13}-\d+", process.tags["messaging.message.id"])
        else:
            assert int(process.tags["messaging.kafka.offset"]) >= 0


def test_the_critical_path_names_what_took_the_time(jaeger: Jaeger, exchanges: tuple[str, list[Exchange]]) -> None:
    # Given the request that waited longest in a broker, where there is one
    transport, answers = exchanges

    def waited(exchange: Exchange) -> int:
        return sum(tile.duration_ns for tile in exchange.tiles if tile.stage is Stage.BROKER_WAIT)

    exchange = max(answers, key=waited)
    spans = trace_of(jaeger, exchange)
    [root] = [node for node in spans.values() if node.parent not in spans]
    # When Jaeger takes it apart
    path = shares(critical_path(root))
    # Then each stage has the time that the ledger says, but for the insets, and they are named
    expected: dict[str, int] = {}
    for tile in exchange.tiles:
        if tile.duration_ns > 10_000:
            expected[tile.stage.value] = expected.get(tile.stage.value, 0) + tile.duration_ns
    names = {"decode", "infer"} | ({"broker_wait"} if transport in BROKERED else set())
    assert names <= set(expected)
    for name, ns in expected.items():
        assert path[name] == pytest.approx(ns / 1e3, abs=4 * sum(t.stage == name for t in exchange.tiles)), name
    # And what no stage explains is next to nothing
    staged = sum(us for name, us in path.items() if name in expected)
    assert staged >= 0.97 * (root.end - root.begin)


def test_a_batch_has_a_trace_that_links_to_its_members(jaeger: Jaeger, exchanges: tuple[str, list[Exchange]]) -> None:
    _, answers = exchanges
    spans = trace_of(jaeger, answers[-1])
    [infer] = [node for node in spans.values() if node.tags.get(STAGE) == "infer"]
    [(batch_trace, batch_span)] = infer.links
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            [trace] = ask(jaeger, f"traces/{batch_trace}")
            break
        except urllib.error.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    batch = nodes(trace)
    assert batch[batch_span].tags[OF_FACT[Fact.BATCH_ID]] == infer.tags[OF_FACT[Fact.BATCH_ID]]
    assert answers[-1].traceparent.split("-")[1] in {trace_id for trace_id, _ in batch[batch_span].links}
    [device] = [node for node in batch.values() if node.tags.get(STAGE) == "infer"]
    assert device.tags[DURATION] == infer.tags[DURATION]


def test_a_path_prunes_what_the_rules_prune() -> None:
    # The rules themselves, on a trace whose parts touch: the sibling that ends where the next begins is skipped
    def node(name: str, begin: int, end: int, *children: Node, kind: str = "internal") -> Node:
        return Node(name, name, "s", kind, begin, end, "", (), {}, list(children))

    touching = node("root", 0, 100, node("a", 0, 50), node("b", 50, 100))
    assert shares(critical_path(touching)) == {"b": 50, "root": 50}
    apart = node("root", 0, 100, node("a", 1, 49), node("b", 51, 99))
    assert shares(critical_path(apart)) == {"b": 48, "a": 48, "root": 4}
    pruned = node("root", 0, 100, node("send", 0, 100, node("process", 10, 90, kind="consumer"), kind="producer"))
    assert shares(critical_path(pruned)) == {"send": 100}


def test_a_destination_that_refuses_is_said(jaeger: Jaeger, tmp_path: Path) -> None:
    # Given Jaeger's HTTP port, and a path that it does not have
    destination = open_destination(f"{jaeger.otlp_http}/nowhere")
    tracer = Tracer(destination, Sampler(1.0, lambda: 0.0, forced_per_s=0), "test", "client")
    tracer.offer(Finished("1", "classification", monotonic_ns(), (), {}, None))
    tracer.close()
    assert tracer.counts() == (1, 0, 0, 1)
