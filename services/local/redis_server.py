"""A real Redis on loopback, from `redis-server` on the PATH.

Started, killed and started again on the same port it is the same server; its data are there still only with its
append-only file.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from pathlib import Path

from services.local.errors import LocalStackError
from services.local.ports import free_ports
from services.local.processes import Process

REMEDY = "make setup-redis (as root on Debian), or: apt install redis-server; or name a running one: --redis host:port"

_DATA = "redis-data"
_LOG = "redis.log"
# What a suite on one machine may fill memory with; far above what its doors have inside.
MEMORY_MB = 1024


def redis_server() -> str | None:
    """Where the program is; None where it is not installed."""
    return shutil.which("redis-server")


def discard(folder: Path) -> None:
    """Delete the data of a Redis in `folder` that does not run any more; its log stays."""
    shutil.rmtree(folder / _DATA, ignore_errors=True)


def begin_log(folder: Path) -> None:
    """Forget the log of the server that was in `folder` before: an error of the last run is not one of this."""
    (folder / _LOG).unlink(missing_ok=True)


class RedisServer:
    """One server; `bootstrap` is host:port."""

    def __init__(
        self,
        folder: Path,
        external: str | None = None,
        *,
        appendonly: bool = False,
        memory_mb: int = MEMORY_MB,
        settings: tuple[str, ...] = (),
    ) -> None:
        """`folder`: for data and log. `external`: a running server, never started or stopped here.

        `appendonly`: writes go to a file too, flushed every second, and are there after a restart. `settings`: further
        ones, as on redis-server's command line.
        """
        self._folder = folder
        self._external = external
        self._appendonly = appendonly
        self._memory_mb = memory_mb
        self._settings = settings
        self._process: Process | None = None
        self.bootstrap = external or f"127.0.0.1:{free_ports(1)[0]}"

    @property
    def pid(self) -> int | None:
        """Of its process, if it is ours and runs."""
        return self._process.pid if self._process is not None and self._process.running() else None

    def running(self) -> bool:
        """Whether it answers."""
        return answers(self.bootstrap)

    def ended(self) -> str | None:
        """A report if it is ours, was started, and has ended."""
        return None if self._process is None or self._process.running() else self._process.exit_report()

    def start(self, deadline_s: float = 15.0) -> None:
        """Start it if it is ours, and wait until it answers. Raises `LocalStackError`."""
        if self._external is None and self.pid is None:
            self._process = self._launch()
        deadline = time.monotonic() + deadline_s
        while not self.running():
            if self._process is not None and not self._process.running():
                raise LocalStackError(self._process.exit_report())
            if time.monotonic() > deadline:
                raise LocalStackError(f"Redis at {self.bootstrap} does not answer within {deadline_s:.0f} s")
            time.sleep(0.02)

    def stop(self, deadline_s: float = 15.0) -> None:
        """Stop it if it is ours; its data stay. May be called twice."""
        if self._process is not None:
            self._process.stop(deadline_s)

    def discard(self) -> None:
        """Stop it if it is ours, and delete its data; its log stays. May be called twice."""
        if self._external is None:
            self.stop()
            discard(self._folder)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        if self._process is not None:
            self._process.kill()

    def _launch(self) -> Process:
        program = redis_server()
        if program is None:
            raise LocalStackError(f"redis-server is missing; {REMEDY}")
        data = self._folder / _DATA
        data.mkdir(parents=True, exist_ok=True)
        host, _, port = self.bootstrap.rpartition(":")
        command = [program, "--bind", host, "--port", port, "--dir", str(data), "--save", "", "--daemonize", "no"]
        command += ["--appendonly", "yes" if self._appendonly else "no", "--appendfsync", "everysec"]
        # What does not fit is refused, never thrown out.
        command += ["--maxmemory", f"{self._memory_mb}mb", "--maxmemory-policy", "noeviction", *self._settings]
        return Process("redis", command, self._folder / _LOG)


def answers(host_port: str, timeout_s: float = 2.0) -> bool:
    """Whether a Redis answers there and has loaded its data: PING, by hand. One that asks who is there answers, too."""
    host, _, port = host_port.rpartition(":")
    with contextlib.suppress(OSError, ValueError), socket.create_connection((host, int(port)), timeout_s) as connection:
        connection.settimeout(timeout_s)
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
    return False
