"""E6: preprocessing of large images as more are in flight.

What those in flight would take if all were decoded whole at once is computed, and named so: a CPU decodes as many at
a time as it has decoders, and to a small size keeps less of each. A device that takes them all at once would need it.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.figures.cells import Cell
from loadgen.figures.conclusion import Conclusion, nothing
from loadgen.figures.plots import Axes, Line, lines
from loadgen.samples import SIZES

_CHANNELS = 3


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`."""
    if not cells:
        return nothing("Nothing could be measured.")
    rows, drawn = [], []
    names = list(dict.fromkeys(str(cell.step.at["preprocessing"]) for cell in cells))
    best = {}
    for name in names:
        own = sorted((c for c in cells if c.step.at["preprocessing"] == name), key=lambda c: c.in_flight)
        drawn.append(Line(name, [(float(cell.in_flight), cell.throughput()) for cell in own]))
        best[name] = max((cell.throughput() for cell in own), key=lambda value: value.value)
        for cell in own:
            latency, size = cell.latency(), SIZES[cell.size]
            decoded = cell.in_flight * size.width * size.height * _CHANNELS / 2**20
            rows.append(
                [
                    *(name, str(cell.in_flight), f"{cell.throughput():.1f}"),
                    *("-" if latency is None else f"{latency:.1f}", f"{decoded:.0f}", cell.label, cell.verdict),
                ]
            )
    said = [f"{name} over {names[0]}: {best[name].over(best[names[0]]):.2f} times the images" for name in names[1:]]
    data = {line.name: [[x, *value] for x, value in line.points] for line in drawn}
    head = ["preprocessing", "in flight", "images/s", "mean ms", "MiB if all were decoded at once", "label", "verdict"]
    picture = lines("large images, preprocessing alone", Axes("in flight", "images/s", log_x=True), drawn)
    return Conclusion(f"{'; '.join(said)}.", head, rows, {"e6": picture}, data)
