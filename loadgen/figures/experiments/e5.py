"""E5: throughput of preprocessing alone, of inference alone, and of both."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.figures.cells import Cell, Value, worst
from loadgen.figures.conclusion import Check, Conclusion, nothing
from loadgen.figures.plots import groups

_REACHED = 0.9
_FUSED = "fused"
_INFERENCE = "inference"


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`. A step is a device, all of whose targets were asked in turn.

    A stage is a service with its end of the hop: preprocessing alone was measured over the very transport that it is
    set beside. What the hop takes from a door is told by the door without one. A row's label and verdict are those of
    all that it is made of.
    """
    rows, said, checks = [], [], []
    drawn: dict[str, dict[str, dict[str, Value]]] = {}
    for step in dict.fromkeys(cell.step.name for cell in cells):
        of_step = [cell for cell in cells if cell.step.name == step]
        plan = of_step[0].step
        if len(plan.beside) != 1 or len(plan.engines) != 1:
            continue  # then it does not say what its stages are
        [beside], [alone], device = plan.beside, plan.engines, str(plan.at["device"])
        for size in dict.fromkeys(cell.size for cell in of_step):
            of = {cell.target: cell for cell in of_step if cell.size == size}
            whole = [of[name] for name in plan.transports if name in of and beside.target(name) in of]
            if alone not in of or not whole:
                continue
            inference = of[alone].throughput()
            bar, reached = {"inference alone": inference}, dict[str, Value]()
            for cell in whole:
                stage = of[beside.target(cell.target)]
                rate, preprocessing = cell.throughput(), stage.throughput()
                slower = min(preprocessing, inference, key=lambda value: value.value)
                reached[cell.target] = rate.over(slower)
                bar |= {stage.target: preprocessing, f"end to end, {cell.target}": rate}
                rows.append(
                    [
                        *(
                            device,
                            size,
                            cell.target,
                            f"{preprocessing:.1f}",
                            _without_hop(of, stage, beside.target(_FUSED)),
                        ),
                        *(f"{inference:.1f}", f"{rate:.1f}", f"{rate.over(inference):.2f}"),
                        *(f"{reached[cell.target]:.2f}", _busy(cell), *worst(cell, stage, of[alone])),
                    ]
                )
            best = max(whole, key=lambda cell: cell.throughput().value)
            lost = best.throughput().over(inference).rest()
            words = "nothing" if lost.value <= 0 else f"{lost:.0%}"
            said.append(f"{device}, {size}: {words} lost ({best.target})")
            checks.append(
                Check(
                    f"{device}, {size}: end to end ({best.target}) over the slower stage at least {_REACHED}",
                    reached[best.target].at_least(_REACHED),
                )
            )
            drawn.setdefault(device, {})[size] = bar
    if not rows:
        return nothing("Of no device and size all three could be measured.")
    head = [
        "device",
        "images",
        "transport",
        "preprocessing",
        "of what it does without a hop",
        "inference",
        "end to end",
    ]
    head += ["over inference", "over the slower stage", "CPUs busy", "label", "verdict"]
    pictures = {
        f"e5-{device.lower().replace(' ', '-')}": groups(f"throughput, {device}", "images/s", by_size)
        for device, by_size in drawn.items()
    }
    data = {
        device: {size: {name: value._asdict() for name, value in bar.items()} for size, bar in by_size.items()}
        for device, by_size in drawn.items()
    }
    return Conclusion(f"Of what inference alone does: {'; '.join(said)}.", head, rows, pictures, data, checks)


def _without_hop(of: dict[str, Cell], stage: Cell, fused: str) -> str:
    """What preprocessing over a hop keeps of its throughput without one; "-" where that was not measured."""
    return "-" if fused not in of or fused == stage.target else f"{stage.throughput().over(of[fused].throughput()):.2f}"


def _busy(cell: Cell) -> str:
    """By inference, and by everything else, the load generator too; of the CPUs that each side has, or of all."""
    ms, rate = cell.cpu_ms(), cell.throughput().value / 1e3
    inference = sum(value for name, value in ms.items() if name.startswith(_INFERENCE)) * rate
    rest = sum(ms.values()) * rate - inference
    own = cell.step.inference_cpus
    if not own:
        return f"{inference + rest:.1f} of {cell.cpus:g}"
    return f"{rest:.1f} of {cell.cpus - own:g}, inference {inference:.1f} of {own}"
