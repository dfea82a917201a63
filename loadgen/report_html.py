"""A run as one HTML page: where the milliseconds go, and what each transport costs beside no hop at all.

Self-contained (inline CSS and SVG, no request to anywhere), readable without JavaScript, in light and dark, and on
paper. The page is written as well-formed XML too, so that tests can read it with a strict parser. Times are in ms.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadgen import atomic, service_spans, thresholds
from loadgen.analysis import PERCENTILES, ROWS, apportion
from loadgen.report_plots import (
    SCRIPT,
    STYLE,
    UNKNOWN,
    Bar,
    Curve,
    Part,
    distribution,
    escape,
    number,
    short_ms,
    stacked_bars,
    swatch,
    waterfall,
)
from loadgen.statistics import minimum_count
from loadgen.table import generator, warm_up_cut
from services.accounting import GROUP_OF, Stage

Cell = Mapping[str, Any]

# What the reader is told each row means. The order is the rows' order.
_MEANING = {
    "client": "the load generator itself: how much later than intended the request was sent",
    "queueing": "waiting while nobody works on this request: for a worker, for a broker, for a batch to fill, for a "
    "thread to take up the reply",
    "preprocessing": "the data is prepared: decoding, resizing, normalising; and the scores are put into words",
    "serialization": "objects become bytes and bytes become objects",
    "network": "the calibrated floor of a hop: the median time that the same bytes take over the same link while it is "
    "idle and nothing is computed, there and back",
    "excess": "what transit took beyond that floor: waits for the interpreter, for a CPU, for flow control. It is a "
    "finding, not network; where a hop was not calibrated, all of its transit is here. It can be slightly negative",
    "transfer": "to the device and back: batch assembly, host to device, device to host",
    "inference": "the model computes",
    "exceptional": "what should not be there: retries, redeliveries, parts without a ledger, missing replies",
}
# The title claim of "Beyond Inference" is about these: data is prepared, converted, and carried.
_DATA = ("preprocessing", "serialization", "network", "excess", "transfer")

_LABELS = {
    "MEASURED": "real computation on the machine described at the end",
    "EMULATED": "in place of a device a service-time law, whose answers mean nothing, or measured times divided by k; "
    "transfer to it was not measured",
    "NOT RUN": "there are no numbers; the reason is given",
}
_VERDICTS = {
    "VALID": ("✓", "the ledgers add up, all requests were answered, the machine had CPU to spare"),
    "CONTENDED": (
        "!",
        "the ledgers add up, but the machine was short of CPU, or there was no steady state; compare with care",
    ),
    "INVALID": ("✕", "do not use these numbers; the reasons are given"),
}
_COUNTS = (
    "A percentile is printed from so many requests on as MLPerf's early stopping asks for: "
    + ", ".join(f"{minimum_count(p / 100)} for p{p}" for p in PERCENTILES)
    + ". Intervals take into account that requests which follow one another share a queue: effective n is how many "
    "would say as much if they did not. An interval without an upper end: the slowest may well lie below it."
)
_NAMES = {"grpc": "gRPC", "kafka": "Kafka", "redis": "Redis"}  # as their projects write them, in sentences
_BASELINE = "fused"  # no hop at all: what the others are compared with
_DIRECT = "grpc"  # a hop without a broker
_GROUP_OF_STAGE = {stage.value: group.value for stage, group in GROUP_OF.items()}
_TRANSIT = Stage.TRANSIT.value


def write(run: Mapping[str, Any], path: Path) -> None:
    """Write the page, atomically: a reader sees the old page or the new one. Makes the folder."""
    atomic.write(path, render(run))


def render(run: Mapping[str, Any]) -> str:
    """The page for a run of schema `beyond-inference/run/1` (docs/results-schema.md)."""
    cells: Sequence[Cell] = run.get("cells", [])
    keys = list(dict.fromkeys((str(cell["size"]), str(cell["load"])) for cell in cells))
    by_key = {key: [c for c in cells if (str(c["size"]), str(c["load"])) == key] for key in keys}
    targets = list(dict.fromkeys(str(cell["target"]) for cell in cells))
    colours = {name: index % 6 for index, name in enumerate(targets)}
    title = f"beyond-inference: {run.get('name', '')}"
    files = {size: _files(about) for size, about in (run.get("samples") or {}).items()}
    sections = [_section(index, *key, by_key[key], colours, files.get(key[0], "")) for index, key in enumerate(keys)]
    body = [
        _header(run, keys, by_key),
        _glance(keys, by_key, targets),
        _legend({group for cell in cells for group in _present(cell)}) if cells else "",
        *sections,
        _answers(run.get("answers", [])),
        _definitions(),
        _environment(run),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{_DEFINITIONS_SVG}\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


# The hatching that marks excess also where colours are not told apart.
_DEFINITIONS_SVG = (
    '<svg class="defs" width="0" height="0" aria-hidden="true"><defs>'
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<line x1="0" y1="0" x2="0" y2="6" class="hatching"/></pattern></defs></svg>'
)


# --- numbers -------------------------------------------------------------------------------------------------------


def _measured(cell: Cell) -> bool:
    """Whether there is a mean request to draw."""
    return bool(cell.get("groups")) and bool(cell.get("latency_ms"))


def _usable(cell: Cell) -> bool:
    return _measured(cell) and cell.get("verdict") != "INVALID"


def _mean(cell: Cell) -> float:
    return float(cell["latency_ms"]["mean"])


def _group_ms(cell: Cell) -> dict[str, float]:
    return {str(row["group"]): float(row["mean_ms"]) for row in cell.get("groups", [])}


def _present(cell: Cell) -> list[str]:
    return [str(row["group"]) for row in cell.get("groups", [])]


def _baseline(cells: Iterable[Cell]) -> Cell | None:
    """What the others are compared with: the target without a hop; failing that, the first that is usable."""
    usable = [cell for cell in cells if _usable(cell)]
    return next((cell for cell in usable if cell["target"] == _BASELINE), usable[0] if usable else None)


def _signed(value: float, digits: int | None = None) -> str:
    text = short_ms(value) if digits is None else number(value, digits)
    return text if text.startswith("−") else f"+{text}"


def _percent(value: float, digits: int = 0) -> str:
    return f"{number(value * 100, digits)} %"


def _delta(cell: Cell, base: Cell) -> str:
    """`+1.2 ms (15 %)`; empty for the baseline itself."""
    if cell is base:
        return ""
    more = _mean(cell) - _mean(base)
    digits = 1 if abs(more) >= 0.095 else 2
    share = f" ({_percent(more / _mean(base))})" if _mean(base) > 0 else ""
    return f"{_signed(more, digits)} ms{share}"


def _shown(cell: Cell, base: Cell) -> str:
    """The difference, where it is one: a headline is quoted without what stands below it."""
    return f"no difference shown ({_delta(cell, base)})" if _doubt(cell, base) else _delta(cell, base)


def _pretty(target: object) -> str:
    return _NAMES.get(str(target), str(target))


def _marks(cell: Cell) -> list[str]:
    """What a number may not be quoted without."""
    return [str(w) for w in (cell.get("label"), cell.get("verdict")) if w and w not in ("MEASURED", "VALID")]


def headline(size: str, load: str, cells: Sequence[Cell]) -> str:
    """What it takes without a hop, and what each transport adds: one sentence, from the data alone."""
    base = _baseline(cells)
    where = f"{size.capitalize()} images, {load}"
    if base is None:
        return f"{where}: no usable measurement."
    # A caveat that all share is said once.
    shared = [mark for mark in _marks(base) if all(mark in _marks(cell) for cell in cells)] if len(cells) > 1 else []
    parts: list[str] = []
    for cell in cells:
        words = f"{number(_mean(base), 1)} ms" if cell is base else _shown(cell, base) if _usable(cell) else ""
        marks = [mark for mark in _marks(cell) if mark not in shared]
        caveat = f"[{', '.join(marks)}]" if marks else ""
        said = " ".join(part for part in (_pretty(cell["target"]), words, caveat) if part)
        parts.insert(0 if cell is base else len(parts), said)
    return f"{where}: {'; '.join(parts)}{' [all ' + ', '.join(shared) + ']' if shared else ''}."


def data_share(cells: Sequence[Cell]) -> str:
    """How much of the time is not the model, in one sentence per kind of time; empty without numbers."""
    usable = [cell for cell in cells if _usable(cell) and _mean(cell) > 0]
    if not usable:
        return ""

    def listed(groups: Sequence[str]) -> str:
        return ", ".join(
            f"{_percent(sum(_group_ms(c).get(g, 0.0) for g in groups) / _mean(c))} with {_pretty(c['target'])}"
            for c in usable
        )

    return (
        f"Of the time, data processing and movement take {listed(_DATA)}; waiting takes {listed(('queueing',))}. "
        f"The model itself takes {listed(('inference',))}."
    )


def _explained(cell: Cell, base: Cell) -> str:
    """Which groups a difference in means comes from: they add up to it."""
    mine, theirs = _group_ms(cell), _group_ms(base)
    more = {g: mine.get(g, 0.0) - theirs.get(g, 0.0) for g in ROWS if g in mine or g in theirs}
    order = sorted(more, key=lambda g: abs(more[g]), reverse=True)
    named = [g for g in order[:4] if abs(more[g]) >= 0.005]
    rest = sum(more[g] for g in order if g not in named)
    parts = [f"{g} {_signed(more[g])}" for g in named]
    if abs(rest) >= 0.005:
        parts.append(f"the rest {_signed(rest)}")
    return ", ".join(parts) or "no difference"


# --- pieces of the page ----------------------------------------------------------------------------------------------


def _badge(text: object) -> str:
    """A label or verdict; said in words and with a sign, so that colour is never all there is."""
    word = str(text)
    sign = f'<span aria-hidden="true">{_VERDICTS[word][0]}</span> ' if word in _VERDICTS else ""
    kind = "".join(c if c.isalnum() else "-" for c in word.lower())
    return f'<span class="badge b-{escape(kind)}">{sign}{escape(word)}</span>'


def _badges(cell: Cell) -> str:
    return " ".join(_badge(cell[key]) for key in ("label", "verdict") if cell.get(key))


def _chip(group: str) -> str:
    return f'<i class="chip c-{escape(group)}"></i>'


def _table(kind: str, caption: str, head: str, rows: Iterable[str]) -> str:
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="{kind}">{top}<thead>{head}</thead><tbody>{"".join(rows)}</tbody>'
        "</table></div>"
    )


def _td(text: str, kind: str = "num") -> str:
    return f'<td class="{kind}">{escape(text)}</td>'


def _header(run: Mapping[str, Any], keys: Sequence[tuple[str, str]], by_key: Mapping[tuple[str, str], Any]) -> str:
    # The headline is about the first group that has something to say.
    key = next((key for key in keys if _baseline(by_key[key]) is not None), keys[0] if keys else None)
    said = headline(*key, by_key[key]) if key else "This run has no cells."
    more = data_share(by_key[key]) if key else ""
    environment = run.get("environment", {})
    facts = [
        str(run.get("name", "")),
        str(run.get("started", "")),
        f"{number(run.get('duration_s'), 0)} s",
        f"{environment.get('cpu') or 'unknown CPU'}, {number(environment.get('cpus'), 1).removesuffix('.0')} CPUs",
    ]
    return (
        '<header><p class="eyebrow">beyond-inference · where the milliseconds go</p>'
        f"<h1>{escape(_tight(said))}</h1>"
        + (f'<p class="lead">{escape(_tight(more))}</p>' if more else "")
        + f'<p class="facts">{escape(" · ".join(fact for fact in facts if fact))}</p>{_notes(run)}</header>'
    )


def _tight(text: str) -> str:
    """A line does not break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=ms\b|%)", "\N{NO-BREAK SPACE}", text)


