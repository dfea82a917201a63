"""Progress on long work: it renews itself on a terminal, and is a line per step elsewhere (logs, CI)."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TextIO

from loadgen.live import Live, Watched, cut, width_of

_EVERY_S = 0.1
_BAR = 24


class Display(Protocol):
    """Where it is said how far something is."""

    def __call__(self, what: str, done: int, of: int) -> None:
        """`done` of `of`; 0: no count is known."""
        ...

    def watching(self, watched: Watched) -> contextlib.AbstractContextManager[None]:
        """While a load is sent."""
        ...


class Progress:
    """Call it with (what, done, of); `of` 0: no count is known. Thread-safe: answers come in on many threads."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic, *, live: bool = True
    ) -> None:
        """To `stream` (stderr, so that standard output holds results only). `live` False: as if it were no terminal."""
        self._stream = stream or sys.stderr
        self._clock = clock
        self._live = live and self._stream.isatty()
        self._lock = threading.Lock()
        self._what = ""
        self._since = 0.0
        self._shown = -_EVERY_S
        self._width = 0

    def __call__(self, what: str, done: int, of: int) -> None:
        """Show it, at most ten times a second."""
        with self._lock:
            now = self._clock()
            new = what != self._what
            if new:
                self._what, self._since = what, now
            if not self._live:
                if new:
                    self._stream.write(f"{what}\n")
                    self._stream.flush()
                return
            if not new and done < of and now - self._shown < _EVERY_S:
                return
            self._shown = now
            self._write(cut(self._line(what, done, of, now - self._since), width_of(self._stream)))

    @contextlib.contextmanager
    def watching(self, watched: Watched) -> Iterator[None]:
        """While a load is sent: on a terminal a block that is drawn anew, elsewhere one line that it has begun."""
        if not self._live:
            self(watched.what, 0, 0)
            yield
            return
        self.clear()
        live = Live(self._stream, watched, self._clock)
        live.start()
        try:
            yield
        finally:
            live.close()

    def _line(self, what: str, done: int, of: int, seconds: float) -> str:
        if not of:
            return f"{what} ..."
        filled = round(_BAR * done / of)
        rate = f", {done / seconds:.0f}/s" if seconds > 0.5 else ""
        return f"[{'#' * filled}{'.' * (_BAR - filled)}] {done}/{of}  {what}{rate}"

    def _write(self, line: str) -> None:
        self._stream.write("\r" + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)

    def clear(self) -> None:
        """Give the line back, before something else is printed."""
        with self._lock:
            if self._live and self._width:
                self._stream.write("\r" + " " * self._width + "\r")
                self._stream.flush()
                self._width = 0
            self._what = ""
