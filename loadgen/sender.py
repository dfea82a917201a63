"""One of several senders: what runs in its process, and the messages between it and the process that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from loadgen.quiet import without_collector
from loadgen.runner import Run
from loadgen.schedule import Schedule
from loadgen.tally import Tally
from loadgen.target import NULL, Exchange, Target
from loadgen.targets import open_target
from services.errors import ServiceError
from services.messages import Array

_EVERY_S = 0.25
# Exchanges per message: some 0.2 s of a CPU. All at once, a sender would be silent for as long as they take to encode,
# which is a minute for a few hundred thousand on a busy machine.
_PIECE = 4096


class Images(NamedTuple):
    """Encoded images, known from now on as `size`."""

    size: str
    images: Sequence[bytes]


class Job(NamedTuple):
    """A schedule to be sent: `target` and `size` by name, the rest as in `Run`."""

    target: str
    size: str
    schedule: Schedule
    prefix: str
    timeout_s: float
    at_most_s: float


class Ready(NamedTuple):
    """The process is up; or, with a job: its link is open, and it waits for `Start`."""


class Start(NamedTuple):
    """The instant of CLOCK_MONOTONIC at which the schedule begins, in ns."""

    ns: int


class Came(NamedTuple):
    """Of a job that is done: a piece of what came back."""

    exchanges: list[Exchange]


class Sent(NamedTuple):
    """A job that is done, and all that came back is told: requests never sent; how long threads had no CPU, in ns."""

    unsent: int
    run_delay_ns: int


class Failed(NamedTuple):
    """A job that is not; `timeout`: answers stayed away."""

    text: str
    timeout: bool


def serve(
    connection: Connection,
    urls: Mapping[str, str],
    task: str,
    timeout_s: float,
    holds_ledger: bool,
    sample_ratio: float,
) -> None:
    """Do what comes through `connection`, until it closes. The rest is how to reach the targets: see `open_target`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = threading.Lock()

    def say(message: object) -> None:
        try:
            with lock:
                connection.send(message)
        except OSError:
            os._exit(1)  # nobody is there to send for any more

    images: dict[str, Sequence[bytes]] = {}
    tensors: dict[tuple[str, str], list[Array]] = {}  # of a target, of a size
    targets: dict[str, Target] = {}
    say(Ready())
    while True:
        try:
            message: Any = connection.recv()
        except (EOFError, OSError):
            os._exit(0)  # links are not closed in order: whoever waited for their answers is gone
        if isinstance(message, Images):
            images[message.size] = message.images
            continue
        if not isinstance(message, Job):
            continue  # a start that came too late for a job that failed
        try:
            if message.target not in targets:
                url = NULL if message.target == NULL else urls[message.target]
                targets[message.target] = open_target(
                    url, task, timeout_s, holds_ledger=holds_ledger, sample_ratio=sample_ratio
                )
                with contextlib.suppress(ServiceError):  # the requests will say so
                    targets[message.target].emulated()  # its link is up then: no request has to wait for that
            key = (message.target, message.size)
            if key not in tensors:
                tensors[key] = targets[message.target].tensors(images[message.size])
            say(Ready())
            start = connection.recv()
            say(_carry_out(message, start, targets[message.target], tensors[key], say))
        except TimeoutError as error:
            say(Failed(str(error), timeout=True))
        except Exception as error:  # noqa: BLE001 # whatever it is, it is told where somebody reads it
            say(Failed(f"{error}\n{traceback.format_exc()}", timeout=False))


def _carry_out(job: Job, start: Start, target: Target, tensors: Sequence[Array], say: Any) -> Sent:
    tally = Tally()
    run = Run(
        target,
        tensors,
        job.schedule,
        prefix=job.prefix,
        timeout_s=job.timeout_s,
        at_most_s=job.at_most_s,
        tally=tally,
        start_ns=start.ns,
    )
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(_EVERY_S):
            say(tally.reading())

    teller = threading.Thread(target=tell, name="teller", daemon=True)
    teller.start()
    try:
        with without_collector():
            exchanges = run.run()
        for begin in range(0, len(exchanges), _PIECE):
            # What was answered is of no use to whoever counts, and would be most of what has to cross.
            say(Came([exchange._replace(outputs={}) for exchange in exchanges[begin : begin + _PIECE]]))
        return Sent(run.unsent, run.senders_run_delay_ns)
    finally:
        ended.set()
        teller.join()