def _notes(run: Mapping[str, Any]) -> str:
    notes = ["The run was interrupted: what is missing was not measured."] if run.get("interrupted") else []
    notes += map(str, run.get("notes") or [])
    return f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""


def _glance(
    keys: Sequence[tuple[str, str]],
    by_key: Mapping[tuple[str, str], Sequence[Cell]],
    targets: Sequence[str],
) -> str:
    """Everything measured, as one small table: a row per (size, load), a column per target."""
    if not keys:
        return ""
    rows = []
    bases = [base for base in map(_baseline, by_key.values()) if base is not None]
    for index, key in enumerate(keys):
        base = _baseline(by_key[key])
        columns = []
        for target in targets:
            cell = next((c for c in by_key[key] if c["target"] == target), None)
            columns.append(_glance_cell(cell, base))
        name = f'<a href="#cell-{index}">{escape(key[0])}, {escape(key[1])}</a>'
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(columns)}</tr>')
    head = "".join(f'<th scope="col" class="num">{escape(target)}</th>' for target in targets)
    beside = "no hop at all" if all(b["target"] == _BASELINE for b in bases) else "the first target that is usable"
    return _table(
        "glance",
        f"Mean latency in ms, and the difference from {beside}",
        f'<tr><th scope="col">images, load</th>{head}</tr>',
        rows,
    )


