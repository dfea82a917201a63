"""A broker or a store that links need: ours, in a process or several, or somebody else's that runs already."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from services.local.errors import LocalStackError
from services.local.processes import Process, stop_all

_STOP_S = 15.0


class Member(NamedTuple):
    """One process of a server."""

    name: str
    pid: int
    address: str  # host:port


class Server:
    """Started, killed and started again it is the same server, on the same ports.

    A kind of server says how a process of it is launched, and whether something that answers is one.
    """

    name: ClassVar[str]  # of its processes, logs and data; of several processes, the first one's
    title: ClassVar[str]  # for people

    def __init__(self, folder: Path, addresses: Sequence[str], *, external: bool, data: Path | None = None) -> None:
        """`folder`: for data, configuration and logs. `addresses`: host:port, of each process.

        `external`: it is not ours, and never started or stopped here. `data`: the folder below which its data are, in
        place of `folder`: on another disk, say, or in memory.
        """
        self._folder = folder
        self._external = external
        self._elsewhere = data
        self._processes: dict[int, Process] = {}  # by index
        self.addresses = tuple(addresses)
        self.bootstrap = ",".join(addresses)

    @classmethod
    def _refuse_external(cls, external: str | None) -> None:
        """For who was given settings: raise `LocalStackError` where the server is somebody else's."""
        if external is not None:
            raise LocalStackError(
                f"{cls.title} at {external} is not started here, and so cannot be set; leave one of them out"
            )

    def _launch(self, index: int) -> Process:
        """Start one of its processes. Raises `LocalStackError`."""
        raise NotImplementedError

    def _answers(self, address: str) -> bool:
        """Whether such a server answers there."""
        raise NotImplementedError

    def _ready(self) -> bool:
        """Asked when all of ours answer: whether there is nothing more to wait for."""
        return True

    def _label(self, index: int) -> str:
        return f"{self.name}-{index + 1}" if index else self.name

    def _log(self, index: int) -> Path:
        return self._folder / f"{self._label(index)}.log"

    @property
    def data(self) -> Path:
        """Where ours keeps what it is sent."""
        return _data(self._folder, self.name).resolve()

    @property
    def members(self) -> list[Member]:
        """Its processes, if it is ours, that run."""
        return [
            Member(self._label(index), process.pid, self.addresses[index])
            for index, process in sorted(self._processes.items())
            if process.running()
        ]

    @property
    def pid(self) -> int | None:
        """Of its first process, if it is ours and runs."""
        process = self._processes.get(0)
        return process.pid if process is not None and process.running() else None

    def running(self) -> bool:
        """Whether it answers: all of ours, some of somebody else's."""
        return (any if self._external else all)(map(self._answers, self.addresses))

    def ended(self) -> str | None:
        """A report of a process that is ours, was started, and has ended."""
        return next((p.exit_report() for p in self._processes.values() if not p.running()), None)

    def start(self, deadline_s: float = 60.0) -> None:
        """Start what of it is ours and does not run, and wait until it answers. Raises `LocalStackError`."""
        if not self._external:
            self._make_data()
            for index in range(len(self.addresses)):
                process = self._processes.get(index)
                if process is None or not process.running():
                    self._processes[index] = self._launch(index)
        deadline = time.monotonic() + deadline_s
        while not (self.running() and self._ready()):
            report = self.ended()
            if report is not None:
                raise LocalStackError(report)
            if time.monotonic() > deadline:
                raise LocalStackError(f"{self.title} at {self.bootstrap} does not answer within {deadline_s:.0f} s")
            time.sleep(0.03)

    def _make_data(self) -> None:
        """Where they are elsewhere, a link in the folder leads there: who takes down after a crash knows only that."""
        place = _data(self._folder, self.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._elsewhere is None:
            place.mkdir(exist_ok=True)
        elif not place.exists():
            self._elsewhere.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)  # a link to what is gone
            place.symlink_to(tempfile.mkdtemp(prefix="beyond-", dir=self._elsewhere))

    def stop(self, deadline_s: float = _STOP_S) -> None:
        """Stop it if it is ours; its data stay. May be called twice."""
        stop_all(list(self._processes.values()), deadline_s)

    def discard(self) -> None:
        """Stop it if it is ours, and delete its data; its logs stay. May be called twice."""
        if not self._external:
            self.stop()
            discard(self._folder, self.name)

    def kill(self, index: int | None = None) -> None:
        """SIGKILL, as a crash, to all its processes or to one; its data stay."""
        for number, process in self._processes.items():
            if index in (None, number):
                process.kill()


def _data(folder: Path, name: str) -> Path:
    return folder / f"{name}-data"


def discard(folder: Path, name: str) -> None:
    """Delete the data of a server in `folder` that does not run any more; its logs stay."""
    place = _data(folder, name)
    shutil.rmtree(place.resolve(), ignore_errors=True)
    with contextlib.suppress(OSError):  # it was no link, or is not there
        place.unlink()


def begin_logs(folder: Path) -> None:
    """Forget the logs of the servers that were in `folder` before: an error of the last run is not one of this."""
    for log in folder.glob("*.log"):
        log.unlink(missing_ok=True)
