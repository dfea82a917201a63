"""A bounded queue, workers, and batches collected from it: the one mechanism behind both stages.

The paper's knobs are its parameters: instances per stage (`workers`), maximum batch and maximum queue delay.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.accounting import Clock, Stage, Timeline, monotonic_ns
from services.errors import DeadlineExceeded, Internal, Overloaded, ServiceError, Unavailable

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class Entry(Generic[Item, Result]):
    """One item on its way through a stage. `deadline_ns`: on the process's monotonic clock."""

    item: Item
    timeline: Timeline
    deadline_ns: int
    future: Future[Result]


Process = Callable[[Sequence[Entry[Item, Result]]], None]
Fail = Callable[[Entry[Item, Result], ServiceError], None]


def fail_here(entry: Entry[Item, Result], error: ServiceError) -> None:
    """Fail the entry's Future on the thread that is running."""
    entry.future.set_exception(error)


class Batcher(Generic[Item, Result]):
    """Workers that take batches of up to `max_batch` entries from one queue of `capacity`.

    A worker that finds an entry waits at most `max_delay_s` for more, and at most half of the time that the most urgent
    member has left; one worker collects at a time. The time until a worker turned to an entry is `queue_stage`, that
    in a batch that is being collected `batch_wait`. An entry past its deadline is dropped before it costs anything.

    `make_worker(index)` runs on the worker's own thread and returns what processes a batch: it completes the future of
    every entry, and owns what only one thread may touch (a device). What it raises, the constructor raises.

    `fail` fails an entry that no worker processes; it may hand that over to another thread.
    """

    def __init__(
        self,
        name: str,
        make_worker: Callable[[int], Process[Item, Result]],
        *,
        queue_stage: Stage,
        workers: int = 1,
        max_batch: int = 1,
        max_delay_s: float = 0.0,
        capacity: int = 256,
        start_timeout_s: float = 600.0,
        close_timeout_s: float = 5.0,
        clock: Clock = monotonic_ns,
        fail: Fail[Item, Result] = fail_here,
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self.max_delay_s = max_delay_s
        self.workers = workers
        self.capacity = capacity
        self._queue_stage = queue_stage
        self._clock = clock
        self._fail = fail
        self._queue: deque[Entry[Item, Result]] = deque()
        self._changed = threading.Condition()
        self._collecting = threading.Lock()
        self._refusals = 0
        self._drops = 0
        self._sizes: Counter[int] = Counter()
        self._in_work = [0] * workers
        self._closed = False
        self._close_timeout_s = close_timeout_s
        started: list[Future[None]] = [Future() for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._run, args=(make_worker, index, started[index]), name=f"{name}-{index}")
            for index in range(workers)
        ]
        for thread in self._threads:
            thread.daemon = True  # a backend stuck in foreign code must not keep the process from ending
            thread.start()
        deadline = time.monotonic() + start_timeout_s
        try:
            for future in started:
                future.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self.close()
            raise Unavailable(f"{name} was not ready within {start_timeout_s:.0f} s") from None
        except BaseException:
            self.close()
            raise

    def submit(self, item: Item, timeline: Timeline, deadline_ns: int) -> Future[Result]:
        """Queue `item`; never blocks. The Future fails with `Overloaded` (full), `DeadlineExceeded`, `Unavailable`."""
        entry: Entry[Item, Result] = Entry(item, timeline, deadline_ns, Future())
        entry.future.set_running_or_notify_cancel()  # a cancelled Future could not be completed
        error: ServiceError | None = None
        with self._changed:
            if self._closed:
                error = Unavailable(f"{self.name} is closed")
            elif len(self._queue) >= self.capacity:
                self._refusals += 1
                error = Overloaded(f"the queue of {self.name} is full ({self.capacity}); try later or add instances")
            else:
                self._queue.append(entry)
                self._changed.notify_all()
        if error is not None:
            self._refuse(entry, error)
        return entry.future

    def depth(self) -> int:
        """Entries that no worker has taken yet."""
        return len(self._queue)

    def in_work(self) -> int:
        """Entries that workers have taken and not finished."""
        return sum(self._in_work)

    @property
    def refusals(self) -> int:
        """Entries that found the queue full, so far."""
        return self._refusals

    @property
    def drops(self) -> int:
        """Entries whose time was spent before a worker turned to them, so far."""
        return self._drops

    def sizes(self) -> Mapping[int, int]:
        """How many batches there were of which size, so far."""
        with self._changed:
            return dict(self._sizes)

    def close(self) -> None:
        """Fail what is queued with `Unavailable`, let workers finish what they hold, stop. May be called twice.

        Waits `close_timeout_s` seconds for them; a worker stuck in foreign code ends with the process.
        """
        with self._changed:
            self._closed = True
            left = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for entry in left:
            self._refuse(entry, Unavailable(f"{self.name} was closed while this was queued"))
        deadline = time.monotonic() + self._close_timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def stopped(self) -> bool:
        """Whether every worker has ended: after `close`, whether none was too slow for it."""
        return not any(thread.is_alive() for thread in self._threads)

    def _refuse(self, entry: Entry[Item, Result], error: ServiceError) -> None:
        """Fail one entry; where that cannot be done, the others and the worker must not suffer for it."""
        try:
            self._fail(entry, error)
        except Exception:  # noqa: BLE001 # whatever it is
            _log.exception("%s: an error could not be handed over: %s", self.name, error.message)

    def _run(self, make_worker: Callable[[int], Process[Item, Result]], index: int, started: Future[None]) -> None:
        try:
            process = make_worker(index)
        except BaseException as error:  # noqa: BLE001 # the constructor raises it
            started.set_exception(error)
            return
        started.set_result(None)
        while True:
            with self._collecting:
                batch = self._collect()
            if batch is None:
                break
            if not batch:
                continue
            self._in_work[index] = len(batch)
            try:
                process(batch)
            except BaseException as error:  # noqa: BLE001 # a batch that fails must not end the worker
                for entry in batch:
                    if not entry.future.done():
                        self._refuse(
                            entry,
                            error
                            if isinstance(error, ServiceError)
                            else Internal(f"{self.name}: {type(error).__name__}: {error}"),
                        )
            finally:
                self._in_work[index] = 0
        closing = getattr(process, "close", None)
        if closing is not None:
            closing()

    def _collect(self) -> list[Entry[Item, Result]] | None:
        """The next batch without its expired entries; None when closed."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            opened = self._clock()
            batch = [self._queue.popleft()]
            end = min(time.monotonic() + self.max_delay_s, self._patience(batch[0]))
            while len(batch) < self.max_batch and not self._closed:
                if self._queue:
                    batch.append(self._queue.popleft())
                    end = min(end, self._patience(batch[-1]))
                    continue
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
        now = self._clock()
        alive = []
        for entry in batch:
            if entry.deadline_ns <= now:
                self._drops += 1  # one worker collects at a time
                self._refuse(
                    entry, DeadlineExceeded(f"the time was spent before {self.name} turned to it; nothing was computed")
                )
                continue
            # Who came while the batch was collected did not queue: it waited for the batch only.
            entry.timeline.cut_at(self._queue_stage, max(opened, entry.timeline.last_ns))
            alive.append(entry)
        if alive:
            with self._changed:
                self._sizes[len(alive)] += 1
        return alive

    def _patience(self, entry: Entry[Item, Result]) -> float:
        """Until when a batch with `entry` may be held open: the other half of its time is for the work."""
        return time.monotonic() + (entry.deadline_ns - self._clock()) / 2e9
