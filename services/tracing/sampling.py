"""Which requests get spans: the sampled, the slow and the failed.

The decision falls when the request is over, so that slow and failed ones need no luck. A sampling decision that came
with the request stands; slow and failed requests beyond it are capped in rate, or an outage would be an outage of the
tracing too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

# The running p99 is that of so many last requests, looked at anew after every so many; none before the first look.
_WINDOW = 1024
_EVERY = 128
_QUANTILE = 0.99


class Decision(NamedTuple):
    """`because`: parent, ratio, slow or error. `forced`: against the decision of the parent, if there is one."""

    because: str
    forced: bool


class SlowMark:
    """Above which a request is slow: a fixed time, else the p99 of the last requests. One thread at a time."""

    def __init__(self, fixed_ns: int | None) -> None:
        self._fixed_ns = fixed_ns
        self._last: deque[int] = deque(maxlen=_WINDOW)
        self._since = 0
        self._mark: int | None = fixed_ns

    def passed(self, total_ns: int) -> bool:
        """Whether a request that took so long was slow, by what was known before it."""
        slow = self._mark is not None and total_ns > self._mark
        if self._fixed_ns is None:
            self._last.append(total_ns)
            self._since += 1
            if self._since >= _EVERY:
                self._since = 0
                ordered = sorted(self._last)
                self._mark = ordered[int(_QUANTILE * (len(ordered) - 1))]
        return slow


class TokenBucket:
    """`per_s` tokens per second, at most one second's worth (and one) saved. One thread at a time."""

    def __init__(self, per_s: float, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._clock = clock
        self._most = max(1.0, per_s) if per_s > 0 else 0.0
        self._tokens = self._most
        self._then = clock()

    def take(self) -> bool:
        """Take one, if there is one."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._then) * self._per_s)
        self._then = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Sampler:
    """Thread-safe."""

    def __init__(
        self,
        ratio: float,
        draw: Callable[[], float],
        *,
        slow_ms: float = 0.0,
        forced_per_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ratio`: of requests that bring no decision. `draw`: uniform in [0, 1). `slow_ms` 0: the running p99."""
        self.ratio = ratio
        self._draw = draw
        self._lock = threading.Lock()
        self._slow = SlowMark(round(slow_ms * 1e6) if slow_ms > 0 else None)
        self._bucket = TokenBucket(forced_per_s, clock)

    def decide(self, came: bool | None, total_ns: int, *, failed: bool) -> Decision | None:
        """None: no spans. `came`: the decision that came with the request, None if none did."""
        with self._lock:
            slow = self._slow.passed(total_ns)
            if came:
                return Decision("parent", forced=False)
            if came is None and self._draw() < self.ratio:
                return Decision("ratio", forced=False)
            if (failed or slow) and self._bucket.take():
                return Decision("error" if failed else "slow", forced=True)
            return None
