"""A gRPC server that speaks the whole protocol: inference, its control questions, health, reflection; and its life.

`Service.run` is the life of a process: serve, watch, drain on SIGTERM or SIGINT, close.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services import oip
from services.errors import ConfigurationError
from services.transports.grpc import Called, GrpcListener, GrpcSideServer
from services.transports.transport import Handle, Listener
from services.version import version

_log = logging.getLogger(__name__)

# What health is asked for, in place of a service's name, by who would restart the process: it serves as long as the
# process answers. That a broker is away is no reason to.
LIVENESS = "liveness"
# With what a transport needs to notice, below the 5 s within which health says so.
_WATCH_S = 0.25


class Service:
    """A gRPC server in front of `handle`, and further listeners with handlers of their own."""

    def __init__(
        self,
        name: str,
        listen: str,
        threads: int,
        handle: Handle,
        models: Mapping[str, oip.ModelFacts],
        *,
        health_listen: str = "",
        listeners: Sequence[tuple[Listener, Handle]] = (),
        reachable: Callable[[], str | None] = lambda: None,
        called: Called | None = None,
        connection_age_s: float = 0.0,
        on_close: Sequence[Callable[[], None]] = (),
    ) -> None:
        """`reachable` says what this service cannot reach, None when all is well. `on_close`: in this order, last.

        `called` learns of every call to the gRPC server. `health_listen`: host:port where health is answered, too, by
        threads that no request can take: a service that has more to do than it can is busy, not dead. Empty: nowhere.
        """
        if ":" not in listen:
            raise ConfigurationError(f"--listen is '{listen}'; write host:port, for example 127.0.0.1:8001")
        self.name = name
        self._handle = handle
        self.grpc = GrpcListener(listen, threads, called=called, connection_age_s=connection_age_s)
        self._listeners = list(listeners)
        self._reachable = reachable
        self._on_close = on_close
        self._stop = threading.Event()
        self._ready: bool | None = None  # not looked yet
        self._health = health.HealthServicer()
        self._report(ready=False)  # it would say SERVING from the start
        self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        server = self.grpc.server
        self.grpc.add_methods(oip.SERVICE, oip.control_methods(version(), models, lambda: bool(self._ready)))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._side = GrpcSideServer(health_listen) if health_listen else None
        if self._side is not None:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._side.server)
        pool = oip.descriptors()
        pool.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
        reflection.enable_server_reflection(
            (oip.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server, pool=pool
        )

    @property
    def host_port(self) -> str:
        """Where the gRPC server listens."""
        return self.grpc.host_port

    @property
    def health_host_port(self) -> str:
        """Where health is answered whatever there is to do; the gRPC server's where there is no such place."""
        return self.host_port if self._side is None else self._side.host_port

    def start(self) -> None:
        """Serve; returns at once."""
        if self._side is not None:
            self._side.start()
        self.grpc.serve(self._handle)
        for listener, handle in self._listeners:
            listener.serve(handle)
        self._check()
        _log.info("%s listens on %s", self.name, ", ".join([self.host_port, *(x.address for x, _ in self._listeners)]))

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then drain and close. For the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        self.start()
        while not self._stop.wait(_WATCH_S):
            self._check()

    def _signalled(self, number: int, _: FrameType | None) -> None:
        _log.info("%s: %s, draining", self.name, signal.Signals(number).name)
        self._stop.set()

    def _check(self) -> None:
        """Say so when what this service needs has gone away or come back; health follows."""
        away = self._reachable()
        if away is None:
            away = next((f"{x.address} is not reachable" for x, _ in self._listeners if not x.healthy()), None)
        ready = away is None
        if ready != self._ready:
            if away is not None:
                _log.warning("%s is not ready: %s; it will be again by itself when that is back", self.name, away)
            else:
                _log.info("%s is ready", self.name)
        self._ready = ready
        self._report(ready=ready)

    def _report(self, *, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", oip.SERVICE):
            self._health.set(service, status)

    def stop(self, drain_s: float) -> bool:
        """Take nothing new, finish what is in hand within `drain_s` seconds, close; whether all was finished."""
        self._ready = False
        self._health.enter_graceful_shutdown()
        everything: list[Any] = [self.grpc, *(listener for listener, _ in self._listeners)]
        finished: list[bool] = []
        threads = [
            threading.Thread(target=lambda one=one: finished.append(one.drain(drain_s)), daemon=True)
            for one in everything
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(drain_s + 5)
        if self._side is not None:
            everything.append(self._side)  # said NOT_SERVING as long as the others drained
        for one in everything:
            one.close()
        for close in self._on_close:
            close()
        drained = len(finished) == len(threads) and all(finished)
        _log.log(
            logging.INFO if drained else logging.WARNING,
            "%s has stopped%s",
            self.name,
            "" if drained else f"; not everything was finished within {drain_s:.0f} s",
        )
        return drained
