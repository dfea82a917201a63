"""A grid of replicas: the same plan at each point, and what it says beside the others.

A point's results are a run like any other (`points/2x1/run.json`: two doors, one inference service); all of them
together are one, too, with a target per point (`run.json`, `requests.csv`), so that `report` and `compare` work on
both. `scale.json` has the grid.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from loadgen import atomic
from loadgen.errors import PlanError
from loadgen.scrape import Served
from loadgen.stored import SCHEMA as RUN_SCHEMA
from loadgen.stored import read_run
from services.errors import ServiceError

SCHEMA = "beyond-inference/scale/1"
MOST = 64  # replicas of a service; who means more has mistyped
_SHARE = 0.5  # of an even share; a replica that gets less is not balanced


class Point(NamedTuple):
    """Replicas of each service."""

    preprocess: int
    inference: int

    @property
    def name(self) -> str:
        """As a target, and as a folder."""
        return f"{self.preprocess}x{self.inference}"


class Site(Protocol):
    """Where the suite runs, and its replicas can be changed."""

    def change(self, point: Point) -> None:
        """So many replicas, ready and reached by work. Raises `ServiceError`, `LocalStackError`, `PlanError`."""
        ...

    def carry_out(self, point: Point, folder: Path) -> None:
        """The plan; its run.json and requests.csv are in `folder`. Raises as `change`."""
        ...

    def served(self) -> Mapping[str, Served]:
        """By the name of a process or pod. Raises `ServiceError` where one does not say."""
        ...

    def close(self) -> None:
        """As it was."""
        ...


def parse_counts(text: str, flag: str) -> list[int]:
    """`1,2,4`. Raises `PlanError`."""
    counts = []
    for part in text.split(","):
        if not part.strip().isdecimal() or not 1 <= int(part) <= MOST:
            raise PlanError(f"{flag} is '{text}'; give numbers of replicas, 1 to {MOST}, as in 1,2,4")
        counts.append(int(part))
    return list(dict.fromkeys(counts))


def points(preprocess: Sequence[int], inference: Sequence[int]) -> list[Point]:
    """All of the grid; the smallest first, so that what cannot work says so early."""
    return sorted((Point(p, i) for p in preprocess for i in inference), key=lambda point: (sum(point), point))


def measure(
    wanted: Sequence[Point], site: Site, folder: Path, say: Callable[[str], None], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The grid, one point after the other; written after each of them. Ctrl-C keeps the points that are finished.

    `about`: what else the file says (`site`, `plan`, ...). Raises as `Site` does, for the first point; a later one that
    cannot be measured is in the grid as NOT RUN, with the reason.
    """
    begin = time.monotonic()
    grid: dict[str, Any] = {
        "schema": SCHEMA,
        **about,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "interrupted": False,
        "points": [],
        "notes": [],
    }
    try:
        for index, point in enumerate(wanted):
            say(f"{index + 1} of {len(wanted)}: {words(point)}")
            try:
                grid["points"].append(_one(point, site, folder))
            except KeyboardInterrupt:
                grid["interrupted"] = True
                break
            except Exception as error:
                if not index:
                    raise
                grid["points"].append({**point._asdict(), "run": None, "reason": str(error), "served": []})
                say(f"{words(point)}: NOT RUN: {error}")
            grid["duration_s"] = time.monotonic() - begin
            _write(grid, folder)
    finally:
        try:
            site.close()
        except ServiceError as error:  # what is measured is measured
            grid["notes"].append(error.message)
            say(error.message)
    grid["duration_s"] = time.monotonic() - begin
    _write(grid, folder)
    return grid


def words(point: Point) -> str:
    """For people."""
    return f"{point.preprocess} preprocess, {point.inference} inference"


def _one(point: Point, site: Site, folder: Path) -> dict[str, Any]:
    own = folder / "points" / point.name
    site.change(point)
    before = site.served()
    site.carry_out(point, own)
    run = read_run(own)[1]
    served = shares(before, site.served())
    return {
        **point._asdict(),
        "run": str((own / "run.json").relative_to(folder)),
        "reason": None,
        "served": served,
        "balanced": balanced(served),
        "cells": [_summary(cell) for cell in run["cells"]],
    }


def shares(before: Mapping[str, Served], after: Mapping[str, Served]) -> list[dict[str, Any]]:
    """What each process answered in between, and its share of its service's; None where there was nothing."""
    counts = {
        name: Served(now.service, now.requests - (before[name].requests if name in before else 0.0))
        for name, now in after.items()
    }
    sums: dict[str, float] = {}
    for count in counts.values():
        sums[count.service] = sums.get(count.service, 0.0) + count.requests
    return [
        {
            "name": name,
            "service": count.service,
            "requests": count.requests,
            "share": count.requests / sums[count.service] if sums[count.service] > 0 else None,
        }
        for name, count in sorted(counts.items())
    ]


