"""What runs, on disk: so that another process can ask, and stop it after a crash."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

DEFAULT = Path(".local")
FILE = "stack.json"


def python() -> str:
    """This interpreter, as one would type it here."""
    here, executable = Path.cwd(), Path(sys.executable)
    return str(executable.relative_to(here) if executable.is_relative_to(here) else executable)


def how_to_stop(folder: Path) -> str:
    """The command that stops what is recorded in `folder`."""
    own = folder.resolve() != DEFAULT.resolve()
    return f"{python()} -m services.local {f'--folder {shlex.quote(str(folder))} ' if own else ''}down"


class Running(NamedTuple):
    """A process as it was recorded. `started`: of /proc, so that a pid that was given to another is never taken."""

    deployment: str
    name: str
    pid: int
    started: str
    host_port: str
    metrics: str = ""  # host:port where it answers scrapes; empty: nowhere

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return self.pid > 0 and start_time(self.pid) == self.started


def start_time(pid: int) -> str:
    """A process's start, unique together with its pid; empty where there is no such process (or it is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return "" if fields[0] == "Z" else fields[19]


def write(folder: Path, supervisor: int, processes: list[Running], bootstrap: str, logs: Path) -> None:
    """Record, atomically."""
    content = {
        "supervisor": {"pid": supervisor, "started": start_time(supervisor)},
        "bootstrap": bootstrap,
        "logs": str(logs),
        "processes": [process._asdict() for process in processes],
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE}.tmp"
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(folder / FILE)


def read(folder: Path) -> dict[str, Any] | None:
    """What was recorded; None without a (readable) record. `processes` are `Running`."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        content["processes"] = [Running(**process) for process in content["processes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(content)


def supervisor_alive(content: dict[str, Any]) -> bool:
    """Whether who wrote the record still runs."""
    supervisor = content["supervisor"]
    return bool(supervisor["started"]) and start_time(supervisor["pid"]) == supervisor["started"]


def clear(folder: Path) -> None:
    """Forget."""
    (folder / FILE).unlink(missing_ok=True)


def take_down(folder: Path, deadline_s: float) -> int:
    """Stop what was recorded: the supervisor first, which stops the rest; else each. Returns how many were alive."""
    content = read(folder)
    if content is None:
        return 0
    processes: list[Running] = content["processes"]
    alive = sum(process.alive for process in processes)
    deadline = time.monotonic() + deadline_s
    if supervisor_alive(content):
        _signal(content["supervisor"]["pid"], signal.SIGTERM)
        while supervisor_alive(content) and time.monotonic() < deadline:
            time.sleep(0.05)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in reversed(processes):
            if process.alive:
                _signal(process.pid, number)
        until = min(deadline, time.monotonic() + 10)
        while any(process.alive for process in processes) and time.monotonic() < until:
            time.sleep(0.05)
    clear(folder)
    return alive


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
