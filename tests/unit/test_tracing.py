"""Ledgers become span trees that say the same, in files that others can read; none is lost without being counted."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.semconv._incubating.attributes import messaging_attributes, rpc_attributes
from opentelemetry.semconv.attributes import error_attributes, server_attributes, service_attributes
from opentelemetry.semconv.schemas import Schemas

from services.accounting import GROUP_OF, UNKNOWN_CPU, Fact, Facts, Stage, Tile, monotonic_ns
from services.errors import ConfigurationError, InvalidInput, Unavailable
from services.messages import BatchDone, Finished
from services.tracing import conventions
from services.tracing.context import Context, parse, sampled, sampled_trace
from services.tracing.conventions import (
    CPU_TIME,
    DURATION,
    ERROR_TYPE,
    GROUP,
    KAFKA_OFFSET,
    MESSAGE_ID,
    MESSAGING_PARTITION,
    MESSAGING_SYSTEM,
    OF_FACT,
    REQUEST_ID,
    SAMPLED_BECAUSE,
    STAGE,
)
from services.tracing.destination import check, open_destination, to_json
from services.tracing.sampling import Decision, Sampler
from services.tracing.tracer import Tracer
from services.tracing.tree import INSET_NS, Root, Spans, add_batch, add_request, batch_context, root_of

TRACE, PARENT = "ab" * 16, "cd" * 8
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01".encode()}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00".encode()}
RATIO = Decision("ratio", forced=False)
BEGINS_HERE = root_of(None, RATIO)

OUTER, HOP = "client>preprocess", "preprocess>inference"
GRPC: Facts = ((Fact.SYSTEM, "grpc"), (Fact.DESTINATION, "10.0.0.7:8002"), (Fact.REQUEST_BYTES, 150_600))
KAFKA: Facts = (
    (Fact.SYSTEM, "kafka"),
    (Fact.DESTINATION, "work"),
    (Fact.REQUEST_BYTES, 150_600),
    (Fact.PUBLISH_NS, 400_000),
)
REDIS: Facts = ((Fact.SYSTEM, "redis"), *KAFKA[1:])
RECORD: Facts = ((Fact.PARTITION, 3), (Fact.OFFSET, 41))
BATCH: Facts = ((Fact.BATCH_SIZE, 4), (Fact.BATCH_ID, 77))


def door(hop: Facts = GRPC, *, waits: bool = False) -> tuple[Tile, ...]:
    """The ledger of a door."""
    wait = (Tile(Stage.BROKER_WAIT, 300_000, UNKNOWN_CPU, HOP),) if waits else ()
    return (
        Tile(Stage.ADMISSION, 40_000, UNKNOWN_CPU, "preprocess"),
        Tile(Stage.TRANSIT, 90_000, UNKNOWN_CPU, OUTER),
        Tile(Stage.DECODE, 2_000_000, 1_900_000, "preprocess"),
        Tile(Stage.SERIALIZE, 50_000, 50_000, "preprocess"),
        *wait,
        Tile(Stage.ADMISSION, 10_000, UNKNOWN_CPU, "inference", RECORD if waits else ()),
        Tile(Stage.TRANSIT, 30_000, UNKNOWN_CPU, HOP),  # the rest of its bytes came in over there
        Tile(Stage.INFER, 5_000_001, 4_000_000, "inference", BATCH),
        Tile(Stage.TRANSIT, 700_000, UNKNOWN_CPU, HOP, hop),
        *wait,
        Tile(Stage.DESERIALIZE, 20_000, 20_000, "preprocess"),
        Tile(Stage.SERIALIZE, 30_000, 30_000, "preprocess"),
    )


def client(inside: tuple[Tile, ...]) -> tuple[Tile, ...]:
    """That of a client of the door."""
    return (
        Tile(Stage.SERIALIZE, 60_000, 60_000, "client"),
        *inside,
        Tile(Stage.TRANSIT, 500_000, UNKNOWN_CPU, OUTER, GRPC),
        Tile(Stage.DISPATCH, 9_000, UNKNOWN_CPU, "client"),
        Tile(Stage.DESERIALIZE, 70_000, 60_000, "client"),
    )


class Span(NamedTuple):
    """A span as OTLP/JSON has it."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: int
    begin: int
    end: int
    attributes: dict[str, Any]
    status: dict[str, Any]
    links: tuple[tuple[str, str], ...] = ()


