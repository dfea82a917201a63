"""E8: devices are added, until preprocessing caps them."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.figures.cells import Cell, Value, worst
from loadgen.figures.conclusion import Check, Conclusion, every, nothing
from loadgen.figures.plots import Axes, Line, lines

_REACHED = 0.8


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`. Predicted: min(n times one device, preprocessing alone)."""
    scaled = sorted((c for c in cells if "devices" in c.step.at), key=lambda c: int(c.step.at["devices"]))
    alone = next((c for c in cells if c.step.at.get("stage") == "preprocessing"), None)
    if not scaled or alone is None or scaled[0].step.at["devices"] != 1:
        return nothing("One device, or preprocessing alone, could not be measured.")
    one, cap = scaled[0].throughput(), alone.throughput()
    rows = [["preprocessing alone", f"{cap:.1f}", "", "", "", alone.label, alone.verdict]]
    points, predicted, reached = [], [], []
    for cell in scaled:
        n = int(cell.step.at["devices"])
        rate, linear = cell.throughput(), one.times(Value(n, n, n))
        bound = min(linear, cap, key=lambda value: value.value)
        # One device over itself is 1, and no interval is around that.
        efficiency = "1.00" if cell is scaled[0] else f"{rate.over(linear):.2f}"
        reached.append(None if cell is scaled[0] else rate.over(bound))
        points.append((float(n), rate))
        predicted.append((float(n), Value(bound.value)))
        of_that = "1.00" if reached[-1] is None else f"{reached[-1]:.2f}"
        rows.append([str(n), f"{rate:.1f}", efficiency, f"{bound.value:.1f}", of_that, *worst(cell, alone, scaled[0])])
    fed = cap.over(one)
    picture = lines(
        "throughput as devices are added",
        Axes("devices", "images/s"),
        [
            Line("measured", points),
            Line("min(n I, P)", predicted, dashed=True, rule=(f"P / I = {fed.value:.1f}", fed.value)),
        ],
    )
    at, most = max(points, key=lambda point: point[1].value)
    said = f"By preprocessing alone these CPUs feed {fed:.1f} such devices; "
    said += f"the most that was reached is {most.over(one):.1f} times one device, with {at:.0f}"
    last, rate = points[-1]
    said += "." if last == at else f"; {last:.0f} of them give {rate.over(one):.1f} times."
    further = [value for value in reached if value is not None]
    held = every(value.at_least(_REACHED) for value in further) if further else None
    checks = [Check(f"no point is below {_REACHED} of min(n I, P)", held)]
    above = [f"{n:.0f}" for (n, _), value in zip(points, reached, strict=True) if value and value.low and value.low > 1]
    if above:
        # Then P was not the most that preprocessing can do, and the prediction is too low.
        checks.append(Check(f"no point is above min(n I, P) (with {', '.join(above)} it is)", False))
    head = ["devices", "images/s", "efficiency", "min(n I, P)", "of that", "label", "verdict"]
    data = {"measured": [[x, *value] for x, value in points], "preprocessing_alone": cap, "one_device": one}
    return Conclusion(said, head, rows, {"e8": picture}, data, checks)
