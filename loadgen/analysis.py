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

# Fewer observations than these beyond a percentile, or within a band: then it is a guess, and is not printed.
_ENOUGH = 5
# Percentiles don't add, so the tail is taken apart over the requests between these two quantiles.
_TAIL = (0.985, 0.995)
_LAG_LIMIT_MS = 1.0
_STALL_LIMIT = 0.05


def analyse(
    exchanges: Sequence[Exchange],
    floors: Sequence[Floor],
    contention: Mapping[str, Any],
    duration_s: float,
    emulated: bool,
    *,
    closed: bool,
) -> dict[str, Any]:
    """The numeric part of a cell of schema `beyond-inference/run/1` (docs/results-schema.md). Times in ms.

    Means, quantiles, stages and stalls are those of the requests that were answered. `closed`: the schedule was; a
    generator that is late for an open one did not ask what the plan says.
    """
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
        "ledger": {"complete": len(good) - incomplete, "mismatched": mismatched},
        "contention": dict(contention),
        "calibration": [
            {"hop": f.hop, "p50_ms": f.p50_ns / 1e6, "low_ms": f.low_ns / 1e6, "high_ms": f.high_ns / 1e6, "n": f.n}
            for f in floors
        ],
    }
    if not good:
        cell.update(verdict="INVALID", reasons=["no request was answered", *_refused(errors)])
        return cell
    floor_of = {floor.hop: floor.p50_ns for floor in floors}
    ordered = sorted(good, key=lambda exchange: exchange.total_ns)
    totals = [exchange.total_ns / 1e6 for exchange in ordered]
    whole = _decomposition(good, floor_of)
    stalled = sum(_stalled_ns(exchange) for exchange in good) / len(good) / 1e6
    cell.update(
        throughput_rps=_throughput(exchanges),
        latency_ms={
            "mean": whole["mean_ms"],
            **{f"p{p}": percentile(totals, p) for p in (50, 90, 95, 99)},
            "max": totals[-1],
        },
        quantiles_ms=[quantile(totals, i / 100) for i in range(101)],
        stages=whole["stages"],
        groups=whole["groups"],
        tail=_tail(ordered, totals, floor_of),
        stalled_ms=stalled,
        excess=_excess(good, floor_of, quantile(totals, 0.5)) if floors else None,
        exemplars={"median": _exemplar(ordered, 0.5), "slowest": _exemplar(ordered, 1.0)},
    )
    cell["verdict"], cell["reasons"] = _verdict(
        good, totals, errors, mismatched, incomplete, stalled / whole["mean_ms"], closed=closed
    )
    return cell


