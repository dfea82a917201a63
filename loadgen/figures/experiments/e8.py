"""E8: devices are added, until preprocessing caps them."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.figures.cells import Cell, Value
from loadgen.figures.conclusion import Check, Conclusion, nothing
from loadgen.figures.plots import Axes, Line, lines


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`. Predicted: min(n times one device, preprocessing alone)."""
    scaled = sorted((c for c in cells if "devices" in c.step.at), key=lambda c: int(c.step.at["devices"]))
    alone = next((c for c in cells if c.step.at.get("stage") == "preprocessing"), None)
    if not scaled or alone is None or scaled[0].step.at["devices"] != 1:
        return nothing("One device, or preprocessing alone, could not be measured.")
    one, cap = scaled[0].throughput(), alone.throughput()
    rows, points, predicted = [], [], []
    for cell in scaled:
        n = int(cell.step.at["devices"])
        rate, bound = cell.throughput(), min(n * one.value, cap.value)
        efficiency = rate.over(one).value / n
        points.append((float(n), rate))
        predicted.append((float(n), Value(bound)))
        rows.append(
            [
                str(n),
                f"{rate:.1f}",
                f"{efficiency:.2f}",
                f"{bound:.1f}",
                f"{rate.value / bound:.2f}",
                cell.label,
                cell.verdict,
            ]
        )
    picture = lines(
        "throughput as devices are added",
        Axes("devices", "images/s"),
        [Line("measured", points), Line("min(n I, P)", predicted, dashed=True)],
        {f"P / I = {cap.over(one).value:.1f}": cap.over(one).value},
    )
    most = points[-1][1]
    said = f"These CPUs feed {cap.over(one):.1f} such devices; {points[-1][0]:.0f} of them give {most:.1f} images/s."
    checks = [
        Check(
            "no point is below 0.8 of min(n I, P)",
            all(v.value >= 0.8 * p.value for (_, v), (_, p) in zip(points, predicted, strict=True)),
        )
    ]
    head = ["devices", "images/s", "efficiency", "min(n I, P)", "of that", "label", "verdict"]
    data = {"measured": [[x, *value] for x, value in points], "preprocessing_alone": cap, "one_device": one}
    return Conclusion(said, head, rows, {"e8": picture}, data, checks)
