"""The parts of a plan (`loadgen run --part`) -> one result, as if one generator had sent them all.

Requests are analysed anew, all together: percentiles of parts make no percentile of the whole. Ledgers come from the
rows of requests.csv, where the sum of each (stage, where) is; an analysis needs no more of them. What is lost is the
order in a ledger of what happened twice at one place, and a tile's facts.

Every part has a clock of its own. All began a round at one instant (`rendezvous`), so a request's place in the round
is its time since then on its own clock, and the merged times are those of part 1. No latency crosses clocks: the bound
of the clocks says only by how much arrivals of two parts may be shifted against each other.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loadgen.calibration import Floor
from loadgen.errors import PlanError
from loadgen.experiment import Finished, Round, cell_of, judge_spans
from loadgen.parts import Part
from loadgen.rendezvous import Begin
from loadgen.schedule import is_closed
from loadgen.service_spans import Lost
from loadgen.stored import read_run
from loadgen.streams import DROPPED
from loadgen.target import WHERE, Exchange
from services.accounting import UNKNOWN_CPU, Stage, Tile
from services.tracing.tracer import Counts

_REQUESTS = "requests.csv"
_NS, _CPU = "_ns", "_cpu_ns"


class _Key(NamedTuple):
    """Which cell."""

    target: str
    size: str
    load: str


@dataclass(frozen=True, slots=True)
class _Sent:
    """What one part brought: its run.json, and of each cell and round the requests, on its own clock."""

    part: Part
    path: Path
    run: dict[str, Any]
    cells: dict[_Key, dict[str, Any]]
    rows: dict[tuple[_Key, int], list[Exchange]]


def merge(paths: Sequence[Path]) -> Finished:
    """The run.json of each part, or its folder, in any order; beside it its requests.csv.

    Raises `PlanError` for what are not the parts, all of them, of one run.
    """
    parts = _together([_read(path) for path in paths])
    first = parts[0]
    notes = [f"{part.part}: {note}" for part in parts for note in part.run["notes"]]
    cells: list[dict[str, Any]] = []
    kept: list[tuple[dict[str, str], Exchange]] = []
    missing = False
    for key in dict.fromkeys(key for part in parts for key in part.cells):
        if not all(key in part.cells for part in parts):
            without = ", ".join(str(part.part.number) for part in parts if key not in part.cells)
            notes.append(f"{key.size}, {key.target}, {key.load}: part {without} did not finish it, so it is left out")
            missing = True
            continue
        cell, exchanges = _cell(key, parts)
        cells.append(cell)
        kept += exchanges
    notes.append(_skew_note(parts, cells))
    spans = [part.run["spans"] for part in parts if "spans" in part.run]
    counts = Counts(*(sum(row[name] for row in spans) for name in Counts._fields)) if spans else None
    services = _services(parts)
    run = {
        **{key: value for key, value in first.run.items() if key not in ("part", "spans")},
        "started": min(part.run["started"] for part in parts),
        "duration_s": max(part.run["duration_s"] for part in parts),
        "interrupted": missing or any(part.run["interrupted"] for part in parts),
        "generator": _generator([part.run["generator"] for part in parts]),
        "cells": cells,
        "notes": notes,
        **({} if counts is None else {"spans": counts._asdict()}),
        "service_spans": [row._asdict() for row in services],
        "parts": [
            {
                "part": part.part.number,
                **{key: part.run[key] for key in ("started", "duration_s", "environment", "generator")},
            }
            for part in parts
        ],
    }
    judge_spans(cells, counts, services)
    return Finished(run, kept)


def _read(path: Path) -> _Sent:
    file, run = read_run(path)
    told = run.get("part")
    if not isinstance(told, dict):
        raise PlanError(f"{file} is no part of a run; name results of `loadgen run --part I/N`")
    rows = file.with_name(_REQUESTS)
    cells = {_Key(cell["target"], cell["size"], cell["load"]): cell for cell in run["cells"]}
    try:
        exchanges = _exchanges(rows)
    except OSError as error:
        raise PlanError(
            f"{rows} cannot be read: {error.strerror or error}; parts are merged request by request, so keep it beside "
            "run.json (in a cluster, load.resultsClaim keeps what is too large for a log)"
        ) from None
    except (KeyError, ValueError) as error:
        raise PlanError(f"{rows} is not the requests.csv of a run ({error}); merge what `loadgen run` wrote") from None
    for key, cell in cells.items():
        for round_ in cell["rounds"]:
            # Frames that were dropped have rows, and are not among the requests.
            there, said = len(exchanges.get((key, round_["round"]), ())), round_["requests"] + round_["dropped"]
            if there != said:
                raise PlanError(f"{rows} has {there} rows of {', '.join(key)}, and run.json says {said}; it is cut off")
    return _Sent(Part(told["number"], told["of"]), file, run, cells, exchanges)


def _together(parts: Sequence[_Sent]) -> list[_Sent]:
    """In order. Raises `PlanError`."""
    first = parts[0]
    for other in parts[1:]:
        for what, of_plan in (("plan", True), ("seed", False), ("samples", False)):
            pair = [_plan(part.run[what]) if of_plan else part.run[what] for part in (first, other)]
            if pair[0] != pair[1]:
                raise PlanError(f"{first.path} and {other.path} differ in their {what}; merge parts of one run")
        if other.run["part"]["run"] != first.run["part"]["run"] or other.part.of != first.part.of:
            raise PlanError(
                f"{first.path} and {other.path} are parts of the same plan, but did not run together; merge parts of "
                "one run"
            )
    numbers = [part.part.number for part in parts]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise PlanError(f"part {twice[0]} is named twice; name each part once")
    _same_rounds(parts)
    missing = [str(number) for number in range(1, first.part.of + 1) if number not in numbers]
    if missing:
        raise PlanError(f"of {first.part.of} parts, {', '.join(missing)} is missing; a plan is merged whole or not")
    return sorted(parts, key=lambda part: part.part.number)


def _same_rounds(parts: Sequence[_Sent]) -> None:
    """Of the cells that all have, which begin each round together. Raises `PlanError`."""
    for key in parts[0].cells:
        rounds = {part.part.number: len(part.cells[key]["rounds"]) for part in parts if key in part.cells}
        if len(set(rounds.values())) > 1:
            told = ", ".join(f"part {number} has {count}" for number, count in rounds.items())
            raise PlanError(
                f"parts differ in the rounds of {key.size}, {key.target}, {key.load}: {told}; a run.json was changed "
                "or cut off, so take the parts anew from where they ran"
            )


def _plan(source: Mapping[str, Any]) -> dict[str, Any]:
    """Each part may reach the same targets by its own addresses."""
    return {**source, "targets": sorted(source["targets"]), "metrics": None}


def _exchanges(path: Path) -> dict[tuple[_Key, int], list[Exchange]]:
    """Raises `OSError`, and `KeyError` or `ValueError` for what is not such a file."""
    found: dict[tuple[_Key, int], list[Exchange]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = [
            (Stage(name.partition("@")[0]), name.partition("@")[2].removesuffix(_NS), name)
            for name in reader.fieldnames or ()
            if "@" in name and not name.endswith(_CPU)
        ]
        for row in reader:
            key = _Key(row["target"], row["size"], row["load"])
            found.setdefault((key, int(row["round"])), []).append(_exchange(row, columns))
    return found


def _exchange(row: Mapping[str, str], columns: Sequence[tuple[Stage, str, str]]) -> Exchange:
    due, error = int(row["due_ns"]), row["error"] or None
    tiles = []
    for stage, where, name in columns:
        duration = int(row[name])
        # A stage that did not occur is 0 as well; that every request which was sent has a lag is known.
        lag = stage is Stage.SCHEDULE_LAG and where == WHERE and error != DROPPED
        if duration or lag:
            cpu = row.get(f"{name.removesuffix(_NS)}{_CPU}")
            tiles.append(Tile(stage, duration, int(cpu) if cpu else UNKNOWN_CPU, where))
    return Exchange(row["id"], due, due + int(row["total_ns"]), tuple(tiles), error, "", {}, row["traceparent"])


def _cell(key: _Key, parts: Sequence[_Sent]) -> tuple[dict[str, Any], list[tuple[dict[str, str], Exchange]]]:
    cells = [part.cells[key] for part in parts]
    names = {**key._asdict(), "schedule": cells[0]["schedule"]}
    rounds = [_round(key, number, parts) for number in range(len(cells[0]["rounds"]))]
    facts: dict[str, Any] = {
        "planned": sum(cell["planned"] for cell in cells),
        "ceiling_rps": _sum([cell["ceiling_rps"] for cell in cells]),
        "parts": [_part_row(part.part, cell) for part, cell in zip(parts, cells, strict=True)],
    }
    warmups = [cell["warmup"] for cell in cells if "warmup" in cell]
    if warmups:
        facts["warmup"] = {
            "probes": sum(warmup["probes"] for warmup in warmups),
            "seconds": max(warmup["seconds"] for warmup in warmups),
            "stable": all(warmup["stable"] for warmup in warmups),
            "enough": all(warmup.get("enough", True) for warmup in warmups),
        }
    emulated = any(cell["label"] == "EMULATED" for cell in cells)
    cell = cell_of(names, rounds, _floors(cells), emulated, facts, _limits(parts[0].run["plan"], key))
    kept = [({**names, "round": str(n)}, exchange) for n, round_ in enumerate(rounds) for exchange in round_.exchanges]
    return cell, kept


def _part_row(part: Part, cell: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth to be known of each by itself: an average may hide the one that was late."""
    return {
        "part": part.number,
        "requests": cell["requests"],
        "throughput_rps": cell.get("throughput_rps"),
        "ceiling_rps": cell["ceiling_rps"],
        "schedule_lag_ms": cell.get("schedule_lag_ms"),
        "skew_ms": max(round_["part"]["skew_ns"] for round_ in cell["rounds"]) / 1e6,
    }


