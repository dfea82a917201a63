"""One request in the terminal: exact nanoseconds, from a run's files or from a Jaeger."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from loadgen.analysis import analyse
from loadgen.errors import PlanError
from loadgen.experiment import Finished, save
from loadgen.target import HOP
from loadgen.waterfall import Request, Row, from_jaeger, from_run, names_of_rows, render
from services.accounting import Fact, Stage
from tests.exchanges import exchange, tile, walk
from tests.runs import run

NAMES = {"target": "grpc", "size": "medium", "load": "1 in flight", "schedule": "closed(1)"}


def stored(folder: Path) -> Path:
    exchanges = [walk(i, decode=2 + i / 10)._replace(traceparent=f"00-{i:032x}-{i:016x}-01") for i in range(21)]
    failed = exchange([tile(Stage.UNANSWERED, 30, HOP)], id_="r-99", due_ms=999, error="unavailable")
    exchanges.append(failed._replace(traceparent=f"00-{'f' * 32}-{'1' * 16}-00"))
    cell = {**NAMES, **analyse(exchanges, (), {}, 1.0, False, closed=True)}
    save(Finished(run(cell), [({**NAMES, "round": "0"}, e) for e in exchanges]), folder)
    return folder


# --- from files ------------------------------------------------------------------------------------------------------


def test_an_exemplar_has_its_parts_one_by_one_and_they_add_up(tmp_path: Path) -> None:
    request = from_run(stored(tmp_path), f"{10:032x}")
    assert [row.name for row in request.rows[:4]] == [
        "schedule_lag @ client", "serialize @ client", "admission @ preprocess", "decode @ preprocess",
    ]  # fmt: skip
    assert request.rows[3].duration_ns == request.rows[3].cpu_ns == 3_000_000
    assert sum(row.duration_ns for row in request.rows) == request.total_ns == 9_410_000
    assert [row.start_ns for row in request.rows[:3]] == [0, 10_000, 60_000]
    assert not request.notes


@pytest.mark.parametrize("wanted", [f"{3:032x}", f"00-{3:032x}-{3:016x}-01", "r-3"])
def test_any_other_request_has_its_sums(tmp_path: Path, wanted: str) -> None:
    request = from_run(stored(tmp_path), wanted)
    assert request.title.startswith("r-3  grpc, medium, 1 in flight")
    assert sum(row.duration_ns for row in request.rows) == request.total_ns
    assert {row.name: row.duration_ns for row in request.rows}["decode @ preprocess"] == 2_300_000
    assert "not their order" in request.notes[0]


def test_parts_that_only_a_later_target_has_are_drawn_where_they_were_on_its_way(tmp_path: Path) -> None:
    # Given a run of a target without a hop, and then of one with it
    first = [(Stage.SERIALIZE, "client"), (Stage.DECODE, "preprocess"), (Stage.INFER, "inference")]
    last = [(Stage.TRANSIT, HOP), (Stage.DESERIALIZE, "client")]
    hop = [(Stage.ADMISSION, "inference"), (Stage.TRANSIT, "preprocess>inference")]
    ways = {"fused": [*first, *last], "grpc": [*first[:2], hop[0], first[2], hop[1], *last]}
    exchanges = [
        (
            {**NAMES, "target": target, "round": "0"},
            exchange([tile(stage, 1, where) for stage, where in way], id_=target),
        )
        for target, way in ways.items()
    ]
    save(Finished(run(), exchanges), tmp_path)
    # When each is drawn, then its parts are in the order in which they were
    for target, way in ways.items():
        rows = from_run(tmp_path, target).rows
        assert [row.name for row in rows] == [f"{stage.value} @ {where}" for stage, where in way]


def test_facts_of_a_hop_are_told_below_its_parts_and_are_in_no_sum(tmp_path: Path) -> None:
    # Given a request whose record was acknowledged 400 us after it was handed over, and was polled after 1,900 us
    hop = ((Fact.SYSTEM, "kafka"), (Fact.REQUEST_BYTES, 150_600), (Fact.PUBLISH_NS, 400_000), (Fact.AGE_NS, 77))
    record = ((Fact.PARTITION, 3), (Fact.OFFSET, 41), (Fact.AGE_NS, 1_900_000))
    tiles = [
        tile(Stage.ADMISSION, 1, "inference")._replace(facts=record),
        tile(Stage.TRANSIT, 2, "preprocess>inference")._replace(facts=hop),
    ]
    one = exchange(tiles)._replace(traceparent=f"00-{7:032x}-{7:016x}-01")
    cell = {**NAMES, **analyse([one], (), {}, 1.0, False, closed=True)}
    save(Finished(run(cell), [({**NAMES, "round": "0"}, one)]), tmp_path)
    # When it is drawn
    request = from_run(tmp_path, f"{7:032x}")
    text = render(request)
    # Then they are there, by name and part, and so is how long the broker had it
    assert sum(row.duration_ns for row in request.rows) == request.total_ns == 3_000_000
    assert "admission @ inference: partition 3, offset 41, age_ns 1,900,000" in text
    assert "system kafka, request_bytes 150,600, publish_ns 400,000, age_ns 77" in text
    assert "1,900,000 ns after it was handed over, and 1,500,000 ns after the sender knew" in text
    assert "in no sum" in text
    # And a hop without any has no such lines
    assert "in no sum" not in render(from_run(stored(tmp_path / "other"), f"{10:032x}"))


def test_a_failure_says_so(tmp_path: Path) -> None:
    request = from_run(stored(tmp_path), "f" * 32)
    assert "failed: unavailable" in request.title
    assert [(row.name, row.duration_ns) for row in request.rows] == [(f"unanswered @ {HOP}", 30_000_000)]


def test_what_is_not_there_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"requests.csv has no request 'abc'; take a trace id"):
        from_run(stored(tmp_path / "run"), "abc")
    with pytest.raises(PlanError, match=r"cannot be read: No such file .* --run"):
        from_run(tmp_path / "nowhere", "abc")
    (tmp_path / "requests.csv").write_text("id,traceparent\nabc,00-1-2-3\n", encoding="utf-8")
    with pytest.raises(PlanError, match="is no file of requests"):
        from_run(tmp_path, "abc")
    (tmp_path / "requests.csv").write_bytes(b"id\n\xff\xfe\n")
    with pytest.raises(PlanError, match="is no file of requests"):
        from_run(tmp_path, "abc")


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_it_is_drawn_to_scale_with_exact_nanoseconds() -> None:
    rows = [Row("decode @ preprocess", 0, 1_000_000, 900_001), Row("infer @ inference", 1_000_000, 3_000_000)]
    lines = render(Request("r-1", 4_000_000, rows), 120).splitlines()
    decode, infer, total = lines[3:6]
    assert "1,000,000" in decode
    assert "900,001" in decode
    assert "25.0%" in decode
    assert infer.count("#") == 3 * decode.count("#") > 0
    assert infer.index("#") == decode.rindex("#") + 1
    assert total.split() == ["total", "4,000,000"]
    assert all(len(line) <= 80 for line in render(Request("r-1", 4_000_000, rows), 80).splitlines())


def test_what_is_negative_or_too_short_is_a_dot() -> None:
    text = render(Request("r", 1000, [Row("transit @ a>b", 1000, -5), Row("x @ a", 0, 1)]), 100)
    assert text.count("#") == 0
    assert [line[-1] for line in text.splitlines()[3:5]] == [".", "."]
    assert render(Request("r", 0, []), 100)


def test_parts_of_one_name_say_what_they_came_after() -> None:
    parts = [("decode", "a"), ("dispatch", "a"), ("transit", "a>b"), ("dispatch", "a"), ("dispatch", "client")]
    assert names_of_rows(parts) == [
        "decode @ a",
        "dispatch after decode @ a",
        "transit @ a>b",
        "dispatch after transit @ a",
        "dispatch @ client",
    ]


# --- from Jaeger -----------------------------------------------------------------------------------------------------

TRACE = "0af7651916cd43dd8448eb211c80319c"


def span(id_: str, name: str, start: int, duration: int, parent: str | None = None, **tags: Any) -> dict[str, Any]:
    """As Jaeger's query API has it: microseconds."""
    references = [{"refType": "CHILD_OF", "traceID": TRACE, "spanID": parent}] if parent else []
    return {
        "traceID": TRACE,
        "spanID": id_,
        "operationName": name,
        "references": references,
        "startTime": 1_700_000_000_000_000 + start,
        "duration": duration,
        "tags": [{"key": f"beyond.{key}", "type": "int64", "value": value} for key, value in tags.items()],
        "processID": "p2" if name == "infer" else "p1",
    }


