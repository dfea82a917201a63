"""Whether a broker can be reached: asked all the time, for a client library only says so when it has work to do."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from services.errors import ServiceError, Unavailable

_log = logging.getLogger(__name__)

_PERIOD_S = 0.75
# Two failures in a row make a broker "away": one is a pause of its garbage collector, or of this machine.
_TIMEOUT_S = 1.5
_AGAIN_S = 0.1
_FAILURES = 2
# So does an answer that has not come for so long since it was first asked for: a client library may wait several times
# within one question, for its connection, for the answer, and to end what it has begun. With the period that stays a
# second below the 5 s within which callers learn of it: a busy machine needs that second.
_SILENCE_S = 3.2
_GUARD_S = 0.25


class BrokerWatch:
    """Calls `lost`, on a thread of its own, when the broker goes away; logs that, and its return.

    One thread asks, another sees to it that the answer comes in time.
    """

    def __init__(
        self,
        bootstrap: str,
        probe: Callable[[float], None],
        lost: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`probe(timeout)` raises `Unavailable` when the broker does not answer. `clock`: seconds."""
        self._bootstrap = bootstrap
        self._probe = probe
        self._lost = lost
        self._clock = clock
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._up = True
        self._since = 0.0
        self._failures = 0  # in a row
        self._asked: float | None = None  # when the first question began that has no answer yet
        self._threads = [
            threading.Thread(target=self._run, name="broker-watch", daemon=True),
            threading.Thread(target=self._guard, name="broker-guard", daemon=True),
        ]

    @property
    def up(self) -> bool:
        """What was found last; True before the first look."""
        return self._up

    def start(self) -> None:
        """Begin to watch."""
        for thread in self._threads:
            thread.start()

    def doubt(self) -> None:
        """Look now: something failed."""
        self._wake.set()

    def found(self) -> None:
        """It answered somebody."""
        with self._lock:
            self._asked = None  # whoever asks now may have begun while it was away
            if self._up:
                return
            self._up = True
        _log.warning("the broker at %s is back after %.0f s", self._bootstrap, self._clock() - self._since)

    def look(self) -> float:
        """Ask the broker once; seconds until the next look."""
        if self._asked is None:
            self._asked = self._clock()
        try:
            self._probe(_TIMEOUT_S)
        except Unavailable as error:
            self._failures += 1
            if self._failures < _FAILURES:
                return _AGAIN_S
            self._away(error)
        else:
            self._failures = 0
            self.found()
        return _PERIOD_S

    def hear(self) -> None:
        """Whether the answer is overdue: whoever asks may still be waiting for it."""
        asked = self._asked
        if asked is not None and self._clock() - asked >= _SILENCE_S:
            self._away(Unavailable(f"it has not answered for {_SILENCE_S} s"))

    def _run(self) -> None:
        while not self._closed.is_set():
            self._wake.wait(self.look())
            self._wake.clear()

    def _guard(self) -> None:
        while not self._closed.wait(_GUARD_S):
            self.hear()

    def _away(self, error: ServiceError) -> None:
        with self._lock:
            if not self._up or self._closed.is_set():
                return
            self._up = False
            self._since = self._clock()
        _log.warning(
            "the broker at %s cannot be used (%s); calls over it fail until it is back", self._bootstrap, error.message
        )
        self._lost()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(_TIMEOUT_S + 2)
