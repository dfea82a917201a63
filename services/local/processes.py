"""Child processes that are stopped whatever becomes of their parent.

Each child has a guard: a tiny process of the same interpreter that holds the reading end of a pipe whose writing end
only the parent has. When the parent ends, however it ends, the guard reads the end of the pipe and kills the child's
process group. That works on every POSIX system, unlike Linux's parent-death signal, which follows a thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.local.errors import LocalStackError

_START_S = 30.0

# Runs in the guard: starts the command in a session of its own, waits for it or for the parent's end. A SIGTERM to the
# guard is for the command: it is passed on, and the guard ends with the command's status.
_GUARD = """
import os, select, signal, subprocess, sys
pipe = int(sys.argv[1])
output = sys.stderr.fileno()
child = subprocess.Popen(sys.argv[2:], stdout=output, stderr=output, start_new_session=True)
def end(number, _):
    try:
        child.send_signal(number)
    except ProcessLookupError:
        pass
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.stdout.write(f'{child.pid}\\n'); sys.stdout.flush()
while child.poll() is None:
    ready, _, _ = select.select([pipe], [], [], 0.05)
    if ready and not os.read(pipe, 1):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
try:
    os.killpg(child.pid, signal.SIGKILL)
except (ProcessLookupError, PermissionError):
    pass
sys.exit(child.returncode if child.returncode >= 0 else 128 - child.returncode)
"""


class Process:
    """A running command. `pid` is the command's own, not the guard's."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        """Start it, output to `log`. Raises `LocalStackError` where the command is not there."""
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        reading, self._writing = os.pipe()
        try:
            with log.open("ab") as output:
                self._guard = subprocess.Popen(  # noqa: S603 # our own command
                    [sys.executable, "-S", "-c", _GUARD, str(reading), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    pass_fds=(reading,),
                    env={**os.environ, **(env or {})},
                    start_new_session=True,
                )
        finally:
            os.close(reading)
        assert self._guard.stdout is not None  # noqa: S101 # it is a pipe
        # The guard writes its line at once, or ends: in a moment, unless the machine hangs.
        ready, _, _ = select.select([self._guard.stdout], [], [], _START_S)
        line = self._guard.stdout.readline() if ready else b""
        if not line:
            self._guard.kill()
            self._reap(5)
            raise LocalStackError(f"{name} did not start: {command[0]}\n{self.tail()}")
        self.pid = int(line)

    def running(self) -> bool:
        """Whether the command runs."""
        return self._guard.poll() is None

    def wait(self, deadline_s: float) -> int | None:
        """Its exit status, 128 + N when signal N ended it; None if it has not ended within `deadline_s` seconds."""
        try:
            return self._guard.wait(deadline_s)
        except subprocess.TimeoutExpired:
            return None

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def exit_report(self) -> str:
        """How it ended, with the end of its log."""
        return f"{self.name} ended with status {self._guard.poll()}; the end of {self.log}:\n{self.tail()}"

    def signal(self, number: int) -> None:
        """Send a signal to the command; nothing when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.signal(signal.SIGKILL)
        self._reap(10)

    def stop(self, deadline_s: float) -> bool:
        """SIGTERM, then SIGKILL after `deadline_s` seconds; True if it ended by itself. May be called twice."""
        if self.running():
            self.signal(signal.SIGTERM)
        ended = self._reap(deadline_s)
        if not ended:
            self.kill()
        return ended

    def _reap(self, deadline_s: float) -> bool:
        try:
            self._guard.wait(deadline_s)
        except subprocess.TimeoutExpired:
            return False
        if self._guard.stdout is not None:
            self._guard.stdout.close()
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1
        return True


def stop_all(processes: Sequence[Process], deadline_s: float) -> None:
    """All at once; each has `deadline_s` seconds before it is killed."""
    for process in processes:
        if process.running():
            process.signal(signal.SIGTERM)
    deadline = time.monotonic() + deadline_s
    for process in processes:
        process.wait(max(0.0, deadline - time.monotonic()))
        process.stop(0.5)
