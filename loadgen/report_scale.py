"""A grid of replicas as one HTML page: throughput and p99 per point, and the mean request of each. Self-contained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loadgen import atomic
from loadgen.report_plots import STYLE, UNKNOWN, Bar, Part, escape, number, stacked_bars
from loadgen.scale import Point, cell_at, cells_of, p99_ms

Cell = Mapping[str, Any]

_STYLE = """
table.grid td{min-width:96px;border:1px solid var(--rule)} table.grid td small{display:block;color:var(--soft)}
table.grid td .fill{display:block;height:6px;background:var(--good);opacity:.55;margin-top:4px}
"""


def write(grid: Mapping[str, Any], path: Path) -> None:
    """Write the page, atomically. Makes the folder."""
    atomic.write(path, render(grid))


def render(grid: Mapping[str, Any]) -> str:
    """The page for a grid of schema `beyond-inference/scale/1`."""
    points = [Point(p["preprocess"], p["inference"]) for p in grid["points"]]
    title = f"{grid['name']}: {len(points)} points of a grid, {grid['transport']}"
    facts = f"{grid['site']} · {grid['started']} · {number(grid['duration_s'], 0)} s"
    sections = "".join(_section(grid, size, load) for size, load in cells_of(grid))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="eyebrow">beyond-inference · scaling</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(_lead(grid))}</p><p class="facts">{escape(facts)}</p></header>\n'
        f"{sections}\n{_served(grid)}\n"
        '<p class="facts">All points side by side, with intervals, waterfalls and reasons: report.html.</p>\n'
        "</main>\n</body>\n</html>\n"
    )


def _lead(grid: Mapping[str, Any]) -> str:
    """The best point of each size and load, beside the smallest one."""
    said = []
    for size, load in cells_of(grid):
        measured = [
            (point, cell)
            for p in grid["points"]
            if (cell := cell_at(grid, point := Point(p["preprocess"], p["inference"]), size, load)) is not None
            and cell.get("throughput_rps")
            and cell.get("verdict") != "INVALID"
        ]
        if not measured:
            said.append(f"{size}, {load}: no point has numbers that can be used.")
            continue
        best, cell = max(measured, key=lambda found: float(found[1]["throughput_rps"]))
        first, base = measured[0]
        ratio = float(cell["throughput_rps"]) / float(base["throughput_rps"])
        said.append(
            f"{size}, {load}: {number(cell['throughput_rps'], 1)} requests/s at {best.name}, "
            f"{number(ratio, 2)} times {first.name}."
        )
    return " ".join(said)


def _section(grid: Mapping[str, Any], size: str, load: str) -> str:
    cells = [
        (point, cell)
        for p in grid["points"]
        if (cell := cell_at(grid, point := Point(p["preprocess"], p["inference"]), size, load)) is not None
    ]
    bars = [_bar(point, cell) for point, cell in cells]
    label = f"the mean request of {size}, {load}, by where its time went"
    return (
        f"<section><h2>{escape(size)}, {escape(load)}</h2>"
        f"{_grid(grid, size, load, 'requests/s', lambda cell: cell.get('throughput_rps'), _rate_ends)}"
        f"{_grid(grid, size, load, 'p99 ms', p99_ms, _p99_ends)}"
        f'<figure class="wide">{stacked_bars(bars, label)}<figcaption>Preprocess x inference replicas; '
        "a bar is the mean request.</figcaption></figure></section>"
    )


def _grid(
    grid: Mapping[str, Any],
    size: str,
    load: str,
    what: str,
    value: Callable[[Cell], float | None],
    ends: Callable[[Cell], tuple[float | None, float | None]],
) -> str:
    columns = sorted({p["inference"] for p in grid["points"]})
    lines = sorted({p["preprocess"] for p in grid["points"]})
    found = {(n, m): cell_at(grid, Point(n, m), size, load) for n in lines for m in columns}
    largest = max((value(cell) or 0.0 for cell in found.values() if cell is not None), default=0.0)
    head = "".join(f'<th scope="col" class="num">{m} inference</th>' for m in columns)
    body = "".join(
        f'<tr><th scope="row">{n} preprocess</th>'
        + "".join(_cell(found[n, m], value, ends, largest) for m in columns)
        + "</tr>"
        for n in lines
    )
    return (
        f'<div class="scroll"><table class="grid"><caption>{escape(what)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(
    cell: Cell | None,
    value: Callable[[Cell], float | None],
    ends: Callable[[Cell], tuple[float | None, float | None]],
    largest: float,
) -> str:
    known = None if cell is None else value(cell)
    if cell is None or known is None:
        reasons = "" if cell is None else "; ".join(cell.get("reasons", ()))
        return f'<td class="num" title="{escape(reasons or "not measured")}">{UNKNOWN}</td>'
    low, high = ends(cell)
    verdict = cell.get("verdict", cell["label"])
    title = "; ".join((f"95 %: {number(low, 1)} to {number(high, 1)}", *cell.get("reasons", ())))
    width = 100 * known / largest if largest else 0
    return (
        f'<td class="num" data-value="{known!r}" title="{escape(title)}">{number(known, 1)}'
        f'<small>{escape(verdict)}</small><span class="fill" style="width:{width:.1f}%"></span></td>'
    )


def _rate_ends(cell: Cell) -> tuple[float | None, float | None]:
    ends = (cell.get("intervals") or {}).get("throughput") or {}
    return ends.get("low_rps"), ends.get("high_rps")


def _p99_ends(cell: Cell) -> tuple[float | None, float | None]:
    ends = (cell.get("intervals") or {}).get("p99") or {}
    return ends.get("low_ms"), ends.get("high_ms")


def _bar(point: Point, cell: Cell) -> Bar:
    parts = [
        Part(group["group"], group["group"], "", float(group["mean_ms"]))
        for group in cell.get("groups", ())
        if group["mean_ms"]
    ]
    total = float((cell.get("latency_ms") or {}).get("mean") or 0.0)
    return Bar(point.name, cell.get("verdict", cell["label"]), parts, total, "")


def _served(grid: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{p['preprocess']}x{p['inference']}</td><td>{escape(row['name'])}</td><td>{escape(row['service'])}</td>"
        f'<td class="num">{number(row["requests"], 0)}</td>'
        f'<td class="num">{UNKNOWN if row["share"] is None else number(100 * row["share"], 1) + " %"}</td></tr>'
        for p in grid["points"]
        for row in p["served"]
    )
    return (
        "<section><h2>Who did the work</h2>"
        '<div class="scroll"><table><thead><tr><th scope="col">point</th><th scope="col">process or pod</th>'
        '<th scope="col">service</th><th scope="col" class="num">requests</th>'
        f'<th scope="col" class="num">of its service</th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )
