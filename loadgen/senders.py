"""Who sends: this process, or several, each with an interpreter of its own.

A Python process sends with one core at most, so beyond that rate there have to be more of them. Each has its part of
the schedule (`Schedule.part`), all begin at one instant of CLOCK_MONOTONIC, which is the machine's, and what came back
is merged. Whatever happens to one of them happens to the run: a sender that dies is an error, never a smaller result.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple, Protocol

from loadgen.errors import GeneratorError
from loadgen.quiet import without_collector
from loadgen.runner import Run
from loadgen.sender import Came, Failed, Images, Job, Ready, Sent, Start, serve
from loadgen.tally import Reading, Tally, merged
from loadgen.target import NULL, Exchange, Target
from loadgen.targets import open_target
from services.accounting import monotonic_ns
from services.messages import Array
from services.settings import cpu_limit

# An interpreter and its imports; on a busy machine that takes its time.
_UP_S = 120.0
# Until a sender has its link open, beside the time that the target itself may take.
_READY_S = 30.0
# Enough for the word to reach every sender before the instant at which all begin, on a busy machine too.
_LEAD_NS = 200_000_000
# Senders tell how they are four times a second, and take what they are told at once.
_PATIENCE_S = 60.0
_END_S = 2.0
_MOST = 4


def default_count() -> int:
    """A quarter of the CPUs: what is asked needs them, too. 1 where there are fewer than eight, 4 at most."""
    return max(1, min(_MOST, cpu_limit() // 4))


class Door(NamedTuple):
    """How to reach the targets: `urls` by name, and what `open_target` wants to know."""

    urls: Mapping[str, str]
    task: str
    timeout_s: float
    holds_ledger: bool = False
    sample_ratio: float = 0.0


class Result(NamedTuple):
    """What came back, in the order in which it was due; requests never sent; run delay by process, in ns."""

    exchanges: list[Exchange]
    unsent: int
    run_delay_ns: Mapping[str, int]


# When a job begins, on the monotonic clock in ns; asked when everybody is ready to send.
Begins = Callable[[], int]


class Senders(Protocol):
    """Those who send."""

    @property
    def count(self) -> int:
        """How many processes."""
        ...

    def pids(self) -> Mapping[str, int]:
        """The processes by name: for the contention account."""
        ...

    def load(self, size: str, images: Sequence[bytes]) -> None:
        """Encoded images, known from now on as `size`."""
        ...

    def run(self, job: Job, begins: Begins | None = None) -> Result:
        """Carry it out, at once or when it `begins`.

        Raises `TimeoutError` when answers stay away, `GeneratorError` when a sender failed, and what `begins` does.
        """
        ...

    def reading(self) -> Reading:
        """Of the job that is carried out, nothing between two; from another thread."""
        ...

    def close(self) -> None:
        """Stop sending."""
        ...


def open_senders(count: int, door: Door, targets: Mapping[str, Target]) -> Senders:
    """`count` 1: this process sends, through `targets`. More: as many processes, with links of their own."""
    return OwnSender(targets) if count == 1 else SenderProcesses(count, door)


class OwnSender:
    """This process sends."""

    count = 1

    def __init__(self, targets: Mapping[str, Target]) -> None:
        """`targets` stay their owner's."""
        self._targets = {NULL: open_target(NULL, "", 1.0), **targets}
        self._images: dict[str, Sequence[bytes]] = {}
        self._tensors: dict[tuple[str, str], list[Array]] = {}  # of a target, of a size
        self._tally = Tally()

    def pids(self) -> Mapping[str, int]:
        """See `Senders`."""
        return {"client": os.getpid()}

    def load(self, size: str, images: Sequence[bytes]) -> None:
        """See `Senders`."""
        self._images[size] = images

    def run(self, job: Job, begins: Begins | None = None) -> Result:
        """See `Senders`."""
        key, target = (job.target, job.size), self._targets[job.target]
        if key not in self._tensors:
            self._tensors[key] = target.tensors(self._images[job.size])
        self._tally = Tally()
        run = Run(
            target,
            self._tensors[key],
            job.schedule,
            prefix=job.prefix,
            timeout_s=job.timeout_s,
            at_most_s=job.at_most_s,
            tally=self._tally,
            start_ns=None if begins is None else begins(),
        )
        try:
            with without_collector():
                exchanges = run.run()
        finally:
            self._tally = Tally()  # nothing goes on any more
        # What was answered is of no use to whoever counts, and would be most of the memory that a long run takes.
        stripped = [exchange._replace(outputs={}) for exchange in exchanges]
        return Result(stripped, run.unsent, {"client": run.senders_run_delay_ns})

    def reading(self) -> Reading:
        """See `Senders`."""
        return self._tally.reading()

    def close(self) -> None:
        """Nothing is open."""


