"""Exchanges -> one cell of a result: stages, groups, quantiles and their intervals. Means add up; percentiles don't."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loadgen.calibration import Floor
from loadgen.statistics import (
    CONFIDENCE,
    Interval,
    Values,
    batch_size,
    drift,
    mean_interval,
    minimum_count,
    quantile,
    quantile_interval,
    ranks,
    warm_up_cut,
)
from loadgen.stored import cut_before_ns
from loadgen.target import Exchange
from loadgen.verdict import judge
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

PERCENTILES = (50, 90, 95, 99)
# Fewer observations than these within a band: then it is a guess, and is not printed.
_ENOUGH = 5
# Percentiles don't add, so the tail is taken apart over the requests between these two quantiles.
_TAIL = (0.985, 0.995)
_METHOD = "overlapping batch means; percentiles: Woodruff with the effective n; see loadgen/statistics.py"


def analyse(
    exchanges: Sequence[Exchange],
    floors: Sequence[Floor],
    contention: Mapping[str, Any],
    duration_s: float,
    emulated: bool,
    *,
    closed: bool,
    facts: Mapping[str, Any] | None = None,
    rounds_ns: Sequence[int] = (),
) -> dict[str, Any]:
    """The numeric part of a cell of schema `beyond-inference/run/1` (docs/results-schema.md). Times in ms.

    Means, quantiles, stages and stalls are those of the requests that were answered, without those that are cut off as
    warm-up; errors and ledgers are all. `closed`: the schedule was; a generator that is late for an open one did not
    ask what the plan says. `facts`: what else is known of the cell, by the schema's names (`offered_rps`, `unsent`,
    `ceiling_rps`, `warmup`, ...), for the cell and for its verdict. `rounds_ns`: when each round began, where there
    were several: no time between them counts as time without answers.
    """
    good = sorted((e for e in exchanges if e.error is None), key=lambda exchange: exchange.due_ns)
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
            {"hop": f.hop, "p50_ms": f.p50_ns / 1e6, "low_ms": _ms(f.low_ns), "high_ms": _ms(f.high_ns), "n": f.n}
            for f in floors
        ],
        **(facts or {}),
    }
    if good:
        _numbers(cell, good, exchanges, floors, rounds_ns)
    cell["verdict"], cell["reasons"] = judge(cell, closed=closed)
    return cell


def _ms(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e6


def _numbers(
    cell: dict[str, Any],
    answered: Sequence[Exchange],
    exchanges: Sequence[Exchange],
    floors: Sequence[Floor],
    rounds_ns: Sequence[int],
) -> None:
    """What there is to say of `answered`, which are in the order in which they were due."""
    good, cut = _without_warm_up(answered, rounds_ns)
    series = _totals_ms(good)
    floor_of = {floor.hop: floor.p50_ns for floor in floors}
    ordered = sorted(good, key=lambda exchange: exchange.total_ns)
    totals = [exchange.total_ns / 1e6 for exchange in ordered]
    whole = _decomposition(good, floor_of)
    groups = _with_intervals(whole["groups"], good, floor_of)
    percentiles = {p: percentile(totals, p) for p in PERCENTILES}
    trend = drift(series)
    counted = [
        [e for e in part if e.due_ns >= cut_before_ns(cut, number)]
        for number, part in enumerate(_rounds(exchanges, rounds_ns))
    ]
    cell.update(
        counted=len(good),
        warmup_cut=cut,
        drift=None if trend is None else {"p": trend.p, "change_ms": trend.change, "windows": trend.windows},
        throughput_rps=throughput(counted),
        latency_ms={
            "mean": whole["mean_ms"],
            **{f"p{p}": value for p, value in percentiles.items()},
            "max": totals[-1],
        },
        intervals={
            "confidence": CONFIDENCE,
            "method": _METHOD,
            "batch": batch_size(len(good)),
            "mean": _interval(mean_interval(series)),
            **{
                f"p{p}": _interval(quantile_interval(series, p / 100))
                for p, value in percentiles.items()
                if value is not None
            },
            "throughput": _throughput_interval(counted),
        },
        quantiles_ms=[quantile(totals, i / 100) for i in range(101)],
        schedule_lag_ms=schedule_lag(good),
        stages=whole["stages"],
        groups=groups,
        tail=_tail(ordered, totals, floor_of),
        stalled_ms=sum(_stalled_ns(exchange) for exchange in good) / len(good) / 1e6,
        excess=_excess(good, floor_of, quantile(totals, 0.5)) if floors else None,
        exemplars={"median": _exemplar(ordered, 0.5), "slowest": _exemplar(ordered, 1.0)},
    )


def _without_warm_up(
    answered: Sequence[Exchange], rounds_ns: Sequence[int]
) -> tuple[list[Exchange], dict[str, Any] | None]:
    """Those that are no warm-up, and what a cell has of the cut; None where there are too few to tell.

    Each round follows a time in which somebody else was asked, so each may begin cold anew: warm-up is sought at the
    start of the first round, and at that of all others together. What is left, all rounds in a row, may still become
    faster for longer than half of a round: so it is sought there as well. A cell of one round is looked at once.
    """
    rounds = _rounds(answered, rounds_ns)
    sought = _sought([_totals_ms(part) for part in rounds]) if len(rounds) > 1 else [None]
    kept = [part[cut or 0 :] for part, cut in zip(rounds, sought, strict=True)]
    over_all = warm_up_cut(_totals_ms([exchange for part in kept for exchange in part]))
    if over_all is None and all(cut is None for cut in sought):
        return list(answered), None
    left = over_all or 0
    for number, part in enumerate(kept):
        kept[number], left = part[left:], max(0, left - len(part))
    good = [exchange for part in kept for exchange in part]
    rows, seconds = [], 0.0
    for number, (part, rest) in enumerate(zip(rounds, kept, strict=True)):
        gone = len(part) - len(rest)
        # Of a round that is cut off as a whole all were due before the first that stays, in a later one: there is one,
        # because what is cut is never more than half.
        # Where nothing is cut there may be none: a target that answers no more in its last rounds.
        before_ns = next(later for later in kept[number:] if later)[0].due_ns if gone else None
        seconds += ((rest[0] if rest else part[-1]).due_ns - part[0].due_ns) / 1e9 if gone else 0.0
        rows.append(
            {"round": number, "requests": gone, "before_due_ns": before_ns, "sought": sought[number] is not None}
        )
    told: dict[str, Any] = {
        "requests": len(answered) - len(good),
        "seconds": seconds,
        "before_due_ns": rows[0]["before_due_ns"],
        "rule": "MSER-5 of ranks",
    }
    return good, {**told, "rounds": rows} if len(rounds) > 1 else told


def _sought(rounds: Sequence[Values]) -> list[int | None]:
    """How much of each round's start is warm-up; None of those with too few answers to tell.

    The rounds after the first are averaged, observation by observation (Welch, "The statistical analysis of simulation
    results", 1983), and cut alike: each by itself, a queue that was long by chance at the start of one would be cut
    there, and all that is cut by chance is long. The first is cold in a way of its own.
    """
    alone = [warm_up_cut(series) for series in rounds]
    later = [series for series, cut in zip(rounds[1:], alone[1:], strict=True) if cut is not None]
    if not later:
        return alone
    shortest = min(map(len, later))
    ordinary = ranks(np.concatenate(later))  # as everywhere: a stall is no warm-up
    ends = np.cumsum([0, *map(len, later)])
    together = warm_up_cut(np.mean([ordinary[end : end + shortest] for end in ends[:-1]], axis=0))
    return [alone[0], *(None if cut is None else together for cut in alone[1:])]


def percentile(ordered: Sequence[float], p: int) -> float | None:
    """None where there are fewer than MLPerf's early stopping asks for: 11 for p50, 64 for p90, 662 for p99."""
    return quantile(ordered, p / 100) if len(ordered) >= minimum_count(p / 100) else None


def _totals_ms(exchanges: Sequence[Exchange]) -> Values:
    return np.array([exchange.total_ns / 1e6 for exchange in exchanges], dtype=np.float64)


def _interval(interval: Interval) -> dict[str, float | None]:
    return {"low_ms": interval.low, "high_ms": interval.high, "effective_n": interval.effective_n}


def schedule_lag(good: Sequence[Exchange]) -> dict[str, float] | None:
    """How much later than intended requests were sent, in ms; None where their ledgers do not say."""
    lags = sorted(t.duration_ns / 1e6 for e in good for t in e.tiles if t.stage is Stage.SCHEDULE_LAG)
    if not lags:
        return None
    return {"p50": quantile(lags, 0.5), "p99": quantile(lags, 0.99), "max": lags[-1]}


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


def _rounds(exchanges: Sequence[Exchange], begins_ns: Sequence[int]) -> list[list[Exchange]]:
    """Those of each round, which may be none; all together where no rounds are known."""
    edges = [-math.inf, *sorted(begins_ns)[1:], math.inf]
    return [[e for e in exchanges if begin <= e.due_ns < end] for begin, end in itertools.pairwise(edges)]


def throughput(rounds: Sequence[Sequence[Exchange]]) -> float:
    """Requests answered per second while requests were being sent: from the first answer to the last sending.

    So neither the time until the pipe is full nor the time in which it empties counts as if the server had been slow,
    nor the time between two rounds. Where that leaves too few, all answers over the time from the first request to the
    last answer. 0 where nothing was answered.
    """
    within = beyond = 0
    sending_ns = whole_ns = 0
    for exchanges in rounds:
        answered = sorted(exchange.done_ns for exchange in exchanges if exchange.error is None)
        if not answered:
            continue
        last_sent = max(exchange.due_ns for exchange in exchanges)
        within += sum(1 for done in answered if answered[0] < done <= last_sent)
        sending_ns += max(0, last_sent - answered[0])
        beyond += len(answered)
        whole_ns += answered[-1] - min(exchange.due_ns for exchange in exchanges)
    if within >= _ENOUGH * sum(1 for exchanges in rounds if exchanges):
        return within / sending_ns * 1e9
    return beyond / whole_ns * 1e9 if whole_ns else 0.0


def _throughput_interval(rounds: Sequence[Sequence[Exchange]]) -> dict[str, float | None]:
    """Of answers per second: as wide as that of the mean time from one answer to the next while requests were sent."""
    gaps: list[float] = []
    for exchanges in rounds:
        last_sent = max((exchange.due_ns for exchange in exchanges), default=0)
        answered = sorted(e.done_ns for e in exchanges if e.error is None and e.done_ns <= last_sent)
        gaps += [float(later - earlier) for earlier, later in itertools.pairwise(answered)]
    low, high, effective = mean_interval(np.array(gaps, dtype=np.float64))
    # Answers over the mean gap; the throughput itself also counts the time from the last answer to the last sending.
    answers = throughput(rounds) * sum(gaps) / max(1, len(gaps))
    return {
        "low_rps": answers / high if high else None,
        "high_rps": answers / low if low and low > 0 else None,
        "effective_n": effective,
    }


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


def _with_intervals(
    groups: Sequence[Mapping[str, Any]], good: Sequence[Exchange], floors: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The groups with the interval of each mean; `good` in the order in which they were due."""
    series = {str(group["group"]): np.zeros(len(good)) for group in groups}
    for index, exchange in enumerate(good):
        hops = {tile.where for tile in exchange.tiles if tile.stage is Stage.TRANSIT and tile.where in floors}
        network = sum(floors[hop] for hop in hops)
        if network:
            series["network"][index] += network
            series["excess"][index] -= network
        for tile in exchange.tiles:
            row = "excess" if tile.stage is Stage.TRANSIT else GROUP_OF[tile.stage].value
            series[row][index] += tile.duration_ns
    found = []
    for group in groups:
        interval = mean_interval(series[str(group["group"])] / 1e6)
        found.append({**group, "low_ms": interval.low, "high_ms": interval.high})
    return found


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
        "facts": {fact.value: value for fact, value in tile.facts},
    }
