"""E3: the latency of a single request, taken apart by image size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from loadgen.figures.cells import Cell
from loadgen.figures.conclusion import Check, Conclusion, every, nothing
from loadgen.figures.plots import Bar, bars
from services.accounting import Group

# The paper's "data processing and data movement".
BESIDES = (Group.PREPROCESSING, Group.SERIALIZATION, Group.MOVEMENT, Group.TRANSFER)
_SHOWN = (*BESIDES, Group.QUEUEING, Group.INFERENCE)


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`."""
    if not cells:
        return nothing("Nothing could be measured.")
    rows, pictures, said, checks = [], {}, [], []
    for device in dict.fromkeys(str(cell.step.at["device"]) for cell in cells):
        own = [cell for cell in cells if cell.step.at["device"] == device]
        for target in dict.fromkeys(cell.target for cell in own):
            row = [cell for cell in own if cell.target == target]
            shares = [cell.share(*BESIDES) for cell in row]
            words = ", ".join(f"{share.value:.0%} {cell.size}" for cell, share in zip(row, shares, strict=True))
            said.append(f"{device} ({row[0].step.model}), {target}: {words}")
            if len(shares) > 1:
                what = f"{device}, {target}: the share rises from size to size"
                checks.append(Check(what, every(b.over(a).at_least(1) for a, b in itertools.pairwise(shares))))
        for cell in own:
            latency = cell.latency()
            rows.append(
                [
                    *(device, cell.step.model, cell.target, cell.size),
                    "-" if latency is None else f"{latency:.2f}",
                    f"{cell.share(*BESIDES):.1%}",
                    *(f"{cell.share(group).value:.1%}" for group in _SHOWN),
                    *(cell.label, cell.verdict),
                ]
            )
        pictures[f"e3-{_word(device)}"] = bars(
            f"{device}, {own[0].step.model}: a request alone",
            "share of the latency",
            [
                Bar(
                    f"{cell.target}, {cell.size}",
                    {group.value: cell.share(group).value for group in (*_SHOWN, Group.CLIENT)},
                )
                for cell in own
            ],
            percent=True,
        )
    keys = ("device", "model", "target", "size", "mean_ms", "besides")
    data = {"cells": [dict(zip(keys, row, strict=False)) for row in rows]}
    head = ["device", "model", "transport", "images", "mean ms", "processing and movement"]
    head += [*(group.value for group in _SHOWN), "label", "verdict"]
    return Conclusion(f"Data processing and movement: {'; '.join(said)}.", head, rows, pictures, data, checks)


def _word(text: str) -> str:
    return text.lower().replace(" ", "-")