def _glance_cell(cell: Cell | None, base: Cell | None) -> str:
    if cell is None:
        return _td(UNKNOWN)
    if not _measured(cell):
        return f'<td class="num">{_badges(cell)}</td>'
    delta = _delta(cell, base) if base is not None and _usable(cell) else ""
    more = f'<span class="more">{escape(delta)}</span>' if delta else ""
    badges = " ".join(_badge(mark) for mark in _marks(cell))
    return (
        f'<td class="num"><b>{escape(number(_mean(cell)))}</b>{more}'
        + (f'<span class="marks">{badges}</span>' if badges else "")
        + "</td>"
    )


def _legend(present: set[str]) -> str:
    items = "".join(
        f'<li data-group="{escape(row)}" title="{escape(_MEANING[row])}">{_chip(row)}{escape(row)}</li>'
        for row in ROWS
        if row in present
    )
    return f'<ul class="legend" aria-label="Colours">{items}</ul>'


def _files(about: Mapping[str, Any]) -> str:
    size = float(about["mean_bytes"])
    text = f"{number(size / 1e6)} MB" if size >= 1e6 else f"{number(size / 1e3, 1)} kB"
    return f"{about['files']} files, {text} on average"


def _section(index: int, size: str, load: str, cells: Sequence[Cell], colours: Mapping[str, int], files: str) -> str:
    schedules = dict.fromkeys(str(cell["schedule"]) for cell in cells if cell.get("schedule"))
    facts = " · ".join(fact for fact in (", ".join(schedules), files) if fact)
    base = _baseline(cells)
    about = f"{size.capitalize()} images, {load}"
    return "\n".join(
        part
        for part in (
            f'<section class="cell" id="cell-{index}"><h2>{escape(about)} <small>{escape(facts)}</small></h2>',
            f'<p class="say">{escape(_tight(headline(size, load, cells)))}</p>' if index else "",
            _verdicts(cells),
            '<figure class="wide">'
            + stacked_bars(
                [_bar(cell, base) for cell in cells],
                f"{about}: mean milliseconds per stage, a bar per target",
                _mean(base) if base is not None else None,
            )
            + "<figcaption>The mean request, stage after stage along its walk; one scale for all targets. "
            + (f"Dashed: the mean of {escape(base['target'])}. " if base is not None else "")
            + "Point at a part for its name.</figcaption></figure>",
            _differences(cells, base),
            _groups(cells, base),
            _latency(about, cells, colours),
            _tail(about, cells),
            _waterfalls(about, cells, opened=index == 0),
            _every_stage(cells),
            '<div class="pair">' + _contention(cells) + _calibration(cells) + "</div>",
            "</section>",
        )
        if part
    )


