"""The ledger: where the time of one request went. Pure standard library.

The law, in short (docs/adr/0001 has it in full):

* A process keeps **one flat list of boundaries** per request (`Timeline.cut`); each cut closes the interval since the
  last one, so the parts sum to the total identically, as integers, for every request.
* A callee reports durations on its own clock. What is left of a call is a **remainder** (`Timeline.call`): `transit` on
  a hop, `dispatch` inside a process. A remainder is never called network.
* A stage that computes carries the CPU time of its thread beside its wall time; the difference is *stalled*.

Units: integer nanoseconds everywhere.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from operator import itemgetter
from typing import NamedTuple


class _Word(StrEnum):
    """A word that is a key of many dictionaries on the path of a request: Enum's own hash is a call of Python's."""

    __hash__ = str.__hash__


class Group(_Word):
    """What a stage is about; the rows of every report."""

    CLIENT = "client"
    QUEUEING = "queueing"
    PREPROCESSING = "preprocessing"
    SERIALIZATION = "serialization"
    MOVEMENT = "movement"
    TRANSFER = "transfer"
    INFERENCE = "inference"
    EXCEPTIONAL = "exceptional"


class Stage(_Word):
    """What a request can spend time on."""

    SCHEDULE_LAG = "schedule_lag"  # intended -> sent, in the load generator
    ADMISSION = "admission"  # the call is queued -> a worker picks it up
    PREPROCESS_QUEUE = "preprocess_queue"
    SEND_QUEUE = "send_queue"  # to be sent: in line behind siblings; in the client's buffers
    BROKER_WAIT = "broker_wait"  # age at receipt beyond the recent minimum
    INFERENCE_QUEUE = "inference_queue"
    BATCH_WAIT = "batch_wait"  # in a batch that is being collected
    REPLY_QUEUE = "reply_queue"  # the outcome is there -> a thread takes it up to send it
    DISPATCH = "dispatch"  # the reply is there -> the waiter resumes
    DECODE = "decode"
    RESIZE = "resize"
    NORMALIZE = "normalize"
    INTERPRET = "interpret"
    SERIALIZE = "serialize"
    DESERIALIZE = "deserialize"
    TRANSIT = "transit"  # the remainder of a hop; reports split it into network (calibrated floor) and excess
    UPLOAD = "upload"  # batch assembly and host -> device
    INFER = "infer"
    DOWNLOAD = "download"  # device -> host and batch split
    REMOTE = "remote"  # a callee without a ledger
    REDELIVERY = "redelivery"  # broker_wait of a record that was delivered before
    RETRY = "retry"
    UNANSWERED = "unanswered"


GROUP_OF: dict[Stage, Group] = {
    Stage.SCHEDULE_LAG: Group.CLIENT,
    Stage.ADMISSION: Group.QUEUEING,
    Stage.PREPROCESS_QUEUE: Group.QUEUEING,
    Stage.SEND_QUEUE: Group.QUEUEING,
    Stage.BROKER_WAIT: Group.QUEUEING,
    Stage.INFERENCE_QUEUE: Group.QUEUEING,
    Stage.BATCH_WAIT: Group.QUEUEING,
    Stage.REPLY_QUEUE: Group.QUEUEING,
    Stage.DISPATCH: Group.QUEUEING,
    Stage.DECODE: Group.PREPROCESSING,
    Stage.RESIZE: Group.PREPROCESSING,
    Stage.NORMALIZE: Group.PREPROCESSING,
    Stage.INTERPRET: Group.PREPROCESSING,
    Stage.SERIALIZE: Group.SERIALIZATION,
    Stage.DESERIALIZE: Group.SERIALIZATION,
    Stage.TRANSIT: Group.MOVEMENT,
    Stage.UPLOAD: Group.TRANSFER,
    Stage.DOWNLOAD: Group.TRANSFER,
    Stage.INFER: Group.INFERENCE,
    Stage.REMOTE: Group.EXCEPTIONAL,
    Stage.REDELIVERY: Group.EXCEPTIONAL,
    Stage.RETRY: Group.EXCEPTIONAL,
    Stage.UNANSWERED: Group.EXCEPTIONAL,
}

# Stages in which a thread computes: the only ones whose CPU time says something.
CPU_STAGES = frozenset(
    {
        Stage.DECODE,
        Stage.RESIZE,
        Stage.NORMALIZE,
        Stage.INTERPRET,
        Stage.SERIALIZE,
        Stage.DESERIALIZE,
        Stage.UPLOAD,
        Stage.INFER,
        Stage.DOWNLOAD,
    }
)

UNKNOWN_CPU = -1  # a queue, a remainder, or an interval that began on another thread

Clock = Callable[[], int]
monotonic_ns: Clock = time.monotonic_ns


class Fact(_Word):
    """What else is known of a part of a request. Never a duration that a sum could want."""

    SYSTEM = "system"  # of a hop: the transport's scheme
    DESTINATION = "destination"  # of a hop: host:port, or topic
    REQUEST_BYTES = "request_bytes"
    REPLY_BYTES = "reply_bytes"
    PARTITION = "partition"  # of the record that brought the request
    OFFSET = "offset"
    ATTEMPT = "attempt"  # where it was not the first
    PUBLISH_NS = "publish_ns"  # handed to the client library -> acknowledged by the broker, on the sender's clock
    AGE_NS = "age_ns"  # at receipt, exact: there only where one clock read both ends
    BATCH_SIZE = "batch_size"
    BATCH_ID = "batch_id"


# What a fact says is a word, where it is not a number.
TEXTS = frozenset({Fact.SYSTEM, Fact.DESTINATION})

Facts = tuple[tuple[Fact, int | str], ...]


class Tile(NamedTuple):
    """One part of a request's time. `duration_ns` of a remainder may be slightly negative: it is never clamped."""

    stage: Stage
    duration_ns: int
    cpu_ns: int  # UNKNOWN_CPU where it was not measured
    where: str  # process role ("client", "preprocess", "inference"), or a hop ("preprocess>inference")
    facts: Facts = ()


