"""E10: a detector becomes faster, and the log behind it does not: where the speed-up ends, and what moves the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from loadgen.figures.cells import Cell, Value
from loadgen.figures.conclusion import Check, Conclusion, nothing
from loadgen.figures.plots import Axes, Line, lines

_ABOUT = (0.8, 1.2)
_ENDED = 0.9  # of the largest k: up to there the climb has not ended


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`. A log's limit is `at.limit`, bytes/s; 0 is none."""
    by_log: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        by_log.setdefault((cell.target, int(cell.step.at["limit"])), []).append(cell)
    drawn, rows, said, ends = [], [], [], {}
    for (target, limit), own in by_log.items():
        own.sort(key=lambda cell: int(cell.step.at["k"]))
        name = f"{target}, {limit / 1e6:g} MB/s" if limit else f"{target}, no limit"
        drawn.append(Line(name, [(float(cell.step.at["k"]), cell.throughput()) for cell in own]))
        first = own[0] if own[0].step.at["k"] == 1 else None
        for cell in own:
            gain = "-"
            if first is not None:  # over itself it is 1, and no interval is around that
                gain = "1.00" if cell is first else f"{cell.throughput().over(first.throughput()):.2f}"
            rows.append(
                [
                    *(name, str(cell.step.at["k"]), f"{cell.throughput():.1f}"),
                    *(gain, cell.label, cell.verdict),
                ]
            )
        if first is None or len(own) == 1:
            continue
        end = knee(own)
        gained = own[-1].throughput().over(first.throughput())
        said.append(f"{name}: {own[-1].step.at['k']} times as fast gives {gained:.1f} times the frames")
        if limit and end.value >= _ENDED * float(own[-1].step.at["k"]):
            said[-1] += ", and no end is in sight"
        elif limit:
            ends[limit] = end
            drawn[-1] = drawn[-1]._replace(rule=(f"its end, k = {end.value:.1f}", end.value))
            said[-1] += f", its end is at k = {end:.1f}"
    if not drawn:
        return nothing("Nothing could be measured.")
    checks = [
        Check(
            f"what ends the climb at {limit / 1e6:g} MB/s is the limit: more goes through without one",
            most(by_log[target, 0]).over(most(own)).within(1.0, math.inf),
        )
        for (target, limit), own in by_log.items()
        if limit == max(ends, default=None) and (target, 0) in by_log
    ]
    if len(ends) > 1:
        low, high = min(ends), max(ends)
        moved = ends[high].over(ends[low])
        said.append(f"{high / low:g} times the log moves the end by {moved:.2f}")
        proportion = moved.over(Value(high / low, high / low, high / low))
        checks.append(Check(f"{high / low:g} times the log moves the end by about as much", proportion.within(*_ABOUT)))
    picture = lines(
        "a detector k times as fast",
        Axes("k", "frames/s", log_x=True, log_y=True),
        [*drawn, Line("k times the first", ideal(drawn), dashed=True)],
    )
    head = ["between them", "k", "frames/s", "over k = 1", "label", "verdict"]
    data = {line.name: [[x, *value] for x, value in line.points] for line in drawn}
    return Conclusion(f"{'; '.join(said)}.", head, rows, {"e10": picture}, data, checks)


def knee(cells: Sequence[Cell]) -> Value:
    """The k at which the line `k times the first` meets the most that any k gives: where more speed buys nothing."""
    return most(cells).over(cells[0].throughput())


def most(cells: Sequence[Cell]) -> Value:
    """The largest throughput of any k."""
    return max((cell.throughput() for cell in cells), key=lambda value: value.value)


def ideal(drawn: Sequence[Line]) -> list[tuple[float, Value]]:
    """From the best first point, over all k that are drawn."""
    firsts = [line.points[0][1].value for line in drawn if line.points[0][0] == 1]
    xs = sorted({x for line in drawn for x, _ in line.points})
    return [(x, Value(max(firsts) * x)) for x in xs] if firsts else []
