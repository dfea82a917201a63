"""A small run of schema beyond-inference/run/1, through the real analysis: for the tests of what is printed of it."""

from __future__ import annotations

from typing import Any

from loadgen.analysis import analyse
from loadgen.calibration import Floor
from loadgen.target import HOP
from services.accounting import Stage
from tests.exchanges import INNER, MS, exchange, tile, walk

ACCOUNT: dict[str, Any] = {
    "processes": [
        {"name": "client", "cpu_ms_per_request": 0.5, "run_delay_ms_per_request": 0.1},
        {"name": "preprocess", "cpu_ms_per_request": 2.75, "run_delay_ms_per_request": 0.2},
    ],
    "cpu_pressure_share": 0.125,
}


def floor(hop: str, ms: float) -> Floor:
    return Floor(hop, round(ms * MS), round(ms * MS * 0.9), round(ms * MS * 1.1), 40)


def measured(
    target: str,
    *,
    size: str = "medium",
    load: str = "1 in flight",
    schedule: str = "closed(1)",
    requests: int = 60,
    inner: float | None = None,
    failed: int = 0,
    emulated: bool = False,
    slower: float = 1.0,
) -> dict[str, Any]:
    """A cell: `requests` walks of a little different lengths, the first `failed` of them failed."""
    exchanges = [
        walk(
            i,
            decode=slower * (2 + (i % 7) / 10),
            infer=slower * (5 + (i % 11) / 10),
            outer=0.4 + (i % 3) / 100,
            inner=inner,
            due_ms=i * 10,
        )
        for i in range(requests)
    ]
    exchanges[:failed] = [exchange([tile(Stage.UNANSWERED, 3, HOP)], error="unavailable") for _ in range(failed)]
    floors = [floor(HOP, 0.3)] + ([] if inner is None else [floor(INNER, 0.5)])
    names = {"target": target, "size": size, "load": load, "schedule": schedule}
    analysed = analyse(exchanges, floors, ACCOUNT, 1.0, emulated, closed=schedule.startswith("closed"))
    return {**names, **analysed, "warmup": {"probes": 480, "seconds": 3.2, "stable": True}}


def not_run(target: str, reason: str, *, size: str = "medium", load: str = "1 in flight") -> dict[str, Any]:
    return {
        "target": target,
        "size": size,
        "load": load,
        "schedule": "closed(1)",
        "label": "NOT RUN",
        "reasons": [reason],
    }


def run(*cells: dict[str, Any], answers: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "schema": "beyond-inference/run/1",
        "name": "mine",
        "started": "2026-01-02T03:04:05Z",
        "duration_s": 77.1,
        "interrupted": False,
        "seed": 1,
        "environment": {"python": "3.11.9", "cpu": "Some CPU", "cpus": 2.0, "versions": {"grpcio": "1.76.0"}},
        "samples": {"medium": {"files": 20, "mean_bytes": 120_033.2}, "large": {"files": 12, "mean_bytes": 9.2e6}},
        "plan": {"name": "mine", "seed": 1},
        "cells": list(cells),
        "answers": answers or [],
        "notes": [],
        **more,
    }
