"""Whether what comes out of a queue can have waited there for its consumer.

An estimate of waiting is beyond the least age of late (`AgeMeter`), and is right only if somebody did not wait of late.
In a backlog that lasts, nobody does not.
"""

from __future__ import annotations

# From one look into the queue to the next, where nothing is in between but the consumer's own loop.
_AT_ONCE_NS = 20_000_000


class Drained:
    """What one consumer knows of one queue. Not thread-safe: it is its thread's own."""

    __slots__ = ("_empty_ns",)

    def __init__(self) -> None:
        """It is not known yet."""
        self._empty_ns: int | None = None

    def fresh(self, asked_ns: int) -> bool:
        """Whether what came, when it was asked for at `asked_ns`, came since: the queue was empty just before."""
        return self._empty_ns is not None and asked_ns - self._empty_ns <= _AT_ONCE_NS

    def took(self, now_ns: int, *, everything: bool) -> None:
        """What was asked for came, which may be nothing; and was it all that was there?"""
        self._empty_ns = now_ns if everything else None

    def left(self) -> None:
        """Nobody looks for a while."""
        self._empty_ns = None
