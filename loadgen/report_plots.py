"""The report's drawings as inline SVG (stacked bars, distributions, waterfalls) and their look, as CSS and a script.

Pure functions from numbers to text. Lengths are in user units (about a CSS pixel at the page's full width), times in
milliseconds. What is drawn for a time carries it as `data-ms`, so that a drawing can be checked against its numbers.
Colours are CSS classes: `g-<group>` (fill), and `t-<colour of the target>` (stroke). The page is read as XML too, so
neither the CSS nor the script contains an ampersand or a less-than sign.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from loadgen.waterfall import names_of_rows

UNKNOWN = "–"  # what stands for a number that is not there

# What neither XML nor UTF-8 can carry: a name from outside must not break the page.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")

_WIDTH = 1000.0
_BAR_LEFT = 150.0
_BAR_RIGHT = 118.0
_BAR_HEIGHT = 40.0
_BAR_PITCH = 60.0

_FALL_WIDTH = 570.0
_FALL_LEFT = 272.0
_FALL_RIGHT = 58.0
_FALL_PITCH = 17.0
_FALL_NAME = 46  # characters of a row's name that fit

_CURVE_WIDTH = 620.0
_CURVE_HEIGHT = 260.0
_LOG_FROM = 8.0  # the ratio of the slowest to the fastest from which a linear axis hides the fast ones

_NOTHING = 1e-9  # milliseconds, a picosecond: below, a scale would be no number any more

# Width of a character at the sizes used below, generously: a label that might not fit is left out.
_CHARACTER = 6.3


class Part(NamedTuple):
    """A stretch of time: `group` is a row of the report, `cpu_ms` None where unknown. `ms` may be negative."""

    stage: str
    group: str
    where: str
    ms: float
    cpu_ms: float | None = None


class Bar(NamedTuple):
    """A target's mean request. `parts` is empty where nothing was measured; `note` stands below the name, `delta` below
    the total.
    """

    name: str
    note: str
    parts: Sequence[Part]
    total_ms: float
    delta: str


class Curve(NamedTuple):
    """A target's latency: `quantiles_ms` are its quantiles in equal steps from 0 to 100 %; `colour` is the index
    of its colour and dashes.
    """

    name: str
    colour: int
    quantiles_ms: Sequence[float]


def escape(text: object) -> str:
    """Text for HTML and SVG, also within attributes."""
    return html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(text)), quote=True)


def number(value: float | None, digits: int = 2) -> str:
    """A number for the eye, with a true minus and without a negative zero; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = f"{value:.{digits}f}"
    if text.startswith("-"):
        return text[1:] if float(text) == 0 else "−" + text[1:]
    return text


def short_ms(value: float) -> str:
    """A time in ms with about three significant digits, without its unit."""
    size = abs(value)
    return number(value, 2 if size < 9.995 else 1 if size < 99.95 else 0)


def _n(value: float) -> str:
    """A coordinate; four digits, so that sums of lengths hold to a thousandth of a pixel."""
    return f"{value:.4f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"


def _svg(width: float, height: float, label: str, kind: str, parts: Iterable[str]) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{kind}"/>'