def _verdicts(cells: Sequence[Cell]) -> str:
    items = []
    for cell in cells:
        reasons = [str(reason) for reason in cell.get("reasons") or []]
        why = f" <span>{escape('; '.join(reasons))}</span>" if reasons else ""
        items.append(f"<li><b>{escape(cell['target'])}</b> {_badges(cell)}{why}</li>")
    return f'<ul class="verdicts">{"".join(items)}</ul>'


def _bar(cell: Cell, base: Cell | None) -> Bar:
    note = str(cell.get("label", ""))
    if cell.get("verdict") not in (None, "VALID"):
        note = str(cell["verdict"]) if note == "MEASURED" else f"{note}, {cell['verdict']}"
    if not _measured(cell):
        return Bar(str(cell["target"]), note, (), 0.0, "")
    delta = _delta(cell, base) if base is not None and _usable(cell) else ""
    return Bar(str(cell["target"]), note, _parts(cell), _mean(cell), delta)


def _parts(decomposition: Mapping[str, Any]) -> list[Part]:
    return [
        Part(str(s["stage"]), _row_of(s), str(s["where"]), float(s["mean_ms"]), s.get("cpu_ms"))
        for s in decomposition.get("stages", [])
        if math.isfinite(s["mean_ms"])
    ]


def _row_of(stage: Mapping[str, Any]) -> str:
    """The row that a stage belongs to: movement is reported as network and excess."""
    return str(stage["stage"] if stage["group"] == "movement" else stage["group"])


def _differences(cells: Sequence[Cell], base: Cell | None) -> str:
    if base is None:
        return ""
    # What a hop costs beside none; and, since a broker is a choice, what it costs beside a hop without one.
    direct = next((cell for cell in cells if cell["target"] == _DIRECT and _usable(cell) and cell is not base), None)
    others = [cell for cell in cells if cell is not base and _usable(cell)]
    pairs = [(cell, base) for cell in others]
    pairs += [(cell, direct) for cell in others if direct is not None and cell is not direct]
    items = [
        f"<li><b>{escape(cell['target'])} {escape(_delta(cell, beside))}</b> beside {escape(beside['target'])}: "
        f"{escape(_explained(cell, beside))}{escape(_doubt(cell, beside))}</li>"
        for cell, beside in pairs
    ]
    return f'<ul class="why" aria-label="Where the differences come from">{"".join(items)}</ul>' if items else ""


def _doubt(cell: Cell, beside: Cell) -> str:
    """Said of a difference that the intervals of both means could hide."""
    halves = []
    for one in (cell, beside):
        interval = (one.get("intervals") or {}).get("mean")
        if not interval or interval["low_ms"] is None or interval["high_ms"] is None:
            return ""
        halves.append((interval["high_ms"] - interval["low_ms"]) / 2)
    if abs(_mean(cell) - _mean(beside)) > math.hypot(*halves):
        return ""
    return ". The intervals of both means hide that; loadgen compare sets requests side by side, pair by pair"


