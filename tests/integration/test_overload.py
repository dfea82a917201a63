"""At overload nothing is lost in silence: every request has its ledger, and a trace without spans is said to be one."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loadgen.__main__ import main
from loadgen.commands.status import NOT_USABLE
from services.local.deployments import Options
from services.local.stack import Stack
from services.tracing.conventions import REQUEST_ID
from tests.overload import flood, wrong
from tests.unit.test_tracing import read

REQUESTS = 2000
RATE = 2500.0
ASKED = 400

PLAN = """
name = "flood"
timeout_s = 20.0
warmup_s = 0.1
calibration_probes = 0
allow_saturated = true
[targets]
door = "grpc://{door}"
[samples]
small = 8
[[load]]
name = "flood"
schedule = "offline({requests})"
requests = {requests}
warmup = 0
"""


def test_every_request_has_a_ledger_that_adds_up_and_a_trace_or_is_said_to_have_none(tmp_path: Path) -> None:
    # Given a door with room for a few, and callers of whom some have little time
    # When it is asked for several times what it answers
    result = flood(REQUESTS, RATE, "grpc", tmp_path)
    # Then it was too much: some were answered, some refused, some ran out of time
    assert result.offered_rps > 2 * result.answered_rps > 0
    assert set(result.outcomes()) == {"ok", "overloaded", "deadline_exceeded"}
    # And nothing is missing, on neither side
    assert wrong(result, REQUESTS)[:5] == []


@pytest.fixture(scope="module")
def small_door(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A suite that has room for a few."""
    folder = tmp_path_factory.mktemp("stack")
    options = Options(("emulated",), preprocess=("--admission-limit", "6"), log_level="WARNING")
    with Stack(("fused",), options, folder) as stack:
        yield stack.doors()["fused"]


def run(door: str, folder: Path, spans: str) -> tuple[int, dict[str, Any], list[dict[str, str]]]:
    """The exit status, run.json, and the rows of requests.csv of a run that floods the door."""
    plan = folder / "flood.toml"
    plan.write_text(PLAN.format(door=door, requests=ASKED), encoding="utf-8")
    status = main(
        ["run", str(plan), "--out", str(folder / "out"), "--spans", spans, "--sample-ratio", "0.5", "--no-live"]
    )
    with (folder / "out" / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return status, json.loads((folder / "out" / "run.json").read_text()), rows


def test_a_run_at_overload_has_all_spans_of_the_requests_that_it_chose(
    small_door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, document, rows = run(small_door, tmp_path, f"file:{tmp_path}/spans.jsonl")
    # Given a run whose requests were answered in part
    (cell,) = document["cells"]
    assert len(rows) == ASKED == cell["ok"] + sum(cell["errors"].values())
    assert cell["errors"]["overloaded"] > 0 < cell["ok"]
    assert cell["ledger"] == {"complete": cell["ok"], "mismatched": 0}
    # Then its own account says that nothing was lost, and the file has just those that were chosen
    counts = document["spans"]
    assert (counts["requests_lost"], counts["spans_lost"]) == (0, 0)
    spans = read(tmp_path / "spans.jsonl")
    roots = Counter(span.attributes[REQUEST_ID] for span in spans if REQUEST_ID in span.attributes)
    sampled = {row["id"] for row in rows if row["traceparent"].endswith("-01")}
    assert len(spans) == counts["spans"]
    assert sum(roots.values()) == len(roots) == counts["requests"]
    assert sampled <= set(roots), "who was sampled when it was sent has spans, whatever became of it"
    # And errors make it INVALID, for that reason only
    assert (status, cell["verdict"]) == (NOT_USABLE, "INVALID")
    assert not any("spans" in reason for reason in cell["reasons"])


def test_a_run_at_overload_whose_spans_are_lost_says_so_and_is_invalid(
    small_door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a destination that takes nothing: a full disk
    monkeypatch.chdir(tmp_path)
    status, document, rows = run(small_door, tmp_path, "file:/dev/full")
    # Then the ledgers are there all the same, and the verdict names what is not
    (cell,) = document["cells"]
    assert len(rows) == ASKED
    assert cell["ledger"]["mismatched"] == 0
    assert document["spans"]["spans_lost"] > 0
    assert document["spans"]["spans"] == 0
    assert (status, cell["verdict"]) == (NOT_USABLE, "INVALID")
    assert any(reason.startswith("the load generator lost spans: ") for reason in cell["reasons"])