def ticks(high: float, wanted: int = 6) -> list[float]:
    """Round numbers from 0 to at most `high`, about `wanted` of them."""
    if not (math.isfinite(high) and high > _NOTHING):
        return [0.0]
    power = 10.0 ** math.floor(math.log10(high / wanted))
    step = next((m * power for m in (1, 2, 5) if high / (m * power) <= wanted), 10 * power)
    return [i * step for i in range(math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 x powers of ten within [low, high]."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]


def _tick(value: float) -> str:
    return f"{value:.10g}" if value < 1e6 else f"{value:.3g}"


def describe(part: Part, total_ms: float) -> str:
    """A part in words, for a tooltip."""
    share = f", {number(part.ms / total_ms * 100, 1)} %" if total_ms > 0 else ""
    cpu = "" if part.cpu_ms is None else f", CPU {number(part.cpu_ms, 3)} ms"
    return f"{part.stage} @ {part.where} ({part.group}): {number(part.ms, 3)} ms{share}{cpu}"


def stacked_bars(bars: Sequence[Bar], label: str, baseline_ms: float | None = None) -> str:
    """A bar per target along the walk of a request, all on one scale; a dashed line at `baseline_ms`.

    A negative part (transit that was faster than its calibrated floor) takes the next part back to the left: the bar
    ends at its total, and what was taken back is a dashed outline below the bar. Where it comes last, what was drawn
    before reaches beyond the total; what is written beside a bar stands beside all that is drawn of it.
    """
    longest = max([bar.total_ms for bar in bars] + [_reach(bar.parts)[1] for bar in bars] + [0.0])
    scale = (_WIDTH - _BAR_LEFT - _BAR_RIGHT) / longest if longest > _NOTHING else 0.0
    bottom = len(bars) * _BAR_PITCH + 6
    out = [_axis(ticks(longest), scale, _BAR_LEFT, 0, bottom)]
    over: list[str] = []  # what stands beside the bars is drawn over the dashed line
    for index, bar in enumerate(bars):
        top = index * _BAR_PITCH + 8
        out.append(f'<g class="bar" data-target="{escape(bar.name)}">')
        out.append(_text(_BAR_LEFT - 12, top + 18, _clip(bar.name, 15), "name", "end"))
        out.append(_text(_BAR_LEFT - 12, top + 33, bar.note, "note", "end"))
        if not bar.parts:
            out.append(_text(_BAR_LEFT + 8, top + 25, "no bar: there are no numbers", "note"))
        cursor = 0.0
        for part in bar.parts:
            out.append(_segment(part, bar.total_ms, _BAR_LEFT + cursor * scale, top, scale))
            cursor += part.ms
        out.append("</g>")
        if bar.parts:
            end = _BAR_LEFT + _reach(bar.parts)[1] * scale + 8
            over.append(_text(end, top + 18, f"{short_ms(bar.total_ms)} ms", "name over"))
            over.append(_text(end, top + 33, bar.delta, "note over"))
    if baseline_ms is not None and len(bars) > 1:
        x = _BAR_LEFT + baseline_ms * scale
        out.append(_line(x, 2, x, bottom, "baseline"))
    return _svg(_WIDTH, bottom + 20, label, "bars", out + over)


def _segment(part: Part, total_ms: float, x: float, top: float, scale: float) -> str:
    width = abs(part.ms) * scale
    data = f'data-ms="{part.ms!r}" data-stage="{escape(part.stage)}" data-group="{escape(part.group)}"'
    title = f"<title>{escape(describe(part, total_ms))}</title>"
    if part.ms < 0:
        # Below the bar: the parts that follow are drawn over what it takes back.
        return (
            f'<rect class="negative s-{escape(part.group)}" {data} x="{_n(x - width)}" y="{_n(top + _BAR_HEIGHT + 1)}"'
            f' width="{_n(width)}" height="5">{title}</rect>'
        )
    # A gap is drawn as an outline in the page's colour; on a sliver it would hide the sliver.
    edge = "edge" if width >= 4 else "sliver"
    box = f'x="{_n(x)}" y="{_n(top)}" width="{_n(width)}" height="{_n(_BAR_HEIGHT)}"'
    out = [f'<rect class="g-{escape(part.group)} {edge}" {data} {box}>{title}</rect>']
    if part.group == "excess" and width >= 4:
        out.append(f'<rect class="hatch" {box}/>')
    value = short_ms(part.ms)
    ink = f"ink i-{escape(part.group)}"
    if width >= len(part.stage) * _CHARACTER + 6 and width >= len(value) * _CHARACTER + 6:
        out.append(_text(x + width / 2, top + 17, part.stage, ink, "middle"))
        out.append(_text(x + width / 2, top + 31, value, ink, "middle"))
    elif width >= len(value) * _CHARACTER + 4:
        out.append(_text(x + width / 2, top + 24, value, ink, "middle"))
    return "".join(out)


def _axis(at: Sequence[float], scale: float, left: float, top: float, bottom: float) -> str:
    out = ['<g class="axis">']
    for tick in at:
        x = left + tick * scale
        out.append(_line(x, top, x, bottom, "grid"))
        out.append(_text(x, bottom + 14, f"{_tick(tick)}{' ms' if tick == at[-1] else ''}", "tick", "middle"))
    return "".join(out) + "</g>"


def _reach(parts: Sequence[Part]) -> tuple[float, float]:
    """The leftmost and the rightmost point that drawing `parts` one after the other comes to, in ms."""
    low = high = cursor = 0.0
    for part in parts:
        cursor += part.ms
        low, high = min(low, cursor), max(high, cursor)
    return low, high


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def waterfall(rows: Sequence[Sequence[Part]], total_ms: float, longest_ms: float, label: str) -> str:
    """One request, a row per tile in time order. A row has one part, or several (transit: the floor, and the rest).

    `longest_ms` is what the width stands for, so that several waterfalls can share a scale. The thin line in a bar is
    the CPU time: bar without line is time in which the thread did not compute.
    """
    low, high = _reach([part for row in rows for part in row])
    span = max(longest_ms, high) - low
    scale = (_FALL_WIDTH - _FALL_LEFT - _FALL_RIGHT) / span if span > _NOTHING else 0.0
    left = _FALL_LEFT - low * scale
    bottom = len(rows) * _FALL_PITCH + 6
    out = [_axis(ticks(span + low, 5), scale, left, 0, bottom)]
    cursor = 0.0
    # The floor and the rest are one thing, and it has that thing's name.
    names = names_of_rows([("transit" if row[-1].group == "excess" else row[0].stage, row[0].where) for row in rows])
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = index * _FALL_PITCH + 4
        ms = sum(part.ms for part in row)
        out.append(f'<g class="tile" data-ms="{ms!r}"><title>{escape("; ".join(describe(p, total_ms) for p in row))}')
        out.append("</title>")
        out.append(_text(_FALL_LEFT - 8, top + 10, _clip(name, _FALL_NAME), "tick row", "end"))
        for part in row:
            start, width = left + min(cursor, cursor + part.ms) * scale, abs(part.ms) * scale
            kind = f"negative s-{escape(part.group)}" if part.ms < 0 else f"g-{escape(part.group)} sliver"
            # A tile too short to be seen is still a tile: it gets a hair's breadth.
            box = f'x="{_n(start)}" y="{_n(top)}" width="{_n(max(width, 0.8))}" height="12"'
            out.append(f'<rect class="{kind}" data-group="{escape(part.group)}" {box}/>')
            if part.group == "excess" and part.ms > 0 and width >= 4:
                out.append(f'<rect class="hatch" {box}/>')
            if part.cpu_ms is not None and part.cpu_ms > 0 and part.ms > 0 and width >= 2:
                cpu = min(part.cpu_ms, part.ms) * scale
                out.append(
                    f'<rect class="cpu f-{escape(part.group)}" x="{_n(start)}" y="{_n(top + 5)}" width="{_n(cpu)}"'
                    ' height="2"/>'
                )
            cursor += part.ms
        out.append(_text(_FALL_WIDTH - 4, top + 10, number(ms, 3), "tick value", "end"))
        out.append("</g>")
    return _svg(_FALL_WIDTH, bottom + 20, label, "fall", out)


def distribution(curves: Sequence[Curve], label: str) -> str:
    """The share of requests (up) that were answered within a time (across); one line per target."""
    finite = [v for curve in curves for v in curve.quantiles_ms if math.isfinite(v)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    logarithmic = low > 0 and high / low > _LOG_FROM
    left, right, top, bottom = 44.0, 14.0, 10.0, _CURVE_HEIGHT - 38
    if logarithmic:
        start, end = math.log10(low) - 0.03, math.log10(high) + 0.03
        at = log_ticks(low, high)
    else:
        margin = (high - low) * 0.03 or max(abs(high) * 0.05, 0.01)
        start, end = max(0.0, low - margin), high + margin
        # From zero where zero is near: then lengths can be compared.
        start = 0.0 if start < high * 0.3 else start
        at = [tick for tick in ticks(end, 6 if start == 0 else max(6, round(6 * end / (end - start)))) if tick >= start]

    def across(value: float) -> float:
        position = math.log10(max(value, low)) if logarithmic else value
        return left + (position - start) / (end - start) * (_CURVE_WIDTH - left - right)

    def up(share: float) -> float:
        return bottom - share * (bottom - top)

    out = ['<g class="axis">']
    for share in (0, 0.25, 0.5, 0.75, 0.9, 1.0):
        out.append(_line(left, up(share), _CURVE_WIDTH - right, up(share), "grid"))
        out.append(_text(left - 6, up(share) + 4, f"{share * 100:.0f} %", "tick", "end"))
    shown = -math.inf
    for tick in at:
        x = across(tick)
        out.append(_line(x, top, x, bottom, "grid"))
        if x - shown >= 34:  # on a short axis labels would run into each other
            out.append(_text(x, bottom + 15, _tick(tick), "tick", "middle"))
            shown = x
    scale = "latency, ms (logarithmic)" if logarithmic else "latency, ms"
    out.append(_text((left + _CURVE_WIDTH - right) / 2, bottom + 32, scale, "tick", "middle"))
    out.append("</g>")
    for curve in curves:
        values = [v for v in curve.quantiles_ms if math.isfinite(v)]
        last = max(len(values) - 1, 1)
        points = " ".join(f"{_n(across(v))},{_n(up(i / last))}" for i, v in enumerate(values))
        out.append(
            f'<polyline class="curve t-{curve.colour}" data-target="{escape(curve.name)}" points="{points}">'
            f"<title>{escape(curve.name)}</title></polyline>"
        )
    return _svg(_CURVE_WIDTH, _CURVE_HEIGHT, label, "curves", out)


def swatch(index: int) -> str:
    """A piece of a target's line, for a legend."""
    return (
        '<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">'
        f'<line x1="0" y1="4" x2="28" y2="4" class="curve t-{index}"/></svg>'
    )


# Okabe and Ito's palette (told apart with every common colour vision deficiency) and grey: (fill, ink on it).
# One colour per group, the same in every report and in light and dark; only black turns white in the dark.
GROUP_COLOURS = {
    "client": ("#999999", "#101418"),
    "queueing": ("#e69f00", "#101418"),
    "preprocessing": ("#0072b2", "#ffffff"),
    "serialization": ("#56b4e9", "#101418"),
    "network": ("#009e73", "#ffffff"),
    "excess": ("#d55e00", "#ffffff"),
    "transfer": ("#f0e442", "#101418"),
    "inference": ("#cc79a7", "#101418"),
    "exceptional": ("var(--exceptional)", "var(--page)"),
}

_GROUPS = "\n".join(
    f".g-{name}{{fill:{fill}}} .s-{name}{{stroke:{fill}}} .i-{name},.f-{name}{{fill:{ink}}}"
    f" .c-{name}{{background:{fill}}}"
    for name, (fill, ink) in GROUP_COLOURS.items()
)

# Targets are told apart by dashes as well: on paper there may be no colour.
_TARGETS = "\n".join(
    f".t-{index}{{stroke:var(--t{index});stroke-dasharray:{dashes}}}"
    for index, dashes in enumerate(("none", "8 3", "2.5 2.5", "9 3 2.5 3", "14 4", "5 2 1 2"))
)

STYLE = (
    """
:root{--page:#fff;--panel:#f6f7f9;--ink:#1c2128;--soft:#5b6472;--rule:#dfe3e8;--link:#0b5cad;--exceptional:#1a1a1a;
--t0:#3d4450;--t1:#1f6fc4;--t2:#c2500a;--t3:#7a3fc0;--t4:#0a7d5c;--t5:#9a7400;
--good:#14683f;--good-bg:#e3f4ea;--warn:#7a4b00;--warn-bg:#fdf0d5;--bad:#9c1c1c;--bad-bg:#fde5e3;--calm-bg:#eceff3}
@media (prefers-color-scheme:dark){:root{--page:#14171c;--panel:#1b1f26;--ink:#e4e8ee;--soft:#9aa4b2;--rule:#2e3540;
--link:#7fb8f5;--exceptional:#f4f4f4;--t0:#c3cad5;--t1:#6cb2ff;--t2:#ff9d5c;--t3:#c39bff;--t4:#4fd0a5;--t5:#e6c34a;
--good:#7fd8a6;--good-bg:#173527;--warn:#f0c26a;--warn-bg:#3a2c10;--bad:#ff9c94;--bad-bg:#42201e;--calm-bg:#272d37}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 64px}
header{margin-bottom:28px}
.eyebrow{margin:0 0 8px;color:var(--soft);font-size:13px;letter-spacing:.04em}
h1{margin:0 0 12px;font-size:28px;line-height:1.3;font-weight:650;letter-spacing:-.01em;text-wrap:pretty}
h2{margin:0 0 10px;font-size:21px;font-weight:650;letter-spacing:-.005em}
h2 small{margin-left:8px;color:var(--soft);font-size:14px;font-weight:400;letter-spacing:0}
h3{margin:0 0 4px;font-size:15px;font-weight:650}
h4{margin:20px 0 4px;font-size:14px;font-weight:650}
.lead{margin:0 0 10px;font-size:17px;max-width:60em}
.facts,.hint,figcaption{color:var(--soft);font-size:13px}
.facts{margin:0}
.hint{margin:8px 0 0;max-width:72em}
.say{margin:0 0 8px;font-size:16px;max-width:60em}
a{color:var(--link);text-decoration:none} a:hover{text-decoration:underline}
section{margin-top:44px;padding-top:28px;border-top:1px solid var(--rule)}
figure{margin:0;min-width:0}
figcaption b{color:var(--ink)}
.wide{margin:18px 0 8px;overflow-x:auto}
.wide svg{min-width:720px}
svg.bars,svg.fall,svg.curves{display:block;width:100%;height:auto}
svg.curves{max-width:640px}
svg.defs{position:absolute}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;fill:var(--ink);
font-variant-numeric:tabular-nums}
svg text.name{font-size:13.5px;font-weight:600}
svg text.note,svg text.tick{font-size:11px;fill:var(--soft)}
svg text.over{paint-order:stroke;stroke:var(--page);stroke-width:4px;stroke-linejoin:round}
svg text.row{fill:var(--ink)} svg text.value{fill:var(--ink)}
svg text.ink{font-size:11px;pointer-events:none}
.grid{stroke:var(--rule);stroke-width:1}
.baseline{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:4 4}
.edge{stroke:var(--page);stroke-width:1}
.negative{fill:none;stroke-width:1.2;stroke-dasharray:2.5 2}
.hatch{fill:url(#hatch);pointer-events:none}
.hatching{stroke:#fff;stroke-width:1.6;stroke-opacity:.38}
.cpu{opacity:.8}
.curve{fill:none;stroke-width:2.2;stroke-linejoin:round}
.swatch{display:inline-block;width:28px;height:8px;margin-right:8px;vertical-align:middle}
.chip{display:inline-block;width:11px;height:11px;margin-right:7px;border-radius:2px;vertical-align:-1px}
.c-excess{background-image:repeating-linear-gradient(45deg,transparent 0 3px,rgba(255,255,255,.4) 3px 4.5px)!important;
background-color:#d55e00!important}
.legend{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;gap:4px 18px;margin:24px 0 0;padding:9px 0;
list-style:none;background:var(--page);border-bottom:1px solid var(--rule);font-size:13px}
.legend+section{margin-top:0;padding-top:20px;border-top:0}
.legend li{padding:2px 0} .legend li[role=button]{cursor:pointer}
.legend li[aria-pressed=true]{font-weight:650;text-decoration:underline;text-underline-offset:4px}
.verdicts,.why{margin:0;padding:0;list-style:none;font-size:14px}
.verdicts{display:flex;flex-wrap:wrap;gap:4px 26px}
.verdicts span:last-child:not(.badge){color:var(--soft)}
.why{margin:4px 0 18px} .why li{margin:2px 0}
.badge{display:inline-block;padding:0 7px;border-radius:9px;background:var(--calm-bg);color:var(--soft);font-size:11px;
font-weight:600;line-height:18px;letter-spacing:.02em;white-space:nowrap}
.b-valid{background:var(--good-bg);color:var(--good)}
.b-contended,.b-emulated{background:var(--warn-bg);color:var(--warn)}
.b-invalid{background:var(--bad-bg);color:var(--bad)}
.b-not-run{background:none;box-shadow:inset 0 0 0 1px var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}
caption{padding:0 0 4px;color:var(--soft);font-size:13px;text-align:left}
th,td{padding:4px 14px 4px 0;text-align:left;font-weight:400;vertical-align:baseline}
thead th{color:var(--soft);font-size:12.5px;border-bottom:1px solid var(--rule)}
tbody tr:hover{background:var(--panel)}
.num{text-align:right;white-space:nowrap} th.num,td.num{padding-left:14px;padding-right:0}
td.share{padding-left:8px;color:var(--soft)}
th.unit{padding-top:0;font-size:11.5px} th.unit+th.unit{padding-left:8px}
thead tr:has(+tr) th{border-bottom:0;padding-bottom:0}
.glance{margin-top:6px} .glance b{font-weight:650;font-size:15px} .glance td,.glance tbody th{padding-top:6px;
padding-bottom:6px;border-bottom:1px solid var(--rule)}
.glance td.num{padding-left:28px} .glance tbody th{white-space:nowrap} .more{color:var(--soft);font-size:12.5px}
.glance .more,.marks{display:block} .marks{margin-top:1px}
.notes{margin:10px 0 0;padding-left:18px;font-size:13px}
h3.tail{margin-top:26px}
.groups,.stages{min-width:60%} .groups tbody th,.stages tbody th{white-space:nowrap}
.total th,.total td{border-top:1px solid var(--soft);font-weight:650}
tr.fact th,tr.fact td{padding-top:2px;padding-bottom:2px;color:var(--soft);font-size:12.5px}
tr.first th,tr.first td{padding-top:10px}
tr.head th,tr.head td{padding-top:9px;font-weight:600} tr.head td.where{font-weight:400}
tr.sub th{padding-left:14px;color:var(--soft)} tr.sub td{color:var(--soft)}
.where{color:var(--soft);white-space:nowrap}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:28px 40px;margin-top:28px}
.falls{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:12px 24px}
.spread{align-items:center;grid-template-columns:minmax(0,340px) minmax(0,1fr)}
.latency th{white-space:nowrap} .latency th.num,.latency td.num{padding-left:10px}
@media (max-width:900px){.spread{grid-template-columns:minmax(0,1fr)}}
details{margin-top:22px} summary{cursor:pointer;font-weight:600} details>.scroll{margin-top:10px}
code,pre{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{margin:10px 0 0;padding:14px 16px;background:var(--panel);border-radius:8px;white-space:pre-wrap;
overflow-wrap:anywhere}
dl{margin:10px 0 0;font-size:14px} dd{margin:0}
.words div{display:grid;grid-template-columns:132px 1fr;gap:12px;padding:3px 0} .words dd{color:var(--soft);
max-width:64em}
.facts-list{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:6px 28px}
.facts-list dt{color:var(--soft);font-size:12px} .facts-list dd{overflow-wrap:anywhere}
.focus [data-group]{transition:opacity .15s}
.focus rect[data-group]:not(.lit),.focus tr[data-group]:not(.lit){opacity:.18}
@media (max-width:640px){main{padding:24px 14px 48px} h1{font-size:22px} .words div{grid-template-columns:1fr;gap:0}}
@media print{
:root{--page:#fff;--panel:#f6f7f9;--ink:#000;--soft:#444;--rule:#ccc;--link:#000;--exceptional:#1a1a1a;
--t0:#3d4450;--t1:#1f6fc4;--t2:#c2500a;--t3:#7a3fc0;--t4:#0a7d5c;--t5:#9a7400;
--good:#14683f;--good-bg:#e3f4ea;--warn:#7a4b00;--warn-bg:#fdf0d5;--bad:#9c1c1c;--bad-bg:#fde5e3;--calm-bg:#eceff3}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
body{font-size:11px} main{max-width:none;padding:0} h1{font-size:19px} .lead{font-size:13px}
table,dl,.verdicts,.why{font-size:10px} th.num,td.num{padding-left:8px} .glance td.num{padding-left:12px}
.legend{position:static} .wide svg{min-width:0} .scroll,.wide{overflow:visible}
figure,tr,.pair>div{break-inside:avoid} h2,h3,h4,summary{break-after:avoid} .cell{break-before:page}
section{margin-top:20px;padding-top:14px} summary{list-style:none}
.pair,.falls{grid-template-columns:1fr 1fr;gap:12px 18px}
details::details-content{content-visibility:visible;display:block;height:auto}
}
"""
    + _GROUPS
    + "\n"
    + _TARGETS
    + "\n"
)

# A click on a colour in the legend brings out that group all over the page. Without JavaScript it is just a legend.
SCRIPT = """
(function () {
  'use strict';
  var items = Array.prototype.slice.call(document.querySelectorAll('.legend li'));
  var chosen = null;
  function choose(group) {
    chosen = chosen === group ? null : group;
    document.body.classList.toggle('focus', chosen !== null);
    document.querySelectorAll('[data-group]').forEach(function (node) {
      node.classList.toggle('lit', node.getAttribute('data-group') === chosen);
    });
    items.forEach(function (item) {
      item.setAttribute('aria-pressed', String(item.getAttribute('data-group') === chosen));
    });
  }
  items.forEach(function (item) {
    var group = item.getAttribute('data-group');
    item.setAttribute('role', 'button');
    item.setAttribute('tabindex', '0');
    item.addEventListener('click', function () { choose(group); });
    item.addEventListener('keydown', function (event) {
      if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); choose(group); }
    });
  });
})();
"""