_duration = itemgetter(Tile._fields.index("duration_ns"))


def total_ns(tiles: Iterable[Tile]) -> int:
    """The sum of their durations."""
    return sum(map(_duration, tiles))


class Mark(NamedTuple):
    """A boundary that was noted when it was passed, to be drawn once it is known what came before it."""

    ns: int
    cpu_ns: int
    thread: int


# Each saves a call of Python's, a dozen times per request.
_as_tile = _as_mark = tuple.__new__
_thread = threading.get_ident


class Timeline:
    """The boundaries of one request in one process, from `start_ns` on.

    Not thread-safe on purpose: a request is in one hand at a time, and handing it over is what a queue stage measures.
    `clock` gives integer nanoseconds; `cpu_clock` the CPU nanoseconds of the calling thread.
    """

    __slots__ = ("_clock", "_cpu_clock", "_last_cpu_ns", "_last_thread", "last_ns", "start_ns", "tiles", "where")

    def __init__(
        self,
        where: str,
        start_ns: int | None = None,
        clock: Clock = monotonic_ns,
        cpu_clock: Clock = time.thread_time_ns,
    ) -> None:
        self.where = where
        self.tiles: list[Tile] = []
        self._clock = clock
        self._cpu_clock = cpu_clock
        self.start_ns = self.last_ns = clock() if start_ns is None else start_ns
        self._last_cpu_ns = self._last_thread = 0
        if start_ns is None:  # else it began elsewhere, and this thread's CPU clock of then is not known
            self.resume()

    def cut(self, stage: Stage, *, on_device: bool = False) -> int:
        """Close the interval since the last boundary as `stage`; returns the boundary.

        CPU time is taken when both boundaries were drawn by the same thread and the stage computes. `on_device`:
        something else computed while the thread waited, so its CPU time says nothing, and the wait is no stall.
        """
        now = self._clock()
        cpu = self._cpu_clock()
        thread = _thread()
        measured = thread == self._last_thread and stage in CPU_STAGES and not on_device
        spent = cpu - self._last_cpu_ns if measured else UNKNOWN_CPU
        self.tiles.append(_as_tile(Tile, (stage, now - self.last_ns, spent, self.where, ())))
        self.last_ns = now
        self._last_cpu_ns = cpu
        self._last_thread = thread
        return now

    def resume(self) -> None:
        """Read this thread's CPU clock anew, after a boundary that was drawn elsewhere; no boundary is drawn."""
        self._last_cpu_ns = self._cpu_clock()
        self._last_thread = _thread()

    def cut_at(self, stage: Stage, boundary_ns: int, where: str | None = None) -> None:
        """Close the interval at a boundary that was stamped by someone else (a transport, a batch) on this clock."""
        self.tiles.append(_as_tile(Tile, (stage, boundary_ns - self.last_ns, UNKNOWN_CPU, where or self.where, ())))
        self.last_ns = boundary_ns
        self._last_thread = 0  # the CPU clock was not read at that boundary

    def mark(self) -> Mark:
        """Note this instant; `cut_to` draws the boundary later."""
        return _as_mark(Mark, (self._clock(), self._cpu_clock(), _thread()))

    def cut_to(self, stage: Stage, mark: Mark) -> None:
        """Close the interval since the last boundary at `mark`; CPU time of the next one counts from there."""
        now, cpu, thread = mark
        self.tiles.append(_as_tile(Tile, (stage, now - self.last_ns, UNKNOWN_CPU, self.where, ())))
        self.last_ns, self._last_cpu_ns, self._last_thread = now, cpu, thread

    def call(
        self,
        tiles: Iterable[Tile],
        remainder: Stage,
        end_ns: int | None = None,
        where: str | None = None,
        facts: Facts = (),
    ) -> int:
        """Close the interval as a call that someone else accounted for: their tiles, and what is left as `remainder`.

        `end_ns` is when the call ended on this clock (now, if None). `facts`: of the remainder, which it returns in
        nanoseconds.
        """
        now = self._clock() if end_ns is None else end_ns
        theirs = tuple(tiles)
        left = now - self.last_ns - total_ns(theirs)
        self.tiles += theirs
        self.tiles.append(_as_tile(Tile, (remainder, left, UNKNOWN_CPU, where or self.where, facts)))
        self.last_ns = now
        if end_ns is None:
            self.resume()
        else:  # then is over, and nobody has read the CPU clock of then
            self._last_thread = 0
        return left

    def state(self, *facts: tuple[Fact, int | str]) -> None:
        """Say something of the part that was closed last."""
        stage, duration, cpu, where, known = self.tiles[-1]
        self.tiles[-1] = _as_tile(Tile, (stage, duration, cpu, where, known + facts))

    @property
    def total_ns(self) -> int:
        """From the start to the last boundary; equals the sum of the tiles."""
        return self.last_ns - self.start_ns


