"""A real Redis on loopback, from `redis-server` on the PATH."""

from __future__ import annotations

import contextlib
import shutil
import socket
from pathlib import Path
from typing import NamedTuple

from services.local.errors import LocalStackError
from services.local.ports import free_ports
from services.local.processes import Process
from services.local.server import Server

REMEDY = "make setup-redis (as root on Debian), or: apt install redis-server; or name a running one: --redis host:port"

# What a suite on one machine may fill memory with; far above what its doors have inside.
MEMORY_MB = 1024
FSYNC = ("always", "everysec", "no")


class RedisServerSettings(NamedTuple):
    """What a Redis that is started here is like: what an experiment varies."""

    # Of a file to which all writes go, too, and from which they come back after a restart: when it goes to the disk,
    # one of FSYNC; `always` is before each answer. Empty: there is no file.
    appendfsync: str = ""
    memory_mb: int = MEMORY_MB
    # The folder below which that file is; None: it is in the stack's own.
    data: Path | None = None
    flags: tuple[str, ...] = ()  # further ones of redis-server

    def check(self) -> None:
        """Raise `LocalStackError` for what Redis does not know."""
        if self.appendfsync and self.appendfsync not in FSYNC:
            raise LocalStackError(f"appendfsync '{self.appendfsync}' is none of {', '.join(FSYNC)}, or empty: no file")


IN_MEMORY = RedisServerSettings()


def redis_server() -> str | None:
    """Where the program is; None where it is not installed."""
    return shutil.which("redis-server")


class RedisServer(Server):
    """See `Server`. Its data are there after a restart only with its append-only file."""

    name = "redis"
    title = "Redis"

    def __init__(self, folder: Path, external: str | None = None, settings: RedisServerSettings = IN_MEMORY) -> None:
        """`folder`: for data and log. `external`: a running server, never started or stopped here.

        Raises `LocalStackError` for settings that cannot be.
        """
        settings.check()
        if settings != IN_MEMORY:
            self._refuse_external(external)
        self._settings = settings
        address = external or f"127.0.0.1:{free_ports(1)[0]}"
        super().__init__(folder, [address], external=external is not None, data=settings.data)

    def _answers(self, address: str) -> bool:
        return answers(address)

    def _launch(self, index: int) -> Process:
        program = redis_server()
        if program is None:
            raise LocalStackError(f"redis-server is missing; {REMEDY}")
        own = self._settings
        host, _, port = self.addresses[index].rpartition(":")
        command = [program, "--bind", host, "--port", port, "--dir", str(self.data), "--save", "", "--daemonize", "no"]
        command += ["--appendonly", "yes" if own.appendfsync else "no", "--appendfsync", own.appendfsync or "everysec"]
        # What does not fit is refused, never thrown out.
        command += ["--maxmemory", f"{own.memory_mb}mb", "--maxmemory-policy", "noeviction", *own.flags]
        return Process(self._label(index), command, self._log(index))


def answers(host_port: str, timeout_s: float = 2.0) -> bool:
    """Whether a Redis answers there and has loaded its data: PING, by hand. One that asks who is there answers, too."""
    host, _, port = host_port.rpartition(":")
    with contextlib.suppress(OSError, ValueError), socket.create_connection((host, int(port)), timeout_s) as connection:
        connection.settimeout(timeout_s)
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
    return False