def _groups(cells: Sequence[Cell], base: Cell | None) -> str:
    """Groups x targets, ms and share; both columns add up as printed. Below: what else there is to know of a cell."""
    present = {group for cell in cells for group in _present(cell)}
    columns = [_group_column(cell) for cell in cells]
    rows = []
    for row in ROWS:
        if row in present:
            values = "".join(
                _group_ms_cell(cell, c, row) + _td(_tenth(c, row), "num share")
                for cell, c in zip(cells, columns, strict=True)
            )
            rows.append(f'<tr data-group="{row}"><th scope="row">{_chip(row)}{row}</th>{values}</tr>')

    def line(name: str, text: Callable[[Cell], str], kind: str = "") -> None:
        values = "".join(f'<td class="num" colspan="2">{escape(text(cell))}</td>' for cell in cells)
        rows.append(f'<tr class="{kind}"><th scope="row">{escape(name)}</th>{values}</tr>')

    totals = "".join(
        _td(number(_mean(cell)) if _measured(cell) else UNKNOWN) + _td(_column_sum(column), "num share")
        for cell, column in zip(cells, columns, strict=True)
    )
    rows.append(f'<tr class="total"><th scope="row">total (mean)</th>{totals}</tr>')
    if base is not None:
        line(f"beside {base['target']}", lambda c: (_delta(c, base) if _usable(c) else "") or UNKNOWN)
    if any(cell.get("intervals") for cell in cells):
        line("95 % interval of the mean", lambda c: _between(c, "mean"), "fact first")
        line("effective n of the mean", _effective, "fact")
    if any(cell.get("offered_rps") for cell in cells):
        line("offered requests/s", lambda c: number(c.get("offered_rps"), 1), "fact")
    line("requests/s", lambda c: number(c.get("throughput_rps"), 1), "fact")
    if any(cell.get("intervals") for cell in cells):
        line("95 % interval", _rate_between, "fact")
    if any(cell.get("dropped") for cell in cells):
        line("dropped frames", lambda c: str(c.get("dropped", UNKNOWN)), "fact")
    line("warm-up cut", _cut, "fact")
    line("drift", _drift, "fact")
    line("answered", lambda c: f"{c.get('ok', 0)} of {c['requests']}" if "requests" in c else UNKNOWN, "fact")
    if any(cell.get("errors") for cell in cells):
        line("errors", _errors, "fact")
    for name, limit in thresholds.of(cells):
        line(thresholds.required(name, limit), lambda c, of=name: thresholds.outcome(c, of) or UNKNOWN, "fact")  # type: ignore[misc]
    line("CPU ms per request", lambda c: number(_cpu_ms(c)), "fact")
    line("stalled", _stalled, "fact")
    line("ledgers complete", _ledgers, "fact")
    head = "".join(f'<th scope="col" colspan="2" class="num">{escape(cell["target"])}</th>' for cell in cells)
    units = '<th class="num unit">ms</th><th class="num unit">share</th>' * len(cells)
    return _table("groups", "", f'<tr><th scope="col">group</th>{head}</tr><tr><th></th>{units}</tr>', rows)


def _group_ms_cell(cell: Cell, column: Mapping[str, tuple[float, float]], row: str) -> str:
    """With its interval for whoever points at it."""
    if row not in column:
        return _td(UNKNOWN)
    group = next(g for g in cell["groups"] if g["group"] == row)
    if group.get("low_ms") is None or group.get("high_ms") is None:
        return _td(number(column[row][0]))
    words = f"95 % interval: {number(group['low_ms'], 3)} to {number(group['high_ms'], 3)} ms"
    return f'<td class="num" title="{escape(words)}">{escape(number(column[row][0]))}</td>'


def _ends(low: float | None, high: float | None, show: Callable[[float], str]) -> str:
    """An interval in words; where so few requests cannot bound it, it has no end."""
    if low is None and high is None:
        return "not bounded"
    if low is None or high is None:
        return f"from {show(low)}" if low is not None else f"up to {show(high or 0.0)}"
    return f"{show(low)} to {show(high)}"


def _between(cell: Cell, name: str) -> str:
    interval = (cell.get("intervals") or {}).get(name)
    return _ends(interval["low_ms"], interval["high_ms"], short_ms) if interval else UNKNOWN


def _rate_between(cell: Cell) -> str:
    interval = (cell.get("intervals") or {}).get("throughput")
    return _ends(interval["low_rps"], interval["high_rps"], lambda rate: number(rate, 1)) if interval else UNKNOWN


def _effective(cell: Cell) -> str:
    interval = (cell.get("intervals") or {}).get("mean")
    return f"{number(interval['effective_n'], 0)} of {cell['counted']}" if interval else UNKNOWN


def _cut(cell: Cell) -> str:
    return warm_up_cut(cell) if _measured(cell) else UNKNOWN


def _drift(cell: Cell) -> str:
    if not _measured(cell):
        return UNKNOWN
    drift = cell.get("drift")
    return f"{_signed(drift['change_ms'], 2)} ms, p {drift['p']:.2g}" if drift else "too few to tell"


def _group_column(cell: Cell) -> dict[str, tuple[float, float]]:
    """Per group (ms, share in %), rounded as they are printed."""
    if not _measured(cell):
        return {}
    groups = cell["groups"]
    ms = apportion([float(g["mean_ms"]) for g in groups], _mean(cell), 2)
    shares = apportion([float(g["share"]) * 100 for g in groups], 100.0, 1)
    return {str(g["group"]): pair for g, pair in zip(groups, zip(ms, shares, strict=True), strict=True)}


def _tenth(column: Mapping[str, tuple[float, float]], row: str) -> str:
    return f"{number(column[row][1], 1)} %" if row in column else ""


def _column_sum(column: Mapping[str, tuple[float, float]]) -> str:
    # The sum of what is printed, not a constant: if shares did not add up, the table would say so.
    return f"{number(sum(share for _, share in column.values()), 1)} %" if column else ""


def _cpu_ms(cell: Cell) -> float | None:
    """Of all processes that a request passes through; the load generator's alone would say nothing."""
    processes = (cell.get("contention") or {}).get("processes") or ()
    known = {process["name"] for process in processes} > {"client"}
    return sum(float(p["cpu_ms_per_request"]) for p in processes) if known else None