def added_up(tiles: Iterable[Tile]) -> list[Tile]:
    """One tile for each stage and place, in the order in which they came: what was done many times over, in short.

    Sums stay as they are. CPU time is unknown where one of the parts' is; facts are those of the first that has some.
    """
    sums: dict[tuple[Stage, str], Tile] = {}
    for tile in tiles:
        key = (tile.stage, tile.where)
        known = sums.get(key)
        if known is None:
            sums[key] = tile
            continue
        unknown = UNKNOWN_CPU in (known.cpu_ns, tile.cpu_ns)
        sums[key] = Tile(
            tile.stage,
            known.duration_ns + tile.duration_ns,
            UNKNOWN_CPU if unknown else known.cpu_ns + tile.cpu_ns,
            tile.where,
            known.facts or tile.facts,
        )
    return list(sums.values())


def carve(tiles: list[Tile], index: int, stage: Stage, amount_ns: int, at: int) -> None:
    """Move `amount_ns` of the tile at `index` into a tile of its own, `stage`, to be found at `at`; no sum changes."""
    source = tiles[index]
    tiles[index] = source._replace(duration_ns=source.duration_ns - amount_ns)
    tiles.insert(at, Tile(stage, amount_ns, UNKNOWN_CPU, source.where))


# Senders times sizes whose minima are kept at once.
_MOST_WINDOWS = 1024
_GRAINS = 1000  # as which a window moves on


