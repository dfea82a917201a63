"""Exchanges -> one cell of a result: stages, groups, quantiles, verdict. Means add up; percentiles don't."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.calibration import Floor
from loadgen.target import Exchange
from services.accounting import CPU_STAGES, GROUP_OF, UNKNOWN_CPU, Group, Stage, Tile

# The rows of every table. Movement is split in two: the calibrated floor of an idle link, and what was beyond it.
ROWS = (
    "client",
    "queueing",
    "preprocessing",
    "serialization",
    "network",
    "excess",
    "transfer",
    "inference",
    "exceptional",
)

# A percentile p is printed from this many requests on: below, it rests on fewer than five observations beyond it.
_BEYOND = 5
_LAG_LIMIT_MS = 1.0
_STALL_LIMIT = 0.05


def analyse(
    exchanges: Sequence[Exchange],
    floors: Sequence[Floor],
    contention: Mapping[str, Any],
    duration_s: float,
    emulated: bool,
) -> dict[str, Any]:
    """The numeric part of a cell of schema `beyond-inference/run/1` (docs/results-schema.md). Times in ms."""
    good = [exchange for exchange in exchanges if exchange.error is None]
    errors = Counter(exchange.error for exchange in exchanges if exchange.error is not None)
    mismatched = sum(1 for e in exchanges if sum(tile.duration_ns for tile in e.tiles) != e.total_ns)
    incomplete = sum(1 for e in good if any(tile.stage is Stage.REMOTE for tile in e.tiles))
    cell: dict[str, Any] = {
        "label": "EMULATED" if emulated else "MEASURED",
        "requests": len(exchanges),
        "ok": len(good),
        "errors": dict(errors),
        "duration_s": duration_s,
        "throughput_rps": len(good) / duration_s if duration_s > 0 else 0.0,
        "ledger": {"complete": len(good) - incomplete, "mismatched": mismatched},
        "contention": dict(contention),
        "calibration": [
            {"hop": f.hop, "p50_ms": f.p50_ns / 1e6, "low_ms": f.low_ns / 1e6, "high_ms": f.high_ns / 1e6, "n": f.n}
            for f in floors
        ],
    }
    if not good:
        cell.update(verdict="INVALID", reasons=["no request was answered"])
        return cell
    totals = sorted(exchange.total_ns / 1e6 for exchange in good)
    mean = sum(totals) / len(totals)
    stages = _stages(good, {floor.hop: floor.p50_ns for floor in floors})
    groups = _groups(stages, mean)
    stalled = sum(
        (tile.duration_ns - tile.cpu_ns) / 1e6
        for exchange in good
        for tile in exchange.tiles
        if tile.stage in CPU_STAGES and tile.cpu_ns != UNKNOWN_CPU
    ) / len(good)
    excesses = sorted(_transit(e) - sum(floor.p50_ns for floor in floors) for e in good) if floors else []
    middle = quantile(totals, 0.5)
    cell.update(
        latency_ms={
            "mean": mean,
            **{f"p{p}": percentile(totals, p) for p in (50, 90, 95, 99)},
            "max": totals[-1],
        },
        quantiles_ms=[quantile(totals, i / 100) for i in range(101)],
        stages=stages,
        groups=groups,
        stalled_ms=stalled,
        excess=None
        if not excesses
        else {"p50_ms": quantile(excesses, 0.5) / 1e6, "p50_share": quantile(excesses, 0.5) / 1e6 / middle},
        exemplars={"median": _exemplar(good, 0.5), "slowest": _exemplar(good, 1.0)},
    )
    cell["verdict"], cell["reasons"] = _verdict(good, errors, mismatched, incomplete, stalled / mean)
    return cell


def quantile(ordered: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics (Hyndman and Fan's type 7)."""
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (position - low))


def percentile(ordered: Sequence[float], p: int) -> float | None:
    """None where fewer than five observations lie beyond it: then it is a guess."""
    return quantile(ordered, p / 100) if len(ordered) * (100 - p) / 100 >= _BEYOND else None


def _transit(exchange: Exchange) -> int:
    return sum(tile.duration_ns for tile in exchange.tiles if tile.stage is Stage.TRANSIT)