def spans_of(request: Mapping[str, Any]) -> list[Span]:
    """Of an ExportTraceServiceRequest in OTLP/JSON."""
    return [
        Span(
            attributes(resource["resource"])["service.name"],
            span["name"],
            span["traceId"],
            span["spanId"],
            span.get("parentSpanId", ""),
            span["kind"],
            int(span["startTimeUnixNano"]),
            int(span["endTimeUnixNano"]),
            attributes(span),
            span.get("status", {}),
            tuple((link["traceId"], link["spanId"]) for link in span.get("links", ())),
        )
        for resource in request.get("resourceSpans", ())
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def attributes(entity: Mapping[str, Any]) -> dict[str, Any]:
    """OTLP's list of {key, value: {type: value}} as a dictionary; integers travel as strings."""
    convert: dict[str, Callable[[Any], Any]] = {"intValue": int}
    return {
        entry["key"]: convert.get(kind, lambda value: value)(value)
        for entry in entity.get("attributes", ())
        for kind, value in entry["value"].items()
    }


def read(path: Path) -> list[Span]:
    return [span for line in path.read_text(encoding="utf-8").splitlines() for span in spans_of(json.loads(line))]


def finished(
    tiles: tuple[Tile, ...],
    headers: Mapping[str, bytes] | None = None,
    error: str | None = None,
    source: tuple[str, str] = ("grpc", ""),
) -> Finished:
    return Finished("id-7", "classification", monotonic_ns(), tiles, headers or {}, error, source)


def tree(
    tiles: tuple[Tile, ...],
    where: str = "preprocess",
    *,
    parent: Context | None = None,
    own: Context | None = None,
    forced: bool = False,
    error: str | None = None,
    source: tuple[str, str] = ("grpc", ""),
) -> list[Span]:
    """The spans of one request."""
    spans = Spans("1.2.3")
    decision = Decision("slow" if forced else "parent", forced=forced)
    root = root_of(parent, decision) if own is None else Root(own)
    add_request(spans, finished(tiles, error=error, source=source), where, root, decision, 10**18)
    found = spans_of(to_json(spans.request))
    assert len(found) == spans.count
    return found


def assert_whole(spans: list[Span]) -> Span:
    """One root, every other span inside its parent, siblings in order and apart."""
    by_id = {span.id: span for span in spans}
    assert len(by_id) == len(spans)
    [root] = [span for span in spans if span.parent not in by_id]
    for span in spans:
        assert span.trace == root.trace
        if span is not root:
            parent = by_id[span.parent]
            assert parent.begin <= span.begin <= span.end <= parent.end
        children = sorted((s for s in spans if s.parent == span.id and s.kind != PRODUCER), key=lambda s: s.begin)
        for before, after in itertools.pairwise(children):
            assert (
                after.begin - before.end >= 2 * INSET_NS
                or min(before.end - before.begin, after.end - after.begin) <= INSET_NS
            ), (before.name, after.name)
    return root


def tiles_of(spans: list[Span]) -> list[tuple[str, int]]:
    """(stage, nanoseconds) in the order in which they were, from the spans alone."""
    leaves = sorted((s for s in spans if STAGE in s.attributes), key=lambda s: (s.begin, s.end))
    return [(s.attributes[STAGE], s.attributes[DURATION]) for s in leaves]


def said(tiles: Sequence[Tile]) -> list[tuple[str, int]]:
    return [(tile.stage.value, tile.duration_ns) for tile in tiles]


def named(spans: list[Span], name: str, kind: int | None = None) -> Span:
    [found] = [span for span in spans if span.name == name and kind in (None, span.kind)]
    return found


INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = 1, 2, 3, 4, 5


# --- trees -----------------------------------------------------------------------------------------------------------


def test_a_hop_over_grpc_is_a_call_around_the_other_services_visit() -> None:
    parent = Context(bytes.fromhex(TRACE), bytes.fromhex(PARENT), True)
    spans = tree(door(), parent=parent)
    root = assert_whole(spans)
    # The root is the door's own call, below its caller's span
    assert (root.service, root.name, root.kind) == ("preprocess", conventions.INFER_METHOD, SERVER)
    assert (root.trace, root.parent) == (TRACE, PARENT)
    assert root.attributes[REQUEST_ID] == "id-7"
    assert root.end - root.begin == root.attributes[DURATION] == sum(tile.duration_ns for tile in door())
    assert tiles_of(spans) == said(door())
    # The hop is a call of the door's, and in it the visit of the other service, which has its own time
    [call] = [span for span in spans if span.kind == CLIENT]
    [visit] = [span for span in spans if span.kind == SERVER and span is not root]
    assert (call.service, call.parent, visit.service, visit.parent) == ("preprocess", root.id, "inference", call.id)
    assert (call.attributes["server.address"], call.attributes["server.port"]) == ("10.0.0.7", 8002)
    assert [span.name for span in spans if span.parent == visit.id] == ["admission", "transit", "infer"]
    assert {span.service for span in spans if span.parent == visit.id} == {"inference"}
    # What computed has its CPU time, what waited has none
    infer = named(spans, "infer")
    transit = sorted((span for span in spans if span.name == "transit"), key=lambda span: span.begin)
    assert (infer.attributes[CPU_TIME], infer.attributes[DURATION]) == (4_000_000, 5_000_001)
    assert infer.attributes[GROUP] == GROUP_OF[Stage.INFER]
    assert not any(CPU_TIME in span.attributes for span in transit)
    assert [span.attributes.get(OF_FACT[Fact.REQUEST_BYTES]) for span in transit] == [None, None, 150_600]


def test_a_hop_over_kafka_is_a_sending_and_a_visit_that_links_to_it() -> None:
    ledger = door(KAFKA, waits=True)
    spans = tree(ledger)
    root = assert_whole(spans)
    send, process = named(spans, "send work", PRODUCER), named(spans, "process work", CONSUMER)
    # Both are children of the request: below the sending, Jaeger's critical path would prune the visit
    assert send.parent == process.parent == root.id
    assert process.links == ((root.trace, send.id),)
    assert (send.service, process.service) == ("preprocess", "inference")
    assert send.attributes[DURATION] == 400_000
    assert 400_000 - 4 * INSET_NS <= send.end - send.begin <= 400_000 - 2 * INSET_NS
    assert (process.attributes[MESSAGING_PARTITION], process.attributes[KAFKA_OFFSET]) == ("3", 41)
    assert process.attributes["messaging.message.body.size"] == 150_600
    # The waits are where they were: before the visit, and after it
    assert tiles_of(spans) == said(ledger)
    waits = [span for span in spans if span.name == "broker_wait"]
    assert [wait.end <= process.begin for wait in waits] == [True, False]
    assert {wait.parent for wait in waits} == {root.id}


def test_a_hop_over_redis_is_named_after_its_stream_and_entry() -> None:
    ledger = door(REDIS, waits=True)
    spans = tree(ledger)
    root = assert_whole(spans)
    send, process = named(spans, "send work", PRODUCER), named(spans, "process work", CONSUMER)
    assert send.parent == process.parent == root.id
    assert process.links == ((root.trace, send.id),)
    assert {span.attributes[MESSAGING_SYSTEM] for span in (send, process)} == {"redis"}
    assert process.attributes[MESSAGE_ID] == "3-41"
    assert MESSAGING_PARTITION not in process.attributes
    assert tiles_of(spans) == said(ledger)


@pytest.mark.parametrize(
    ("system", "place"),
    [
        ("kafka", {"messaging.destination.partition.id": "3", "messaging.kafka.offset": "41"}),
        ("redis", {"messaging.message.id": "3-41"}),
    ],
)
def test_the_root_of_what_a_door_took_from_a_broker_is_a_consumers(system: str, place: dict[str, str]) -> None:
    # Given the ledger of a door that took a record which had waited
    waited = Tile(Stage.BROKER_WAIT, 250_000, UNKNOWN_CPU, OUTER)
    admission = Tile(Stage.ADMISSION, 40_000, UNKNOWN_CPU, "preprocess", RECORD)
    tiles = (waited, admission, *door()[2:])
    # When it makes its tree
    found = tree(tiles, source=(system, "images"))
    # Then the root is the processing of that record
    root = assert_whole(found)
    assert (root.name, root.kind, root.service) == ("process images", CONSUMER, "preprocess")
    assert root.attributes["messaging.system"] == system
    assert {name: str(root.attributes[name]) for name in place} == place
    assert "rpc.method" not in root.attributes
    assert tiles_of(found) == said(tiles)


def test_the_clients_tree_holds_the_doors_which_holds_the_inference_services() -> None:
    own = Context(bytes.fromhex(TRACE), bytes.fromhex(PARENT), True)
    ledger = client(door(KAFKA, waits=True))
    spans = tree(ledger, "client", own=own)
    root = assert_whole(spans)
    # Its ids are those under which the request travelled
    assert (root.service, root.trace, root.id, root.parent) == ("loadgen", TRACE, PARENT, "")
    assert tiles_of(spans) == said(ledger)
    call = named(spans, conventions.INFER_METHOD, CLIENT)
    visit = named(spans, conventions.INFER_METHOD, SERVER)
    process = named(spans, "process work")
    assert (call.parent, visit.parent, process.parent) == (root.id, call.id, visit.id)
    assert (call.service, visit.service, process.service) == ("loadgen", "preprocess", "inference")


def test_an_engine_in_the_doors_process_is_a_part_of_the_door() -> None:
    ledger = (
        Tile(Stage.DECODE, 2_000_000, 1_900_000, "preprocess"),
        Tile(Stage.INFERENCE_QUEUE, 20_000, UNKNOWN_CPU, "inference"),
        Tile(Stage.INFER, 5_000_000, 4_000_000, "inference", BATCH),
        Tile(Stage.DISPATCH, 9_000, UNKNOWN_CPU, "preprocess"),
    )
    spans = tree(ledger)
    root = assert_whole(spans)
    assert {span.service for span in spans} == {"preprocess"}
    assert named(spans, "inference").parent == root.id
    assert tiles_of(spans) == said(ledger)


def test_two_visits_to_one_service_are_two_spans() -> None:
    # Also where nothing lies between them
    for between in ((), (Tile(Stage.DISPATCH, 9_000, UNKNOWN_CPU, "preprocess"),)):
        hop = door()[4:8]
        spans = tree((*door()[:4], *hop, *between, *hop, *door()[8:]))
        assert_whole(spans)
        assert sum(span.kind == SERVER and span.service == "inference" for span in spans) == 2


def test_a_call_without_a_ledger_is_a_span_without_a_visit() -> None:
    ledger = (*door()[:4], Tile(Stage.UNANSWERED, 3_000_000, UNKNOWN_CPU, HOP))
    spans = tree(ledger, error="deadline_exceeded")
    root = assert_whole(spans)
    assert tiles_of(spans) == said(ledger)
    assert {span.service for span in spans} == {"preprocess"}
    assert root.status == {"message": "deadline_exceeded", "code": 2}
    assert root.attributes[ERROR_TYPE] == "deadline_exceeded"


def test_a_slightly_negative_remainder_is_kept_as_a_number() -> None:
    tiles = (
        Tile(Stage.INFER, 1_000_000, UNKNOWN_CPU, "inference"),
        Tile(Stage.TRANSIT, -300, UNKNOWN_CPU, HOP, GRPC),
        Tile(Stage.SERIALIZE, 5_000, 1, "preprocess"),
    )
    spans = tree(tiles)
    transit = named(spans, "transit")
    assert (transit.attributes[DURATION], transit.end) == (-300, transit.begin)
    [root] = [span for span in spans if not span.parent]
    assert root.end - root.begin == sum(tile.duration_ns for tile in tiles)


def test_a_forced_tree_is_a_trace_of_its_own_that_links_to_its_unsampled_parent() -> None:
    parent = Context(bytes.fromhex(TRACE), bytes.fromhex(PARENT), False)
    root = assert_whole(tree(door(), parent=parent, forced=True))
    assert (root.parent, root.links) == ("", ((TRACE, PARENT),))
    assert root.trace != TRACE
    assert root.attributes[SAMPLED_BECAUSE] == "slow"


def test_a_batch_has_a_trace_of_its_own_and_its_members_link_to_it() -> None:
    # Given a batch of which two members are traced
    members = [Context(bytes([n]) * 16, bytes([n]) * 8, True) for n in (1, 2)]
    tiles = (
        Tile(Stage.UPLOAD, 90_000, 80_000, "inference"),
        Tile(Stage.INFER, 5_000_001, 4_000_000, "inference", BATCH),
    )
    spans = Spans("1")
    add_batch(spans, BatchDone(77, "model-a", 4, monotonic_ns(), tiles, ()), members, 10**18)
    # Then its root links to both, and has the device's time below it
    batch = spans_of(to_json(spans.request))
    root = assert_whole(batch)
    assert root.links == tuple((member.trace_id.hex(), member.span_id.hex()) for member in members)
    assert (root.service, root.name, root.parent) == ("inference", "batch model-a", "")
    assert tiles_of(batch) == said(tiles)
    # And the member's span links to it, from whichever process makes that
    assert named(tree(door()), "infer").links == ((root.trace, root.id),)
    assert (root.trace, root.id) == (batch_context(77).trace_id.hex(), batch_context(77).span_id.hex())


def test_one_resource_per_service_with_the_schema_of_its_names() -> None:
    spans = Spans("1.2.3")
    for _ in range(2):
        add_request(spans, finished(client(door())), "client", BEGINS_HERE, RATIO, 0)
    resources = to_json(spans.request)["resourceSpans"]
    assert [attributes(resource["resource"])["service.name"] for resource in resources] == [
        "loadgen",
        "preprocess",
        "inference",
    ]
    for resource in resources:
        assert attributes(resource["resource"])["service.namespace"] == "beyond-inference"
        assert attributes(resource["resource"])["service.version"] == "1.2.3"
        assert resource["schemaUrl"] == resource["scopeSpans"][0]["schemaUrl"] == conventions.SCHEMA_URL
        for span in resource["scopeSpans"][0]["spans"]:
            assert (len(span["traceId"]), len(span["spanId"])) == (32, 16)


def test_names_of_the_conventions_are_those_of_the_pinned_schema() -> None:
    # As OpenTelemetry's own package has them; ours are in our namespace
    package = {
        value
        for module in (rpc_attributes, messaging_attributes, service_attributes, server_attributes, error_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    assert any(schema.value == conventions.SCHEMA_URL for schema in Schemas)
    for name, value in vars(conventions).items():
        if (
            name.isupper()
            and isinstance(value, str)
            and name not in ("SCHEMA_URL", "SCOPE", "NAMESPACE", "INFER_METHOD")
        ):
            assert value in package or value.startswith("beyond."), name
    assert all(value.startswith("beyond.") for value in conventions.OF_FACT.values())


# --- contexts --------------------------------------------------------------------------------------------------------


def test_a_context_is_read_as_the_standard_says() -> None:
    context = parse({"traceparent": f"00-{TRACE}-{PARENT}-01".encode(), "tracestate": b"vendor=1"})
    assert context == Context(bytes.fromhex(TRACE), bytes.fromhex(PARENT), True, "vendor=1")
    assert parse({"traceparent": f"cc-{TRACE}-{PARENT}-00-more".encode()}) == Context(
        bytes.fromhex(TRACE), bytes.fromhex(PARENT), False
    )


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"not a traceparent",
        b"\xff\xfe",
        f"ff-{TRACE}-{PARENT}-01".encode(),
        f"00-{TRACE}-{PARENT}-01-more".encode(),
        f"00-{TRACE.upper()}-{PARENT}-01".encode(),
        f"00-{'0' * 32}-{PARENT}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE}-{PARENT}".encode(),
    ],
)
def test_what_is_no_context_is_none(value: bytes) -> None:
    assert parse({"traceparent": value}) is None
    assert parse({}) is None
    assert sampled({"traceparent": value}) is None
    assert sampled({}) is None
    assert sampled_trace({"traceparent": value}) is None
    assert sampled_trace({}) is None


@pytest.mark.parametrize("flags", [f"{n:02x}" for n in range(16)])
def test_whether_it_is_sampled_is_told_as_reading_it_all_tells_it(flags: str) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}".encode()}
    context = parse(headers)
    assert context is not None
    assert sampled(headers) is context.sampled is bool(int(flags, 16) & 1)
    assert sampled_trace(headers) == (TRACE if context.sampled else None)


