"""gRPC: the OIP's own ModelInfer, as raw bytes on both sides. `grpc://host:port`.

Headers are metadata: `traceparent` and `tracestate` as text, every other as `<name>-bin`; the reply's are trailing
metadata, because the ledger is known only after the payload is encoded. An error is a status, made from the error's
kind by the one table here; its kind travels beside it, so that it comes out as the same class.

Query: `workers` (64; calls handled at once: each waits in a thread), `backlog` (1024; calls beyond it are refused),
`keepalive_s` (30).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlsplit

import grpc

from services.accounting import monotonic_ns
from services.errors import (
    ConfigurationError,
    DeadlineExceeded,
    Failure,
    Internal,
    PayloadTooLarge,
    ServiceError,
    Unavailable,
    from_failure,
    to_failure,
)
from services.transports.transport import MAX_PAYLOAD_BYTES, Afterwards, Delivery, Handle, Reply, fitting

METHOD = "/inference.GRPCInferenceService/ModelInfer"
SERVICE = "inference.GRPCInferenceService"
KIND_KEY = "error-kind"
# What gRPC reports as remaining where the caller set no deadline is its infinity, some centuries.
_NO_DEADLINE_S = 1e7
# A server that drains stops when no call has come for this long.
_QUIET_S = 0.25
_TEXT = frozenset({"traceparent", "tracestate"})
# Room for the protobuf framing around a payload of the largest size. Set on both ends: the default is 4 MiB.
_MESSAGE_LIMIT = MAX_PAYLOAD_BYTES + 1024 * 1024
_MOST_PENDING = 16_384
# Threads of a side server, whose answers are there at once.
_SIDE_WORKERS = 2
_LAST_PORT = 65535

STATUS_OF: dict[str, grpc.StatusCode] = {
    "invalid_input": grpc.StatusCode.INVALID_ARGUMENT,
    "undecodable_image": grpc.StatusCode.INVALID_ARGUMENT,
    "image_too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown_model": grpc.StatusCode.NOT_FOUND,
    "payload_too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "rejected": grpc.StatusCode.ABORTED,
    "internal": grpc.StatusCode.INTERNAL,
}
# For a status that no peer of ours made (a proxy's, the library's, another server's).
_KIND_OF: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid_input",
    grpc.StatusCode.NOT_FOUND: "unknown_model",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "overloaded",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline_exceeded",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.CANCELLED: "unavailable",
}


# Of a call: its method, the name of its status, and the nanoseconds from when gRPC had it until it had the answer.
Called = Callable[[str, str, int], None]
_Answer = Callable[[bytes, grpc.ServicerContext], bytes]


def connect(url: str) -> GrpcTransport:
    """A channel to `grpc://host:port`, or to several addresses; connects when first used. Raises `ConfigurationError`.

    Several: `grpc://10.0.0.1:8001,10.0.0.2:8001`, IPv4 addresses that calls are spread over in turn. A name in DNS with
    several addresses needs no list.
    """
    target, options = _parse(url, {"keepalive_s": 30})
    return GrpcTransport(target, options["keepalive_s"])


def listen(url: str) -> GrpcListener:
    """A server on `grpc://host:port` (port 0: a free one). Raises `ConfigurationError`."""
    target, options = _parse(url, {"workers": 64, "backlog": 1024})
    return GrpcListener(target, options["workers"], options["backlog"])


def _parse(url: str, defaults: dict[str, int]) -> tuple[str, dict[str, int]]:
    parts = urlsplit(url)
    if not parts.netloc or ":" not in parts.netloc:
        raise ConfigurationError(f"link '{url}' has no host:port; write it as grpc://host:port")
    options = dict(defaults)
    for key, value in parse_qsl(parts.query):
        # A URL may be given to both ends, each of which knows its own keys.
        if key not in ("workers", "backlog", "keepalive_s"):
            raise ConfigurationError(f"link '{url}' has unknown option '{key}'; known: workers, backlog, keepalive_s")
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            raise ConfigurationError(f"link '{url}': option {key} is '{value}', not a positive whole number")
        if key in options:
            options[key] = number
    return parts.netloc, options


def resolved(target: str) -> str:
    """`target` as gRPC names it: host:port is for DNS, a list of addresses for nobody.

    https://github.com/grpc/grpc/blob/master/doc/naming.md. Raises `ConfigurationError` for a list of anything else.
    """
    if "," not in target:
        return target
    for address in target.split(","):
        host, _, port = address.rpartition(":")
        try:
            ipaddress.IPv4Address(host)
            right = 0 < int(port) <= _LAST_PORT
        except ValueError:
            right = False
        if not right:
            raise ConfigurationError(
                f"'{address}' of '{target}' is no IPv4 address with a port; a list is made of those"
            )
    return f"ipv4:{target}"


def to_metadata(headers: Mapping[str, bytes]) -> list[tuple[str, str | bytes]]:
    """Headers as gRPC metadata."""
    return [
        (name, value.decode("ascii")) if name in _TEXT else (f"{name}-bin", value) for name, value in headers.items()
    ]


def from_metadata(metadata: Sequence[tuple[str, str | bytes]] | None) -> dict[str, bytes]:
    """gRPC metadata as headers; text entries that are not ours (`user-agent`, ...) are kept as bytes."""
    headers: dict[str, bytes] = {}
    for name, value in metadata or ():
        if isinstance(value, bytes):
            headers[name.removesuffix("-bin")] = value
        else:
            headers[name] = value.encode()
    return headers


class GrpcTransport:
    """The caller's end: one channel, calls in parallel on it."""

    brokered = False
    system = "grpc"

    def __init__(self, target: str, keepalive_s: int = 30) -> None:
        self._target = self.destination = target
        self._channel = grpc.insecure_channel(
            resolved(target),
            options=[
                ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
                ("grpc.max_send_message_length", _MESSAGE_LIMIT),
                ("grpc.keepalive_time_ms", keepalive_s * 1000),
                # A dead peer is noticed, and a peer that is back is found, within seconds.
                ("grpc.max_reconnect_backoff_ms", 2000),
                ("grpc.initial_reconnect_backoff_ms", 200),
                # Behind a headless Kubernetes Service the channel spreads over all pods (a target without a scheme is
                # a name for DNS). It asks for their addresses anew when a connection ends, at most this often; gRPC's
                # own half minute would have it connect to a pod again that is about to go.
                ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
                ("grpc.dns_min_time_between_resolutions_ms", 1000),
                ("grpc.use_local_subchannel_pool", 1),  # two links to one peer are two connections
            ],
        )
        self._call = self._channel.unary_unary(METHOD, None, None)  # bytes to bytes
        self._lock = threading.Lock()
        self._closed = False
        self._in_flight: set[Future[Reply]] = set()

    def request(self, payload: bytes, headers: Mapping[str, bytes], timeout: float) -> Future[Reply]:
        """See `Transport.request`."""
        future: Future[Reply] = Future()
        future.set_running_or_notify_cancel()  # a caller that cancels cannot take the future from under us
        if len(payload) > MAX_PAYLOAD_BYTES:
            future.set_exception(
                PayloadTooLarge(f"the message has {len(payload)} bytes; this link carries {MAX_PAYLOAD_BYTES}")
            )
            return future
        if timeout <= 0:
            future.set_exception(DeadlineExceeded("no time was left for the call"))
            return future
        with self._lock:
            if self._closed:
                future.set_exception(Unavailable(f"the link to {self._target} is closed"))
                return future
            self._in_flight.add(future)
        deadline_ns = monotonic_ns() + int(timeout * 1e9)
        try:
            call = self._call.future(payload, timeout=timeout, metadata=tuple(to_metadata(headers)))
        except ValueError:  # the channel was closed in between
            self._finish(future, Unavailable(f"the link to {self._target} is closed"))
            return future
        call.add_done_callback(lambda done: self._complete(done, future, timeout, deadline_ns))
        return future

    def ask(self, method: str, payload: bytes, timeout: float) -> bytes:
        """Another unary method of the protocol, e.g. "ModelMetadata". Blocks; raises `ServiceError`."""
        try:
            return bytes(self._channel.unary_unary(f"/{SERVICE}/{method}", None, None)(payload, timeout=timeout))
        except grpc.RpcError as error:
            call: Any = error
            raise self._error(call.code(), call.details() or "", {}, timeout) from None

    def _complete(self, call: Any, future: Future[Reply], timeout: float, deadline_ns: int) -> None:
        arrived = monotonic_ns()
        code = call.code()
        if code is grpc.StatusCode.CANCELLED and arrived >= deadline_ns:
            # Both ends watch the deadline. Where the peer's watch is faster, it resets the stream: that is what we see.
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        trailing = from_metadata(call.trailing_metadata())
        if code is grpc.StatusCode.OK:
            self._finish(future, Reply(call.result(), trailing, arrived))
        else:
            self._finish(future, self._error(code, call.details() or "", trailing, timeout))

    def _error(
        self, code: grpc.StatusCode, details: str, trailing: Mapping[str, bytes], timeout: float
    ) -> ServiceError:
        if KIND_KEY in trailing:  # a peer of ours made it
            return from_failure(Failure(trailing[KIND_KEY].decode(), details))
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"no answer from {self._target} within {timeout:.3f} s")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
            return PayloadTooLarge(f"{self._target}: {details}")
        kind = _KIND_OF.get(code, Internal.kind)
        return from_failure(Failure(kind, f"{self._target} answered {code.name}: {details}"))

    def _finish(self, future: Future[Reply], result: Reply | ServiceError) -> None:
        with self._lock:
            if future not in self._in_flight:
                return
            self._in_flight.discard(future)
        if isinstance(result, ServiceError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def healthy(self) -> bool:
        """See `Transport.healthy`: only a call tells."""
        return not self._closed

    def counters(self) -> Mapping[str, int]:
        """gRPC has one reply per call: nothing to count."""
        return {}

    def close(self) -> None:
        """See `Transport.close`."""
        with self._lock:
            self._closed = True
            in_flight = list(self._in_flight)
        for future in in_flight:
            self._finish(future, Unavailable(f"the link to {self._target} was closed while the call was in flight"))
        self._channel.close()


def _check_free(target: str) -> None:
    """Before gRPC tries: it takes port 70000 for 4464, and writes a line of its own, in C, about what it cannot have.

    Raises `ConfigurationError`.
    """
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal() or int(port) > _LAST_PORT:
        raise ConfigurationError(f"cannot listen on {target}: write host:port, with a port of 0 (any) to {_LAST_PORT}")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {target}: {error}; is the host's name right?") from None
    errors = [_bind_error(family, address) for family, _, _, _, address in found]
    # What else may go wrong gRPC may know a way around: a host without IPv6, say.
    if all(error is not None and error.errno in _REMEDY for error in errors):
        raise _cannot_listen(target, errors[0])


def _bind_error(family: int, address: Any) -> OSError | None:
    """Why an address cannot be had, None if it can."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC: a port just left is free
            sock.bind(address)
    except OSError as error:
        return error
    return None


def _cannot_listen(target: str, error: Exception | None) -> ConfigurationError:
    remedy = _REMEDY.get(error.errno) if isinstance(error, OSError) and error.errno else None
    return ConfigurationError(f"cannot listen on {target}: {error}; {remedy or _REMEDY[errno.EADDRINUSE]}")


_REMEDY = {
    errno.EADDRINUSE: "another process may have the port (see `ss -ltnp`)",
    errno.EACCES: "ports below 1024 are the system's, mostly: take a higher one",
    errno.EADDRNOTAVAIL: "the host is none of this machine's addresses; 0.0.0.0 is all of them",
}


class _StampingExecutor(ThreadPoolExecutor):
    """Notes when a call was queued and when a worker took it: the admission stage, which gRPC itself cannot time.

    And does what waits for the call's answer, which gRPC has when the call's own work ends, before the worker is free.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(max_workers=workers, thread_name_prefix="grpc-handler")
        self.stamp = threading.local()  # of the call that this thread is about to handle
        self._idle = threading.Condition()
        self._in_hand = 0
        self._last_call = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Queue `fn`, stamped."""
        queued = monotonic_ns()

        def stamped() -> Any:
            self.stamp.queued_ns, self.stamp.picked_up_ns = queued, monotonic_ns()
            after = self.stamp.after = Afterwards()
            try:
                return fn(*args, **kwargs)
            finally:
                after.run()
                with self._idle:
                    self._in_hand -= 1
                    self._idle.notify_all()

        with self._idle:
            self._in_hand += 1
            self._last_call = time.monotonic()
        return super().submit(stamped)

    @property
    def in_hand(self) -> int:
        """Calls that are queued or handled."""
        return self._in_hand

    def wait_idle(self, quiet_s: float, deadline: float) -> bool:
        """Until nothing is in hand and nothing has come for `quiet_s`; False when `deadline` (monotonic s) passes."""
        with self._idle:
            begin = time.monotonic()
            while True:
                now = time.monotonic()
                quiet_at = max(self._last_call, begin) + quiet_s
                if not self._in_hand and now >= quiet_at:
                    return True
                if now >= deadline:
                    return False
                self._idle.wait(min(deadline, quiet_at if not self._in_hand else deadline) - now)


def _bound(
    target: str, executor: ThreadPoolExecutor, most: int, options: Sequence[tuple[str, int]]
) -> tuple[grpc.Server, str]:
    """A server of at most `most` calls at once that has its port and does not serve yet; and its host:port.

    Raises `ConfigurationError`.
    """
    _check_free(target)
    # A second server on a taken port is an error, not a coin toss.
    options = [*options, ("grpc.so_reuseport", 0)]
    server = grpc.server(executor, maximum_concurrent_rpcs=most, options=options)
    try:
        port = server.add_insecure_port(target)
    except RuntimeError as error:
        raise _cannot_listen(target, error) from None
    return server, f"{target.rsplit(':', 1)[0]}:{port}"


class GrpcSideServer:
    """A small server beside the listener, with threads and a limit of its own: for what must be answered while every
    worker of the listener is taken and it refuses calls. Its services add themselves to `server` before `start`.
    """

    def __init__(self, target: str) -> None:
        """`target`: host:port. Raises `ConfigurationError`."""
        self._executor = ThreadPoolExecutor(_SIDE_WORKERS, thread_name_prefix="grpc-side")
        self.server, self.host_port = _bound(target, self._executor, _MOST_PENDING, [])

    def start(self) -> None:
        """Serve; returns at once."""
        self.server.start()

    def close(self) -> None:
        """Stop at once; may be called again."""
        self.server.stop(None).wait(5)
        self._executor.shutdown(wait=False, cancel_futures=True)


class GrpcListener:
    """The callee's end: a gRPC server whose ModelInfer hands raw bytes to the handler.

    `add_methods` adds the rest of the protocol before `serve`. `called` learns of every call after its answer.
    `connection_age_s`: after it (a tenth less or more) a connection ends gracefully: what is in flight on it is
    answered, and its caller connects anew, to all addresses that there are by then. 0: never.
    """

    def __init__(
        self,
        target: str,
        workers: int = 64,
        backlog: int = 1024,
        called: Called | None = None,
        connection_age_s: float = 0.0,
    ) -> None:
        self._called = called
        self._executor = _StampingExecutor(workers)
        self._server, self.host_port = _bound(
            target,
            self._executor,
            workers + backlog,
            [
                ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
                ("grpc.max_send_message_length", _MESSAGE_LIMIT),
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                ("grpc.keepalive_permit_without_calls", 1),
                # Calls that Python has not turned to. Beyond its own limit, 1000, gRPC ends some of them by lot as
                # CANCELLED, which says nothing to their callers; Python refuses what is too much, and says so.
                ("grpc.server.max_pending_requests", _MOST_PENDING),
                ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING),
                *([("grpc.max_connection_age_ms", int(connection_age_s * 1000))] if connection_age_s else []),
            ],
        )
        self.address = f"grpc://{self.host_port}"
        self._lock = threading.Lock()
        self._serving = False
        self._closed = False
        self._draining = False

    @property
    def server(self) -> grpc.Server:
        """For services beside ModelInfer (health, reflection), which their libraries add themselves."""
        return self._server

    def add_methods(self, service: str, methods: Mapping[str, Callable[[bytes], bytes]]) -> None:
        """Further unary methods of `service`, bytes to bytes; a `ServiceError` becomes its status."""
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    service,
                    {
                        name: grpc.unary_unary_rpc_method_handler(self._timed(f"{service}/{name}", _answering(method)))
                        for name, method in methods.items()
                    },
                ),
            )
        )

    def serve(self, handle: Handle) -> None:
        """See `Listener.serve`."""

        def infer(payload: bytes, context: grpc.ServicerContext) -> bytes:
            received = monotonic_ns()
            if self._draining:
                _abort(context, Unavailable("this server is draining; the call can be made again elsewhere"))
            return self._handle(handle, payload, context, received)

        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    {METHOD.rsplit("/", 1)[1]: grpc.unary_unary_rpc_method_handler(self._timed(METHOD[1:], infer))},
                ),
            )
        )
        self._server.start()
        self._serving = True

    def _timed(self, method: str, answer: _Answer) -> _Answer:
        called = self._called
        if called is None:
            return answer

        def timed(payload: bytes, context: grpc.ServicerContext) -> bytes:
            status = grpc.StatusCode.OK
            queued = self._executor.stamp.queued_ns
            # Given first, so that it does not time what else waits for the answer.
            self._executor.stamp.after(lambda: called(method, status.name, monotonic_ns() - queued))
            try:
                return answer(payload, context)
            except BaseException:
                aborted: Any = context  # the stubs forget `code`
                status = aborted.code() or grpc.StatusCode.UNKNOWN
                raise

        return timed

    def _handle(self, handle: Handle, payload: bytes, context: grpc.ServicerContext, received_ns: int) -> bytes:
        timeout: float | None = context.time_remaining()
        if timeout is not None and timeout > _NO_DEADLINE_S:
            timeout = None
        delivery = Delivery(
            payload,
            from_metadata(context.invocation_metadata()),
            self._executor.stamp.queued_ns,
            self._executor.stamp.picked_up_ns,
            received_ns,
            timeout=timeout,
            after=self._executor.stamp.after,
        )
        try:
            response = fitting(handle(delivery).result(timeout))
        except TimeoutError as error:  # the handler's own, where there is no time-out
            spent = None if timeout is None else DeadlineExceeded(f"not done within the caller's {timeout:.3f} s")
            _abort(context, spent or error)
        except Exception as error:  # noqa: BLE001 # whatever a handler raises is answered, and the server lives on
            _abort(context, error)
        context.set_trailing_metadata(tuple(to_metadata(response.headers)))
        return response.payload

    def healthy(self) -> bool:
        """Serving, and neither draining nor closed."""
        return self._serving and not self._draining and not self._closed

    def in_hand(self) -> int:
        """See `Listener.in_hand`; calls of other methods count, too."""
        return self._executor.in_hand

    def counters(self) -> Mapping[str, int]:
        """See `Listener.counters`: nothing to count."""
        return {}

    def lag(self) -> Mapping[int, int]:
        """See `Listener.lag`: no broker."""
        return {}

    def drain(self, timeout: float) -> bool:
        """See `Listener.drain`."""
        deadline = time.monotonic() + timeout
        self._draining = True
        # Calls keep coming until clients have learned of it. While the server runs they are told to go elsewhere; a
        # server that stops while a call is being accepted would answer it with a bare CANCELLED.
        finished = self._executor.wait_idle(quiet_s=min(_QUIET_S, timeout), deadline=deadline)
        return self._server.stop(max(0.0, deadline - time.monotonic())).wait(timeout) and finished

    def close(self) -> None:
        """See `Listener.close`."""
        with self._lock:
            if self._closed:
                return
            self._closed = self._draining = True
        self._server.stop(None).wait(5)
        self._executor.shutdown(wait=False, cancel_futures=True)


def _answering(method: Callable[[bytes], bytes]) -> _Answer:
    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return method(request)
        except Exception as error:  # noqa: BLE001 # as above
            _abort(context, error)

    return answer


def _abort(context: grpc.ServicerContext, error: BaseException) -> NoReturn:
    failure = to_failure(error)
    context.set_trailing_metadata(((f"{KIND_KEY}-bin", failure.kind.encode()),))
    with contextlib.suppress(UnicodeError):
        context.abort(STATUS_OF.get(failure.kind, grpc.StatusCode.INTERNAL), failure.message)
    raise AssertionError("abort raises")