def _stalled(cell: Cell) -> str:
    if not _measured(cell) or cell.get("stalled_ms") is None:
        return UNKNOWN
    share = f" ({_percent(cell['stalled_ms'] / _mean(cell), 1)})" if _mean(cell) > 0 else ""
    return f"{number(cell['stalled_ms'])} ms{share}"


def _errors(cell: Cell) -> str:
    if "requests" not in cell:
        return UNKNOWN
    return ", ".join(f"{n} {kind}" for kind, n in (cell.get("errors") or {}).items()) or "0"


def _ledgers(cell: Cell) -> str:
    ledger = cell.get("ledger")
    if not ledger:
        return UNKNOWN
    wrong = f", {ledger['mismatched']} do not add up" if ledger.get("mismatched") else ""
    return f"{ledger['complete']} of {cell.get('ok', UNKNOWN)}{wrong}"


def _latency(about: str, cells: Sequence[Cell], colours: Mapping[str, int]) -> str:
    shown = [cell for cell in cells if _measured(cell) and cell.get("quantiles_ms")]
    if not shown:
        return ""
    curves = [Curve(str(c["target"]), colours[str(c["target"])], [float(v) for v in c["quantiles_ms"]]) for c in shown]
    names = ("mean", "p50", "p90", "p95", "p99", "max")
    columns = [name for name in names if any(name in cell["latency_ms"] for cell in shown)]
    rows = []
    for cell in shown:
        latency = cell["latency_ms"]
        values = "".join(_td("too few" if latency.get(n) is None else number(latency[n])) for n in columns)
        name = f"{swatch(colours[str(cell['target'])])}{escape(cell['target'])}"
        rows.append(f'<tr><th scope="row">{name}</th>{values}</tr>')
        if cell.get("intervals"):
            ends = "".join(_td(_between(cell, n) if n in cell["intervals"] else "") for n in columns)
            rows.append(f'<tr class="sub"><th scope="row">95 % interval</th>{ends}</tr>')
    head = "".join(f'<th scope="col" class="num">{name}</th>' for name in columns)
    table = _table("latency", "Latency, ms", f'<tr><th scope="col">target</th>{head}</tr>', rows)
    return (
        '<div class="pair spread"><figure>'
        + distribution(curves, f"{about}: share of requests answered within a time, a line per target")
        + "<figcaption>How many of the requests were answered within a time. Steep is steady.</figcaption></figure>"
        + f'<div>{table}<p class="hint">{escape(_COUNTS)}</p></div>'
        + "</div>"
    )


def _tail(about: str, cells: Sequence[Cell]) -> str:
    """The mean request around p99, drawn and beside the mean of all: both add up, unlike percentiles of parts."""
    bars, items = [], []
    for cell in cells:
        tail = cell.get("tail")
        if not _measured(cell) or not tail:
            continue
        mean = float(tail["mean_ms"])
        around = {"latency_ms": {"mean": mean}, "groups": tail["groups"]}
        bars.append(Bar(str(cell["target"]), f"{tail['requests']} requests", _parts(tail), mean, ""))
        items.append(
            f"<li><b>{escape(cell['target'])} {escape(short_ms(mean))} ms</b>, {escape(number(tail['low_ms']))} to "
            f"{escape(number(tail['high_ms']))}, beside its mean of {escape(short_ms(_mean(cell)))}: "
            f"{escape(_explained(around, cell))}</li>"
        )
    if not bars:
        return ""
    return (
        '<h3 class="tail">The tail</h3><figure class="wide">'
        + stacked_bars(bars, f"{about}: the mean request between p98.5 and p99.5, a bar per target")
        + "<figcaption>The mean of the requests between p98.5 and p99.5; shown where at least five are.</figcaption>"
        + f'</figure><ul class="why" aria-label="Where the tail comes from">{"".join(items)}</ul>'
    )


def _waterfalls(about: str, cells: Sequence[Cell], opened: bool) -> str:
    """The median and the slowest request of each target; each kind on one scale, so that targets can be compared."""
    blocks = []
    kinds = ("median", "slowest")
    longest = {
        kind: max([float(c["exemplars"][kind]["total_ms"]) for c in cells if _exemplar(c, kind)] or [0.0])
        for kind in kinds
    }
    for cell in cells:
        figures = []
        for kind in kinds:
            exemplar = _exemplar(cell, kind)
            if exemplar is None:
                continue
            total = float(exemplar["total_ms"])
            label = f"{about}, {cell['target']}: the {kind} request, {number(total)} ms"
            figures.append(
                f"<figure><figcaption><b>{kind} request</b> {number(total)} ms "
                f"<code>{escape(exemplar.get('id', ''))}</code></figcaption>"
                + waterfall(_rows(exemplar, cell), total, longest[kind], label)
                + "</figure>"
            )
        if figures:
            blocks.append(
                f'<h4>{escape(cell["target"])} {_badges(cell)}</h4><div class="falls">{"".join(figures)}</div>'
            )
    if not blocks:
        return ""
    state = ' open=""' if opened else ""
    return (
        f'<details class="waterfalls"{state}><summary>Single requests: the median and the slowest of each target'
        '</summary><p class="hint">Each part is a bar, in the order in which the parts were accounted; the thin line in'
        " it is CPU time. Transit is a remainder: the way there and back together, drawn after what the other side "
        "reported, as the hop's calibrated floor and the excess beyond it (dashed and to the left where the request was"
        f" faster than the floor). Targets share a scale.</p>{''.join(blocks)}</details>"
    )


