"""What of a service's parts becomes metrics: the joints between `metrics.py` and parts that know nothing of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from services import metrics as m
from services.batching import Batcher
from services.errors import DeadlineExceeded, ServiceError
from services.link import HOP, Answered, Remote
from services.metrics import Labels, Metrics
from services.preprocess import server
from services.preprocess.server import Door
from services.tracing.context import sampled_trace
from services.tracing.tracer import Tracer
from services.transports.transport import Listener
from services.version import version

# The broker is asked for its partitions' ends at most so often, however many scrape.
_LAG_S = 1.0


def new_metrics(service: str) -> Metrics:
    """Of a service that has its name."""
    metrics = Metrics(service, _kinds(ServiceError))
    metrics.watch(m.SERVICE_INFO, lambda: {(service, version()): 1})
    return metrics


def _kinds(error: type[ServiceError]) -> set[str]:
    """Of an error and those below it in the tree."""
    return {error.kind}.union(*(_kinds(below) for below in error.__subclasses__()))


def scheme(url: str) -> str:
    """What a link's URL begins with: fused, grpc, kafka, ..."""
    return url.partition(":")[0]


class Topic(NamedTuple):
    """Where a listener's records come from. `system`: as OpenTelemetry names it."""

    system: str
    topic: str
    group: str

    @classmethod
    def of(cls, url: str) -> Topic:
        """Of a broker's link."""
        parts = urlsplit(url)
        topic = parts.path.strip("/")
        return cls(parts.scheme.partition("+")[0], topic, parse_qs(parts.query).get("group", [topic])[0])


# --- requests --------------------------------------------------------------------------------------------------------


def at_the_door(metrics: Metrics, url: str = "grpc:") -> Callable[[Answered], None]:
    """What a door tells of the requests that come in by `url`."""
    return _counting(metrics, url, server.HOP, lambda request: request.model)


def at_the_engine(metrics: Metrics, model: str, task: str, url: str) -> Callable[[Answered], None]:
    """What a listener of `url` tells of the requests for its only model."""
    # One that was too late, or not to be read, was meant for the one model that there is.
    return _counting(metrics, url, HOP, lambda request: task if request.model in ("", model) else request.model)


def _counting(metrics: Metrics, url: str, hop: str, task_of: Callable[[Answered], str]) -> Callable[[Answered], None]:
    via, source = scheme(url), Topic.of(url)

    def answered(request: Answered) -> None:
        _count(metrics, request, task_of(request), hop, via)
        if source.topic:
            metrics.processed(*source, request.error, request.end_ns - request.picked_up_ns)

    return answered


def _count(metrics: Metrics, request: Answered, task: str, hop: str, via: str) -> None:
    metrics.request(
        task,
        request.tiles,
        hop=hop,
        via=via,
        received_bytes=request.received_bytes,
        sent_bytes=request.sent_bytes,
        error=request.error,
        trace_id=request.trace_id or sampled_trace(request.headers),
        probe=request.probe,
        dropped=request.error == DeadlineExceeded.kind and not request.begun,
    )


# --- parts -----------------------------------------------------------------------------------------------------------


def watch_door(metrics: Metrics, door: Door) -> None:
    """Its admission."""
    metrics.watch(m.ADMISSION_USED, lambda: {(): door.inside()})
    metrics.watch(m.ADMISSION_LIMIT, lambda: {(): door.admission_limit})


def watch_queue(metrics: Metrics, queue: str, model: str, batcher: Batcher[Any, Any]) -> None:
    """A stage's queue, workers and batches. `model`: "" where the queue is for all."""
    labels = (queue, model)
    metrics.watch(m.QUEUE_DEPTH, lambda: {labels: batcher.depth()})
    metrics.watch(m.QUEUE_CAPACITY, lambda: {labels: batcher.capacity})
    metrics.watch(m.QUEUE_IN_WORK, lambda: {labels: batcher.in_work()})
    metrics.watch(m.QUEUE_WORKERS, lambda: {labels: batcher.workers})
    metrics.watch(m.QUEUE_REFUSALS, lambda: {labels: batcher.refusals})
    metrics.watch(m.BUDGET_DROPS, lambda: {(queue,): batcher.drops})
    metrics.watch_sizes(m.BATCH_SIZE, labels, batcher.sizes)


def watch_link(metrics: Metrics, model: str, url: str, remote: Remote) -> None:
    """The caller's end of a link."""
    via = scheme(url)

    def moved() -> Mapping[Labels, float]:
        sent, received = remote.traffic.bytes()
        return {(metrics.service, HOP, via, "sent"): sent, (metrics.service, HOP, via, "received"): received}

    metrics.watch(m.HOP_BYTES, moved)
    metrics.watch(m.LINK_IN_FLIGHT, lambda: {(model, via): remote.traffic.in_flight()})
    # A link whose every call has one reply counts none of these.
    for metric, name in ((m.LINK_LATE, "late"), (m.LINK_DUPLICATES, "duplicates")):
        if name in remote.counters():
            metrics.watch(metric, partial(_counter, remote, (model, via), name))


def _counter(remote: Remote, labels: Labels, name: str) -> Mapping[Labels, float]:
    return {labels: remote.counters()[name]}


def watch_listener(metrics: Metrics, url: str, listener: Listener) -> None:
    """The callee's end of a link; `url`: as it was given."""
    source = Topic.of(url)
    metrics.watch(m.LISTENER_IN_HAND, lambda: {(scheme(url),): listener.in_hand()})
    if source.topic:
        metrics.watch(m.DEAD_LETTERS, lambda: {(source.topic,): listener.counters().get("dead_letters", 0)})
        if "deleted" in listener.counters():
            metrics.watch(m.DELETED, lambda: {(source.topic,): listener.counters()["deleted"]})

        def lag() -> Mapping[Labels, float]:
            return {(source.topic, source.group, str(number)): n for number, n in listener.lag().items()}

        metrics.watch(m.CONSUMER_LAG, Seldom(lag, _LAG_S))


def watch_spans(metrics: Metrics, tracer: Tracer) -> None:
    """What became of them."""
    metrics.watch(m.SPANS_SENT, lambda: {(): tracer.counts().spans})
    metrics.watch(m.SPANS_LOST, lambda: {(): tracer.counts().spans_lost})
    metrics.watch(m.SPANS_LOST_REQUESTS, lambda: {(): tracer.counts().requests_lost})
    metrics.watch(m.SPANS_WAITING, lambda: {(): tracer.waiting()})


class Seldom:
    """A reading that is taken once in `seconds` at most, by one at a time; in between, the last one is given."""

    def __init__(self, read: m.Read, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        self._read = read
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._last: Mapping[Labels, float] = {}
        self._due = -float("inf")

    def __call__(self) -> Mapping[Labels, float]:
        """Raises what the reading raises; it is not tried again before its time."""
        with self._lock:
            if self._clock() >= self._due:
                self._due = self._clock() + self._seconds
                self._last = {}
                self._last = self._read()
            return self._last
