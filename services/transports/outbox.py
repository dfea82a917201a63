"""What waits to be sent, in order: taken in batches by one thread, so that a busy link sends many things at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """Thread-safe. Bounded by a number of items and by their bytes; so is a batch, but for its first item."""

    def __init__(self, most: int, most_bytes: int, batch: int, batch_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._batch, self._batch_bytes = batch, batch_bytes
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._closed = False

    def put(self, item: Item, nbytes: int) -> bool:
        """Whether there was room; an empty outbox has room for anything."""
        with self._changed:
            full = len(self._waiting) >= self._most or self._bytes + nbytes > self._most_bytes
            if self._waiting and full:
                return False
            self._waiting.append((item, nbytes))
            self._bytes += nbytes
            self._changed.notify()
            return True

    def put_back(self, items: Iterable[tuple[Item, int]]) -> None:
        """What was taken and could not be sent: it is the next to be taken, in the same order."""
        with self._changed:
            for item, nbytes in reversed(list(items)):
                self._waiting.appendleft((item, nbytes))
                self._bytes += nbytes

    def take(self, timeout: float) -> list[tuple[Item, int]]:
        """The next batch, with the bytes of each; empty when nothing came for `timeout` seconds, or it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout)
            taken: list[tuple[Item, int]] = []
            nbytes = 0
            while self._waiting and len(taken) < self._batch:
                if taken and nbytes + self._waiting[0][1] > self._batch_bytes:
                    break
                taken.append(self._waiting.popleft())
                nbytes += taken[-1][1]
            self._bytes -= nbytes
            return taken

    def clear(self) -> None:
        """Forget all of it."""
        with self._changed:
            self._waiting.clear()
            self._bytes = 0

    def close(self) -> None:
        """Nobody waits from here on; what is there can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
