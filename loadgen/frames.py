"""WHAT, of task faces: frames with a known number of faces, so that the faces of a frame are an axis of a load.

A frame is a grid of tiles at their native resolution. Some of them, at random places, show a face, the others parts of
photographs without one. It has the same size whatever their number, so that moving and decoding it cost the same. What
differs is what a detector spends on what looks like a face, and what is asked about every face.

There is one face in the photographs that the packages of the load generator ship, Eileen Collins's: cut out a little
differently each time, perhaps mirrored, lighter or darker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # [height, width, 3]

WIDTH, HEIGHT = 1280, 720
_TILE = (160, 180)  # width, height
# The numbers at which the paper and its successors look
FACES: Mapping[str, int] = {f"faces-{n}": n for n in (1, 2, 4, 8, 9, 16, 25, 32)}
FACE = "astronaut"
BEHIND = ("coffee", "china", "hubble", "ihc")
SOURCES = (FACE, *BEHIND)
# Where a tile with the whole head begins, in pixels of the astronaut's photograph
_LEFT, _TOP, _PLAY = 132, 16, 24
_LIGHT = (0.85, 1.1)


def compose(faces: int, photographs: Mapping[str, Pixels], draw: Callable[[int], int]) -> Pixels:
    """A frame with `faces` faces, at most as many as it has tiles. `draw(n)`: a whole number from 0 to n - 1."""
    across, down = _TILE
    places = [(x, y) for y in range(0, HEIGHT, down) for x in range(0, WIDTH, across)]
    shuffled = list(places)
    for last in range(len(shuffled) - 1, 0, -1):  # Fisher and Yates; random.shuffle may differ between versions
        other = draw(last + 1)
        shuffled[last], shuffled[other] = shuffled[other], shuffled[last]
    shown = set(shuffled[:faces])
    frame = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for x, y in places:
        tile = _face(photographs[FACE], draw) if (x, y) in shown else _other(photographs, draw)
        frame[y : y + down, x : x + across] = tile[:, ::-1] if draw(2) else tile
    return frame


def _face(photograph: Pixels, draw: Callable[[int], int]) -> Pixels:
    across, down = _TILE
    left, top = _LEFT + draw(_PLAY), _TOP + draw(_PLAY)
    tile = photograph[top : top + down, left : left + across]
    low, high = _LIGHT
    light = low + (high - low) * draw(256) / 255
    lit: NDArray[Any] = np.clip(np.round(tile * light), 0, 255)
    return lit.astype(np.uint8)


def _other(photographs: Mapping[str, Pixels], draw: Callable[[int], int]) -> Pixels:
    across, down = _TILE
    photograph = photographs[BEHIND[draw(len(BEHIND))]]
    top, left = draw(photograph.shape[0] - down + 1), draw(photograph.shape[1] - across + 1)
    return photograph[top : top + down, left : left + across]
