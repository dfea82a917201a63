"""Ledger -> spans, after the reply. The only user of opentelemetry.

The outermost holder of a ledger emits the whole tree, each service's spans under that service's own resource: the door,
or the client that says it holds the ledger (header `ledger-holder`). Times are explicit; nothing is instrumented.
"""

from __future__ import annotations

import base64
import json
import logging
import queue
import random
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from google.protobuf import json_format
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.accounting import CPU_STAGES, GROUP_OF, UNKNOWN_CPU, Tile, monotonic_ns
from services.errors import ConfigurationError

_log = logging.getLogger(__name__)

# Requests that wait for their spans, and spans that wait to be exported: what is beyond is lost, and said.
_WAITING = 1024
_SPANS = 32768
_EXPORT_MS = 1000
_CLOSE_S = 5.0

# Our namespace, for what has no semantic convention.
STAGE = "beyond.stage"
GROUP = "beyond.stage_group"
DURATION = "beyond.duration_ns"
CPU_TIME = "beyond.cpu_ns"
TASK = "beyond.task"
REQUEST_ID = "beyond.request_id"
ERROR_TYPE = "error.type"  # OpenTelemetry's
NAMESPACE = "beyond-inference"


class OtlpJsonFile(SpanExporter):
    """OTLP as JSON, one ExportTraceServiceRequest per line, as the collector's `otlpjsonfile` receiver reads it."""

    def __init__(self, path: Path) -> None:
        """Append to `path`. Raises `ConfigurationError`."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"spans cannot be written to {path}: {error}") from None
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter.export`."""
        request = hexadecimal(json_format.MessageToDict(encode_spans(spans)))
        with self._lock:
            if self._file.closed:
                return SpanExportResult.FAILURE
            self._file.write(json.dumps(request, separators=(",", ":")) + "\n")
            self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()


def hexadecimal(request: dict[str, Any]) -> dict[str, Any]:
    """OTLP/JSON writes ids in hexadecimal where protobuf's JSON writes base64, and enums as numbers; in place."""
    for resource in request.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                _hexadecimal(span)
    return request


