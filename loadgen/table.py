"""A run as tables for a terminal and for Markdown: rows are groups, columns are targets, shares add up to 100 %."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.analysis import ROWS


def tables(run: Mapping[str, Any]) -> str:
    """One table per (size, load)."""
    parts = []
    for key in dict.fromkeys((cell["size"], cell["load"]) for cell in run["cells"]):
        cells = [cell for cell in run["cells"] if (cell["size"], cell["load"]) == key]
        parts.append(_table(*key, cells))
    return "\n\n".join(parts)


def _table(size: str, load: str, cells: Sequence[Mapping[str, Any]]) -> str:
    measured = [cell for cell in cells if "groups" in cell]
    rows = [["mean ms (share)", *(_name(cell) for cell in cells)]]
    present = {group["group"] for cell in measured for group in cell["groups"]}
    rows += [[row, *(_group(cell, row) for cell in cells)] for row in ROWS if row in present]
    rows.append(["total", *(_value(cell, lambda c: f"{c['latency_ms']['mean']:8.2f} (100.0 %)") for cell in cells)])
    rows.append(["p50 / p99 ms", *(_value(cell, _percentiles) for cell in cells)])
    rows.append(["requests/s", *(_value(cell, lambda c: f"{c['throughput_rps']:.1f}") for cell in cells)])
    rows.append(["answered", *(f"{cell.get('ok', 0)} of {cell.get('requests', 0)}" for cell in cells)])
    rows.append(["CPU ms/request", *(_value(cell, _cpu) for cell in cells)])
    rows.append(
        ["stalled", *(_value(cell, lambda c: f"{c['stalled_ms'] / c['latency_ms']['mean']:.1%}") for cell in cells)]
    )
    rows.append(["verdict", *(cell.get("verdict", "NOT RUN") for cell in cells)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(cells) + 1)]
    lines = [f"{size} images, {load} ({cells[0]['schedule']})"]
    for index, row in enumerate(rows):
        padded = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(padded) + " |")
        if index == 0:
            lines.append("|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|")
    notes = [f"{cell['target']}: {reason}" for cell in cells for reason in cell.get("reasons", [])]
    return "\n".join(lines + ([""] if notes else []) + notes)


def _name(cell: Mapping[str, Any]) -> str:
    return str(cell["target"]) + (" EMULATED" if cell.get("label") == "EMULATED" else "")


def _value(cell: Mapping[str, Any], text: Any) -> str:
    return str(text(cell)) if "groups" in cell else "NOT RUN" if cell.get("label") == "NOT RUN" else "-"


def _group(cell: Mapping[str, Any], row: str) -> str:
    for group in cell.get("groups", []):
        if group["group"] == row:
            return f"{group['mean_ms']:8.2f} ({group['share'] * 100:5.1f} %)"
    return "-"


def _percentiles(cell: Mapping[str, Any]) -> str:
    latency = cell["latency_ms"]
    p99 = "too few" if latency["p99"] is None else f"{latency['p99']:.1f}"
    return f"{latency['p50'] or 0:.2f} / {p99}"


def _cpu(cell: Mapping[str, Any]) -> str:
    processes = cell["contention"]["processes"]
    return f"{sum(p['cpu_ms_per_request'] for p in processes):.2f}" if processes else "-"


def _stalled(cell: Mapping[str, Any]) -> str:
    return f"{cell['stalled_ms'] / cell['latency_ms']['mean']:.1%}"


def answers(run: Mapping[str, Any]) -> str:
    """What the photographs show, in words; per photograph once where all targets agree."""
    said: dict[str, dict[str, list[str]]] = {}
    for answer in run["answers"]:
        words = f"{answer['label']} ({answer['score']:.2f})"
        said.setdefault(answer["sample"], {}).setdefault(words, []).append(answer["target"])
    lines = []
    for sample, by_words in said.items():
        for words, targets in by_words.items():
            who = "every target" if len(by_words) == 1 else ", ".join(targets)
            lines.append(f"{sample}: {words}, says {who}")
    return "\n".join(lines)