ANSWER = {
    "data": [
        {
            "traceID": TRACE,
            "spans": [
                span("c", "infer", 1001, 2998, "b", duration_ns=3_000_456, cpu_ns=2_000_000, stage="infer"),
                span("b", "ModelInfer", 1000, 3000, "a"),
                span("a", "classification", 0, 5000, duration_ns=5_000_123),
                span("d", "decode", 1, 998, "a", duration_ns=1_000_789, stage="decode"),
                span("e", "transit", 4001, 10, "a", duration_ns=12_345, stage="transit", publish_ns=9, unheard_of=1),
            ],
            "processes": {"p1": {"serviceName": "preprocess"}, "p2": {"serviceName": "inference"}},
        }
    ]
}


@contextmanager
def answering(status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that answers everything alike; its URL, and the paths that were asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_a_trace_is_a_tree_with_the_exact_figures_of_its_attributes() -> None:
    with answering(200, json.dumps(ANSWER).encode()) as (url, asked):
        request = from_jaeger(url, TRACE)
    assert asked == [f"/api/traces/{TRACE}"]
    assert [(row.name, row.depth, row.duration_ns, row.exact) for row in request.rows] == [
        ("classification @ preprocess", 0, 5_000_123, True),
        ("decode @ preprocess", 1, 1_000_789, True),
        ("ModelInfer @ preprocess", 1, 3_000_000, False),
        ("infer @ inference", 2, 3_000_456, True),
        ("transit @ preprocess", 1, 12_345, True),
    ]
    assert request.rows[3].cpu_ns == 2_000_000
    assert request.total_ns == 5_000_123
    text = render(request)
    assert "    infer @ inference" in text
    assert "~3,000,000" in text.replace(" ", "")
    assert "~ in microseconds" in text
    assert "  transit @ preprocess: publish_ns 9" in text.splitlines()


def test_a_trace_that_is_not_whole_is_said_to_be_so() -> None:
    answer = json.loads(json.dumps(ANSWER))
    answer["data"][0]["spans"] = [s for s in answer["data"][0]["spans"] if s["spanID"] != "b"]
    with answering(200, json.dumps(answer).encode()) as (url, _):
        request = from_jaeger(url, TRACE)
    assert "1 spans have a parent that is not in the trace" in request.notes[-1]
    assert len(request.rows) == 4


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b'{"errors":[{"code":404,"msg":"trace not found"}]}', "has no trace .* was it sampled"),
        (200, b'{"data":[]}', "has no trace"),
        (500, b"", "answered 500 .* is it the query API"),
        (200, b"<html>", "answered what no Jaeger does"),
        (200, b'{"data":[{"spans":[{}],"processes":{}}]}', "answered what no Jaeger does"),
        (200, b'{"data":null}', "answered what no Jaeger does"),
    ],
)
def test_an_answer_without_the_trace_is_an_error_that_says_why(status: int, body: bytes, said: str) -> None:
    with answering(status, body) as (url, _), pytest.raises(PlanError, match=said):
        from_jaeger(url, TRACE)


def test_nobody_there_and_wrong_words_are_errors() -> None:
    with answering(200, b"") as (url, _):
        pass  # and it is gone
    with pytest.raises(PlanError, match=r"does not answer: .*\(--run\)"):
        from_jaeger(url, TRACE)
    with pytest.raises(PlanError, match=r"is not http://host:port; the query API is on port 16686"):
        from_jaeger("file:///etc/passwd", TRACE)
    for wrong in ("", "xyz", TRACE.upper(), "../../" + TRACE[6:]):
        with pytest.raises(PlanError, match="is no trace id"):
            from_jaeger(url, wrong)