def _hexadecimal(span: dict[str, Any]) -> None:
    for key in ("traceId", "spanId", "parentSpanId"):
        if key in span:
            span[key] = base64.b64decode(span[key]).hex()
    for link in span.get("links", ()):
        _hexadecimal(link)
    if "kind" in span:
        span["kind"] = {"SPAN_KIND_INTERNAL": 1, "SPAN_KIND_SERVER": 2, "SPAN_KIND_CLIENT": 3}.get(span["kind"], 0)
    status = span.get("status", {})
    if "code" in status:
        status["code"] = {"STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}.get(status["code"], 0)


def exporter(destination: str) -> SpanExporter:
    """`otlp://host:port` (gRPC, no TLS) or `file:PATH`. Raises `ConfigurationError`."""
    parts = urlsplit(destination)
    if parts.scheme == "otlp" and parts.netloc:
        return OTLPSpanExporter(endpoint=parts.netloc, insecure=True, timeout=5)
    if parts.scheme == "file" and parts.path:
        return OtlpJsonFile(Path(parts.netloc + parts.path))
    raise ConfigurationError(f"spans go to otlp://host:port or file:PATH, not '{destination}'")


class _Ids(RandomIdGenerator):
    """Random ids, or for the next root on this thread those under which the request travelled."""

    def __init__(self) -> None:
        self._given = threading.local()

    def give(self, own: trace.SpanContext) -> None:
        self._given.trace_id, self._given.span_id = own.trace_id, own.span_id

    def generate_trace_id(self) -> int:
        return self._take("trace_id") or super().generate_trace_id()

    def generate_span_id(self) -> int:
        return self._take("span_id") or super().generate_span_id()

    def _take(self, name: str) -> int:
        value: int = getattr(self._given, name, 0)
        setattr(self._given, name, 0)
        return value


class Telemetry:
    """Turns ledgers into span trees for one exporter."""

    def __init__(self, destination: str, sample_ratio: float, *, immediate: bool = False) -> None:
        """`sample_ratio`: of requests that bring no sampling decision. `immediate`: export in the caller's thread."""
        self._exporter = exporter(destination)
        self._ratio = sample_ratio
        self._processor = (
            SimpleSpanProcessor(self._exporter)
            if immediate
            else BatchSpanProcessor(self._exporter, max_queue_size=_SPANS, schedule_delay_millis=_EXPORT_MS)
        )
        self._providers: dict[str, TracerProvider] = {}
        self._lock = threading.Lock()
        self._random = random.Random()  # noqa: S311 # sampling, not secrets
        self._propagator = TraceContextTextMapPropagator()
        self._ids = _Ids()
        self._waiting: queue.Queue[tuple[Any, ...] | None] = queue.Queue(_WAITING)
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def record_soon(
        self,
        request_id: str,
        task: str,
        start_ns: int,
        tiles: Sequence[Tile],
        headers: Mapping[str, bytes],
        error: str | None,
    ) -> None:
        """As `record`, on a thread of its own: the caller, who has a reply to send, pays a microsecond."""
        try:
            self._waiting.put_nowait((request_id, task, start_ns, tiles, headers, error))
        except queue.Full:
            self._lost += 1

    def _run(self) -> None:
        while (request := self._waiting.get()) is not None:
            try:
                self.record(*request)
            except Exception:  # noqa: BLE001 # one request's spans must not cost all others theirs
                _log.exception("a request has no spans")

    def record(
        self,
        request_id: str,
        task: str,
        start_ns: int,
        tiles: Sequence[Tile],
        headers: Mapping[str, bytes],
        error: str | None,
        where: str = "preprocess",
        own: str = "",
    ) -> bool:
        """Emit the tree of one request if it is sampled; `start_ns` is monotonic. Returns whether it was.

        `own`: the traceparent that the request was sent with, if its root is the sender's: the root gets those ids.
        """
        carrier = {k: headers[k].decode("ascii", "replace") for k in ("traceparent", "tracestate") if k in headers}
        context = self._propagator.extract(carrier)
        parent = trace.get_current_span(context).get_span_context()
        if not (parent.trace_flags.sampled if parent.is_valid else self._random.random() < self._ratio):
            return False
        if own:
            self._ids.give(trace.get_current_span(self._propagator.extract({"traceparent": own})).get_span_context())
        # The ledger is on the monotonic clock; spans want the time of day. One offset, so that the tree stays whole.
        offset = time.time_ns() - monotonic_ns()
        begin = start_ns + offset
        end = begin + sum(tile.duration_ns for tile in tiles)
        root = self._tracer(where).start_span(
            f"infer {task}",
            context,
            kind=trace.SpanKind.SERVER if where == "preprocess" else trace.SpanKind.CLIENT,
            attributes={REQUEST_ID: request_id, TASK: task},
            start_time=begin,
        )
        if error is not None:
            root.set_status(trace.StatusCode.ERROR, error)
            root.set_attribute(ERROR_TYPE, error)
        self._children(trace.set_span_in_context(root), begin, tiles, where)
        root.end(end)
        return True

    def _children(self, context: Any, begin: int, tiles: Sequence[Tile], where: str) -> None:
        """A span per tile; a run of another service's tiles is nested in a span of that service."""
        position = 0
        now = begin
        while position < len(tiles):
            place = tiles[position].where
            run = 1
            if ">" not in place and place != where:
                # Up to the last tile of that service: what follows on the hop is how the answer came back.
                while position + run < len(tiles) and tiles[position + run].where != where:
                    run += 1
                while tiles[position + run - 1].where == f"{where}>{place}":
                    run -= 1
                chunk = tiles[position : position + run]
                end = now + sum(tile.duration_ns for tile in chunk)
                service = self._tracer(place).start_span(
                    f"serve {place}", context, kind=trace.SpanKind.SERVER, start_time=now
                )
                self._children(trace.set_span_in_context(service), now, chunk, place)
                service.end(end)
                now = end
            else:
                now = self._tile(context, now, tiles[position], where)
            position += run

    def _tile(self, context: Any, now: int, tile: Tile, where: str) -> int:
        attributes: dict[str, str | int] = {
            STAGE: tile.stage.value,
            GROUP: GROUP_OF[tile.stage].value,
            DURATION: tile.duration_ns,
        }
        if tile.stage in CPU_STAGES and tile.cpu_ns != UNKNOWN_CPU:
            attributes[CPU_TIME] = tile.cpu_ns
        end = now + tile.duration_ns
        span = self._tracer(where).start_span(tile.stage.value, context, attributes=attributes, start_time=now)
        span.end(max(now, end))  # a slightly negative remainder is in the attribute
        return end

    def _tracer(self, where: str) -> trace.Tracer:
        with self._lock:
            if where not in self._providers:
                provider = TracerProvider(
                    resource=Resource.create({"service.name": where, "service.namespace": NAMESPACE}),
                    shutdown_on_exit=False,
                    id_generator=self._ids,
                )
                provider.add_span_processor(self._processor)
                self._providers[where] = provider
            return self._providers[where].get_tracer("services.telemetry")

    def close(self) -> None:
        """Export what is pending, within seconds."""
        self._waiting.put(None)
        self._thread.join(_CLOSE_S)
        if self._lost:
            _log.warning("%d requests have no spans: they came faster than spans can be made", self._lost)
        self._processor.force_flush(int(_CLOSE_S * 1e3))
        self._processor.shutdown()
