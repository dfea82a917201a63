"""Entries that a listener has in hand: delivered to it and not answered, acknowledged and deleted."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable


class InHand:
    """Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._changes = 0
        self._ids: set[bytes] = set()
        self._lost: set[bytes] = set()

    def take(self, ids: Iterable[bytes]) -> None:
        """They were delivered to this listener."""
        with self._changed:
            self._ids.update(ids)
            self._lost.difference_update(self._ids)  # lost before, and delivered anew

    def release(self, ids: Iterable[bytes]) -> None:
        """They are out of hand."""
        with self._changed:
            for id_ in ids:
                self._ids.discard(id_)
                self._lost.discard(id_)
            self._changes += 1
            self._changed.notify_all()

    def keep(self, ours: Collection[bytes]) -> list[bytes]:
        """Ids in hand that are among `ours`, what Redis says is pending here; the others are lost to a peer."""
        with self._changed:
            held = self._ids.intersection(ours)
            self._lost = self._ids - held
            return sorted(held)

    def lost(self, id_: bytes) -> bool:
        """Whether a peer has it: what has not been begun here is left to it."""
        with self._changed:
            return id_ in self._lost

    def ids(self) -> frozenset[bytes]:
        """All of them."""
        with self._changed:
            return frozenset(self._ids)

    @property
    def count(self) -> int:
        """How many."""
        with self._changed:
            return len(self._ids)

    @property
    def changes(self) -> int:
        """Counts what `wait_change` waits for."""
        with self._changed:
            return self._changes

    def wake(self) -> None:
        """End the waits below."""
        self.release(())

    def wait_change(self, since: int, timeout: float) -> None:
        """Until `changes` is not `since` any more: an entry is out of hand; `timeout` seconds at the most."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != since, timeout)

    def wait_empty(self, timeout: float) -> bool:
        """Until nothing is in hand; False when that takes longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            return self._changed.wait_for(lambda: not self._ids, max(0.0, deadline - time.monotonic()))
