"""E4: more requests in flight. Throughput, queueing's share, Little's law, and the knee that the demands predict.

Two answers to how much of the latency is waiting: what the ledger has as queueing, that is in queues of ours; and all
that one request alone does not take. The second also has what no queue shows: a computation that waits for a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.figures.cells import Cell, Value
from loadgen.figures.conclusion import Check, Conclusion, nothing
from loadgen.figures.plots import Axes, Line, lines
from services.accounting import Group

_LITTLE = 0.05
_TAIL = ("p95", "p99")  # "-" where too few requests were measured to say (loadgen/analysis.py)


def knee(alone: Value, most: Value) -> Value:
    """How many in flight fill the pipe: the latency of one alone in ms, by the throughput that cannot be passed.

    The intersection of the two asymptotes (Denning and Buzen, "The operational analysis of queueing network models",
    1978): below it latency is that of one alone, beyond it throughput is the bottleneck's.
    """
    return Value(1e-3, 1e-3, 1e-3).times(alone).times(most)


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`."""
    if not cells:
        return nothing("Nothing could be measured.")
    rows, said, checks, throughput, queueing = [], [], [], [], []
    for device, target in dict.fromkeys((str(cell.step.at["device"]), cell.target) for cell in cells):
        own = sorted(
            (c for c in cells if (c.step.at["device"], c.target) == (device, target)), key=lambda c: c.in_flight
        )
        name = f"{device}, {target}"
        throughput.append(Line(name, [(float(cell.in_flight), cell.throughput()) for cell in own]))
        drawn = Line(name, [(float(cell.in_flight), cell.share(Group.QUEUEING)) for cell in own])
        alone = _mean_ms(own[0]) if own[0].in_flight == 1 else None
        little = []
        for cell in own:
            latency, rate = _mean_ms(cell), cell.throughput()
            beyond = "-" if alone is None or cell is own[0] else f"{alone.over(latency).rest():.1%}"
            in_flight = rate.value * latency.value / 1e3 / cell.in_flight
            little.append((cell.in_flight, in_flight))
            rows.append(
                [
                    *(device, target, str(cell.in_flight), f"{rate:.1f}", f"{latency:.1f}"),
                    *("-" if tail is None else f"{tail:.1f}" for tail in map(cell.latency, _TAIL)),
                    *(f"{cell.share(Group.QUEUEING):.1%}", beyond, f"{in_flight:.3f}", cell.label, cell.verdict),
                ]
            )
        odd = [f"{n} in flight {x:.3f}" for n, x in little if abs(x - 1) > _LITTLE]
        what = f"{name}: X R / N is within 5 % of 1, by Little's law"
        checks.append(Check(what + (f" (not at {', '.join(odd)})" if odd else ""), not odd))
        if alone is not None and len(own) > 1:
            at = knee(alone, max((cell.throughput() for cell in own), key=lambda value: value.value))
            drawn = drawn._replace(rule=(f"its knee, {at.value:.1f}", at.value))
            last = own[-1]
            said.append(
                f"{name}: knee at {at:.1f}; at {last.in_flight} in flight {last.share(Group.QUEUEING):.0%} of the "
                f"latency is in queues, {alone.over(_mean_ms(last)).rest():.0%} is beyond what one alone takes"
            )
        queueing.append(drawn)
    pictures = {
        "e4-throughput": lines("throughput", Axes("in flight", "images/s", log_x=True), throughput),
        "e4-queueing": lines(
            "in queues", Axes("in flight", "share of the latency", log_x=True, percent=True), queueing
        ),
    }
    data = {
        "throughput": {line.name: [[x, *value] for x, value in line.points] for line in throughput},
        "queueing": {line.name: [[x, *value] for x, value in line.points] for line in queueing},
    }
    head = ["device", "transport", "in flight", "images/s", "mean ms"]
    head += [*(f"{name} ms" for name in _TAIL), "in queues", "beyond one alone", "X R / N", "label", "verdict"]
    return Conclusion(f"{'; '.join(said)}.", head, rows, pictures, data, checks)


def _mean_ms(cell: Cell) -> Value:
    latency = cell.latency()
    assert latency is not None  # noqa: S101 # a mean is always there
    return latency
