"""A block of lines that says what goes on while a load is sent, drawn anew a few times a second on a terminal.

It is drawn by a thread of its own from counts that others keep: whoever sends never waits for a terminal.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO

from loadgen.statistics import quantile
from loadgen.tally import Reading
from services.accounting import Group

EVERY_S = 0.25
_WINDOW_S = 2.0
_BAR = 24
_NARROW = 80
_ENOUGH_FOR_P99 = 100
_LETTERS = {group: group.value[0].upper() for group in Group}  # each begins with another one
# The thread is at a terminal that may have been stopped; nobody waits for that.
_JOIN_S = 1.0


class Watched(NamedTuple):
    """What is sent, and how to read how far it is. `offered_rps`: None where the target sets the pace."""

    what: str
    requests: int
    offered_rps: float | None
    read: Callable[[], Reading]


def width_of(stream: TextIO) -> int:
    """Columns of a terminal; 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or _NARROW
    except (OSError, ValueError):
        return _NARROW


def cut(line: str, width: int) -> str:
    """To what fits, with one column to spare: a full line would wrap, and be counted as two."""
    return line if len(line) < width else f"{line[: max(0, width - 4)]}..."[: max(0, width - 1)]


def lines(watched: Watched, reading: Reading, elapsed_s: float, achieved_rps: float | None, width: int) -> list[str]:
    """The block, cut to `width` columns."""
    done = reading.answered + reading.dropped
    filled = round(_BAR * min(1.0, done / max(1, watched.requests)))
    offered = "" if watched.offered_rps is None else f"offered {watched.offered_rps:.1f}/s, "
    achieved = "-" if achieved_rps is None else f"{achieved_rps:.1f}/s"
    counts = f"in flight {reading.in_flight}"
    counts += f", failed {reading.failed}" if reading.failed else ""
    counts += f", dropped {reading.dropped}" if reading.dropped else ""
    block = [
        f"{watched.what}, {elapsed_s:.0f} s",
        f"[{'#' * filled}{'.' * (_BAR - filled)}] {done}/{watched.requests}  {offered}answered {achieved}, {counts}",
        _latency(reading),
        _groups(reading),
    ]
    return [cut(line, width) for line in block]


def _latency(reading: Reading) -> str:
    totals = sorted(total / 1e6 for _, total in reading.latencies)
    if not totals:
        return f"latency of the last {_WINDOW_S:.0f} s: no answer yet"
    # It is for the eye; what is stored has intervals, and minimum counts.
    p99 = f", p99 {quantile(totals, 0.99):.1f} ms" if len(totals) >= _ENOUGH_FOR_P99 else ""
    return (
        f"latency of the last {_WINDOW_S:.0f} s: p50 {quantile(totals, 0.5):.1f} ms{p99}, max {totals[-1]:.1f} ms "
        f"({len(totals)} {'answer' if len(totals) == 1 else 'answers'})"
    )


def _groups(reading: Reading) -> str:
    sums = {Group(name): max(0, ns) for name, ns in reading.groups}
    whole = sum(sums.values())
    if not whole:
        return ""
    shares = sorted(((ns / whole, group) for group, ns in sums.items()), reverse=True)
    told = [f"{_LETTERS[group]} {group.value} {share:.0%}" for share, group in shares if share >= 0.005]
    bar = "".join(_LETTERS[group] * round(_BAR * share) for share, group in shares)
    return f"[{bar[:_BAR].ljust(_BAR)}] {', '.join(told)}"


class Live:
    """Draws until it is closed. The block is gone then, and the cursor is where it began."""

    def __init__(self, stream: TextIO, watched: Watched, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._watched = watched
        self._clock = clock
        self._begin = clock()
        self._answered: deque[tuple[float, int]] = deque()
        self._drawn = 0
        self._sent = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)

    def start(self) -> None:
        """Begin to draw."""
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            self.draw()
            self._ended.wait(EVERY_S)

    def draw(self) -> None:
        """Once, over what was drawn before."""
        now, reading = self._clock(), self._watched.read()
        if reading.sent < self._sent:
            return  # what was watched is over: the sender has put its counts aside, and we are about to be closed
        self._sent = reading.sent
        block = lines(self._watched, reading, now - self._begin, self._rate(now, reading), width_of(self._stream))
        self._write(block)

    def _rate(self, now: float, reading: Reading) -> float | None:
        """Answers per second in the last two."""
        past = self._answered
        past.append((now, reading.answered))
        while len(past) > 2 and now - past[0][0] > _WINDOW_S:
            past.popleft()
        (then, before) = past[0]
        return (reading.answered - before) / (now - then) if now > then else None

    def _write(self, block: Sequence[str]) -> None:
        # Up to the first line of the block, then each line and what is left of the older one.
        up = f"\x1b[{self._drawn - 1}F" if self._drawn > 1 else "\r"
        self._stream.write(up + "\n".join(f"{line}\x1b[K" for line in block))
        self._stream.flush()
        self._drawn = len(block)

    def close(self) -> None:
        """End, and give the lines back."""
        self._ended.set()
        self._thread.join(_JOIN_S)
        if self._drawn and not self._thread.is_alive():
            self._stream.write((f"\x1b[{self._drawn - 1}F" if self._drawn > 1 else "\r") + "\x1b[J")
            self._stream.flush()
