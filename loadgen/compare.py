"""Two runs, or two targets of one: what differs, by how much, and how sure that is.

Requests that are the same in both (the same seed makes the same schedule of the same files) are compared pair by pair:
what is particular to a request then cancels, and a difference shows that two means would hide. Else the cells are
compared as a whole. Where an interval holds zero, no difference can be shown; that is not to say that there is none.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loadgen.analysis import PERCENTILES
from loadgen.errors import PlanError
from loadgen.statistics import (
    CONFIDENCE,
    Interval,
    Values,
    difference_of_means,
    differences_of_quantiles,
    mean_interval,
    minimum_count,
    quantile,
)
from loadgen.stored import cut_before_ns, read_run

SCHEMA = "beyond-inference/compare/1"
_NUMBER = re.compile(r"(\d+)$")
# Below this share of common requests, those that are in both are no longer like the others.
_COMMON = 0.5

Key = tuple[int, int]  # round, number of the request


class Side(NamedTuple):
    """A run: its JSON, and the file of its requests."""

    name: str
    run: Mapping[str, Any]
    requests: Path


class _Requests(NamedTuple):
    """The answered requests of a cell that count, in order. `columns`: nanoseconds by `stage@where`."""

    keys: list[Key]
    total_ns: Values
    columns: dict[str, Values]


def load(path: Path) -> Side:
    """A run.json (or its folder), with requests.csv beside it. Raises `PlanError`."""
    file, run = read_run(path)
    requests = file.with_name("requests.csv")
    if not requests.exists():
        raise PlanError(f"{requests} is missing; a comparison needs the requests that lie beside run.json")
    return Side(str(file), run, requests)


def compare(a: Side, b: Side, target_a: str | None = None, target_b: str | None = None) -> dict[str, Any]:
    """B minus A, cell by cell: schema `beyond-inference/compare/1` (docs/results-schema.md). Raises `PlanError`.

    Cells are the same where size, load and target are; `target_a` and `target_b` choose one target of each instead.
    """
    if (target_a is None) != (target_b is None):
        raise PlanError("--target-a and --target-b go together: one target of each run")
    matched = list(_matched(a, b, target_a, target_b))
    if not matched:
        raise PlanError(
            f"{a.name} and {b.name} have no measured cell in common (target, size and load); "
            f"{a.name} has {_listed(a.run)}; {b.name} has {_listed(b.run)}; "
            + (
                "choose with --target-a and --target-b"
                if target_a is None
                else "run both with the same sizes and loads of a plan"
            )
        )
    wanted_a, wanted_b = ([pair[side] for pair in matched] for side in (0, 1))
    requests_a, requests_b = _read(a.requests, wanted_a), _read(b.requests, wanted_b)
    alike = _why_not_alike(a.run, b.run)
    cells = []
    for cell_a, cell_b in matched:
        why = alike or _why_not_scheduled_alike(cell_a, cell_b)
        both = requests_a[_names(cell_a)], requests_b[_names(cell_b)]
        cells.append(_cell(cell_a, cell_b, *both, why, int(a.run.get("seed") or 0)))
    return {
        "schema": SCHEMA,
        "confidence": CONFIDENCE,
        "a": {"file": a.name, "name": a.run.get("name"), "started": a.run.get("started")},
        "b": {"file": b.name, "name": b.run.get("name"), "started": b.run.get("started")},
        "cells": cells,
    }


def _names(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(cell["target"]), str(cell["size"]), str(cell["load"])


def _listed(run: Mapping[str, Any]) -> str:
    return ", ".join("/".join(_names(cell)) for cell in run.get("cells", [])) or "none"


def _matched(
    a: Side, b: Side, target_a: str | None, target_b: str | None
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    for side, target in ((a, target_a), (b, target_b)):
        if target is not None and not any(cell["target"] == target for cell in side.run["cells"]):
            raise PlanError(f"{side.name} has no target '{target}'; it has {_listed(side.run)}")
    for cell_a in a.run["cells"]:
        for cell_b in b.run["cells"]:
            same = (cell_a["size"], cell_a["load"]) == (cell_b["size"], cell_b["load"])
            targets = (cell_a["target"], cell_b["target"])
            chosen = targets[0] == targets[1] if target_a is None else targets == (target_a, target_b)
            if same and chosen and "latency_ms" in cell_a and "latency_ms" in cell_b:
                yield cell_a, cell_b


def _why_not_alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    if a.get("seed") != b.get("seed"):
        return f"the seeds differ ({a.get('seed')} and {b.get('seed')})"
    if a.get("samples") != b.get("samples"):
        return "the sample files differ"
    return ""


def _why_not_scheduled_alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    if a.get("schedule") != b.get("schedule"):
        return f"the schedules differ ({a.get('schedule')} and {b.get('schedule')})"
    # A trace may be another one under the same name: its rate, to the last digit, is that of its instants.
    if str(a.get("schedule")).startswith("replay(") and a.get("offered_rps") != b.get("offered_rps"):
        return "the traces differ, or how much of them was sent"
    return ""


# --- requests --------------------------------------------------------------------------------------------------------


def _read(path: Path, cells: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], _Requests]:
    """Of each cell. Not answered, or cut off as warm-up: not counted, as in run.json."""
    wanted = {_names(cell): cell.get("warmup_cut") for cell in cells}
    found: dict[tuple[str, str, str], list[tuple[Key, list[int]]]] = {names: [] for names in wanted}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader)
            at = {name: index for index, name in enumerate(header)}
            stages = [name for name in header if "@" in name and not name.endswith("_cpu_ns")]
            places = [at["total_ns"], *(at[name] for name in stages)]
            for line, record in enumerate(reader):
                names = record[at["target"]], record[at["size"]], record[at["load"]]
                if names not in wanted or record[at["error"]]:
                    continue
                round_ = int(record[at["round"]]) if "round" in at else 0
                if int(record[at["due_ns"]]) < cut_before_ns(wanted[names], round_):
                    continue
                number = _NUMBER.search(record[at["id"]])
                key = (round_, int(number[1]) if number else line)
                found[names].append((key, [int(record[place]) for place in places]))
    except (StopIteration, KeyError, IndexError, ValueError, OSError, csv.Error) as error:
        raise PlanError(f"{path} is no file of requests ({error!r}); it is written beside run.json") from None
    requests = {}
    for names, rows in found.items():
        if not rows:
            raise PlanError(f"{path} has no answered request of {'/'.join(names)}, which run.json has")
        rows.sort()
        values = np.array([row for _, row in rows], dtype=np.float64)
        columns = {name.removesuffix("_ns"): values[:, i + 1] for i, name in enumerate(stages)}
        requests[names] = _Requests([key for key, _ in rows], values[:, 0], columns)
    return requests


def _paired(a: _Requests, b: _Requests) -> tuple[_Requests, _Requests] | None:
    """Those that are in both, in one order; None where they are too few of either."""
    place_a, place_b = ({key: i for i, key in enumerate(side.keys)} for side in (a, b))
    common = [key for key in a.keys if key in place_b]
    if len(common) < 2 or len(common) < _COMMON * min(len(a.keys), len(b.keys)):
        return None
    at_a, at_b = ([place[key] for key in common] for place in (place_a, place_b))
    return _taken(a, at_a), _taken(b, at_b)


def _taken(side: _Requests, at: Sequence[int]) -> _Requests:
    return _Requests(
        [side.keys[i] for i in at], side.total_ns[at], {name: values[at] for name, values in side.columns.items()}
    )


# --- differences -----------------------------------------------------------------------------------------------------


def _cell(
    cell_a: Mapping[str, Any], cell_b: Mapping[str, Any], a: _Requests, b: _Requests, why: str, seed: int
) -> dict[str, Any]:
    pairs = None if why else _paired(a, b)
    if pairs is None:
        why = why or "too few requests are in both"
    else:
        a, b = pairs
    n = min(len(a.keys), len(b.keys))
    rows = [_row("mean", a.total_ns, b.total_ns, _difference(a.total_ns, b.total_ns, pairs is not None))]
    told = [p for p in PERCENTILES if n >= minimum_count(p / 100)]
    ordered_a, ordered_b = np.sort(a.total_ns), np.sort(b.total_ns)
    qs = [p / 100 for p in told]
    if told:
        intervals = differences_of_quantiles(a.total_ns, b.total_ns, qs, paired=pairs is not None, seed=seed)
        rows += [
            _told(f"p{p}", quantile(ordered_a, q), quantile(ordered_b, q), interval)
            for p, q, interval in zip(told, qs, intervals, strict=True)
        ]
    names = list(dict.fromkeys([*a.columns, *b.columns]))
    nothing = np.zeros(0)
    stages = []
    # Of twenty stages one would differ by chance: their intervals hold all together (Bonferroni).
    names = [name for name in names if any(side.columns.get(name, nothing).any() for side in (a, b))]
    each = 1 - (1 - CONFIDENCE) / max(1, len(names))
    for name in names:
        of_a, of_b = (side.columns.get(name, np.zeros(len(side.keys))) for side in (a, b))
        stage, _, where = name.partition("@")
        row = _row(name, of_a, of_b, _difference(of_a, of_b, pairs is not None, each))
        stages.append({"stage": stage, "where": where, **{k: v for k, v in row.items() if k != "of"}})
    return {
        "a": {key: cell_a.get(key) for key in ("target", "size", "load", "schedule", "label", "verdict")},
        "b": {key: cell_b.get(key) for key in ("target", "size", "load", "schedule", "label", "verdict")},
        "paired": pairs is not None,
        "unpaired_because": why or None,
        "requests": [len(a.keys), len(b.keys)],
        "latency": rows,
        "stages": stages,
        "stages_confidence_each": each,
    }


def _difference(a: Values, b: Values, paired: bool, confidence: float = CONFIDENCE) -> Interval:
    return mean_interval(b - a, confidence) if paired else difference_of_means(a, b, confidence)


def _row(name: str, a: Values, b: Values, interval: Interval) -> dict[str, Any]:
    return _told(name, float(a.mean()), float(b.mean()), interval)


def _told(name: str, a_ns: float, b_ns: float, interval: Interval) -> dict[str, Any]:
    low, high = interval.low, interval.high
    return {
        "of": name,
        "a_ms": a_ns / 1e6,
        "b_ms": b_ns / 1e6,
        "difference_ms": (b_ns - a_ns) / 1e6,
        "low_ms": None if low is None else low / 1e6,
        "high_ms": None if high is None else high / 1e6,
        "effective_n": interval.effective_n,
        "shown": low is not None and high is not None and (low > 0 or high < 0),
    }


# --- words -----------------------------------------------------------------------------------------------------------


def words(result: Mapping[str, Any]) -> str:
    """The comparison for a terminal."""
    lines = [
        f"A: {result['a']['file']} ({result['a']['started']})",
        f"B: {result['b']['file']} ({result['b']['started']})",
    ]
    for cell in result["cells"]:
        a, b = cell["a"], cell["b"]
        who = a["target"] if a["target"] == b["target"] else f"A {a['target']}, B {b['target']}"
        if cell["paired"]:
            how = f"{cell['requests'][0]} requests, pair by pair"
        else:
            how = f"{cell['requests'][0]} and {cell['requests'][1]} requests, unpaired: {cell['unpaired_because']}"
        lines += ["", f"{a['size']} images, {a['load']}, {who}: {how}"]
        lines += [
            f"  {name} is {side['verdict']}: what differs may be that"
            for name, side in (("A", a), ("B", b))
            if side["verdict"] != "VALID"
        ]
        lines += [
            f"  {name} is {side['label']}"
            for name, side in (("A", a), ("B", b))
            if side["label"] not in ("MEASURED", None)
        ]
        rows = [(row["of"], row) for row in cell["latency"]]
        rows += [(f"{row['stage']} @ {row['where']}", row) for row in cell["stages"]]
        left = max(len(name) for name, _ in rows)
        lines.append(f"  {'':<{left}}  {'A ms':>10}  {'B ms':>10}  {'B - A ms':>10}   {CONFIDENCE:.0%} interval")
        lines += [f"  {name:<{left}}  {_line(row)}" for name, row in rows]
    lines += ["", "The intervals of stages hold all together, so each is wider than its own would be."]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    low, high = row["low_ms"], row["high_ms"]
    ends = "too few to tell" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
    said = "" if row["shown"] else "   no difference can be shown"
    return f"{row['a_ms']:>10.3f}  {row['b_ms']:>10.3f}  {row['difference_ms']:>+10.3f}   {ends}{said}"


def usable(result: Mapping[str, Any]) -> bool:
    """Whether all that was compared has numbers that can be used."""
    return all(cell[side]["verdict"] in ("VALID", "CONTENDED") for cell in result["cells"] for side in ("a", "b"))
