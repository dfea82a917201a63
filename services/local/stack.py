"""Deployments, started together: the broker where one needs it, the services, until all are healthy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType

from services.local import affinity, server, state
from services.local.broker import Broker
from services.local.deployments import MALLOC, TABLE, Options, Ports, ProcessSpec, Replicas, frames
from services.local.errors import LocalStackError
from services.local.health import serving
from services.local.ports import free_ports
from services.local.processes import Process, stop_all
from services.local.redis_server import RedisServer
from services.local.server import Server

Say = Callable[[str], None]

_BROKER_S = 60.0
_SERVERS: tuple[type[Server], ...] = (Broker, RedisServer)
_ONE_EACH = Replicas()
_EXTERNAL_S = 15.0  # a broker that is there answers at once


def broker_folder(folder: Path) -> Path:
    """Of the stack whose record is in `folder`."""
    return folder / "broker"


def take_down(folder: Path, deadline_s: float) -> int:
    """Stop what was recorded in `folder`, also after a crash, and delete its brokers' data.

    Returns how many processes were alive.
    """
    alive = state.take_down(folder, deadline_s)
    for kind in _SERVERS:
        server.discard(broker_folder(folder), kind.name)
    return alive


class Stack:
    """As a context manager: started on entering, stopped on leaving, whatever happens in between."""

    def __init__(
        self,
        transports: Sequence[str],
        options: Options,
        folder: Path = state.DEFAULT,
        *,
        kafka: str | None = None,
        redis: str | None = None,
        say: Say = lambda _: None,
        health_s: float = 60.0,
        port: int = 0,
        replicas: Replicas = _ONE_EACH,
    ) -> None:
        """`folder`: for the record, logs and the brokers' data. `port`: of the first door, if it is free.

        `kafka`, `redis`: running ones, to be used instead of one of its own. `replicas`: of each transport.
        Raises `LocalStackError` for an unknown transport, one that nothing would cross, and options that do not fit.
        """
        unknown = [name for name in transports if name not in TABLE]
        if unknown or not transports:
            raise LocalStackError(
                f"unknown transport {', '.join(map(repr, unknown)) or '(none)'}; there is {', '.join(TABLE)}"
            )
        options.check()
        self._transports = list(dict.fromkeys(transports))
        idle = [name for name in transports if TABLE[name].url is not None and not TABLE[name].remote(options)]
        if idle:
            raise LocalStackError(f"all models are fused: nothing would cross {', '.join(idle)}; leave one to it")
        self._options = options
        self.folder = folder.resolve()
        self.logs = self.folder / "logs"
        self._say = say
        self._health_s = health_s
        self._port = port
        self._replicas = replicas
        self._services: list[tuple[str, Process, ProcessSpec]] = []  # with their transport
        self.running: list[state.Running] = []
        self._external = {"kafka": kafka, "redis": redis}
        self._begun = False
        # By kind, as a deployment names it.
        kinds = [TABLE[name].broker for name in [*transports, *[options.consume] * bool(options.consume)]]
        self.brokers = {kind: self._open(kind) for kind in dict.fromkeys(kinds) if kind}

    def _open(self, kind: str) -> Server:
        folder, external = broker_folder(self.folder), self._external[kind]
        if kind == Broker.name:
            return Broker(folder, external, self._options.kafka)
        return RedisServer(folder, external, self._options.redis)

    def __enter__(self) -> Stack:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def doors(self) -> dict[str, str]:
        """Transport -> host:port of its door; of several, separated by commas."""
        return {name: ",".join(spec.host_port for spec in self._specs(name) if spec.door) for name in self._running()}

    def frames(self, transport: str) -> str:
        """The URL of a broker from which its doors take frames, too; empty where they do not."""
        consume = self._options.consume
        return frames(self._options, transport, self.brokers[TABLE[consume].broker].bootstrap) if consume else ""

    def pids(self, transport: str) -> dict[str, int]:
        """The processes that a transport's requests pass through, brokers included."""
        passed_by = {TABLE[name].broker for name in (transport, self._options.consume) if name}
        passed = {member.pid for kind in passed_by if kind for member in self.brokers[kind].members}
        return {r.name: r.pid for r in self.running if r.deployment == transport or r.pid in passed}

    def metrics(self, transport: str) -> list[str]:
        """Where the services of a transport answer scrapes."""
        return [f"http://{spec.metrics}/metrics" for spec in self._specs(transport)]

    def _specs(self, transport: str) -> list[ProcessSpec]:
        return [spec for name, _, spec in self._services if name == transport]

    def _running(self) -> list[str]:
        return list(dict.fromkeys(name for name, _, _ in self._services))

    def start(self) -> None:
        """Start everything. Raises `LocalStackError` where something does not become healthy."""
        recorded = state.read(self.folder)
        if recorded is not None and state.supervisor_alive(recorded):
            raise LocalStackError(
                f"a stack runs already (supervisor {recorded['supervisor']['pid']}); "
                f"stop it with: {state.how_to_stop(self.folder)}"
            )
        cpus = affinity.shares(self._options.inference_cpus)
        self._begun = True
        take_down(self.folder, 15)  # what a crash left behind
        self._write()  # from here on `down` finds who starts this
        server.begin_logs(broker_folder(self.folder))
        for kind, broker in self.brokers.items():
            if self._external[kind] is None:
                self._say(f"starting {broker.title}")
            begin = time.monotonic()
            with affinity.starting_on(cpus and cpus.rest):
                broker.start(_BROKER_S if self._external[kind] is None else _EXTERNAL_S)
            self.running += [self._record("", *member) for member in broker.members]
            self._say(f"{broker.title} is up on {broker.bootstrap} ({time.monotonic() - begin:.1f} s)")
        self._write()
        for index, name in enumerate(self._transports):
            deployment = TABLE[name]
            bootstrap = self.brokers[deployment.broker].bootstrap if deployment.broker else ""
            remote = deployment.remote(self._options)
            count = self._replicas.preprocess + self._replicas.inference * len(remote)
            free = iter(free_ports(2 * count, 0 if index else self._port))
            ports = map(Ports, free, free)
            doors = list(islice(ports, self._replicas.preprocess))
            engines = {model: list(islice(ports, self._replicas.inference)) for model in remote}
            for spec in deployment.build(self._options, doors, engines, bootstrap, self.frames(name)):
                log = self.logs / f"{name}-{spec.name}.log"
                log.unlink(missing_ok=True)  # an error of the last run is not one of this
                with affinity.starting_on(cpus and (cpus.rest if spec.door else cpus.inference)):
                    process = Process(f"{name} {spec.name}", spec.command, log, MALLOC)
                self.running.append(self._record(name, spec.name, process.pid, spec.host_port, spec.metrics))
                self._services.append((name, process, spec))
        self._write()
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + self._health_s
        for _, process, spec in self._services:
            while not serving(spec.host_port, 1.0):
                if not process.running():
                    raise LocalStackError(process.exit_report())
                if time.monotonic() > deadline:
                    raise LocalStackError(
                        f"{process.name} is not healthy within {self._health_s:.0f} s; "
                        f"the end of {process.log}:\n{process.tail()}"
                    )
                time.sleep(0.1)
            self._say(f"{process.name} is healthy on {spec.host_port}")

    def ended(self) -> str | None:
        """A report of the first process that has ended by itself, brokers first; None while all run."""
        brokers = (broker.ended() for broker in self.brokers.values())
        return next(filter(None, brokers), None) or next(
            (process.exit_report() for _, process, _ in self._services if not process.running()), None
        )

    def stop(self) -> None:
        """Stop everything that was started here: doors first, which still need the rest. May be called twice.

        The brokers' data go with it: whoever waited for an answer is gone, and a run may leave gigabytes.
        """
        stop_all([process for _, process, spec in self._services if spec.door], 25)
        stop_all([process for _, process, _ in self._services], 25)
        if self._begun:  # else they are another stack's
            for broker in self.brokers.values():
                broker.discard()
        recorded = state.read(self.folder)
        if recorded is not None and recorded["supervisor"]["pid"] == os.getpid():
            state.clear(self.folder)

    @staticmethod
    def _record(deployment: str, name: str, pid: int, host_port: str, metrics: str = "") -> state.Running:
        return state.Running(deployment, name, pid, state.start_time(pid), host_port, metrics)

    def _write(self) -> None:
        state.write(
            self.folder,
            os.getpid(),
            self.running,
            " ".join(broker.bootstrap for broker in self.brokers.values()),
            self.logs,
        )