def _stages(good: Sequence[Exchange], floors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Means by (stage, where), in the order of the walk; transit of a calibrated hop as network and excess."""
    order: dict[tuple[Stage, str], int] = {}
    wall: dict[tuple[Stage, str], int] = {}
    cpu: dict[tuple[Stage, str], int] = {}
    for exchange in good:
        for position, tile in enumerate(exchange.tiles):
            key = (tile.stage, tile.where)
            order[key] = min(order.get(key, position), position)
            wall[key] = wall.get(key, 0) + tile.duration_ns
            if tile.cpu_ns != UNKNOWN_CPU and tile.stage in CPU_STAGES:
                cpu[key] = cpu.get(key, 0) + tile.cpu_ns
    n = len(good)
    total = sum(wall.values()) / n
    rows: list[dict[str, Any]] = []

    def add(stage: str, group: str, where: str, mean_ns: float, cpu_ns: float | None) -> None:
        rows.append(
            {
                "stage": stage,
                "group": group,
                "where": where,
                "mean_ms": mean_ns / 1e6,
                "share": mean_ns / total,
                "cpu_ms": None if cpu_ns is None else cpu_ns / 1e6,
            }
        )

    for key in sorted(order, key=lambda k: order[k]):
        stage, where = key
        mean_ns = wall[key] / n
        if stage is Stage.TRANSIT:
            floor = floors.get(where)
            if floor is None:  # not calibrated: nothing of it may be called network
                add("excess", "movement", where, mean_ns, None)
            else:
                add("network", "movement", where, floor, None)
                add("excess", "movement", where, mean_ns - floor, None)
        else:
            add(stage.value, GROUP_OF[stage].value, where, mean_ns, cpu[key] / n if key in cpu else None)
    return rows


def _groups(stages: Sequence[Mapping[str, Any]], mean_ms: float) -> list[dict[str, Any]]:
    sums: dict[str, float] = {}
    for stage in stages:
        row = stage["stage"] if stage["group"] == Group.MOVEMENT.value else stage["group"]
        sums[row] = sums.get(row, 0.0) + stage["mean_ms"]
    return [{"group": row, "mean_ms": sums[row], "share": sums[row] / mean_ms} for row in ROWS if row in sums]


def _exemplar(good: Sequence[Exchange], q: float) -> dict[str, Any]:
    ordered = sorted(good, key=lambda exchange: exchange.total_ns)
    chosen = ordered[round(q * (len(ordered) - 1))]
    return {
        "id": chosen.id,
        "traceparent": chosen.traceparent,
        "total_ms": chosen.total_ns / 1e6,
        "tiles": [tile_row(tile) for tile in chosen.tiles],
    }


def tile_row(tile: Tile) -> dict[str, Any]:
    """A tile for a results file, in ms."""
    return {
        "stage": tile.stage.value,
        "where": tile.where,
        "ms": tile.duration_ns / 1e6,
        "cpu_ms": None if tile.cpu_ns == UNKNOWN_CPU else tile.cpu_ns / 1e6,
    }


def _verdict(
    good: Sequence[Exchange],
    errors: Mapping[str, int],
    mismatched: int,
    incomplete: int,
    stall_share: float,
) -> tuple[str, list[str]]:
    """INVALID when the numbers cannot be used, CONTENDED when they hold but the machine was short of CPU."""
    invalid: list[str] = []
    contended: list[str] = []
    if errors:
        invalid.append("errors: " + ", ".join(f"{n} {kind}" for kind, n in errors.items()))
    if mismatched:
        invalid.append(f"{mismatched} ledgers do not add up to the client's total")
    if incomplete:
        invalid.append(f"{incomplete} replies came without a ledger")
    lags = sorted(t.duration_ns / 1e6 for e in good for t in e.tiles if t.stage is Stage.SCHEDULE_LAG)
    if lags:
        p99 = quantile(lags, 0.99)
        limit = max(_LAG_LIMIT_MS, 0.01 * quantile(sorted(e.total_ns / 1e6 for e in good), 0.99))
        if p99 > limit:
            contended.append(f"the generator was late: schedule lag p99 {p99:.2f} ms, over {limit:.2f} ms")
    if stall_share > _STALL_LIMIT:
        contended.append(f"computing threads were stalled for {stall_share:.1%} of the time")
    if invalid:
        return "INVALID", invalid + contended
    return ("CONTENDED", contended) if contended else ("VALID", [])
