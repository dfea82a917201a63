"""Spans that a real door loses make a run INVALID, where the door's metrics are named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loadgen.__main__ import main
from services.local.ports import free_ports
from services.serving import Service
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess

PLAN = """
name = "spans"
warmup_s = 0.1
calibration_probes = 0
[targets]
door = "grpc://{door}"
[metrics]
door = "http://{metrics}/metrics"
[samples]
medium = 2
[[load]]
name = "one"
schedule = "closed(1)"
requests = 12
warmup = 0
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Carries out a small plan against a door that makes spans of every request, and sends them to where it is told."""
    monkeypatch.chdir(tmp_path)
    doors: list[Service] = []

    def carry_out(spans: str, *options: str) -> dict[str, Any]:
        (port,) = free_ports(1)
        metrics = f"127.0.0.1:{port}"
        flags = ["--listen", "127.0.0.1:0", "--metrics", metrics]
        if spans:
            flags += ["--spans", spans, "--slow-ms", "0.001", "--forced-spans-per-s", "1000"]
        door = build_preprocess(parse(PreprocessSettings, "", flags, {}))
        door.start()
        doors.append(door)
        plan = tmp_path / "spans.toml"
        plan.write_text(PLAN.format(door=door.host_port, metrics=metrics), encoding="utf-8")
        main(["run", str(plan), "--out", str(tmp_path / "out"), *options])
        found: dict[str, Any] = json.loads((tmp_path / "out" / "run.json").read_text())
        return found

    yield carry_out
    for door in doors:
        door.stop(5)


def test_spans_that_a_door_could_not_deliver_make_the_run_invalid(
    run: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a door whose collector is away
    content = run("otlp://127.0.0.1:1")
    # Then its losses are known though it takes seconds to give up, and are what makes the run INVALID
    (row,) = content["service_spans"]
    assert (row["target"], row["service"], row["unknown"], row["sent"]) == ("door", "preprocess", None, 0)
    assert row["lost"] >= 12 * 5
    (cell,) = content["cells"]
    assert cell["verdict"] == "INVALID"
    assert f"preprocess lost spans: 0 requests have none, {row['lost']} were not delivered" in cell["reasons"]
    assert "spans of services: LOST by door preprocess (" in capsys.readouterr().out
    assert "spans of services" in (Path("out") / "report.html").read_text()


def test_spans_that_arrived_are_counted_and_change_no_verdict(
    run: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    content = run(f"file:{tmp_path}/spans.jsonl")
    (row,) = content["service_spans"]
    assert (row["lost"], row["lost_requests"], row["unknown"]) == (0, 0, None)
    # all that were made are in the file: the run did not look too early
    written = (tmp_path / "spans.jsonl").read_text().count('"spanId"')
    assert row["sent"] >= 12 * 5
    assert written >= row["sent"]
    assert "spans_lost" not in content["cells"][0]


def test_a_door_without_spans_is_known_to_make_none(
    run: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = run("")["service_spans"]
    assert (row["makes"], row["unknown"]) == (False, None)
    assert "spans of services: none are made by door preprocess" in capsys.readouterr().out


def test_metrics_that_are_not_there_leave_it_unknown(run: Callable[..., dict[str, Any]]) -> None:
    content = run("", "--metrics", "door=http://127.0.0.1:9/metrics")
    (row,) = content["service_spans"]
    assert (row["makes"], row["lost"]) == (None, None)
    assert row["unknown"].startswith("http://127.0.0.1:9/metrics: ")
    assert content["cells"][0]["label"] == "MEASURED"
