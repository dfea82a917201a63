"""A device's own times as parts of the wall time of the thread that waited. Knows no CUDA, only its events.

A CUDA event is a boundary that the device itself stamps when its stream gets there. Synchronizing the host at every
boundary instead would empty the device's queue each time, and so lengthen what it measures.

The law of accounting holds: the tiles are integers, none is negative, and they sum to the wall time of the host's
clock. Events are on the device's clock, so only differences of them are used (a float in ms, resolution about 0.5 us:
cudaEventElapsedTime), and they divide the interval on the host's clock like this:

    host's clock   |--- host prepares ---|begin()                                              now|
    device's clock                          |-- upload --|------ infer ------|-- download --|
    tiles          |------------ upload --------------|------- infer ------|----- download -----|

* The first stage is what the host did since the last boundary (batch assembly, the copy into pinned memory) and the
  first difference.
* Stages in between are their difference exactly: nothing of the host's is charged to `infer`. What the device waited
  for within it (the host's launches, other streams' work) is in it: that is how long inference took.
* The last stage is the rest, until the thread has its results: its own difference, how long the device took to begin,
  the wake-up of the thread, and its copy out of pinned memory.

If the differences sum to more than there is (two clocks, rounding), later boundaries are moved forward to now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from services.accounting import Clock, Stage, Timeline, monotonic_ns


class Event(Protocol):
    """As `torch.cuda.Event(enable_timing=True)` has it."""

    def record(self, stream: Any = ...) -> None:
        """Stamp it when `stream` gets here."""
        ...

    def synchronize(self) -> None:
        """Wait until it is stamped."""
        ...

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this one to `end`; both are stamped."""
        ...


def boundaries(begun_ns: int, end_ns: int, spent_ms: Sequence[float]) -> list[int]:
    """The boundary after each of the stages but the last, whose boundary is `end_ns`. None is later than `end_ns`.

    `spent_ms`: the device's time of each stage but the last; a negative one counts as 0.
    """
    drawn = []
    last = begun_ns
    for spent in spent_ms:
        last = min(end_ns, last + max(0, round(spent * 1e6)))
        drawn.append(last)
    return drawn


class DeviceMarks:
    """The events of one batch at a time on one stream. They are made once and used again: making one costs a call."""

    def __init__(self, new_event: Callable[[], Event], clock: Clock = monotonic_ns) -> None:
        self._new_event = new_event
        self._clock = clock
        self._events: list[Event] = []
        self._stages: list[Stage] = []
        self._begun_ns = 0

    def begin(self, stream: Any) -> None:
        """The host has prepared what it had to; the device's work follows."""
        self._stages.clear()
        self._record(stream)
        self._begun_ns = self._clock()

    def mark(self, stage: Stage, stream: Any) -> None:
        """What has been given to `stream` since the last mark is `stage`."""
        self._stages.append(stage)
        self._record(stream)

    def _record(self, stream: Any) -> None:
        index = len(self._stages)
        if index == len(self._events):
            self._events.append(self._new_event())
        self._events[index].record(stream)

    def wait(self) -> None:
        """Until the device is past the last mark."""
        self._events[len(self._stages)].synchronize()

    def cut(self, timeline: Timeline) -> None:
        """Close the interval since the timeline's last boundary as the marked stages. The device is past them."""
        pairs = zip(self._events, self._events[1 : len(self._stages)], strict=False)
        spent = [earlier.elapsed_time(later) for earlier, later in pairs]
        begun = max(self._begun_ns, timeline.last_ns)
        for stage, boundary in zip(self._stages, boundaries(begun, self._clock(), spent), strict=False):
            timeline.cut_at(stage, boundary)
        timeline.cut(self._stages[-1], on_device=True)
