"""Non-maximum suppression: of boxes that are about the same thing, the one with the highest score stays.

It is greedy, as everywhere (Neubeck and Van Gool 2006, "Efficient Non-Maximum Suppression"). A part of the answer's
interpretation on the CPU, not of the network: docs/adr/0008 says why.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.messages import Array


def suppress(
    boxes: Array, scores: Array, overlap: float, most: int, groups: Array | None = None, *, of_smaller: bool = False
) -> NDArray[np.intp]:
    """The indices that stay, highest score first (ties: the lower index), at most `most`.

    `boxes`: [n, 4], left, top, right, bottom. A box goes when it overlaps one that stays by more than `overlap`: the
    intersection over the union, or with `of_smaller` over the smaller of both. Those of different `groups` [n]
    (classes) never meet.
    """
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order].astype(np.float64)
    kind = np.zeros(len(order), np.int64) if groups is None else groups[order]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.ones(len(order), bool)
    kept: list[int] = []
    for index in range(len(order)):
        if not left[index]:
            continue
        kept.append(index)
        if len(kept) == most:
            break
        rest = index + 1 + np.flatnonzero(left[index + 1 :] & (kind[index + 1 :] == kind[index]))
        corner = np.minimum(boxes[index, 2:], boxes[rest, 2:]) - np.maximum(boxes[index, :2], boxes[rest, :2])
        common = np.clip(corner, 0, None).prod(axis=1)
        whole = np.minimum(area[index], area[rest]) if of_smaller else area[index] + area[rest] - common
        left[rest[common > overlap * whole]] = False
    return order[np.array(kept, np.intp)]
