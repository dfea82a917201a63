"""Ledgers become span trees that say the same, in files that others can read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from services.accounting import UNKNOWN_CPU, Stage, Tile, monotonic_ns
from services.errors import ConfigurationError
from services.telemetry import CPU_TIME, DURATION, ERROR_TYPE, GROUP, REQUEST_ID, STAGE, Telemetry

TRACE, PARENT = "ab" * 16, "cd" * 8
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01".encode()}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00".encode()}

HOP = "preprocess>inference"
DOOR_LEDGER = (
    Tile(Stage.ADMISSION, 40_000, UNKNOWN_CPU, "preprocess"),
    Tile(Stage.TRANSIT, 90_000, UNKNOWN_CPU, "client>preprocess"),
    Tile(Stage.DECODE, 2_000_000, 1_900_000, "preprocess"),
    Tile(Stage.SERIALIZE, 50_000, 50_000, "preprocess"),
    Tile(Stage.ADMISSION, 10_000, UNKNOWN_CPU, "inference"),
    Tile(Stage.TRANSIT, 30_000, UNKNOWN_CPU, HOP),  # the rest of its bytes came in over there
    Tile(Stage.INFER, 5_000_001, 4_000_000, "inference"),
    Tile(Stage.TRANSIT, 700_000, UNKNOWN_CPU, HOP),
    Tile(Stage.BROKER_WAIT, 300_000, UNKNOWN_CPU, HOP),
    Tile(Stage.DESERIALIZE, 20_000, 20_000, "preprocess"),
    Tile(Stage.SERIALIZE, 30_000, 30_000, "preprocess"),
)
CLIENT_LEDGER = (
    Tile(Stage.SERIALIZE, 60_000, 60_000, "client"),
    *DOOR_LEDGER,
    Tile(Stage.TRANSIT, 500_000, UNKNOWN_CPU, "client>preprocess"),
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


def record(tmp_path: Path, tiles: tuple[Tile, ...], headers: dict[str, bytes], **options: Any) -> list[Span]:
    """The spans of one request."""
    telemetry = Telemetry(f"file:{tmp_path}/spans.jsonl", options.pop("ratio", 0.0), immediate=True)
    emitted = telemetry.record(
        "id-7", "classification", monotonic_ns(), tiles, headers, options.pop("error", None), **options
    )
    telemetry.close()
    found = read(tmp_path / "spans.jsonl")
    assert emitted == bool(found)
    return found


def assert_whole(spans: list[Span]) -> Span:
    """One root, every other span inside its parent, and each parent as long as its children together."""
    by_id = {span.id: span for span in spans}
    assert len(by_id) == len(spans)
    [root] = [span for span in spans if span.parent not in by_id]
    for span in spans:
        assert span.trace == root.trace
        if span is not root:
            parent = by_id[span.parent]
            assert parent.begin <= span.begin <= span.end <= parent.end
        children = sorted((s for s in spans if s.parent == span.id), key=lambda s: s.begin)
        if children:
            assert children[0].begin == span.begin
            assert children[-1].end == span.end
            assert all(a.end == b.begin for a, b in itertools.pairwise(children))
    return root


def tiles_of(spans: list[Span]) -> list[tuple[str, int]]:
    """(stage, nanoseconds) in the order in which they were, from the spans alone."""
    leaves = sorted((s for s in spans if STAGE in s.attributes), key=lambda s: (s.begin, s.end))
    return [(s.attributes[STAGE], s.end - s.begin) for s in leaves]


def test_the_doors_tree_says_what_the_ledger_says(tmp_path: Path) -> None:
    spans = record(tmp_path, DOOR_LEDGER, SAMPLED)
    root = assert_whole(spans)
    assert (root.service, root.name, root.kind) == ("preprocess", "infer classification", 2)
    assert (root.trace, root.parent) == (TRACE, PARENT)
    assert root.attributes[REQUEST_ID] == "id-7"
    assert root.end - root.begin == sum(tile.duration_ns for tile in DOOR_LEDGER)
    assert tiles_of(spans) == [(tile.stage, tile.duration_ns) for tile in DOOR_LEDGER]
    # Each service's time is under that service, and its visit is one span
    [serve] = [span for span in spans if span.name == "serve inference"]
    assert (serve.service, serve.parent, serve.kind) == ("inference", root.id, 2)
    inside = [span.name for span in spans if span.parent == serve.id]
    assert inside == ["admission", "transit", "infer"]
    assert {span.service for span in spans if span.parent == serve.id} == {"inference"}
    # And what computed has its CPU time, what waited has none
    by_stage = {span.attributes[STAGE]: span.attributes for span in spans if STAGE in span.attributes}
    assert by_stage["infer"][CPU_TIME] == 4_000_000
    assert by_stage["infer"][DURATION] == 5_000_001
    assert by_stage["infer"][GROUP] == "inference"
    assert CPU_TIME not in by_stage["broker_wait"]


def test_the_clients_tree_holds_the_doors_which_holds_the_inference_services(tmp_path: Path) -> None:
    spans = record(tmp_path, CLIENT_LEDGER, SAMPLED, where="client")
    root = assert_whole(spans)
    assert (root.service, root.kind) == ("client", 3)
    assert tiles_of(spans) == [(tile.stage, tile.duration_ns) for tile in CLIENT_LEDGER]
    [door] = [span for span in spans if span.name == "serve preprocess"]
    [engine] = [span for span in spans if span.name == "serve inference"]
    assert (door.parent, engine.parent) == (root.id, door.id)
    assert (door.service, engine.service) == ("preprocess", "inference")


def test_two_visits_to_one_service_are_two_spans(tmp_path: Path) -> None:
    spans = record(tmp_path, DOOR_LEDGER + DOOR_LEDGER[3:], SAMPLED)
    assert_whole(spans)
    assert [span.name for span in spans].count("serve inference") == 2


def test_a_slightly_negative_remainder_is_kept_as_a_number(tmp_path: Path) -> None:
    tiles = (
        Tile(Stage.INFER, 1_000_000, UNKNOWN_CPU, "inference"),
        Tile(Stage.TRANSIT, -300, UNKNOWN_CPU, HOP),
        Tile(Stage.SERIALIZE, 5_000, 1, "preprocess"),
    )
    spans = record(tmp_path, tiles, SAMPLED)
    [transit] = [span for span in spans if span.name == "transit"]
    assert transit.attributes[DURATION] == -300
    assert transit.end == transit.begin
    [root] = [span for span in spans if span.parent == PARENT]
    assert root.end - root.begin == sum(tile.duration_ns for tile in tiles)


def test_a_failure_is_said_with_its_kind(tmp_path: Path) -> None:
    tiles = (Tile(Stage.UNANSWERED, 9, UNKNOWN_CPU, "preprocess"),)
    root = assert_whole(record(tmp_path, tiles, SAMPLED, error="unavailable"))
    assert root.status == {"message": "unavailable", "code": 2}
    assert root.attributes[ERROR_TYPE] == "unavailable"


def test_the_callers_decision_is_honoured(tmp_path: Path) -> None:
    # Whatever the ratio, a decision that was made stands
    assert record(tmp_path, DOOR_LEDGER, UNSAMPLED, ratio=1.0) == []
    assert record(tmp_path, DOOR_LEDGER, SAMPLED, ratio=0.0)


def test_a_client_that_holds_the_ledger_gives_the_root_the_ids_that_it_sent(tmp_path: Path) -> None:
    spans = record(tmp_path, CLIENT_LEDGER, {}, ratio=1.0, where="client", own=f"00-{TRACE}-{PARENT}-00")
    root = assert_whole(spans)
    assert (root.trace, root.id, root.parent) == (TRACE, PARENT, "")
    assert len({span.id for span in spans}) == len(spans)


@pytest.mark.parametrize("headers", [{}, {"traceparent": b"not a traceparent"}, {"traceparent": b"\xff\xfe"}])
def test_without_a_decision_the_ratio_decides(tmp_path: Path, headers: dict[str, bytes]) -> None:
    assert record(tmp_path, DOOR_LEDGER, headers, ratio=0.0) == []
    root = assert_whole(record(tmp_path, DOOR_LEDGER, headers, ratio=1.0))
    assert root.parent == ""
    assert root.trace != TRACE


def test_spans_that_are_made_later_are_made_before_the_end(tmp_path: Path) -> None:
    telemetry = Telemetry(f"file:{tmp_path}/spans.jsonl", 1.0)
    for i in range(20):
        telemetry.record_soon(f"{i}", "classification", monotonic_ns(), DOOR_LEDGER, {}, None)
    telemetry.close()
    roots = [span for span in read(tmp_path / "spans.jsonl") if REQUEST_ID in span.attributes]
    assert {span.attributes[REQUEST_ID] for span in roots} == {str(i) for i in range(20)}
    assert len({span.trace for span in roots}) == 20


def test_one_resource_per_service_and_ids_as_the_standard_writes_them(tmp_path: Path) -> None:
    record(tmp_path, CLIENT_LEDGER, SAMPLED, where="client")
    for line in (tmp_path / "spans.jsonl").read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            assert attributes(resource["resource"])["service.namespace"] == "beyond-inference"
            for span in resource["scopeSpans"][0]["spans"]:
                assert int(span["traceId"], 16) == int(TRACE, 16)
                assert (len(span["traceId"]), len(span["spanId"])) == (32, 16)


@pytest.mark.parametrize("destination", ["", "otlp://", "http://x:1", "spans.json", "file:"])
def test_a_destination_that_is_none_is_refused(destination: str) -> None:
    with pytest.raises(ConfigurationError, match="otlp://host:port or file:PATH"):
        Telemetry(destination, 1.0)


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        Telemetry(f"file:{tmp_path}/file/spans.jsonl", 1.0)
