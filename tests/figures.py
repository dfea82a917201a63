"""Cells as an experiment's runs have them, made by hand."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadgen.figures.cells import Cell
from loadgen.figures.figure import Step

# Columns of requests.csv, one per group that the tests need; the rest of a request is the client's.
QUEUE, DECODE, INFER = "preprocess_queue@preprocess_ns", "decode@preprocess_ns", "infer@inference_ns"
_FIXED = ("target", "size", "load", "due_ns", "error", "warmup", "total_ns")


def cell(
    folder: Path,
    at: Mapping[str, Any],
    *,
    target: str = "grpc",
    size: str = "medium",
    schedule: str = "closed(1)",
    rps: float = 10.0,
    spread: float = 0.1,
    mean_ms: float = 10.0,
    requests: Sequence[tuple[int, int, int]] = ((0, 3_000_000, 7_000_000),) * 40,
    cpu_ms: Mapping[str, float] | None = None,
    energy: Sequence[Mapping[str, Any]] = (),
    cpus: float = 2.0,
    verdict: str = "VALID",
    label: str = "EMULATED",
    others: Mapping[str, int] | None = None,
    p95_ms: float | None = None,
    rounds_cpu_ms: Sequence[Mapping[str, float]] = (),
    step: Step | None = None,
) -> Cell:
    """`requests`: ns of (queueing, decoding, inference), each. `spread`: of the throughput's interval, relative.

    `rounds_cpu_ms`: by process, of each round.

    `others`: column -> ns in it of each request, beside those. `step`: where it is not one of this target alone, with
    `at`.
    """
    path = folder / f"{len(list(folder.iterdir()))}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        more = others or {}
        out.writerow([*_FIXED, QUEUE, DECODE, INFER, *more])
        for due, own in enumerate(requests):
            parts = [*own, *more.values()]
            out.writerow([target, size, schedule, due, "", "0", sum(parts), *parts])
    about: dict[str, Any] = {
        "target": target,
        "size": size,
        "load": schedule,
        "schedule": schedule,
        "label": label,
        "verdict": verdict,
        "throughput_rps": rps,
        "latency_ms": {"mean": mean_ms, "p50": mean_ms, "p95": p95_ms},
        "intervals": {
            "throughput": {"low_rps": rps * (1 - spread), "high_rps": rps * (1 + spread)},
            "mean": {"low_ms": mean_ms * 0.9, "high_ms": mean_ms * 1.1},
            **({} if p95_ms is None else {"p95": {"low_ms": p95_ms * 0.8, "high_ms": None}}),
        },
        "contention": {"processes": _processes(cpu_ms or {"client": 1.0}), "energy": list(energy)},
        "rounds": [{"ok": 10, "contention": {"processes": _processes(cpu)}} for cpu in rounds_cpu_ms],
    }
    return Cell(step or Step("a step", (target,), at=at), about, path, cpus)


def _processes(cpu_ms: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "cpu_ms_per_request": ms} for name, ms in cpu_ms.items()]