def balanced(served: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each replica got at least half of an even share of its service's requests."""
    replicas: dict[str, int] = {}
    for row in served:
        replicas[row["service"]] = replicas.get(row["service"], 0) + 1
    return all(row["share"] is not None and row["share"] >= _SHARE / replicas[row["service"]] for row in served)


def until(
    reached: Callable[[], bool], seconds: float, why: Callable[[], str], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Try until it is. Raises `ServiceError` with what is missing."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise ServiceError(f"after {seconds:.0f} s {why()}")
        sleep(0.5)


def _summary(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What a grid shows of a cell; all of it is in the point's run."""
    kept = ("size", "load", "label", "verdict", "reasons", "throughput_rps", "latency_ms", "intervals", "groups")
    return {key: cell[key] for key in kept if key in cell}


# --- all points as one run -------------------------------------------------------------------------------------------


def _write(grid: Mapping[str, Any], folder: Path) -> None:
    atomic.write(folder / "scale.json", json.dumps(grid, indent=1, allow_nan=False) + "\n")
    measured = [(Point(p["preprocess"], p["inference"]), folder / p["run"]) for p in grid["points"] if p["run"]]
    if measured:
        atomic.write(folder / "run.json", json.dumps(merged(measured, grid), indent=1) + "\n")
        _join([(point.name, path.with_name("requests.csv")) for point, path in measured], folder / "requests.csv")


def merged(measured: Sequence[tuple[Point, Path]], grid: Mapping[str, Any]) -> dict[str, Any]:
    """One run of theirs, with a target per point. They have one plan, so what else they say is the first one's."""
    runs = [(point.name, read_run(path)[1]) for point, path in measured]
    first = runs[0][1]
    return {
        **first,
        "schema": RUN_SCHEMA,
        "started": grid["started"],
        "duration_s": grid["duration_s"],
        "interrupted": grid["interrupted"] or any(run["interrupted"] for _, run in runs),
        "plan": {**first["plan"], "targets": {name: next(iter(r["plan"]["targets"].values()), "") for name, r in runs}},
        "cells": [{**cell, "target": name} for name, run in runs for cell in run["cells"]],
        "answers": [],
        "service_spans": [{**row, "target": name} for name, run in runs for row in run.get("service_spans", ())],
        "notes": [f"{name}: {note}" for name, run in runs for note in run["notes"]],
    }


def _join(tables: Sequence[tuple[str, Path]], path: Path) -> None:
    """Rows of all, each with its point as the target. A stage that did not occur took no time, as everywhere."""
    columns: dict[str, None] = {}
    for _, table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            columns |= dict.fromkeys(next(csv.reader(file)))
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(columns))
        writer.writeheader()
        blank = {name: "0" for name in columns if name.endswith("_ns") and not name.endswith("_cpu_ns")}
        for name, table in tables:
            with table.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    writer.writerow({**blank, **row, "target": name})
    temporary.replace(path)


# --- in words --------------------------------------------------------------------------------------------------------


def table(grid: Mapping[str, Any]) -> str:
    """Throughput and p99 over the grid, per size and load."""
    lines: list[str] = []
    for size, load in cells_of(grid):
        for title, value in (("requests/s", _rps), ("p99 ms", _p99)):
            inference = sorted({p["inference"] for p in grid["points"]})
            lines.append(f"\n{size}, {load}: {title} (down: preprocess, across: inference)")
            lines.append(f"{'':>6}" + "".join(f"{n:>12}" for n in inference))
            for n in sorted({p["preprocess"] for p in grid["points"]}):
                row = [value(cell_at(grid, Point(n, m), size, load)) for m in inference]
                lines.append(f"{n:>6}" + "".join(f"{text:>12}" for text in row))
    for p in grid["points"]:
        if p["run"] and not p["balanced"]:
            point = Point(p["preprocess"], p["inference"])
            said = ", ".join(f"{row['name']} {row['requests']:.0f}" for row in p["served"])
            lines.append(f"{words(point)}: not balanced: {said}")
    lines.append("\n*: not VALID, see its reasons; -: not measured, or too few requests for this percentile")
    return "\n".join(lines[1:] if lines and not lines[0] else lines)


def cells_of(grid: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(size, load) of its cells, in order."""
    return list(dict.fromkeys((c["size"], c["load"]) for p in grid["points"] for c in p.get("cells", ())))


def cell_at(grid: Mapping[str, Any], point: Point, size: str, load: str) -> Mapping[str, Any] | None:
    """None where there is none."""
    for p in grid["points"]:
        if (p["preprocess"], p["inference"]) == point:
            for cell in p.get("cells", ()):
                if (cell["size"], cell["load"]) == (size, load):
                    return dict(cell)
    return None


def _rps(cell: Mapping[str, Any] | None) -> str:
    return _marked(cell, None if cell is None else cell.get("throughput_rps"))


def _p99(cell: Mapping[str, Any] | None) -> str:
    return _marked(cell, None if cell is None else p99_ms(cell))


def p99_ms(cell: Mapping[str, Any]) -> float | None:
    """None where it is not printed: too few requests."""
    value = cell.get("latency_ms", {}).get("p99")
    return None if value is None else float(value)


def _marked(cell: Mapping[str, Any] | None, value: float | None) -> str:
    if cell is None or value is None:
        return "-"
    return f"{value:.1f}{'' if cell.get('verdict') == 'VALID' else '*'}"