class AgeMeter:
    """How much longer than lately possible a message took: its age minus the minimum age of the window.

    The sender's stamp may be on another clock: a constant offset cancels, so the estimate needs no synchronized clocks;
    its error is bounded by the drift over the window plus the smallest age itself (which stays in `transit`). Messages
    of different size have different floors, so there is one window per power of two of the size. One per receiver
    and direction; thread-safe. After Lamport-style one-way delay estimation (minimum filter, as in RFC 5905's clock
    filter).

    In a backlog that lasts longer than the window everybody waits, so that the least age is a wait itself. A longer
    window sees more of it, and believes for longer that no clock is set; `forget` is for who knows that one was.
    """

    def __init__(self, window_ns: int = 10_000_000_000) -> None:
        self._window_ns = window_ns
        self._lock = threading.Lock()
        self._minima: dict[tuple[str, int], deque[tuple[int, int]]] = {}

    def excess_ns(self, sender: str, size: int, stamp_ns: int, receipt_ns: int, *, known: bool = False) -> int:
        """Nanoseconds beyond the recent minimum, >= 0. `sender` names the clock that `stamp_ns` is on.

        `known`: it was asked about before, and is no news.
        """
        age = receipt_ns - stamp_ns
        key = (sender, size.bit_length())
        with self._lock:
            if key not in self._minima and len(self._minima) >= _MOST_WINDOWS:
                self._forget(receipt_ns)
            minima = self._minima.setdefault(key, deque())
            if known and minima:
                return max(0, age - minima[0][1])
            while minima and minima[-1][1] >= age:  # a monotonic queue: the front is the window's minimum
                minima.pop()
            # A thousandth of the window more or less: else it would hold every message of a backlog.
            if not minima or receipt_ns - minima[-1][0] >= self._window_ns // _GRAINS:
                minima.append((receipt_ns, age))
            while minima[0][0] < receipt_ns - self._window_ns:
                minima.popleft()
            return age - minima[0][1]

    def forget(self) -> None:
        """A clock was set: nothing is known any more."""
        with self._lock:
            self._minima.clear()

    def _forget(self, now_ns: int) -> None:
        """Senders come and go, each with a name of its own: drop the windows that are over, else the oldest one."""
        last = {key: minima[-1][0] for key, minima in self._minima.items()}
        over = [key for key, ns in last.items() if ns < now_ns - self._window_ns]
        for key in over or [min(last, key=lambda key: last[key])]:
            del self._minima[key]


class Breakdown:
    """Tiles added up. Build one with `of` (a request) or `mean` (many)."""

    __slots__ = ("by_stage", "cpu_by_stage", "stalled_ns", "total_ns")

    def __init__(
        self, by_stage: dict[Stage, float], cpu_by_stage: dict[Stage, float], stalled_ns: float, total_ns: float
    ) -> None:
        self.by_stage = by_stage
        self.cpu_by_stage = cpu_by_stage
        # Wall time of computing stages that their thread did not spend on a CPU (locks, other threads, waits).
        self.stalled_ns = stalled_ns
        self.total_ns = total_ns

    @classmethod
    def of(cls, tiles: Iterable[Tile]) -> Breakdown:
        """The sums of one request's tiles, by stage."""
        wall: dict[Stage, float] = {}
        cpu: dict[Stage, float] = {}
        stalled = 0
        for tile in tiles:
            wall[tile.stage] = wall.get(tile.stage, 0) + tile.duration_ns
            if tile.cpu_ns != UNKNOWN_CPU:
                cpu[tile.stage] = cpu.get(tile.stage, 0) + tile.cpu_ns
                stalled += tile.duration_ns - tile.cpu_ns
        return cls(wall, cpu, stalled, sum(wall.values()))

    @classmethod
    def mean(cls, breakdowns: Sequence[Breakdown]) -> Breakdown:
        """The arithmetic mean; means add up (percentiles don't)."""
        if not breakdowns:
            return cls({}, {}, 0.0, 0.0)
        wall: dict[Stage, float] = {}
        cpu: dict[Stage, float] = {}
        for breakdown in breakdowns:
            for stage, value in breakdown.by_stage.items():
                wall[stage] = wall.get(stage, 0.0) + value
            for stage, value in breakdown.cpu_by_stage.items():
                cpu[stage] = cpu.get(stage, 0.0) + value
        n = len(breakdowns)
        return cls(
            {stage: value / n for stage, value in wall.items()},
            {stage: value / n for stage, value in cpu.items()},
            sum(breakdown.stalled_ns for breakdown in breakdowns) / n,
            sum(breakdown.total_ns for breakdown in breakdowns) / n,
        )

    @property
    def by_group(self) -> dict[Group, float]:
        """The sums by group, groups in the order of `Group`."""
        sums: dict[Group, float] = {}
        for group in Group:
            stages = [value for stage, value in self.by_stage.items() if GROUP_OF[stage] is group]
            if stages:
                sums[group] = sum(stages)
        return sums