def _exemplar(cell: Cell, kind: str) -> Mapping[str, Any] | None:
    exemplar = (cell.get("exemplars") or {}).get(kind)
    return exemplar if exemplar and exemplar.get("tiles") else None


def _rows(exemplar: Mapping[str, Any], cell: Cell) -> list[list[Part]]:
    """A row per tile. A hop's transit is one row, where the last of it was accounted: its floor, and the excess."""
    floors = {str(c["hop"]): float(c["p50_ms"]) for c in cell.get("calibration") or []}
    transit: dict[str, float] = {}
    last: dict[str, int] = {}
    for index, tile in enumerate(exemplar["tiles"]):
        if tile["stage"] == _TRANSIT:
            transit[str(tile["where"])] = transit.get(str(tile["where"]), 0.0) + float(tile["ms"])
            last[str(tile["where"])] = index
    rows = []
    for index, tile in enumerate(exemplar["tiles"]):
        stage, where = str(tile["stage"]), str(tile["where"])
        if stage != _TRANSIT:
            group = _GROUP_OF_STAGE.get(stage, "exceptional")
            rows.append([Part(stage, group, where, float(tile["ms"]), tile.get("cpu_ms"))])
        elif index == last[where]:
            floor = floors.get(where)
            parts = [] if floor is None else [Part("network", "network", where, floor)]
            rows.append([*parts, Part("excess", "excess", where, transit[where] - (floor or 0.0))])
    return rows


def _every_stage(cells: Sequence[Cell]) -> str:
    """All stages in the order of the walk, per target mean and CPU time."""
    order: list[tuple[str, str]] = []
    for cell in cells:
        position = 0
        for stage in cell.get("stages", []):
            key = (str(stage["stage"]), str(stage["where"]))
            if key in order:
                position = order.index(key) + 1
            else:  # a stage that other targets do not have stands after the one that comes before it here
                order.insert(position, key)
                position += 1
    if not order:
        return ""
    group_of = {(str(s["stage"]), str(s["where"])): _row_of(s) for c in cells for s in c.get("stages", [])}
    columns = [{(str(s["stage"]), str(s["where"])): s for s in cell.get("stages", [])} for cell in cells]
    rows = []
    for key in order:
        values = "".join(
            _td(number(c[key]["mean_ms"], 3)) + _td(number(c[key].get("cpu_ms"), 3), "num share")
            if key in c
            else _td("") + _td("", "num share")
            for c in columns
        )
        group = group_of[key]
        name = f'{_chip(group)}{escape(key[0])} <span class="where">@ {escape(key[1])}</span>'
        rows.append(f'<tr data-group="{escape(group)}"><th scope="row">{name}</th>{values}</tr>')
    head = "".join(f'<th scope="col" colspan="2" class="num">{escape(cell["target"])}</th>' for cell in cells)
    units = '<th class="num unit">ms</th><th class="num unit">CPU ms</th>' * len(cells)
    table = _table("stages", "", f'<tr><th scope="col">stage @ where</th>{head}</tr><tr><th></th>{units}</tr>', rows)
    return f"<details><summary>Every stage: mean wall and CPU time</summary>{table}</details>"


def _contention(cells: Sequence[Cell]) -> str:
    rows = []
    for cell in cells:
        account = cell.get("contention") or {}
        processes = account.get("processes") or []
        if not _measured(cell):
            continue
        pressure = account.get("cpu_pressure_share")
        sums = [sum(float(p[k]) for p in processes) for k in ("cpu_ms_per_request", "run_delay_ms_per_request")]
        rows.append(
            f'<tr class="head"><th scope="row">{escape(cell["target"])}</th>'
            + "".join(_td(number(value) if processes else UNKNOWN) for value in sums)
            + _td(number(cell.get("stalled_ms")))
            + _td(UNKNOWN if pressure is None else _percent(pressure, 1))
            + "</tr>"
        )
        rows.extend(
            f'<tr class="sub"><th scope="row">{escape(process["name"])}</th>'
            + _td(number(process["cpu_ms_per_request"]))
            + _td(number(process["run_delay_ms_per_request"]))
            + "<td></td><td></td></tr>"
            for process in processes
        )
    if not rows:
        return ""
    names = ("CPU", "run delay", "stalled", "CPU pressure")
    head = "".join(f'<th scope="col" class="num">{name}</th>' for name in names)
    return (
        "<div><h3>Contention account</h3>"
        + _table("contention", "ms per request", f'<tr><th scope="col">process</th>{head}</tr>', rows)
        + '<p class="hint">Run delay: threads could have run but had no CPU. Stalled: wall minus CPU time in stages'
        " that compute. CPU pressure: share of the time in which some task of the machine waited for a CPU.</p></div>"
    )


