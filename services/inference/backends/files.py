"""Files that several threads and processes share: they appear whole, and one at a time makes one."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from services.accounting import Clock, monotonic_ns

_log = logging.getLogger(__name__)

_POLL_S = 0.5


def write_whole(path: Path, *parts: bytes) -> None:
    """Written beside and renamed, so that `path` is never half there. Raises `OSError`, and then leaves nothing."""
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class Busy(Exception):
    """Somebody else has held the lock all the time."""


@contextlib.contextmanager
def alone(
    lock: Path, timeout_s: float, clock: Clock = monotonic_ns, sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Only one thread of one process at a time is inside, of all that name the same `lock`, a file that stays there.

    The lock goes with the process that holds it, however that ends. Raises `Busy` after `timeout_s`, and `OSError`.
    """
    handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        _wait(handle, lock, clock() + int(timeout_s * 1e9), clock, sleep)
        yield
    finally:
        os.close(handle)


def _wait(handle: int, lock: Path, end_ns: int, clock: Clock, sleep: Callable[[float], None]) -> None:
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock() >= end_ns:
                raise Busy from None
            if not told:
                _log.info("waiting for another thread or process that has locked %s", lock)
                told = True
            sleep(_POLL_S)
        else:
            return