def quantile(ordered: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics (Hyndman and Fan's type 7)."""
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (position - low))


def percentile(ordered: Sequence[float], p: int) -> float | None:
    """None where fewer than five observations lie beyond it."""
    return quantile(ordered, p / 100) if len(ordered) * (100 - p) / 100 >= _ENOUGH else None


def apportion(values: Sequence[float], total: float, digits: int) -> list[float]:
    """`values` rounded to `digits` decimals such that they add up to the rounded `total` (largest remainders).

    Only where they add up to `total` before rounding: a sum that is wrong is shown wrong.
    """
    unit = 10**digits
    if not all(map(math.isfinite, [*values, total])) or abs(sum(values) - total) * unit > 0.5:
        return [round(value, digits) for value in values]
    down = [math.floor(value * unit) for value in values]
    # Rounded as it is printed: total * unit may lie on the other side of a half.
    missing = round(round(total, digits) * unit) - sum(down)
    by_remainder = sorted(range(len(values)), key=lambda i: values[i] * unit - down[i], reverse=True)
    for index in by_remainder[: max(0, missing)]:
        down[index] += 1
    return [value / unit for value in down]


def _throughput(exchanges: Sequence[Exchange]) -> float:
    """Requests answered per second while requests were being sent: from the first answer to the last sending.

    So neither the time until the pipe is full nor the time in which it empties counts as if the server had been slow.
    Where that leaves too few, all answers over the time from the first request to the last answer.
    """
    answered = sorted(exchange.done_ns for exchange in exchanges if exchange.error is None)
    last_sent = max(exchange.due_ns for exchange in exchanges)
    within = sum(1 for done in answered if answered[0] < done <= last_sent)
    if within >= _ENOUGH:
        return within / (last_sent - answered[0]) * 1e9
    span = answered[-1] - min(exchange.due_ns for exchange in exchanges)
    return len(answered) / span * 1e9


def _stalled_ns(exchange: Exchange) -> int:
    """Wall time of the stages that compute in which their thread was on no CPU, as far as that is known."""
    return sum(
        tile.duration_ns - tile.cpu_ns
        for tile in exchange.tiles
        if tile.stage in CPU_STAGES and tile.cpu_ns != UNKNOWN_CPU
    )


def _excess(good: Sequence[Exchange], floors: Mapping[str, int], median_ms: float) -> dict[str, float]:
    """The median over requests of what transit took beyond the floors of the hops that the request took.

    A hop without a floor counts in full, as in the row of that name.
    """
    beyond = []
    for exchange in good:
        hops = {tile.where for tile in exchange.tiles if tile.stage is Stage.TRANSIT}
        transit = sum(tile.duration_ns for tile in exchange.tiles if tile.stage is Stage.TRANSIT)
        beyond.append(transit - sum(floors.get(hop, 0) for hop in hops))
    middle = quantile(sorted(beyond), 0.5) / 1e6
    return {"p50_ms": middle, "p50_share": middle / median_ms}


def _tail(ordered: Sequence[Exchange], totals: Sequence[float], floors: Mapping[str, int]) -> dict[str, Any] | None:
    """The mean request of the band around p99, taken apart: it adds up, unlike percentiles of parts."""
    low, high = (quantile(totals, q) for q in _TAIL)
    band = [exchange for exchange, total in zip(ordered, totals, strict=True) if low <= total <= high]
    if len(band) < _ENOUGH:
        return None
    return {"low_ms": low, "high_ms": high, "requests": len(band), **_decomposition(band, floors)}


def _decomposition(exchanges: Sequence[Exchange], floors: Mapping[str, int]) -> dict[str, Any]:
    """The mean request: by (stage, where), in the order of the walk, and by group. Both add up to `mean_ms`.

    Transit of a calibrated hop is split into network, its floor, and excess, which may be negative; of a hop that was
    not calibrated nothing may be called network. The floor counts once for each request that took the hop. Sums are
    integers (nanoseconds) until they are divided.
    """
    order: dict[tuple[Stage, str], int] = {}
    wall: dict[tuple[Stage, str], int] = {}
    cpu: dict[tuple[Stage, str], int] = {}
    took: Counter[tuple[Stage, str]] = Counter()
    for exchange in exchanges:
        took.update({(tile.stage, tile.where) for tile in exchange.tiles})
        for position, tile in enumerate(exchange.tiles):
            key = (tile.stage, tile.where)
            order[key] = min(order.get(key, position), position)
            wall[key] = wall.get(key, 0) + tile.duration_ns
            if tile.cpu_ns != UNKNOWN_CPU and tile.stage in CPU_STAGES:
                cpu[key] = cpu.get(key, 0) + tile.cpu_ns
    n = len(exchanges)
    total_ns = sum(exchange.total_ns for exchange in exchanges)
    rows: list[dict[str, Any]] = []

    def add(stage: str, group: str, where: str, sum_ns: int, cpu_ns: int | None) -> None:
        rows.append(
            {
                "stage": stage,
                "group": group,
                "where": where,
                "mean_ms": sum_ns / n / 1e6,
                "share": sum_ns / total_ns,
                "cpu_ms": None if cpu_ns is None else cpu_ns / n / 1e6,
            }
        )

    for key in sorted(order, key=lambda k: order[k]):
        stage, where = key
        if stage is not Stage.TRANSIT:
            add(stage.value, GROUP_OF[stage].value, where, wall[key], cpu.get(key))
            continue
        network = floors[where] * took[key] if where in floors else 0
        if network:
            add("network", Group.MOVEMENT.value, where, network, None)
        add("excess", Group.MOVEMENT.value, where, wall[key] - network, None)
    mean_ms = total_ns / n / 1e6
    return {"mean_ms": mean_ms, "stages": rows, "groups": _groups(rows, mean_ms)}


def _groups(stages: Sequence[Mapping[str, Any]], mean_ms: float) -> list[dict[str, Any]]:
    sums: dict[str, float] = {}
    for stage in stages:
        row = stage["stage"] if stage["group"] == Group.MOVEMENT.value else stage["group"]
        sums[row] = sums.get(row, 0.0) + stage["mean_ms"]
    return [{"group": row, "mean_ms": sums[row], "share": sums[row] / mean_ms} for row in ROWS if row in sums]


def _exemplar(ordered: Sequence[Exchange], q: float) -> dict[str, Any]:
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


def _refused(errors: Mapping[str, int]) -> list[str]:
    return ["errors: " + ", ".join(f"{n} {kind}" for kind, n in errors.items())] if errors else []


def _verdict(
    good: Sequence[Exchange],
    totals: Sequence[float],
    errors: Mapping[str, int],
    mismatched: int,
    incomplete: int,
    stall_share: float,
    *,
    closed: bool,
) -> tuple[str, list[str]]:
    """INVALID when the numbers cannot be used, CONTENDED when they hold but the machine was short of CPU.

    A late generator makes an open run INVALID: the arrivals were not those of the plan, so the load was another one. In
    a closed run there is no instant to be late for: the lag is a sender's own wait for a CPU, and it is in the total.
    Requests that could not be sent at all never come here: the runner raises.
    """
    invalid = _refused(errors)
    contended: list[str] = []
    if mismatched:
        invalid.append(f"{mismatched} ledgers do not add up to the client's total")
    if incomplete:
        invalid.append(f"{incomplete} replies came without a ledger")
    lags = sorted(t.duration_ns / 1e6 for e in good for t in e.tiles if t.stage is Stage.SCHEDULE_LAG)
    if lags:
        p99 = quantile(lags, 0.99)
        limit = max(_LAG_LIMIT_MS, 0.01 * quantile(totals, 0.99))
        if p99 > limit:
            late = f"the generator was late: schedule lag p99 {p99:.2f} ms, over {limit:.2f} ms"
            (contended if closed else invalid).append(late)
    if stall_share > _STALL_LIMIT:
        contended.append(f"computing threads were stalled for {stall_share:.1%} of the time")
    if invalid:
        return "INVALID", invalid + contended
    return ("CONTENDED", contended) if contended else ("VALID", [])