def _round(key: _Key, number: int, parts: Sequence[_Sent]) -> Round:
    """What all sent in a round, on the clock of part 1."""
    rows = [part.cells[key]["rounds"][number] for part in parts]
    told = [row["part"] for row in rows]
    origin = told[0]["start_ns"]
    exchanges: list[Exchange] = []
    for part, its in zip(parts, told, strict=True):
        shift = origin - its["start_ns"]
        mine = part.rows[key, number]
        exchanges += [e._replace(due_ns=e.due_ns + shift, done_ns=e.done_ns + shift) for e in mine]
    exchanges.sort(key=lambda exchange: exchange.due_ns)
    unsent = sum(its["unsent"] for its in told)
    offered = _sum([its["offered_rps"] for its in told])
    span_ns = exchanges[-1].due_ns - exchanges[0].due_ns
    if not is_closed(parts[0].cells[key]["schedule"]) and not unsent and span_ns:
        # The rate of the whole is that of its own arrivals; those of parts add up to about as much.
        offered = (len(exchanges) - 1) / span_ns * 1e9
    return Round(
        exchanges,
        sum(its["due"] for its in told),
        unsent,
        offered,
        _account(parts, rows),
        max(row["duration_s"] for row in rows),
        Begin(origin, max(its["skew_ns"] for its in told)),
    )


