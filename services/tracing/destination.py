"""Where spans go: `otlp://host:port` (gRPC), `http://host:port` (OTLP over HTTP), `file:PATH` (OTLP JSON lines)."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO
from urllib.parse import SplitResult, urlsplit

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1 import trace_pb2

from services.errors import ConfigurationError, InvalidInput, Unavailable

_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_HTTP_PATH = "/v1/traces"
# HTTP statuses after which the same request may succeed (the OTLP specification's list).
_MOST_ANSWER = 65536
_RETRYABLE = frozenset({429, 502, 503, 504})


class Destination(Protocol):
    """Takes spans."""

    def send(self, request: ExportTraceServiceRequest, timeout_s: float) -> int:
        """How many spans were refused (partial success). Raises `Unavailable`, or `InvalidInput`: no use to try on."""
        ...

    def close(self) -> None:
        """May be called twice."""
        ...


def open_destination(url: str) -> Destination:
    """Raises `ConfigurationError`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # a port that is no number
        parts, port = urlsplit(""), None
    opener = _TABLE.get(parts.scheme)
    if opener is None or (parts.scheme != "file" and (not parts.hostname or port is None)):
        raise ConfigurationError(
            f"spans go to otlp://host:port (gRPC), http://host:port (OTLP over HTTP) or file:PATH, not '{url}'"
        )
    return opener(parts)


def check(destination: Destination, timeout_s: float = 5.0) -> None:
    """Whether somebody is there, by sending nothing. Raises `Unavailable`, with the remedy, or `InvalidInput`."""
    try:
        destination.send(ExportTraceServiceRequest(), timeout_s)
    except Unavailable as error:
        raise Unavailable(
            f"{error.message}; start a collector there, or a Jaeger (make jaeger), or write them: --spans file:PATH"
        ) from None


class OtlpGrpc:
    """OTLP over gRPC, without TLS."""

    def __init__(self, parts: SplitResult) -> None:
        self._where = parts.netloc
        self._channel = grpc.insecure_channel(parts.netloc)
        self._export = self._channel.unary_unary(
            _EXPORT, ExportTraceServiceRequest.SerializeToString, ExportTraceServiceResponse.FromString
        )

    def send(self, request: ExportTraceServiceRequest, timeout_s: float) -> int:
        """See `Destination.send`."""
        try:
            response = self._export(request, timeout=timeout_s)
        except grpc.RpcError as error:
            call: Any = error
            message = f"spans cannot be sent to otlp://{self._where}: {call.code().name}: {call.details()}"
            if call.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED):
                raise InvalidInput(message) from None
            raise Unavailable(message) from None
        return int(response.partial_success.rejected_spans)

    def close(self) -> None:
        """See `Destination.close`."""
        self._channel.close()


class OtlpHttp:
    """OTLP over HTTP/1.1, binary protobuf. A path other than /v1/traces may be given."""

    def __init__(self, parts: SplitResult) -> None:
        self._where = parts.netloc
        self._path = parts.path if parts.path not in ("", "/") else _HTTP_PATH
        self._connection: http.client.HTTPConnection | None = None

    def send(self, request: ExportTraceServiceRequest, timeout_s: float) -> int:
        """See `Destination.send`."""
        payload = request.SerializeToString()
        reused = self._connection is not None
        try:
            try:
                status, reason, body = self._post(payload, timeout_s)
            except (ConnectionError, http.client.RemoteDisconnected):
                if not reused:
                    raise
                self.close()  # it was idle for too long for the other side, which is no failure
                status, reason, body = self._post(payload, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unavailable(f"spans cannot be sent to http://{self._where}: {error}") from None
        if status != 200:
            message = f"http://{self._where}{self._path} refused spans: {status} {reason}"
            raise Unavailable(message) if status in _RETRYABLE else InvalidInput(message)
        try:
            return int(ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans)
        except DecodeError:  # it took them, and said so in words of its own
            return 0

    def _post(self, payload: bytes, timeout_s: float) -> tuple[int, str, bytes]:
        """Status, reason, body. The time-out is for all of it: a socket's own is for each piece that comes."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._where, timeout=timeout_s)
            self._connection.connect()
        sock = self._connection.sock
        timer = threading.Timer(timeout_s, _cut_off, [sock])
        timer.daemon = True
        timer.start()
        try:
            self._connection.request("POST", self._path, payload, {"Content-Type": "application/x-protobuf"})
            answer = self._connection.getresponse()
            body = answer.read(_MOST_ANSWER)
            if not answer.isclosed():
                raise http.client.HTTPException("the answer is too long")
        finally:
            timer.cancel()
        return answer.status, answer.reason, body

    def close(self) -> None:
        """See `Destination.close`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _cut_off(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class OtlpJsonFile:
    """One ExportTraceServiceRequest per line, as the collector's `otlpjsonfile` receiver reads it."""

    def __init__(self, parts: SplitResult) -> None:
        """Append to the path. Raises `ConfigurationError`."""
        path = Path(parts.netloc + parts.path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"spans cannot be written to {path}: {error}") from None
        self._lock = threading.Lock()

    def send(self, request: ExportTraceServiceRequest, timeout_s: float) -> int:  # noqa: ARG002 # a file is there
        """See `Destination.send`."""
        if not request.resource_spans:
            return 0
        line = json.dumps(to_json(request), separators=(",", ":"))
        with self._lock:
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except (OSError, ValueError) as error:  # a full disk; closed
                raise Unavailable(f"spans cannot be written to {self._file.name}: {error}") from None
        return 0

    def close(self) -> None:
        """See `Destination.close`."""
        with self._lock:
            self._file.close()


_TABLE: dict[str, Callable[[SplitResult], Destination]] = {"otlp": OtlpGrpc, "http": OtlpHttp, "file": OtlpJsonFile}


def to_json(request: ExportTraceServiceRequest) -> dict[str, Any]:
    """OTLP/JSON: protobuf's JSON, but for ids, which are hexadecimal, and enums, which are numbers.

    https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
    """
    document: dict[str, Any] = json_format.MessageToDict(request, use_integers_for_enums=True)
    for resource in document.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                for entity in (span, *span.get("links", ())):
                    for key in ("traceId", "spanId", "parentSpanId"):
                        if key in entity:
                            entity[key] = base64.b64decode(entity[key]).hex()
                # A root has no parent, and what is unset has no status.
                span.setdefault("kind", trace_pb2.Span.SPAN_KIND_UNSPECIFIED)
    return document
