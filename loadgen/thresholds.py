"""Thresholds for CI: what a cell has to hold, and whether it does. A broken one sets the exit status.

What was not measured holds nothing: a percentile without enough requests, or a cell that was not run, is no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Name -> whether the value has to be at most (True) or at least (False) the limit, and the unit for people.
KINDS: Mapping[str, tuple[bool, str]] = {
    "mean_ms": (True, " ms"),
    "p50_ms": (True, " ms"),
    "p90_ms": (True, " ms"),
    "p95_ms": (True, " ms"),
    "p99_ms": (True, " ms"),
    "max_ms": (True, " ms"),
    "error_rate": (True, ""),
    "drop_rate": (True, ""),
    "throughput_rps": (False, " requests/s"),
}


class Checked(NamedTuple):
    """One threshold of one cell. `value`: None where it was not measured."""

    name: str
    limit: float
    value: float | None
    held: bool

    @property
    def words(self) -> str:
        """What is wrong, for people."""
        at_most, unit = KINDS[self.name]
        found = "was not measured" if self.value is None else f"is {self.value:.4g}{unit}"
        return f"{self.name} {found}; the threshold is {'at most' if at_most else 'at least'} {self.limit:.4g}{unit}"

    @property
    def outcome(self) -> str:
        """The value, and whether it holds, for a table."""
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        return f"{value}, {'held' if self.held else 'BROKEN'}"


def check(cell: Mapping[str, Any], limits: Mapping[str, float]) -> list[Checked]:
    """Each of `limits` (by the names of `KINDS`) against what a results file has of a cell."""
    checked = []
    for name, limit in limits.items():
        value = _value(cell, name)
        at_most, _ = KINDS[name]
        held = value is not None and (value <= limit if at_most else value >= limit)
        checked.append(Checked(name, limit, value, held))
    return checked


def _value(cell: Mapping[str, Any], name: str) -> float | None:
    """None where it was not measured."""
    requests, dropped = cell.get("requests"), cell.get("dropped") or 0
    if name == "error_rate":
        return (requests - cell["ok"]) / requests if requests else None
    if name == "drop_rate":
        return dropped / (requests + dropped) if requests else None
    if name == "throughput_rps":
        return cell.get("throughput_rps")
    value: float | None = cell.get("latency_ms", {}).get(name.removesuffix("_ms"))
    return value


def of(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """The thresholds of cells of one size and load, by name and limit, each once."""
    return list(dict.fromkeys((row["name"], row["limit"]) for cell in cells for row in cell.get("thresholds", ())))


def required(name: str, limit: float) -> str:
    """What a threshold asks for, for people."""
    at_most, unit = KINDS[name]
    return f"{name.removesuffix('_ms').removesuffix('_rps')} {'at most' if at_most else 'at least'} {limit:.4g}{unit}"


def outcome(cell: Mapping[str, Any], name: str) -> str:
    """What came of a cell's threshold of this name, for people; empty where it has none."""
    return next((Checked(**row).outcome for row in cell.get("thresholds", ()) if row["name"] == name), "")


def broken(run: Mapping[str, Any]) -> list[str]:
    """A line for each threshold of a run that was not held."""
    lines = []
    for cell in run["cells"]:
        for entry in cell.get("thresholds", []):
            if not entry["held"]:
                checked = Checked(entry["name"], entry["limit"], entry["value"], held=False)
                lines.append(f"{cell['size']}, {cell['target']}, {cell['load']}: {checked.words}")
    return lines


def as_rows(checked: Sequence[Checked]) -> list[dict[str, Any]]:
    """For a results file."""
    return [entry._asdict() for entry in checked]
