"""Which records of a partition are done, and what may be committed: pure, so that it can be proven.

A consumer group keeps no delivery count. So the metadata of the committed offset holds how many processes have started
on the records behind it without progress, how often the first of them was started alone (once that is suspicious), and
how far records have been handed out.
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple


class Starts(NamedTuple):
    """What the metadata of a committed offset says.

    `starts`: processes that began behind the offset and did not move it. `alone`: starts of the very record at the
    offset, by itself. `upto`: records below this offset were handed out when this was written.
    """

    starts: int = 0
    alone: int = 0
    upto: int = 0

    def encode(self) -> str:
        """As commit metadata. The semicolon ends it: what a reader may find behind does not belong to a number."""
        return f"starts={self.starts} alone={self.alone} upto={self.upto};"

    @classmethod
    def parse(cls, metadata: str | None) -> Starts:
        """Whatever else is there (another tool's) counts as nothing."""
        match = re.match(r"starts=(\d{1,18}) alone=(\d{1,18}) upto=(\d{1,18});", metadata or "", re.ASCII)
        return cls(*map(int, match.groups())) if match else cls()


class PartitionOffsets:
    """Records of one partition, started in order of their offsets, finished in any order. Not thread-safe."""

    def __init__(self, position: int) -> None:
        """`position`: the committed offset, where reading begins."""
        self._position = position
        self._started: deque[int] = deque()
        self._finished: set[int] = set()
        self._upto = position

    def start(self, offset: int) -> None:
        """A record was handed out. Offsets grow, and may have gaps (compaction, transactions)."""
        self._started.append(offset)
        self._upto = offset + 1

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
    def upto(self) -> int:
        """One beyond the last record that was handed out."""
        return self._upto

    @property
    def in_hand(self) -> int:
        """Records started and not finished."""
        return len(self._started) - len(self._finished)


class Suspicion:
    """One assignment of a partition to this process: what earlier processes left, and what this one leaves.

    `starts` counts up with every process that begins on the partition; progress of the committed offset sets it back to
    one (this process); a process that leaves in order takes its own start back. From the third start without progress
    on, the records that may have been in hand run alone, each with its own count, until the one that kills is found.
    """

    SUSPICIOUS_STARTS = 3
    ALONE_LIMIT = 2

    def __init__(self, position: int, metadata: str, end: int, window: int) -> None:
        """`end`: the offset after the partition's last record now; what comes later cannot have been started before.

        `window`: records that an earlier process may have had in hand beyond what it wrote down.
        """
        self._found = Starts.parse(metadata)
        self._found_at = position
        self._alone_at, self._alone = position, self._found.alone  # what is committed, or about to be
        reach = max(self._found.upto, position) + window if self._found.starts else self._found.upto
        self._seen_until = min(reach, end)
        self.starts = self._found.starts + 1
        self.alone_until = self._seen_until if self.starts >= self.SUSPICIOUS_STARTS else position

    def attempt(self, offset: int) -> int:
        """Of a record: 1, or more where an earlier process (or this one, before a rebalance) may have started it."""
        return max(2, self.starts) if offset < self._seen_until else 1

    def deadly(self, offset: int) -> bool:
        """Whether the record has killed its process alone as often as is allowed."""
        return self._alone_found(offset) >= self.ALONE_LIMIT

    def before_alone(self, offset: int) -> Starts:
        """What to commit at `offset` before that record runs alone."""
        self._alone_at, self._alone = offset, self._alone_found(offset) + 1
        return Starts(self.starts, self._alone, offset + 1)

    def running(self, position: int, upto: int) -> Starts:
        """What to commit at `position` while this process goes on."""
        started = self.starts if position <= self._found_at or position < self.alone_until else 1
        return Starts(started, self._alone if position == self._alone_at else 0, max(position, upto))

    def leaving(self, position: int, upto: int) -> Starts:
        """What to commit at `position` when this process gives the partition up in order."""
        if position >= self.alone_until and (position > self._found_at or position >= upto):
            return Starts(0, 0, upto)  # progress, or nothing in hand, and no suspicion that is left
        return Starts(self._found.starts, self._alone_found(position), max(upto, self._found.upto))

    def _alone_found(self, offset: int) -> int:
        return self._found.alone if offset == self._found_at else 0
