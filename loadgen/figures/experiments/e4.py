"""E4: more requests in flight. Throughput, queueing's share, Little's law, and the knee that the demands predict."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.figures.cells import Cell
from loadgen.figures.conclusion import Check, Conclusion, nothing
from loadgen.figures.plots import Axes, Line, lines
from services.accounting import Group

_LITTLE = 0.05


def knee(alone: Cell, most_rps: float) -> float:
    """How many in flight fill the pipe: the latency of one alone, by the throughput that cannot be passed.

    The intersection of the two asymptotes (Denning and Buzen, "The operational analysis of queueing network models",
    1978): below it latency is that of one alone, beyond it throughput is the bottleneck's.
    """
    latency = alone.latency()
    assert latency is not None  # noqa: S101 # a mean is always there
    return latency.value / 1e3 * most_rps


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`."""
    if not cells:
        return nothing("Nothing could be measured.")
    rows, said, checks, throughput, queueing = [], [], [], [], []
    rules: dict[str, float] = {}
    for device, target in dict.fromkeys((str(cell.step.at["device"]), cell.target) for cell in cells):
        own = sorted(
            (c for c in cells if (c.step.at["device"], c.target) == (device, target)), key=lambda c: c.in_flight
        )
        name = f"{device}, {target}"
        throughput.append(Line(name, [(float(cell.in_flight), cell.throughput()) for cell in own]))
        queueing.append(Line(name, [(float(cell.in_flight), cell.share(Group.QUEUEING)) for cell in own]))
        for cell in own:
            latency = cell.latency()
            assert latency is not None  # noqa: S101 # as above
            little = cell.throughput().value * latency.value / 1e3 / cell.in_flight
            rows.append(
                [
                    *(device, target, str(cell.in_flight), f"{cell.throughput():.1f}", f"{latency:.1f}"),
                    *(f"{cell.share(Group.QUEUEING):.1%}", f"{little:.3f}", cell.label, cell.verdict),
                ]
            )
            checks.append(
                Check(f"{name}, {cell.in_flight} in flight: Little's law within 5 %", abs(little - 1) <= _LITTLE)
            )
        if own[0].in_flight == 1:
            best = max(own, key=lambda cell: cell.throughput().value)
            at = knee(own[0], best.throughput().value)
            rules[f"knee {at:.1f} ({name})"] = at
            share = own[-1].share(Group.QUEUEING)
            said.append(f"{name}: knee at {at:.1f}, {share:.0%} queueing at {own[-1].in_flight} in flight")
    pictures = {
        "e4-throughput": lines("throughput", Axes("in flight", "images/s", log_x=True), throughput),
        "e4-queueing": lines(
            "queueing", Axes("in flight", "share of the latency", log_x=True, percent=True), queueing, rules
        ),
    }
    data = {
        "throughput": {line.name: [[x, *value] for x, value in line.points] for line in throughput},
        "queueing": {line.name: [[x, *value] for x, value in line.points] for line in queueing},
    }
    head = ["device", "transport", "in flight", "images/s", "mean ms", "queueing", "X R / N", "label", "verdict"]
    return Conclusion(f"{'; '.join(said)}.", head, rows, pictures, data, checks)