def _calibration(cells: Sequence[Cell]) -> str:
    rows = []
    for cell in cells:
        floors, excess, warm = cell.get("calibration") or [], cell.get("excess"), cell.get("warmup")
        if not floors and not excess:
            continue
        state = ""
        if isinstance(warm, Mapping):
            took = f"{number(warm['seconds'], 1)} s and {warm['probes']} probes"
            state = f"warm after {took}" if warm["stable"] else f"not yet warm after {took}"
        rows.append(
            f'<tr class="head"><th scope="row">{escape(cell["target"])}</th>'
            f'<td class="num where" colspan="3">{escape(state)}</td></tr>'
        )
        rows.extend(
            f'<tr class="sub"><th scope="row">{escape(floor["hop"])}</th>'
            + _td(number(floor["p50_ms"], 3))
            + _td(
                "a minimum over a broker"
                if floor["low_ms"] is None
                else f"{number(floor['low_ms'], 3)} to {number(floor['high_ms'], 3)}"
            )
            + _td(str(floor["n"]))
            + "</tr>"
            for floor in floors
        )
        if excess:
            share = f"{_percent(excess['p50_share'], 1)} of median latency"
            rows.append(
                f'<tr class="sub"><th scope="row">excess, median</th>{_td(number(excess["p50_ms"], 3))}'
                f'<td class="num" colspan="2">{escape(share)}</td></tr>'
            )
    if not rows:
        return ""
    head = (
        '<tr><th scope="col">hop</th><th scope="col" class="num">floor</th>'
        '<th scope="col" class="num">95 % interval</th><th scope="col" class="num">probes</th></tr>'
    )
    return (
        "<div><h3>Calibration</h3>"
        + _table("calibration", "Network floor per hop, there and back, ms", head, rows)
        + '<p class="hint">Median of probes with the same bytes over the same idle link, nothing computed.</p></div>'
    )


def _answers(answers: Sequence[Mapping[str, Any]]) -> str:
    said: dict[str, dict[str, list[str]]] = {}
    for answer in answers:
        words = f"{answer['label']} ({number(answer.get('score'))})"
        said.setdefault(str(answer["sample"]), {}).setdefault(words, []).append(str(answer.get("target", "")))
    if not said:
        return ""
    rows = []
    for sample, by_words in said.items():
        for words, targets in by_words.items():
            who = "all targets alike" if len(by_words) == 1 else ", ".join(targets)
            rows.append(f'<tr><th scope="row">{escape(sample)}</th>{_td(words, "")}{_td(who, "where")}</tr>')
    head = '<tr><th scope="col">photograph</th><th scope="col">answer (score)</th><th scope="col">says</th></tr>'
    return f"<section><h2>What the photographs show</h2>{_table('answers', '', head, rows)}</section>"


def _definitions() -> str:
    groups = "".join(
        f'<div data-group="{row}"><dt>{_chip(row)}{row}</dt><dd>{escape(_MEANING[row])}.</dd></div>' for row in ROWS
    )
    labels = "".join(f"<div><dt>{_badge(k)}</dt><dd>{escape(v)}.</dd></div>" for k, v in _LABELS.items())
    verdicts = "".join(f"<div><dt>{_badge(k)}</dt><dd>{escape(v[1])}.</dd></div>" for k, v in _VERDICTS.items())
    return (
        "<section><h2>What the words mean</h2>"
        f'<p class="hint">Every request\'s parts add up to its total exactly, and so do means; percentiles do not.'
        f" Rounded columns are rounded so that they still add up. Data processing and movement: {', '.join(_DATA)}.</p>"
        f'<dl class="words">{groups}{labels}{verdicts}</dl></section>'
    )


def _environment(run: Mapping[str, Any]) -> str:
    environment = dict(run.get("environment", {}))
    versions = environment.pop("versions", None) or {}
    facts = [("run", run.get("name")), ("started", run.get("started")), ("seed", run.get("seed"))]
    facts.append(("duration", f"{number(run.get('duration_s'), 1)} s"))
    facts.append(("generator", generator(run)))
    facts.append(("spans of services", service_spans.words(run.get("service_spans", ()))))
    facts += environment.items()
    facts += versions.items()
    rows = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(_plain(value))}</dd></div>" for key, value in facts if _plain(value)
    )
    plan = json.dumps(_clean(run.get("plan", {})), indent=2, ensure_ascii=False, default=str)
    return (
        f'<section><h2>Environment</h2><dl class="facts-list">{rows}</dl>'
        f"<details><summary>The plan</summary><pre>{escape(plan)}</pre></details>"
        f'<p class="hint">{escape(run.get("schema", ""))}</p></section>'
    )


def _plain(value: object) -> str:
    """A fact as text; what is not known is left out by being empty."""
    clean = _clean(value)
    if clean is None:
        return ""
    return clean if isinstance(clean, str) else json.dumps(clean, ensure_ascii=False, default=str)


def _clean(value: object) -> object:
    """JSON has no NaN and no infinity, and a page should not say either."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value
