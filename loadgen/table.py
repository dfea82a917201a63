"""A run as tables for a terminal and for Markdown: rows are groups, columns are targets, shares add up to 100 %."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loadgen import service_spans, thresholds
from loadgen.analysis import PERCENTILES, ROWS, apportion

UNKNOWN = "-"
# A table's cell, or an interval's end; no minus, and no rule of a table.
_UNKNOWN_CELL = re.compile(r"[|\[,] +-[ \],]|\[-,")


def tables(run: Mapping[str, Any]) -> str:
    """One table per (size, load)."""
    parts = []
    for key in dict.fromkeys((cell["size"], cell["load"]) for cell in run["cells"]):
        cells = [cell for cell in run["cells"] if (cell["size"], cell["load"]) == key]
        parts.append(_table(*key, cells))
    if any(_UNKNOWN_CELL.search(part) for part in parts):
        parts.append(f"{UNKNOWN} is what is not known: it was not measured, or so few requests cannot tell it.")
    ceiling = generator(run)
    if ceiling:
        parts.append(f"generator: {ceiling}")
    spans = service_spans.words(run.get("service_spans", ()))
    if spans:
        parts.append(f"spans of services: {spans}")
    return "\n\n".join(parts)


def generator(run: Mapping[str, Any]) -> str:
    """What the generator itself could have sent; empty where that was not measured."""
    known = run.get("generator") or {}
    ceilings = known.get("ceilings_rps") or {}
    if not ceilings:
        return ""
    senders = "1 sender" if known["senders"] == 1 else f"{known['senders']} sender processes"
    return f"{senders}, to nobody " + ", ".join(f"{rps:.0f} {size} images/s" for size, rps in ceilings.items())


def _table(size: str, load: str, cells: Sequence[Mapping[str, Any]]) -> str:
    present = {group["group"] for cell in cells for group in cell.get("groups", [])}
    rows = [["mean ms (share)", *(_name(cell) for cell in cells)]]
    rows += [[row, *(_group(cell, row) for cell in cells)] for row in ROWS if row in present]
    facts: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [("total", _total), ("95 % interval", _mean_interval)]
    facts += [(f"p{p} [95 %] ms", lambda cell, name=f"p{p}": _percentile(cell, name)) for p in PERCENTILES]  # type: ignore[misc]
    facts.append(("effective n (mean)", _effective_n))
    if any(cell.get("offered_rps") for cell in cells):
        facts.append(("offered requests/s", _offered))
    facts += [
        ("requests/s [95 %]", _throughput),
        ("CPU ms/request", _cpu),
        ("stalled", lambda cell: f"{cell['stalled_ms'] / cell['latency_ms']['mean']:.1%}"),
        ("warm-up cut", warm_up_cut),
        ("drift", _drift),
    ]
    rows += [[name, *(_measured(cell, text) for cell in cells)] for name, text in facts]
    if any(cell.get("dropped") for cell in cells):
        rows.append(["dropped frames", *(str(cell.get("dropped", UNKNOWN)) for cell in cells)])
    rows.append(["answered", *(f"{c['ok']} of {c['requests']}" if "requests" in c else UNKNOWN for c in cells)])
    for name, limit in thresholds.of(cells):
        words = thresholds.required(name, limit)
        rows.append([words, *(thresholds.outcome(cell, name) or UNKNOWN for cell in cells)])
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
    if any(cell.get("label") == "EMULATED" and cell.get("groups") for cell in cells):
        notes.append("EMULATED: transfer to a device was not measured; what its row has is the host's, for batches")
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


def _bounds(low: float | None, high: float | None, digits: int) -> str:
    """An end that so few requests cannot bound is said to be unknown."""
    return f"[{', '.join(UNKNOWN if end is None else f'{end:.{digits}f}' for end in (low, high))}]"


def _mean_interval(cell: Mapping[str, Any]) -> str:
    interval = (cell.get("intervals") or {}).get("mean")
    return _bounds(interval["low_ms"], interval["high_ms"], 2) if interval else UNKNOWN


def _percentile(cell: Mapping[str, Any], name: str) -> str:
    """A percentile of too few requests is a guess, and not printed."""
    value = cell["latency_ms"].get(name)
    interval = (cell.get("intervals") or {}).get(name)
    if value is None:
        return UNKNOWN
    digits = 2 if value < 10 else 1
    bounds = f" {_bounds(interval['low_ms'], interval['high_ms'], digits)}" if interval else ""
    return f"{value:.{digits}f}{bounds}"


def _effective_n(cell: Mapping[str, Any]) -> str:
    """Of the mean: how many requests would say as much, if they had nothing to do with one another."""
    interval = (cell.get("intervals") or {}).get("mean")
    return f"{interval['effective_n']:.0f} of {cell['counted']}" if interval else UNKNOWN


def _offered(cell: Mapping[str, Any]) -> str:
    return f"{cell['offered_rps']:.1f}" if cell.get("offered_rps") else UNKNOWN


def _throughput(cell: Mapping[str, Any]) -> str:
    interval = (cell.get("intervals") or {}).get("throughput")
    bounds = f" {_bounds(interval['low_rps'], interval['high_rps'], 1)}" if interval else ""
    return f"{cell['throughput_rps']:.1f}{bounds}"


def warm_up_cut(cell: Mapping[str, Any]) -> str:
    """What was cut off as warm-up, in requests and their time."""
    cut = cell.get("warmup_cut")
    if not cut:
        return "too few to tell"
    if not cut["requests"]:
        return "none"
    rounds = [row for row in cut.get("rounds", ()) if row["requests"]]
    where = f", in {len(rounds)} of {len(cut['rounds'])} rounds" if rounds else ""
    return f"{cut['requests']} ({cut['seconds']:.1f} s{where})"


def _drift(cell: Mapping[str, Any]) -> str:
    drift = cell.get("drift")
    return f"{drift['change_ms']:+.2f} ms (p {drift['p']:.2g})" if drift else "too few to tell"


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
