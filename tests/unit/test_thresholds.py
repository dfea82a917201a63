"""Thresholds: what was not measured holds nothing, and a broken one is named."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.report_html import render
from loadgen.table import tables
from loadgen.thresholds import KINDS, as_rows, broken, check
from tests.runs import measured, run

CELL: dict[str, Any] = {
    "size": "medium",
    "target": "door",
    "load": "50/s",
    "requests": 200,
    "ok": 197,
    "dropped": 50,
    "throughput_rps": 48.5,
    "latency_ms": {"mean": 10.0, "p50": 9.0, "p90": 15.0, "p95": 20.0, "p99": None, "max": 80.0},
}
VALUES = {
    "mean_ms": 10.0,
    "p50_ms": 9.0,
    "p90_ms": 15.0,
    "p95_ms": 20.0,
    "p99_ms": None,
    "max_ms": 80.0,
    "error_rate": 0.015,
    "drop_rate": 0.2,
    "throughput_rps": 48.5,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_threshold_is_read_from_its_cell_and_holds_at_its_limit(name: str) -> None:
    value = VALUES[name]
    (checked,) = check(CELL, {name: 9.0 if value is None else value})
    assert checked.value == value
    assert checked.held is (value is not None)
    if value is not None:
        at_most, _ = KINDS[name]
        (checked,) = check(CELL, {name: value * (0.99 if at_most else 1.01)})
        assert not checked.held


def test_what_came_of_each_is_in_the_tables_and_on_the_page() -> None:
    limits = {"mean_ms": 12.0, "error_rate": 0.01}
    cells = [
        {**cell, "thresholds": as_rows(check(cell, {**limits, **more}))}
        for cell, more in (
            (measured("quick"), {}),
            (measured("slow", slower=3.0), {}),
            (measured("few"), {"p99_ms": 50.0}),
        )
    ]
    lines = {
        line.split("|")[1].strip(): line.split("|")[2:-1] for line in tables(run(*cells)).splitlines() if "|" in line
    }
    shown = {name: [value.strip() for value in values] for name, values in lines.items()}
    means = [f"{cell['latency_ms']['mean']:.4g}" for cell in cells]
    assert shown["mean at most 12 ms"] == [f"{means[0]}, held", f"{means[1]}, BROKEN", f"{means[2]}, held"]
    assert shown["error_rate at most 0.01"] == ["0, held"] * 3
    assert shown["p99 at most 50 ms"] == ["-", "-", "not measured, BROKEN"]
    page = render(run(*cells))
    for words in ("mean at most 12 ms", f"{means[1]}, BROKEN", "p99 at most 50 ms", "not measured, BROKEN"):
        assert words in page


def test_what_was_not_run_holds_nothing() -> None:
    cell = {"size": "medium", "target": "door", "load": "50/s", "label": "NOT RUN", "reasons": ["refused"]}
    assert [c.held for c in check(cell, dict.fromkeys(KINDS, 1e9))] == [False] * len(KINDS)


def test_a_broken_one_is_named_with_its_cell_its_value_and_its_limit() -> None:
    cell = {
        **CELL,
        "thresholds": as_rows(check(CELL, {"p95_ms": 19, "p99_ms": 50, "throughput_rps": 60, "mean_ms": 11})),
    }
    assert broken({"cells": [cell, {**CELL, "load": "without"}]}) == [
        "medium, door, 50/s: p95_ms is 20 ms; the threshold is at most 19 ms",
        "medium, door, 50/s: p99_ms was not measured; the threshold is at most 50 ms",
        "medium, door, 50/s: throughput_rps is 48.5 requests/s; the threshold is at least 60 requests/s",
    ]
