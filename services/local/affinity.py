"""On which CPUs something runs: engines may have some to themselves, as pods on nodes of their own have.

Linux only: other systems bind nothing to a CPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

from services.local.errors import LocalStackError

_THREADS = Path("/proc/self/task")


class Shares(NamedTuple):
    """CPUs by number: of engines that have a process of their own, and of everything else."""

    inference: Set[int]
    rest: Set[int]


def shares(inference: int) -> Shares | None:
    """Of all CPUs that this thread may use, the last `inference` for engines; None for 0: all share all.

    Raises `LocalStackError` where that leaves nothing for the rest, and where CPUs cannot be chosen.
    """
    why = lacking(inference)
    if why:
        raise LocalStackError(why)
    if not inference:
        return None
    every = sorted(os.sched_getaffinity(0))
    return Shares(frozenset(every[-inference:]), frozenset(every[:-inference]))


def lacking(inference: int) -> str:
    """Why engines cannot have so many CPUs to themselves here; empty where they can."""
    if not inference:
        return ""
    if not hasattr(os, "sched_setaffinity"):
        return "engines have CPUs to themselves on Linux only: elsewhere a process cannot be bound to some"
    count = len(os.sched_getaffinity(0))
    if not 0 <= inference < count:
        most = f"at most {count - 1}" if count > 1 else "none"
        return (
            f"inference cannot have {inference} CPUs to itself: there are {count}, and everything else needs one; "
            f"give it {most} (--inference-cpus, or inference_cpus of a figure's step)"
        )
    return ""


@contextlib.contextmanager
def starting_on(cpus: Set[int] | None) -> Iterator[None]:
    """What this thread starts meanwhile runs on these, threads and processes; None: where it likes."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def confined(cpus: Set[int] | None) -> Iterator[None]:
    """All of this process, and what it starts meanwhile, runs on these; None: where it likes.

    Threads that stay when it is over, those of a library's pool, are given back what this thread had.
    """
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        _bind(cpus)
        yield
    finally:
        _bind(before)


def _bind(cpus: Set[int]) -> None:
    bound: set[str] = set()
    # Until there is none that another one started before its own turn came.
    while new := {thread.name for thread in _THREADS.iterdir()} - bound:
        for name in new:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setaffinity(int(name), cpus)
        bound |= new
