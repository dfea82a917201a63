"""Which records of a partition are done, and what may be committed: pure, so that it can be proven.

A consumer group keeps no delivery count. So the metadata of the committed offset holds how many processes have started
on the records behind it, and, once that is suspicious, how often the first of them was started alone.
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple


class Starts(NamedTuple):
    """What the metadata of a committed offset says. `alone`: starts of the very record at that offset, by itself."""

    starts: int = 0
    alone: int = 0

    def encode(self) -> str:
        """As commit metadata."""
        return f"starts={self.starts} alone={self.alone}"

    @classmethod
    def parse(cls, metadata: str | None) -> Starts:
        """Whatever else is there (another tool's) counts as nothing."""
        match = re.fullmatch(r"starts=(\d+) alone=(\d+)", metadata or "")
        return cls(int(match[1]), int(match[2])) if match else cls()


class PartitionOffsets:
    """Records of one partition, started in order of their offsets, finished in any order."""

    def __init__(self, position: int) -> None:
        """`position`: the committed offset, where reading begins."""
        self._position = position
        self._started: deque[int] = deque()
        self._finished: set[int] = set()

    def start(self, offset: int) -> None:
        """A record was handed out. Offsets may have gaps (compaction, transactions)."""
        self._started.append(offset)

    def finish(self, offset: int) -> None:
        """It is answered, and the answer acknowledged."""
        self._finished.add(offset)
        while self._started and self._started[0] in self._finished:
            done = self._started.popleft()
            self._finished.discard(done)
            self._position = done + 1

    @property
    def position(self) -> int:
        """What may be committed: never beyond the lowest unfinished record."""
        return self._position

    @property
    def in_hand(self) -> int:
        """Records started and not finished."""
        return len(self._started) - len(self._finished)