def _account(parts: Sequence[_Sent], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one round: each part's own processes, per request of all; the pressure of the machine that had most of it."""
    requests = max(1, sum(row["requests"] for row in rows))
    processes = []
    for part, row in zip(parts, rows, strict=True):
        weight = max(1, row["requests"]) / requests
        for process in row["contention"]["processes"]:
            costs = {name: value * weight for name, value in process.items() if name != "name"}
            processes.append({"name": f"part {part.part.number}, {process['name']}", **costs})
    shares = [row["contention"]["cpu_pressure_share"] for row in rows]
    return {"processes": processes, "cpu_pressure_share": None if None in shares else max(shares)}


def _floors(cells: Sequence[Mapping[str, Any]]) -> list[Floor]:
    """Of each hop, what the parts measured, each weighted by its requests: so the mean request has its mean floor.

    The interval is as wide as all of theirs together; there is none where a part has none, over a broker.
    """
    by_hop: dict[str, list[tuple[Mapping[str, Any], int]]] = {}
    for cell in cells:
        for row in cell["calibration"]:
            by_hop.setdefault(row["hop"], []).append((row, max(1, cell["requests"])))
    floors = []
    for hop, known in by_hop.items():
        middle = sum(row["p50_ms"] * weight for row, weight in known) / sum(weight for _, weight in known)
        lows, highs = ([row[end] for row, _ in known] for end in ("low_ms", "high_ms"))
        unbounded = None in (*lows, *highs)
        low_ns = None if unbounded else round(min(lows) * 1e6)
        high_ns = None if unbounded else round(max(highs) * 1e6)
        floors.append(Floor(hop, round(middle * 1e6), low_ns, high_ns, sum(row["n"] for row, _ in known)))
    return floors


def _limits(plan: Mapping[str, Any], key: _Key) -> dict[str, float]:
    """As `Plan.limits`, of what a result has of its plan."""
    load = next(load for load in plan["load"] if load["name"] == key.load)
    chosen = {**plan.get("thresholds", {}), **load.get("thresholds", {})}
    return {name: by_size[key.size] for name, by_size in chosen.items() if key.size in by_size}


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _generator(generators: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Ceilings add up: parts were on machines of their own, or measured them against each other."""
    ceilings = {
        size: sum(generator["ceilings_rps"][size] for generator in generators)
        for size in generators[0]["ceilings_rps"]
        if all(size in generator["ceilings_rps"] for generator in generators)
    }
    senders = sum(generator["senders"] for generator in generators)
    return {"senders": senders, "ceiling_rps": min(ceilings.values(), default=None), "ceilings_rps": ceilings}


def _services(parts: Sequence[_Sent]) -> list[Lost]:
    """All parts may have asked the same services: each counts once, as the part says that knows of most losses."""
    found: dict[tuple[str, str | None], Lost] = {}
    for part in parts:
        for row in part.run.get("service_spans", ()):
            lost = Lost(**row)
            key = (lost.target, lost.url)
            if key not in found or _losses(lost) > _losses(found[key]):
                found[key] = lost
    return list(found.values())


def _losses(row: Lost) -> int:
    return -1 if row.unknown is not None else (row.lost or 0) + (row.lost_requests or 0)


def _skew_note(parts: Sequence[_Sent], cells: Sequence[Mapping[str, Any]]) -> str:
    skews = [max((cell["parts"][i]["skew_ms"] for cell in cells), default=0.0) for i in range(len(parts))]
    # Each is of a part against part 1.
    apart = sum(sorted(skews)[-2:])
    return (
        f"merged from {len(parts)} parts, which began each load within {apart:.3f} ms of each other (by the round "
        "trips between them): arrivals of two parts may be shifted by that, and no latency is across their clocks"
    )
