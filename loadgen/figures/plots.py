"""Pictures as SVG, by matplotlib: lines over an axis, and bars. The same numbers give the same bytes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure as Canvas

from loadgen.figures.cells import Value

_SIZE = (7.2, 3.8)  # inches
_OUT = 1.8  # an interval may reach so many times as high as the highest point
_GREY = "#888888"  # for text and rules: legible on white and on black
# Okabe and Ito's colours, which those see apart who do not see all colours (jfly.uni-koeln.de/color, 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a08000", "#7570b3")
_MARKS = "osD^vPX*"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "beyond-inference",
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": _GREY,
    "axes.labelcolor": _GREY,
    "axes.edgecolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


class Axes(NamedTuple):
    """Names of the axes, with units; `log`: of x, to the base 2, or of y."""

    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    percent: bool = False  # y is a share
    level: float | None = None  # a horizontal rule: of a quotient, 1


class Line(NamedTuple):
    """Points in the order of x. `dashed`: a prediction, or another's number. `rule`: (name, x) of a vertical one."""

    name: str
    points: Sequence[tuple[float, Value]]
    dashed: bool = False
    rule: tuple[str, float] | None = None


def lines(title: str, axes: Axes, drawn: Sequence[Line]) -> str:
    """Lines with the intervals of their points; a rule has its line's colour, and its name stands with the lines'."""
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=_SIZE, layout="constrained")
        plot = canvas.add_subplot()
        for index, line in enumerate(drawn):
            colour = COLOURS[index % len(COLOURS)]
            xs = [x for x, _ in line.points]
            ys = [value.value for _, value in line.points]
            style: dict[str, Any] = {"linestyle": "--"} if line.dashed else {"marker": _MARKS[index % len(_MARKS)]}
            plot.plot(xs, ys, color=colour, label=line.name, markersize=5, linewidth=1.4, **style)
            for x, value in line.points:
                if value.low is not None and value.high is not None:
                    plot.plot([x, x], [value.low, value.high], color=colour, linewidth=1.0, alpha=0.8)
            if line.rule is not None:
                name, at = line.rule
                plot.axvline(at, color=colour, linestyle=":", linewidth=1.2, label=name)
        if axes.level is not None:
            plot.axhline(axes.level, color=_GREY, linewidth=0.8)
        _finish(plot, title, axes, sorted({x for line in drawn for x, _ in line.points}))
        top = _top(axes, drawn)
        if top > 0:
            plot.set_ylim(top=top)
        if len(drawn) > 1 or any(line.rule for line in drawn):
            plot.legend(fontsize=9)
        return _svg(canvas)


def _top(axes: Axes, drawn: Sequence[Line]) -> float:
    """Of the axis: all points are seen, but an interval that is far longer than they are high leaves the picture."""
    values = [value for line in drawn for _, value in line.points]
    highest = max(value.value for value in values)
    longest = max(value.value if value.high is None else value.high for value in values)
    return min(1.0 if axes.percent else math.inf, max(1.05 * min(longest, _OUT * highest), highest))


class Bar(NamedTuple):
    """`parts`: name -> length, stacked; `whole`: their sum, whose interval is drawn."""

    name: str
    parts: Mapping[str, float]
    whole: Value | None = None


def bars(title: str, y: str, drawn: Sequence[Bar], *, percent: bool = False) -> str:
    """Stacked bars side by side; parts of one name have one colour."""
    names = list(dict.fromkeys(name for bar in drawn for name in bar.parts))
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(_SIZE[0], _SIZE[1] + 0.4), layout="constrained")
        plot = canvas.add_subplot()
        base = [0.0] * len(drawn)
        for index, name in enumerate(names):
            heights = [bar.parts.get(name, 0.0) for bar in drawn]
            plot.bar(range(len(drawn)), heights, 0.66, base, label=name, color=COLOURS[index % len(COLOURS)])
            base = [low + height for low, height in zip(base, heights, strict=True)]
        for position, bar in enumerate(drawn):
            if bar.whole is not None and bar.whole.low is not None and bar.whole.high is not None:
                plot.plot([position, position], [bar.whole.low, bar.whole.high], color=_GREY, linewidth=1.4)
        plot.set_xticks(range(len(drawn)), [bar.name for bar in drawn])
        plot.grid(axis="x", visible=False)
        if percent:
            plot.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
            plot.set_ylim(0, 1)
        plot.set_ylabel(y)
        plot.set_title(title, fontsize=11, loc="left")
        if any(len(bar.name) > 10 for bar in drawn) or len(drawn) > 8:
            _tilt(plot)
        if len(names) > 1:
            _legend_beside(plot)
        return _svg(canvas)


def groups(title: str, y: str, drawn: Mapping[str, Mapping[str, Value]], *, tilted: bool = False) -> str:
    """Group -> name -> number: bars side by side in each group, with their intervals; a name has one colour.

    `tilted`: the groups' names are long.
    """
    names = list(dict.fromkeys(name for group in drawn.values() for name in group))
    width = 0.8 / len(names)
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=_SIZE, layout="constrained")
        plot = canvas.add_subplot()
        for index, name in enumerate(names):
            places = [(at, group[name]) for at, group in enumerate(drawn.values()) if name in group]
            xs = [at + (index - (len(names) - 1) / 2) * width for at, _ in places]
            colour = COLOURS[index % len(COLOURS)]
            plot.bar(xs, [value.value for _, value in places], width * 0.92, label=name, color=colour)
            for x, (_, value) in zip(xs, places, strict=True):
                if value.low is not None and value.high is not None:
                    plot.plot([x, x], [value.low, value.high], color=_GREY, linewidth=1.4)
        plot.set_xticks(range(len(drawn)), list(drawn))
        if tilted:
            _tilt(plot)
        plot.grid(axis="x", visible=False)
        plot.set_ylabel(y)
        plot.set_title(title, fontsize=11, loc="left")
        if len(names) > 1:
            _legend_beside(plot)
        return _svg(canvas)


def _legend_beside(plot: Any) -> None:
    """Where bars are, there is no room within."""
    plot.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _tilt(plot: Any) -> None:
    plot.tick_params(axis="x", labelrotation=30)
    for text in plot.get_xticklabels():
        text.set_horizontalalignment("right")


def _finish(plot: Any, title: str, axes: Axes, xs: Sequence[float]) -> None:
    if axes.log_x:
        plot.set_xscale("log", base=2)
        plot.set_xticks(xs, [f"{x:g}" for x in xs])
        plot.minorticks_off()
    if axes.log_y:
        plot.set_yscale("log")
    else:
        plot.set_ylim(bottom=0)
    if axes.percent:
        plot.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    plot.set_xlabel(axes.x)
    plot.set_ylabel(axes.y)
    plot.set_title(title, fontsize=11, loc="left")


def _svg(canvas: Canvas) -> str:
    with closing(io.StringIO()) as out:
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = out.getvalue()
    # matplotlib ends some lines with blanks, which a repository does not want.
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