# --- sampling --------------------------------------------------------------------------------------------------------

MS = 1_000_000


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_decision_that_came_along_stands() -> None:
    everything = Sampler(1.0, lambda: 0.0, slow_ms=1.0, forced_per_s=0)
    nothing = Sampler(0.0, lambda: 0.0, slow_ms=1.0, forced_per_s=0)
    assert everything.decide(False, 5, failed=False) is None
    assert nothing.decide(True, 5, failed=False) == Decision("parent", forced=False)


def test_without_one_the_ratio_decides() -> None:
    draws = iter([0.24, 0.25, 0.99, 0.0])
    sampler = Sampler(0.25, lambda: next(draws), slow_ms=1.0, forced_per_s=0)
    assert [sampler.decide(None, 5, failed=False) is not None for _ in range(4)] == [True, False, False, True]


def test_slow_and_failed_requests_are_chosen_anyhow_up_to_a_rate() -> None:
    # Given a sampler that samples nothing, and lets two a second be forced
    time = Time()
    sampler = Sampler(0.0, lambda: 0.5, slow_ms=10.0, forced_per_s=2.0, clock=time)
    assert sampler.decide(False, 10 * MS, failed=False) is None
    # When slow and failed ones come at once, then the third must wait for half a second
    assert sampler.decide(False, 10 * MS + 1, failed=False) == Decision("slow", forced=True)
    assert sampler.decide(None, 1, failed=True) == Decision("error", forced=True)
    assert sampler.decide(False, 1, failed=True) is None
    time.now += 0.5
    assert sampler.decide(False, 1, failed=True) == Decision("error", forced=True)
    assert sampler.decide(False, 1, failed=True) is None
    # And quiet hours save no more than a second's worth
    time.now += 3600.0
    assert [sampler.decide(False, 1, failed=True) is not None for _ in range(3)] == [True, True, False]
    # What was sampled anyway costs none of that
    time.now += 0.5
    assert sampler.decide(True, 1, failed=True) == Decision("parent", forced=False)
    assert sampler.decide(False, 1, failed=True) == Decision("error", forced=True)


