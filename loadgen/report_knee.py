"""A knee as one HTML page: every trial with its interval, the objective, and what held. Self-contained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadgen import atomic
from loadgen.knee import beyond
from loadgen.report_plots import STYLE, escape, log_ticks, number

_WIDTH, _HEIGHT = 820.0, 360.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 18.0, 16.0, 46.0
_WORDS = {True: "holds", False: "fails", None: "undecided"}
_MARKS = {True: "held", False: "failed", None: "open"}
# Beside the page's own; held and failed are told apart by shape as well.
_STYLE = """
.limit{stroke:var(--bad);stroke-width:1.4;stroke-dasharray:6 4}
.whisker{stroke:var(--soft);stroke-width:1.4}
.held{fill:var(--good)} .failed{fill:none;stroke:var(--bad);stroke-width:2}
.open{fill:none;stroke:var(--warn);stroke-width:2}
.bracket{fill:var(--good);opacity:.12}
table.trials{margin-top:18px}
"""


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write the page, atomically. Makes the folder."""
    atomic.write(path, render(result))


def render(result: Mapping[str, Any]) -> str:
    """The page for a result of schema `beyond-inference/knee/1`."""
    objective = result["objective"]
    held, failed = result["held_rps"], result["failed_rps"]
    title = f"{objective['text']}: " + (
        "no rate was shown to meet it" if held is None else f"up to {number(held, 1)} requests/s"
    )
    tried = [t for t in result["trials"] if failed is not None and t["rate_rps"] == failed]
    # Where no rate held, the reason says so of the lowest.
    above = "" if held is None or not tried else _sentence(beyond(failed, tried[-1]["held"], tried[-1]["reason"]))
    confirmed = "" if held is None else "Confirmed by a second trial." if result["confirmed"] else "Not confirmed."
    once = max((t["rate_rps"] for t in result["trials"] if held is None and t["held"]), default=None)
    but = "" if once is None else f"{number(once, 1)}/s held once, and not when it was tried again."
    said = (above, but, _sentence(result["because"]), confirmed)
    facts = (
        f"{result['url']} · {result['task']} · {result['label']} · {result['arrivals']} arrivals · "
        f"{result['limits']['confidence']:.0%} confidence · {len(result['trials'])} trials, "
        f"{number(result['seconds'], 0)} s · the generator alone: {number(result['generator']['ceiling_rps'], 0)}/s"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="eyebrow">beyond-inference · the knee</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(" ".join(part for part in said if part))}</p>'
        f'<p class="facts">{escape(facts)}</p></header>\n'
        f'<figure class="wide">{plot(result)}<figcaption>A mark is a trial: its percentile and the interval of that; '
        "filled: it holds, square: it fails, ring: undecided. Dashed: the objective. Shaded: rates up to the highest "
        "that held.</figcaption></figure>\n"
        f"{_table(result['trials'])}\n</main>\n</body>\n</html>\n"
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _table(trials: Sequence[Mapping[str, Any]]) -> str:
    names = ("requests/s", "", "ms", "interval", "answered/s", "requests", "effective n", "cut", "failed", "")
    head = "".join(f'<th scope="col" class="num">{name}</th>' for name in names)
    rows = []
    for trial in trials:
        ends = [number(trial[end], 1) for end in ("low_ms", "high_ms")]
        values = [
            number(trial["rate_rps"], 1),
            _WORDS[trial["held"]],
            number(trial["value_ms"], 1),
            f"{ends[0]} to {ends[1]}",
            number(trial["achieved_rps"], 1),
            str(trial["requests"]),
            number(trial["effective_n"], 0),
            str(trial["warmup_cut"]),
            str(trial["errors"]),
            trial["reason"],
        ]
        rows.append("<tr>" + "".join(f'<td class="num">{escape(value)}</td>' for value in values) + "</tr>")
    return (
        f'<div class="scroll"><table class="trials"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def plot(result: Mapping[str, Any]) -> str:
    """Percentile over rate, both logarithmic. What has no number (nothing answered in time) stands at the top."""
    trials, limit = result["trials"], float(result["objective"]["limit_ms"])
    rates = [float(trial["rate_rps"]) for trial in trials] or [1.0]
    heights = [float(trial[k]) for trial in trials for k in ("value_ms", "low_ms", "high_ms") if trial[k]] + [limit]
    x0, x1 = math.log10(min(rates)) - 0.08, math.log10(max(rates)) + 0.08
    y0, y1 = math.log10(max(min(heights), 1e-3)) - 0.1, math.log10(max(heights)) + 0.15

    def across(rate: float) -> float:
        return _LEFT + (math.log10(rate) - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)

    def up(ms: float | None) -> float:
        if ms is None:
            return _TOP
        return _HEIGHT - _BOTTOM - (math.log10(max(ms, 1e-3)) - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    out = []
    if result["held_rps"]:
        width = across(result["held_rps"]) - _LEFT
        out.append(
            f'<rect class="bracket" x="{_LEFT}" y="{_TOP}" width="{width:.2f}" height="{_HEIGHT - _TOP - _BOTTOM}"/>'
        )
    for tick in log_ticks(10**x0, 10**x1):
        x = across(tick)
        out.append(_line(x, _TOP, x, _HEIGHT - _BOTTOM, "grid"))
        out.append(_text(x, _HEIGHT - _BOTTOM + 15, f"{tick:.10g}", "middle"))
    for tick in log_ticks(10**y0, 10**y1):
        out.append(_line(_LEFT, up(tick), _WIDTH - _RIGHT, up(tick), "grid"))
        out.append(_text(_LEFT - 6, up(tick) + 4, f"{tick:.10g}", "end"))
    out.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, "offered, requests per second", "middle"))
    out.append(_text(_LEFT - 6, _TOP - 4, "ms", "end"))
    out.append(_line(_LEFT, up(limit), _WIDTH - _RIGHT, up(limit), "limit"))
    out += [_mark(trial, across(float(trial["rate_rps"])), up) for trial in trials]
    label = f"{result['objective']['text']}: latency over offered rate, a mark per trial"
    return (
        f'<svg class="knee" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(label)}">'
        + "".join(out)
        + "</svg>"
    )


def _mark(trial: Mapping[str, Any], x: float, up: Any) -> str:
    y, kind = up(trial["value_ms"]), _MARKS[trial["held"]]
    value = "nothing in time" if trial["value_ms"] is None else f"{number(trial['value_ms'], 1)} ms"
    words = f"{number(trial['rate_rps'], 1)}/s: {value}, {_WORDS[trial['held']]}; {trial['reason']}"
    shape = (
        f'<rect class="{kind}" x="{x - 5:.2f}" y="{y - 5:.2f}" width="10" height="10"/>'
        if trial["held"] is False
        else f'<circle class="{kind}" cx="{x:.2f}" cy="{y:.2f}" r="5"/>'
    )
    # An end that is not known goes as far as the plot does.
    low = _HEIGHT - _BOTTOM if trial["low_ms"] is None and trial["value_ms"] is not None else up(trial["low_ms"])
    whisker = _line(x, low, x, up(trial["high_ms"]), "whisker")
    data = f'data-rate="{trial["rate_rps"]!r}" data-ms="{trial["value_ms"]!r}"'
    return f'<g class="trial" {data}><title>{escape(words)}</title>{whisker}{shape}</g>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" class="tick" text-anchor="{anchor}">{escape(text)}</text>'
