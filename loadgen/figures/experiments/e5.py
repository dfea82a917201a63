"""E5: throughput of preprocessing alone, of inference alone, and of both."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.figures.cells import Cell, Value, worst
from loadgen.figures.conclusion import Check, Conclusion, nothing
from loadgen.figures.plots import groups

_REACHED = 0.9


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`. Cells of one device at a time; preprocessing alone is beside all of them.

    All runs on one machine here, so stages that were measured one at a time take CPUs from each other end to end: where
    they want more than there are, that is said. A row's label and verdict are those of all three that it is made of.
    """
    rows, said, checks = [], [], []
    drawn: dict[str, dict[str, dict[str, Value]]] = {}
    for device in dict.fromkeys(str(cell.step.at["device"]) for cell in cells if "device" in cell.step.at):
        own = [cell for cell in cells if cell.step.at.get("device", device) == device]
        inference_cell = next((cell for cell in own if _stage(cell) == "inference"), None)
        for size in dict.fromkeys(cell.size for cell in own if _stage(cell) == "end to end"):
            alone_cell = next((c for c in own if _stage(c) == "preprocessing" and c.size == size), None)
            whole = [cell for cell in own if _stage(cell) == "end to end" and cell.size == size]
            if inference_cell is None or alone_cell is None:
                continue
            inference, alone = inference_cell.throughput(), alone_cell.throughput()
            slower = min(alone, inference, key=lambda value: value.value)
            bar: dict[str, Value] = {"preprocessing alone": alone, "inference alone": inference}
            for cell in whole:
                rate = cell.throughput()
                bar[f"end to end, {cell.target}"] = rate
                rows.append(
                    [
                        *(device, size, cell.target, f"{alone:.1f}", f"{inference:.1f}", f"{rate:.1f}"),
                        *(f"{rate.over(inference):.2f}", f"{rate.over(slower):.2f}"),
                        f"{_cpus_wanted(cell, slower):.1f} of {cell.cpus:g}",
                        *worst(cell, alone_cell, inference_cell),
                    ]
                )
            best = max(whole, key=lambda cell: cell.throughput().value)
            reached = best.throughput().over(slower)
            lost = best.throughput().over(inference).rest()
            words = "nothing" if lost.value <= 0 else f"{lost:.0%}"
            said.append(f"{device}, {size}: {words} lost ({best.target})")
            what = f"{device}, {size}: end to end over the slower stage at least {_REACHED}"
            wanted = _cpus_wanted(best, slower)
            if wanted > best.cpus:
                what += f" (at its rate they would want {wanted:.1f} of {best.cpus:g} CPUs, which they share here)"
            checks.append(Check(what, reached.at_least(_REACHED)))
            drawn.setdefault(device, {})[size] = bar
    if not rows:
        return nothing("Of no device and size all three could be measured.")
    head = ["device", "images", "transport", "preprocessing", "inference", "end to end"]
    head += ["over inference", "over the slower stage", "CPUs wanted", "label", "verdict"]
    pictures = {
        f"e5-{device.lower().replace(' ', '-')}": groups(f"throughput, {device}", "images/s", by_size)
        for device, by_size in drawn.items()
    }
    data = {
        device: {size: {name: value._asdict() for name, value in bar.items()} for size, bar in by_size.items()}
        for device, by_size in drawn.items()
    }
    return Conclusion(f"Of what inference alone does: {'; '.join(said)}.", head, rows, pictures, data, checks)


def _cpus_wanted(cell: Cell, rate: Value) -> float:
    """By all processes together, the load generator's too, at that rate."""
    return sum(cell.cpu_ms().values()) / 1e3 * rate.value


def _stage(cell: Cell) -> str:
    return str(cell.step.at["stage"])