def test_without_a_fixed_mark_slow_is_above_the_running_p99() -> None:
    sampler = Sampler(0.0, lambda: 0.5, forced_per_s=1e9)
    # Nothing is known at first
    assert not any(sampler.decide(None, n * MS, failed=False) for n in range(1, 129))
    assert sampler.decide(None, 126 * MS, failed=False) is None
    assert sampler.decide(None, 128 * MS, failed=False) == Decision("slow", forced=True)
    # When all becomes slower, so does what is slow
    for _ in range(1024):
        sampler.decide(None, 500 * MS, failed=False)
    assert sampler.decide(None, 300 * MS, failed=False) is None


# --- the way out -----------------------------------------------------------------------------------------------------


class Sink:
    """A destination that refuses as often as it is told to."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.spans: list[Span] = []
        self.rejects = 0
        self.gate: threading.Event | None = None
        self.closed = False

    def send(self, request: Any, timeout_s: float) -> int:
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        self.spans += spans_of(to_json(request))
        return self.rejects

    def close(self) -> None:
        self.closed = True


def tracer(sink: Sink) -> Tracer:
    return Tracer(sink, Sampler(1.0, lambda: 0.0, forced_per_s=0), "1")


def test_all_that_is_offered_is_sent_before_the_end() -> None:
    sink = Sink()
    one = tracer(sink)
    for _ in range(20):
        assert one.offer(finished(door()))
    assert not one.offer(finished(door(), UNSAMPLED))
    assert one.offer_batch(BatchDone(7, "m", 1, 0, (), (SAMPLED, UNSAMPLED, {})))
    assert not one.offer_batch(BatchDone(7, "m", 1, 0, (), (UNSAMPLED, {})))
    one.close()
    one.close()
    assert len({span.trace for span in sink.spans}) == 21
    assert one.counts() == (21, len(sink.spans), 0, 0)
    assert sink.closed
    # What comes later is not chosen in vain without a word, and nobody is sent to look for it
    assert one.offer(finished(door())) is None
    assert one.counts().requests_lost == 1


@pytest.mark.parametrize(
    ("headers", "because", "error"),
    [({}, "ratio", None), (SAMPLED, "parent", None), (UNSAMPLED, "error", "internal")],
    ids=["ratio", "parent", "error"],
)
def test_who_offers_a_request_learns_where_its_spans_will_be(
    headers: Mapping[str, bytes], because: str, error: str | None
) -> None:
    sink = Sink()
    one = Tracer(sink, Sampler(1.0, lambda: 0.0, forced_per_s=1), "1")
    root = one.offer(finished(door(), headers, error))
    one.close()
    assert root is not None
    assert {span.trace for span in sink.spans} == {root.trace_id.hex()}
    [top] = [span for span in sink.spans if span.id == root.span_id.hex()]
    assert top.attributes[SAMPLED_BECAUSE] == because
    assert (root.trace_id.hex() == TRACE) == (because == "parent")


def test_a_full_queue_loses_requests_and_counts_them() -> None:
    # Given a destination that hangs
    sink = Sink()
    sink.gate = threading.Event()
    one = tracer(sink)
    # When more requests come than may wait, and than the thread takes before it hangs
    offered = 4096 + 2048 + 400
    for _ in range(offered):
        one.offer(finished(door()[:1]))
    lost = one.counts().requests_lost
    sink.gate.set()
    one.close()
    # Then what is missing is counted, to the last one
    assert 0 < lost == one.counts().requests_lost
    assert len({span.trace for span in sink.spans}) == offered - lost
    assert one.counts().spans == len(sink.spans)


def test_a_destination_that_is_away_for_a_moment_loses_nothing() -> None:
    sink = Sink(Unavailable("a moment"))
    one = tracer(sink)
    one.offer(finished(door()))
    deadline = time.monotonic() + 20
    while not sink.spans and time.monotonic() < deadline:
        time.sleep(0.01)
    one.close()
    assert sink.spans
    assert not one.counts().lost


@pytest.mark.parametrize("errors", [[InvalidInput("not these")], [Unavailable("gone")] * 3, [ZeroDivisionError("bug")]])
def test_what_cannot_be_sent_is_counted_and_the_next_one_is_unharmed(errors: list[Exception]) -> None:
    sink = Sink(*errors)
    one = tracer(sink)
    one.offer(finished(door()))
    deadline = time.monotonic() + 20
    while not one.counts().spans_lost and time.monotonic() < deadline:
        time.sleep(0.01)
    assert one.counts().spans_lost == len(tree(door()))
    one.offer(finished(door()))
    one.close()
    assert len(sink.spans) == one.counts().spans == len(tree(door()))


def test_spans_that_the_receiver_rejects_are_lost() -> None:
    sink = Sink()
    sink.rejects = 3
    one = tracer(sink)
    one.offer(finished(door()))
    one.close()
    assert one.counts().spans_lost == 3
    assert one.counts().lost


@pytest.mark.parametrize(
    "url", ["", "otlp://", "https://x:1", "spans.json", "file:", "otlp://host:port", "http://host"]
)
def test_a_destination_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"otlp://host:port .*file:PATH|cannot be written"):
        open_destination(url)


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        open_destination(f"file:{tmp_path}/file/spans.jsonl")


def test_a_file_has_otlp_json_a_line(tmp_path: Path) -> None:
    destination = open_destination(f"file:{tmp_path}/deep/spans.jsonl")
    spans = Spans("1")
    add_request(spans, finished(door()), "preprocess", BEGINS_HERE, RATIO, 0)
    assert destination.send(spans.request, 1.0) == destination.send(spans.request, 1.0) == 0
    destination.close()
    assert len(read(tmp_path / "deep" / "spans.jsonl")) == 2 * spans.count
    with pytest.raises(Unavailable, match="cannot be written"):
        destination.send(spans.request, 1.0)


def test_nobody_who_takes_spans_is_found_out_before_there_are_any(tmp_path: Path) -> None:
    for url in ("otlp://127.0.0.1:1", "http://127.0.0.1:1"):
        destination = open_destination(url)
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1.*make jaeger"):
            check(destination, 5.0)
        destination.close()
    destination = open_destination(f"file:{tmp_path}/spans.jsonl")
    check(destination)
    destination.close()
    assert (tmp_path / "spans.jsonl").read_text() == ""


def test_what_is_still_on_its_way_at_the_end_is_counted_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a destination that does not come back in time, and no patience
    monkeypatch.setattr("services.tracing.tracer._CLOSE_S", 0.3)
    sink = Sink()
    sink.gate = threading.Event()
    one = tracer(sink)
    offered = 2048 + 300  # more than are sent at once: some are made, some wait
    for _ in range(offered):
        one.offer(finished(door()[:1]))
    # When it closes
    one.close()
    counts = one.counts()
    # Then nothing counts as delivered, and everything as lost: made, or not even that
    assert counts.spans == 0
    assert counts.requests_lost + counts.spans_lost / 2 == offered
    # Also when the destination takes them all the same, afterwards
    sink.gate.set()
    one._thread.join(10)
    assert one.counts() == counts


def test_times_that_no_clock_has_leave_no_half_of_a_tree() -> None:
    spans = Spans("1")
    tiles = (*door()[:3], Tile(Stage.INFER, 2**63 - 1, UNKNOWN_CPU, "preprocess"))
    with pytest.raises(ValueError, match="longer than any request"):
        add_request(spans, finished(tiles), "preprocess", BEGINS_HERE, RATIO, 10**18)
    assert spans.count == 0


def test_a_state_that_is_no_text_is_not_passed_on() -> None:
    for state in (b"a=\x00\n\x1b", b"a=\xff", b"a=" + b"x" * 600):
        context = parse({**SAMPLED, "tracestate": state})
        assert context is not None
        assert context.state == ""


class Http:
    """A server of HTTP by hand: `serve` gets each connection."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._serve = serve
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    self._serve(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def one_request() -> Any:
    spans = Spans("1")
    add_request(spans, finished(door()), "preprocess", BEGINS_HERE, RATIO, 0)
    return spans.request


def test_a_collector_that_closes_idle_connections_loses_nothing() -> None:
    taken = []

    def serve(connection: socket.socket) -> None:
        taken.append(connection.recv(1 << 20))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")  # keeps it, it says, and closes it

    server = Http(serve)
    destination = open_destination(server.url)
    for _ in range(3):
        assert destination.send(one_request(), 5.0) == 0
    destination.close()
    server.close()
    assert len(taken) == 3


def test_a_collector_that_drips_does_not_hold_anybody() -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    server = Http(serve)
    destination = open_destination(server.url)
    begin = time.monotonic()
    with pytest.raises(Unavailable, match="cannot be sent"):
        destination.send(one_request(), 0.5)
    assert time.monotonic() - begin < 3.0
    destination.close()
    server.close()
