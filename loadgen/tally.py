"""What can be said of a run while it goes on. Whoever counts never waits for whoever looks."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from loadgen.target import Exchange
from services.accounting import GROUP_OF, monotonic_ns

# Enough for a percentile and a mean for the eye, and few enough to be looked at within a fraction of a millisecond.
_RECENT = 512
_LEDGERS = 24


class Reading(NamedTuple):
    """Counts so far; of the last answers `latencies`, (done, total) in ns, and `groups`, their time by group in ns.

    `answered` includes failures, which are `failed`, but not frames that were dropped.
    """

    sent: int = 0
    answered: int = 0
    failed: int = 0
    dropped: int = 0
    latencies: Sequence[tuple[int, int]] = ()
    groups: tuple[tuple[str, int], ...] = ()

    @property
    def in_flight(self) -> int:
        """Sent and not answered."""
        return self.sent - self.answered


def merged(readings: Iterable[Reading]) -> Reading:
    """Of several senders, all together."""
    found = list(readings)
    groups: Counter[str] = Counter()
    for reading in found:
        groups.update(dict(reading.groups))
    return Reading(
        sum(r.sent for r in found),
        sum(r.answered for r in found),
        sum(r.failed for r in found),
        sum(r.dropped for r in found),
        [latency for r in found for latency in r.latencies],
        tuple(groups.items()),
    )


class Tally:
    """Counts sendings and answers. Thread-safe; the lock is held for an addition, never while somebody looks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = self._answered = self._failed = self._dropped = 0
        self._recent: deque[Exchange] = deque(maxlen=_RECENT)

    def sent(self) -> None:
        """One more is sent."""
        with self._lock:
            self._sent += 1

    def answered(self, exchange: Exchange) -> None:
        """One more is answered, or has failed."""
        with self._lock:
            self._answered += 1
            self._failed += exchange.error is not None
        self._recent.append(exchange)  # appending is atomic

    def dropped(self) -> None:
        """One more frame gave way to a newer one."""
        with self._lock:
            self._dropped += 1

    def reading(self, within_s: float = 2.0) -> Reading:
        """Now; of the answers of the last `within_s` seconds."""
        since = monotonic_ns() - within_s * 1e9
        recent = [e for e in self._recent.copy() if e.error is None and e.done_ns >= since]
        groups: Counter[str] = Counter()
        for exchange in recent[-_LEDGERS:]:
            for tile in exchange.tiles:
                groups[GROUP_OF[tile.stage].value] += tile.duration_ns
        latencies = [(e.done_ns, e.total_ns) for e in recent]
        return Reading(self._sent, self._answered, self._failed, self._dropped, latencies, tuple(groups.items()))
