"""A service's metrics over HTTP, in Prometheus' and OpenMetrics' formats. The only user of prometheus_client.

`metrics.py` says what is measured. OpenMetrics, which Prometheus asks for, carries exemplars; the library negotiates.
OpenTelemetry's own exporter for Prometheus (0.66) knows no exemplars: therefore the client library.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from itertools import accumulate
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client import Metric as Exposed
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from services.errors import ConfigurationError
from services.metrics import Distribution, Family, Metric, Metrics, Number

_log = logging.getLogger(__name__)

# Of one connection, and how many at once: who scrapes is not many, and a service's threads are for requests.
_PATIENCE_S = 5.0
_CONNECTIONS = 8
_CLOSE_S = 5.0
# That are written without a pause: a tenth of a millisecond.
_LINES = 6


class MetricsCollector(Collector):
    """What prometheus_client asks, at each scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Exposed]:
        """See `Collector.collect`."""
        for family in self._metrics.collect():
            yield _exposed(family)


def registry(metrics: Metrics) -> CollectorRegistry:
    """The service's metrics, and those of its process (CPU, memory, open files)."""
    found = CollectorRegistry(auto_describe=False)
    found.register(MetricsCollector(metrics))
    ProcessCollector(registry=found)
    return found


def _exposed(family: Family) -> Exposed:
    metric = family.metric
    exposed = Exposed(metric.name, metric.meaning, metric.kind, metric.unit)
    exposed.samples = _Polite(family)
    return exposed


class _Polite(list[Sample]):
    """The samples of a family, made while they are written, by a thread that gives the interpreter lock up in between.

    Else whoever waits for that lock to go on with a request gets it every 5 ms only (`sys.getswitchinterval`), at every
    of its steps, while thousands of lines are written.
    """

    def __init__(self, family: Family) -> None:
        super().__init__()
        self._family = family

    def __iter__(self) -> Iterator[Sample]:
        metric = self._family.metric
        for found in self._family.samples:
            labels = dict(zip(metric.labels, found.labels, strict=True))
            if isinstance(found, Number):
                yield Sample(metric.name + ("_total" if metric.kind == "counter" else ""), labels, found.value)
            else:
                yield from _distribution(metric, labels, found)


def _distribution(metric: Metric, labels: dict[str, str], found: Distribution) -> Iterator[Sample]:
    scale = 1e9 if metric.unit == "seconds" else 1
    ends = [str(bound / scale) for bound in found.bounds] + ["+Inf"]
    count = 0
    for index, (end, count) in enumerate(zip(ends, accumulate(found.counts), strict=True)):
        if index % _LINES == 0:
            time.sleep(0)  # nothing but the lock is given up
        seen = found.exemplars.get(index)
        exemplar = None if seen is None else Exemplar({"trace_id": seen.trace_id}, seen.ns / scale, seen.at_s)
        yield Sample(f"{metric.name}_bucket", {**labels, "le": end}, count, None, exemplar)
    yield Sample(f"{metric.name}_count", labels, count)
    yield Sample(f"{metric.name}_sum", labels, found.total / scale)


class _Handler(WSGIRequestHandler):
    """Says nothing, and waits for nobody for long: neither for the next byte nor for all of a question."""

    timeout = _PATIENCE_S

    def handle(self) -> None:
        """Answer one question, or hang up on who drips it: he has one of few places."""
        timer = threading.Timer(_PATIENCE_S, _hang_up, [self.connection])
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(OSError):  # hung up
                super().handle()
        finally:
            timer.cancel()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the base class's name
        """No line per scrape."""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = _CONNECTIONS

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        self.address_family = family
        self._room = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the base class's question to a name server, which may take seconds."""
        # A process that follows another one on its port need not wait until the other's connections are forgotten.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        socket.socket.bind(self.socket, self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for it, while there are few."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """On that thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 # the base class's
        """A scraper that went away is no news."""
        _log.debug("a scrape from %s failed", client_address, exc_info=True)


class MetricsServer:
    """Answers scrapes on threads of its own until `close`. Every path is the metrics'."""

    def __init__(self, listen: str, metrics: Metrics) -> None:
        """`listen`: host:port, port 0: a free one. Raises `ConfigurationError`."""
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ConfigurationError(f"--metrics is '{listen}'; write host:port, for example 127.0.0.1:9464")
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = _Server(family, (str(address[0]), int(address[1])))
        except OSError as error:
            raise ConfigurationError(
                f"metrics cannot be served on {listen}: {error}; another process may have the port (see `ss -ltnp`): "
                "give --metrics another one, or leave it out"
            ) from None
        self._server.set_app(make_wsgi_app(registry(metrics)))
        self._closed = False
        self.host_port = f"{listen.rpartition(':')[0]}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_CLOSE_S)