class _Child:
    """One process and what it said last."""

    def __init__(self, name: str, process: SpawnProcess, connection: Connection, patience_s: float) -> None:
        """`patience_s`: how long it may take to take, or to bring, the next piece of a message."""
        self.name = name
        self.process = process
        self.connection = connection
        self.reading = Reading()
        self.heard = time.monotonic()
        self._patience_s = patience_s
        _bound_waits(connection, patience_s)

    def receive(self) -> Any:
        """What it says next. Raises `GeneratorError` where it is gone, or stopped halfway."""
        try:
            message = self.connection.recv()
        except BlockingIOError:
            raise self.stuck("said half of something, and no more") from None
        except (EOFError, OSError):
            raise self.gone() from None
        self.heard = time.monotonic()
        if isinstance(message, Failed):
            if message.timeout:
                raise TimeoutError(message.text)
            raise GeneratorError(f"{self.name} failed: {message.text}")
        return message

    def send(self, message: object) -> None:
        """Raises `GeneratorError` where it is gone, or does not take it."""
        try:
            self.connection.send(message)
        except BlockingIOError:
            raise self.stuck("did not take what it was told") from None
        except OSError:
            raise self.gone() from None

    def stuck(self, what: str, within_s: float | None = None) -> GeneratorError:
        """Alive, and not doing its part."""
        seconds = self._patience_s if within_s is None else within_s
        return GeneratorError(
            f"{self.name} (process {self.process.pid}) {what} within {seconds:g} s, so this is no result. It was "
            "stopped (SIGSTOP, a debugger), or this machine has no CPU for it: then use fewer senders"
        )

    def gone(self) -> GeneratorError:
        self.process.join(_END_S)
        return GeneratorError(
            f"{self.name} (process {self.process.pid}) ended by itself with status {self.process.exitcode}; what it "
            "had sent is lost, so this is no result. A negative status is a signal; -9 is often a lack of memory"
        )


