"""What a listener takes over from listeners that have died: pure, so that it can be proven.

The group counts the deliveries of each pending entry. A second delivery proves nothing: the first process may have died
of anything, with many entries in hand. From the third on an entry runs alone in its process. One that was alone twice
and did not survive it, either time, is deadly.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

# The first delivery by itself.
ALONE_FROM = 3
ALONE_LIMIT = 2


class Abandoned(NamedTuple):
    """An entry that was delivered, and that nobody has said a word about since."""

    id: bytes
    deliveries: int  # so far


class Claims(NamedTuple):
    """`together`: to be taken over now, as far as there is room. `alone`: each by itself, in this order."""

    together: tuple[Abandoned, ...]
    alone: tuple[Abandoned, ...]


def plan(abandoned: Sequence[Abandoned], in_hand: Collection[bytes]) -> Claims:
    """`abandoned`: oldest first. `in_hand`: ids that this listener is at work on: it was only slow to say so."""
    others = [entry for entry in abandoned if entry.id not in in_hand]
    return Claims(
        tuple(entry for entry in others if entry.deliveries + 1 < ALONE_FROM),
        tuple(entry for entry in others if entry.deliveries + 1 >= ALONE_FROM),
    )


def deadly(attempt: int) -> bool:
    """Whether an entry has been alone as often as is allowed, before this delivery of it."""
    return attempt >= ALONE_FROM + ALONE_LIMIT
