"""E2: what of the latency is not the network, against the network's cost."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.figures.cells import Cell
from loadgen.figures.conclusion import Check, Conclusion, nothing
from loadgen.figures.plots import Axes, Line, lines
from services.accounting import Group

_LARGE = 10.0  # GFLOPs: the band of the paper begins there


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`."""
    if not cells:
        return nothing("No model could be measured.")
    drawn, rows, said, checks = [], [], [], []
    for device in dict.fromkeys(str(cell.step.at["device"]) for cell in cells):
        own = sorted((c for c in cells if c.step.at["device"] == device), key=lambda c: float(c.step.at["gflops"]))
        points = [(float(cell.step.at["gflops"]), cell.share(Group.INFERENCE).rest()) for cell in own]
        drawn.append(Line(device, points))
        for cell, (gflops, share) in zip(own, points, strict=True):
            infer = cell.group_ms(Group.INFERENCE)
            rows.append(
                [cell.step.model, f"{gflops:g}", device, f"{infer:.2f}", f"{share:.1%}", cell.label, cell.verdict]
            )
        large = [share.value for gflops, share in points if gflops > _LARGE]
        if large:
            said.append(f"{device}: {min(large):.0%} to {max(large):.0%} above {_LARGE:g} GFLOPs")
        if len(points) > 1:
            fell = points[0][1].over(points[-1][1]).at_least(1)
            what = f"{device}: the model that computes most has a smaller share than the one that does least"
            checks.append(Check(what, fell))
    picture = lines(
        "what is not the network, medium image, 1 in flight",
        Axes("GFLOPs per image", "share of the latency", log_x=True, percent=True),
        drawn,
    )
    data = {line.name: [{"gflops": x, **share._asdict()} for x, share in line.points] for line in drawn}
    head = ["model", "GFLOPs", "device", "network, ms", "not the network", "label", "verdict"]
    return Conclusion(f"{'; '.join(said)}.", head, rows, {"e2": picture}, data, checks)