class SenderProcesses:
    """`count` processes, started when they are first needed, and anew after one of them failed."""

    def __init__(self, count: int, door: Door, patience_s: float = _PATIENCE_S) -> None:
        """`patience_s`: how long a sender may be silent while it sends, or take nothing of what it is told."""
        self._count = count
        self._door = door
        self._patience_s = patience_s
        self._images: dict[str, list[bytes]] = {}
        self._children: list[_Child] = []
        self._taking_part: list[_Child] = []

    @property
    def count(self) -> int:
        """See `Senders`."""
        return self._count

    def pids(self) -> Mapping[str, int]:
        """See `Senders`."""
        self._start()
        return {child.name: child.process.pid or 0 for child in self._children}

    def load(self, size: str, images: Sequence[bytes]) -> None:
        """See `Senders`."""
        self._images[size] = list(images)
        for child in self._children:
            child.send(Images(size, self._images[size]))

    def run(self, job: Job, begins: Begins | None = None) -> Result:
        """See `Senders`."""
        self._start()
        try:
            with without_collector():  # to take in what comes back makes many objects, while others still send
                return self._run(job, begins)
        except BaseException:
            # The others would go on with what is no result any more.
            self.close()
            raise

    def _run(self, job: Job, begins: Begins | None) -> Result:
        parts = [job.schedule.part(i, self._count) for i in range(self._count)]
        pairs = [(child, part) for child, part in zip(self._children, parts, strict=True) if part.requests]
        for child, part in pairs:
            child.reading = Reading()
            child.send(job._replace(schedule=part))
        self._taking_part = [child for child, _ in pairs]
        for child in self._taking_part:
            self._expect(child, Ready, _READY_S + self._door.timeout_s)
        start = monotonic_ns() + _LEAD_NS if begins is None else begins()
        for child in self._taking_part:
            child.send(Start(start))
        exchanges: list[Exchange] = []
        done = list(self._finished(exchanges))
        exchanges.sort(key=lambda exchange: exchange.due_ns)
        delays = {name: sent.run_delay_ns for name, sent in done}
        self._taking_part = []  # nothing goes on any more
        return Result(exchanges, sum(sent.unsent for _, sent in done), delays)

    def _finished(self, exchanges: list[Exchange]) -> Iterator[tuple[str, Sent]]:
        """The last word of each, by its name, while all are listened to; what they bring back goes to `exchanges`."""
        left = {child.connection: child for child in self._taking_part}
        for child in left.values():
            child.heard = time.monotonic()
        while left:
            silent = min(left.values(), key=lambda child: child.heard)
            wait_s = silent.heard + self._patience_s - time.monotonic()
            spoken = multiprocessing.connection.wait(list(left), max(0.0, wait_s))
            # What it said while this process was busy, with what another one brought, is there.
            if wait_s <= 0 and silent.connection not in spoken:
                raise silent.stuck("said nothing")
            for connection in spoken:
                child = left[connection]  # type: ignore[index] # only these were asked about
                message = child.receive()
                if isinstance(message, Reading):
                    child.reading = message
                elif isinstance(message, Came):
                    exchanges += message.exchanges
                elif isinstance(message, Sent):
                    # All that it had in flight is answered.
                    child.reading = child.reading._replace(answered=child.reading.sent)
                    del left[child.connection]
                    yield child.name, message

    def _expect(self, child: _Child, kind: type, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while True:
            if not child.connection.poll(max(0.0, deadline - time.monotonic())):
                raise child.stuck("was not ready", within_s)
            if isinstance(child.receive(), kind):
                return

    def _start(self) -> None:
        if self._children:
            return
        context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
        with _interrupts_held():
            for index in range(self._count):
                ours, theirs = context.Pipe()
                name = f"sender {index}"
                process = context.Process(target=serve, args=(theirs, *self._door), name=name, daemon=True)
                process.start()
                theirs.close()
                self._children.append(_Child(name, process, ours, self._patience_s))
        try:
            for child in self._children:
                self._expect(child, Ready, _UP_S)
                for size, images in self._images.items():
                    child.send(Images(size, images))
        except BaseException:
            self.close()
            raise

    def reading(self) -> Reading:
        """See `Senders`."""
        return merged(child.reading for child in list(self._taking_part))

    def close(self) -> None:
        """End the processes, whatever they do."""
        children, self._children, self._taking_part = self._children, [], []
        for child in children:
            child.connection.close()
            child.process.terminate()
        for child in children:
            child.process.join(_END_S)
            if child.process.is_alive():
                child.process.kill()
                child.process.join(_END_S)
            child.process.close()


def _bound_waits(connection: Connection, seconds: float) -> None:
    """No reading and no writing of `connection` waits longer for its other end; `BlockingIOError` then.

    `multiprocessing` has a time-out for the begin of a message only: what is longer than a socket's buffer waits for a
    stopped process for ever, in the middle of it. The socket's own time-outs (socket(7)) are for each piece.
    """
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))  # a timeval
    with socket.socket(fileno=os.dup(connection.fileno())) as pair:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            pair.setsockopt(socket.SOL_SOCKET, option, limit)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Children begin with Ctrl-C ignored: it goes to all of a terminal's processes, and it is ours to end them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
