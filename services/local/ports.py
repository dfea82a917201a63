"""Free loopback ports for what is started here."""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from services.local.errors import LocalStackError

# Seconds pass before a server listens on the port that was chosen for it, and one that is killed and started again
# wants the one it had. So these are not of the range from which systems give ports to outgoing connections (from 32768
# or 49152 on), nor of Kubernetes' for nodes (from 30000).
_RANGE = range(20000, 30000)


class Pool:
    """Ports of a range, each given to one process: others that ask meanwhile get others, until it ends."""

    def __init__(self, ports: range, claims: Path) -> None:
        """`claims`: a file of which each byte that is locked is a port that some process was given."""
        self._size = len(ports)
        start = random.SystemRandom().randrange(self._size)
        # Not one that was just given, though nobody listens on it yet.
        self._next: Iterator[int] = itertools.cycle([*ports[start:], *ports[:start]])
        # POSIX locks end with the process that has them, or if it closes the file, whence it stays open.
        try:
            self._claims = os.open(claims, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise LocalStackError(
                f"{claims}, in which ports are claimed, cannot be written: {error.strerror}; remove it, or set TMPDIR"
            ) from None

    def take(self) -> int:
        """A port that nobody listens on and nobody else was given. Raises `LocalStackError` if there is none."""
        for port in itertools.islice(self._next, self._size):
            if self.claim(port) and _can_be_had(port):
                return port
        raise LocalStackError(f"none of {self._size} ports is free: stop something that listens (see `ss -ltnp`)")

    def claim(self, port: int) -> bool:
        """Whether it may be given to this process."""
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        return True


def free_ports(count: int, first: int = 0) -> list[int]:
    """Ports that nobody listens on now, and that no other process is given while this one runs.

    `first`: what the first of them should be, if it is free. Raises `LocalStackError` if all are taken.
    """
    pool = _pool(os.getpid())
    # As servers do: a port whose last connections have only just ended is free.
    wanted = [first] if first and count and _can_be_had(first, reuse=True) and pool.claim(first) else []
    return [*wanted, *(pool.take() for _ in range(count - len(wanted)))]


@functools.cache
def _pool(_process: int) -> Pool:
    """One for each process, also one that was forked."""
    return Pool(_RANGE, Path(tempfile.gettempdir()) / f"beyond-inference-ports-{os.getuid()}")


def _can_be_had(port: int, *, reuse: bool = False) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
