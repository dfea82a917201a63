"""What the pods of the chart rely on.

Health that tells a broker that is away from a process that hangs; ports that are there again after a crash; callers
over gRPC that find new replicas and leave those that go.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.errors import ConfigurationError
from services.prometheus import MetricsServer
from services.serving import LIVENESS, Service
from services.transports.grpc import GrpcTransport
from services.transports.transport import Delivery, Handle, Response
from services.watching import new_metrics

WAIT = 20.0
AGE_S = 1.0


def answering(name: bytes) -> Handle:
    def handle(_: Delivery) -> Future[Response]:
        done: Future[Response] = Future()
        done.set_result(Response(name, {}))
        return done

    return handle


def test_a_service_that_cannot_reach_its_broker_is_not_ready_and_lives() -> None:
    # Given a service whose broker is away
    away = True
    service = Service(
        "test", "127.0.0.1:0", 4, answering(b""), {}, reachable=lambda: "the broker is away" if away else None
    )
    service.start()
    try:
        with grpc.insecure_channel(service.host_port) as channel:
            health = health_pb2_grpc.HealthStub(channel)

            def status(name: str) -> int:
                return int(health.Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT).status)

            # Then who would send it requests learns so, and who would restart it does not
            assert status("") == health_pb2.HealthCheckResponse.NOT_SERVING
            assert status(LIVENESS) == health_pb2.HealthCheckResponse.SERVING
            # And when it is back, both are told the same
            away = False
            service._check()
            assert status("") == status(LIVENESS) == health_pb2.HealthCheckResponse.SERVING
    finally:
        service.stop(1)


def test_a_container_that_starts_again_in_its_pod_has_its_ports_at_once() -> None:
    """What went before it was asked, and closed the connection: the kernel keeps that for a minute."""
    metrics = new_metrics("inference")
    server = MetricsServer("127.0.0.1:0", metrics)
    try:
        with urllib.request.urlopen(f"http://{server.host_port}/metrics", timeout=WAIT) as answer:
            assert answer.status == 200
            answer.read()
    finally:
        server.close()
    again = MetricsServer(server.host_port, metrics)
    again.close()


class NameServer:
    """DNS over UDP for one name, whose addresses may be changed: a headless Service's view of its pods."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(512)
            if not query:
                return
            end = 12  # of the header; then the name's labels, a zero, type and class
            while query[end]:
                end += query[end] + 1
            end += 5
            wanted = struct.unpack(">H", query[end - 4 : end - 2])[0]
            answers = self.addresses if wanted == 1 else []  # A; there is no AAAA
            header = query[:2] + struct.pack(">HHHHH", 0x8580, 1, len(answers), 0, 0)
            records = b"".join(
                b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + socket.inet_aton(address) for address in answers
            )
            self._socket.sendto(header + query[12:end] + records, peer)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(WAIT)
        self._socket.close()


@pytest.fixture
def port() -> Iterator[int]:
    """Of two servers on two addresses of this host."""
    with contextlib.ExitStack() as stack:
        port = 0
        for name, host in ((b"first", "127.0.0.2"), (b"second", "127.0.0.3")):
            try:
                pod = Service("test", f"{host}:{port}", 4, answering(name), {}, connection_age_s=AGE_S)
            except ConfigurationError as error:  # macOS has 127.0.0.1 only
                pytest.skip(f"this host has no further loopback addresses: {error}")
            stack.callback(pod.stop, 1)
            pod.start()
            port = int(pod.host_port.rpartition(":")[2])
        yield port


def test_a_caller_over_grpc_finds_a_new_replica_and_leaves_one_that_goes_and_loses_no_call(
    port: int,
) -> None:
    names = NameServer()
    transport = GrpcTransport(f"dns://127.0.0.1:{names.port}/pods.test:{port}")

    def asked(calls: int = 20) -> Counter[bytes]:
        return Counter(transport.request(b"", {}, WAIT).result(WAIT).payload for _ in range(calls))

    def eventually(expected: set[bytes]) -> None:
        """Calls go on all the while, and each of them is answered."""
        deadline = time.monotonic() + WAIT
        while set(asked()) != expected:
            assert time.monotonic() < deadline, f"{asked()}, not {expected}"
            time.sleep(0.01)

    try:
        # Given one replica, and a caller that is connected to it
        names.addresses = ["127.0.0.2"]
        assert set(asked()) == {b"first"}
        # When there is another one, then both get their half
        names.addresses = ["127.0.0.2", "127.0.0.3"]
        eventually({b"first", b"second"})
        # When the first one is taken from the list, then nobody calls it any more, while it still answers who would
        names.addresses = ["127.0.0.3"]
        eventually({b"second"})
        time.sleep(AGE_S)
        assert set(asked()) == {b"second"}
    finally:
        transport.close()
        names.close()
