"""A run as tables for a terminal and for Markdown: rows are groups, columns are targets, shares add up to 100 %."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loadgen.analysis import ROWS, apportion

UNKNOWN = "-"


def tables(run: Mapping[str, Any]) -> str:
    """One table per (size, load)."""
    parts = []
    for key in dict.fromkeys((cell["size"], cell["load"]) for cell in run["cells"]):
        cells = [cell for cell in run["cells"] if (cell["size"], cell["load"]) == key]
        parts.append(_table(*key, cells))
    return "\n\n".join(parts)


def _table(size: str, load: str, cells: Sequence[Mapping[str, Any]]) -> str:
    present = {group["group"] for cell in cells for group in cell.get("groups", [])}
    rows = [["mean ms (share)", *(_name(cell) for cell in cells)]]
    rows += [[row, *(_group(cell, row) for cell in cells)] for row in ROWS if row in present]
    facts: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
        ("total", _total),
        ("p50 / p95 / p99 ms", _percentiles),
        ("requests/s", lambda cell: f"{cell['throughput_rps']:.1f}"),
        ("CPU ms/request", _cpu),
        ("stalled", lambda cell: f"{cell['stalled_ms'] / cell['latency_ms']['mean']:.1%}"),
    )
    rows += [[name, *(_measured(cell, text) for cell in cells)] for name, text in facts]
    rows.append(["answered", *(f"{c['ok']} of {c['requests']}" if "requests" in c else UNKNOWN for c in cells)])
    rows.append(["verdict", *(cell.get("verdict") or cell.get("label", UNKNOWN) for cell in cells)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(cells) + 1)]
    schedules = ", ".join(dict.fromkeys(cell["schedule"] for cell in cells))
    lines = [f"{size} images, {load} ({schedules})", ""]  # without the empty line, Markdown sees no table
    for index, row in enumerate(rows):
        padded = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(padded) + " |")
        if index == 0:
            lines.append("|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|")
    notes = [f"{cell['target']}: {reason}" for cell in cells for reason in cell.get("reasons", [])]
    if any(group["mean_ms"] < 0 for cell in cells for group in cell.get("groups", [])):
        notes.append("a negative excess: the link was faster than when it was calibrated")
    return "\n".join(lines + ([""] if notes else []) + notes)


def _name(cell: Mapping[str, Any]) -> str:
    return str(cell["target"]) + (" EMULATED" if cell.get("label") == "EMULATED" else "")


def _measured(cell: Mapping[str, Any], text: Callable[[Mapping[str, Any]], str]) -> str:
    """What was not measured is said to be so, and is never a zero."""
    return text(cell) if "groups" in cell else "NOT RUN" if cell.get("label") == "NOT RUN" else UNKNOWN


def _group(cell: Mapping[str, Any], row: str) -> str:
    column = _column(cell)
    return f"{column[row][0]:8.2f} ({column[row][1]:5.1f} %)" if row in column else UNKNOWN


def _total(cell: Mapping[str, Any]) -> str:
    # The sum of what is printed above, not a constant: if it did not add up, the table would say so.
    shares = sum(share for _, share in _column(cell).values())
    return f"{cell['latency_ms']['mean']:8.2f} ({shares:5.1f} %)"


def _column(cell: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Per group (ms, share in %), rounded such that they add up to the total and to 100.0 %."""
    groups = cell.get("groups", [])
    if not groups:
        return {}
    ms = apportion([group["mean_ms"] for group in groups], cell["latency_ms"]["mean"], 2)
    shares = apportion([group["share"] * 100 for group in groups], 100.0, 1)
    return {group["group"]: pair for group, pair in zip(groups, zip(ms, shares, strict=True), strict=True)}


def _percentiles(cell: Mapping[str, Any]) -> str:
    """A percentile of too few requests is a guess, and not printed."""
    values = (cell["latency_ms"].get(name) for name in ("p50", "p95", "p99"))
    return " / ".join("-" if value is None else f"{value:.1f}" for value in values)


def _cpu(cell: Mapping[str, Any]) -> str:
    """Of all processes that a request passes through; the load generator's alone would say nothing."""
    processes = cell["contention"]["processes"]
    known = {process["name"] for process in processes} > {"client"}
    return f"{sum(p['cpu_ms_per_request'] for p in processes):.2f}" if known else UNKNOWN


def answers(run: Mapping[str, Any]) -> str:
    """What the photographs show, in words; per photograph once where all targets agree."""
    everyone = {answer["target"] for answer in run["answers"]}
    said: dict[str, dict[str, list[str]]] = {}
    for answer in run["answers"]:
        words = f"{answer['label']} ({answer['score']:.2f})"
        said.setdefault(answer["sample"], {}).setdefault(words, []).append(answer["target"])
    lines = []
    for sample, by_words in said.items():
        for words, targets in by_words.items():
            who = "every target" if len(everyone) > 1 and set(targets) == everyone else ", ".join(targets)
            lines.append(f"{sample}: {words}, says {who}")
    return "\n".join(lines)
