"""E1: the ladder. Throughput of each step, and what it gained over the one before."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.figures.cells import Cell
from loadgen.figures.conclusion import Check, Conclusion, nothing
from loadgen.figures.plots import Bar, bars


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`."""
    if not cells:
        return nothing("No step could be measured.")
    rows, pictures, said, checks = [], {}, [], []
    sizes = list(dict.fromkeys(cell.size for cell in cells))
    for size in sizes:
        ladder = [cell for cell in cells if cell.size == size]
        first = ladder[0].throughput()
        for before, cell in zip([ladder[0], *ladder], ladder, strict=False):
            rate = cell.throughput()
            # Over itself it is 1, and no interval is around that.
            gains = ["", "1.00"]
            if cell is not ladder[0]:
                gains = [f"{rate.over(other):.2f}" for other in (before.throughput(), first)]
            rows.append([cell.step.name, size, f"{rate:.1f}", *gains, cell.label, cell.verdict])
        # Named, as the plan's first step may have no numbers; then the ladder begins with the first that has.
        begins = ladder[0].step.name
        if len(ladder) == 1:
            said.append(f"{size}: '{begins}' alone could be measured")
        else:
            best = max(ladder[1:], key=lambda cell: cell.throughput().value)
            whole = best.throughput().over(first)
            said.append(f"{size}: {whole:.2f} times from '{begins}' to '{best.step.name}'")
            what = f"{size}: '{best.step.name}' has at least twice the throughput of '{begins}'"
            checks.append(Check(what, whole.at_least(2)))
        pictures[f"e1-{size}"] = bars(
            f"{size} images, {ladder[0].in_flight} in flight",
            "images/s",
            [Bar(cell.step.name, {"images/s": cell.throughput().value}, cell.throughput()) for cell in ladder],
        )
    data = {"steps": [{"step": row[0], "size": row[1], "images_per_s": row[2]} for row in rows]}
    head = ["step", "images", "images/s", "over the one before", "over the first", "label", "verdict"]
    return Conclusion(f"{'; '.join(said)}.", head, rows, pictures, data, checks)
