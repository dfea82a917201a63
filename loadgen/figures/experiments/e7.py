"""E7: energy per image by the machine's meters; CPU-seconds, named so, where it has none."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.figures.cells import Cell
from loadgen.figures.conclusion import Conclusion, nothing
from loadgen.figures.plots import Bar, bars

_CLIENT = "client"


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`. The load generator's own CPU time is left out: it is nobody's cost."""
    if not cells:
        return nothing("Nothing could be measured.")
    rows, drawn, said = [], [], []
    metered = all(cell.joules() for cell in cells)
    for cell in cells:
        cpu = {name: ms for name, ms in cell.cpu_ms().items() if name != _CLIENT}
        joules = cell.joules()
        what = joules if metered else cpu
        drawn.append(Bar(f"{cell.target}, {cell.size}", what))
        rows.append(
            [
                *(cell.target, cell.size, f"{sum(cpu.values()):.2f}"),
                ", ".join(f"{name} {ms:.2f}" for name, ms in cpu.items()),
                ", ".join(f"{name} {j:.4f}" for name, j in joules.items()) or "no meter here",
                *(cell.label, cell.verdict),
            ]
        )
    for size in dict.fromkeys(cell.size for cell in cells):
        own = {
            cell.target: sum(bar.parts.values()) for cell, bar in zip(cells, drawn, strict=True) if cell.size == size
        }
        unit = "J" if metered else "CPU-ms"
        said.append(f"{size}: " + ", ".join(f"{name} {value:.3g} {unit}" for name, value in own.items()))
    unit = "J per image" if metered else "CPU-ms per image (a proxy: no meter here)"
    picture = bars(unit, unit.partition(" (")[0], drawn)
    head = ["transport", "images", "CPU-ms", "by process", "J, gross", "label", "verdict"]
    data = {"bars": [{"name": bar.name, "parts": dict(bar.parts)} for bar in drawn], "metered": metered}
    return Conclusion(f"{'; '.join(said)}.", head, rows, {"e7": picture}, data)
