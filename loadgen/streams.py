"""Video streams that drop the oldest: what is asked about is the newest picture, and never one that is out of date.

A stream whose frame is not answered yet keeps one frame waiting. A newer one takes its place, and the older is dropped.
Dropped frames are counted and kept with their intended instants: a camera that loses every second frame has not become
faster by it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from loadgen.target import WHERE, Exchange
from services.accounting import UNKNOWN_CPU, Clock, Stage, Tile

DROPPED = "dropped"


@dataclass(slots=True)
class Frame:
    """One request of a stream. Times: monotonic ns. `taken_up_ns`: when the generator saw that it was due."""

    position: int
    stream: int
    due_ns: int
    taken_up_ns: int
    dropped_ns: int = 0
    exchange: Future[Exchange] | None = None


class Streams:
    """At most one frame of each stream in flight, and at most one waiting."""

    def __init__(
        self,
        send: Callable[[Frame], Future[Exchange]],
        clock: Clock,
        dropped: Callable[[], None] = lambda: None,
    ) -> None:
        """`send` asks about a frame; `dropped` is told of each that gave way."""
        self._send = send
        self._clock = clock
        self._tell = dropped
        self._changed = threading.Condition()
        self._busy: set[int] = set()
        self._waiting: dict[int, Frame] = {}
        self._stopped = False
        self.dropped: list[Frame] = []
        self.failed: BaseException | None = None

    def offer(self, frame: Frame) -> None:
        """Send it, or let it wait in the place of the one that waits."""
        with self._changed:
            free = frame.stream not in self._busy
            if free:
                self._busy.add(frame.stream)
            else:
                older = self._waiting.get(frame.stream)
                self._waiting[frame.stream] = frame
                if older is not None:
                    older.dropped_ns = self._clock()
                    self.dropped.append(older)
                    self._tell()
        if free:
            self._start(frame)

    def _start(self, frame: Frame) -> None:
        frame.exchange = self._send(frame)
        frame.exchange.add_done_callback(lambda _: self._answered(frame.stream))

    def _answered(self, stream: int) -> None:
        """Runs on the thread that brought the answer: what waits goes out at once."""
        with self._changed:
            frame = None if self._stopped else self._waiting.pop(stream, None)
            if frame is None:
                self._busy.discard(stream)
                self._changed.notify_all()
        if frame is None:
            return
        try:
            self._start(frame)
        except BaseException as error:  # noqa: BLE001 # an error in a callback would be lost
            with self._changed:
                self.failed = error
                self._stopped = True
                self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Until nothing waits and nothing is in flight; False where that takes longer, or a sending failed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy or self.failed is not None, timeout_s)
            return not self._busy

    def stop(self) -> list[Frame]:
        """Send no more. What still waited, and is sent no more."""
        with self._changed:
            self._stopped = True
            left = list(self._waiting.values())
            self._waiting.clear()
        return left


def as_dropped(frame: Frame, id_: str) -> Exchange:
    """What a results file has of a frame that was not sent: wholly unanswered, until a newer one took its place."""
    tile = Tile(Stage.UNANSWERED, frame.dropped_ns - frame.due_ns, UNKNOWN_CPU, WHERE)
    message = "a newer frame of its stream took its place"
    return Exchange(id_, frame.due_ns, frame.dropped_ns, (tile,), DROPPED, message, {}, "")


def stood_in_line(exchange: Exchange, taken_up_ns: int) -> Exchange:
    """The exchange with the wait for its turn apart from the generator's own lateness; the sum stays.

    A target calls all between due and sent `schedule_lag`; of that, what comes after `taken_up_ns` was no lateness.
    """
    if not exchange.tiles or exchange.tiles[0].stage is not Stage.SCHEDULE_LAG:
        return exchange
    first = exchange.tiles[0]
    late = min(first.duration_ns, taken_up_ns - exchange.due_ns)
    line = Tile(Stage.SEND_QUEUE, first.duration_ns - late, UNKNOWN_CPU, WHERE)
    return exchange._replace(tiles=(first._replace(duration_ns=late), line, *exchange.tiles[1:]))
