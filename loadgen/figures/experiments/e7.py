"""E7: energy per image by the machine's meters; CPU-seconds, named so, where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.figures.cells import Cell, cpu_ms_of, joules_of
from loadgen.figures.conclusion import Conclusion, nothing
from loadgen.figures.plots import Bar, bars

_CLIENT = "client"


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`. The load generator's own CPU time is left out: it is nobody's cost."""
    if not cells:
        return nothing("Nothing could be measured.")
    rows, drawn, said = [], [], []
    metered = all(cell.joules() for cell in cells)
    costs = joules_of if metered else _of_the_suite
    for cell in cells:
        cpu = _of_the_suite(cell.about["contention"])
        joules = cell.joules()
        cost = cell.per_request(lambda account: sum(costs(account).values()))
        drawn.append(Bar(f"{cell.target}, {cell.size}", costs(cell.about["contention"]), cost))
        rows.append(
            [
                *(cell.target, cell.size),
                f"{cell.per_request(lambda account: sum(_of_the_suite(account).values())):.2f}",
                ", ".join(f"{name} {ms:.2f}" for name, ms in cpu.items()),
                ", ".join(f"{name} {j:.4f}" for name, j in joules.items()) or "no meter here",
                *(cell.label, cell.verdict),
            ]
        )
    unit = "J" if metered else "CPU-ms"
    for size in dict.fromkeys(cell.size for cell in cells):
        own = {cell.target: bar.whole for cell, bar in zip(cells, drawn, strict=True) if cell.size == size}
        said.append(f"{size}: " + ", ".join(f"{name} {value:.3g} {unit}" for name, value in own.items()))
    title = "J per image" if metered else "CPU-ms per image (a proxy: no meter here)"
    picture = bars(title, title.partition(" (")[0], drawn)
    head = ["transport", "images", "CPU-ms", "by process", "J, gross", "label", "verdict"]
    data = {
        "bars": [{"name": bar.name, "parts": dict(bar.parts), "whole": bar.whole} for bar in drawn],
        "metered": metered,
    }
    return Conclusion(f"{'; '.join(said)}.", head, rows, {"e7": picture}, data)


def _of_the_suite(account: Mapping[str, Any]) -> dict[str, float]:
    """CPU-ms per request by process."""
    return {name: ms for name, ms in cpu_ms_of(account).items() if name != _CLIENT}
