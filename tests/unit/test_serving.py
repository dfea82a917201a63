"""Health is answered whatever there is to do: who would restart a process must be able to tell busy from dead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing

import pytest

from services.errors import ConfigurationError
from services.local.health import serving
from services.serving import Service
from services.transports import grpc
from services.transports.transport import Delivery, Reply, Response

WORKERS, WITHIN_S = 2, 1.0


class Slow:
    """A handler that is busy until it is let go."""

    def __init__(self) -> None:
        self._go = threading.Event()
        self._begun = threading.Semaphore(0)

    def __call__(self, delivery: Delivery) -> Future[Response]:
        self._begun.release()
        assert self._go.wait(30)
        done: Future[Response] = Future()
        done.set_result(Response(bytes(delivery.payload), {}))
        return done

    def wait_until_handling(self, calls: int) -> None:
        for _ in range(calls):
            assert self._begun.acquire(timeout=10)

    def go(self) -> None:
        self._go.set()


@pytest.fixture
def slow() -> Iterator[Slow]:
    handler = Slow()
    yield handler
    handler.go()


def ask(service: Service, calls: int) -> tuple[grpc.GrpcTransport, list[Future[Reply]]]:
    transport = grpc.connect(f"grpc://{service.host_port}")
    return transport, [transport.request(b"", {}, 30.0) for _ in range(calls)]


def test_health_is_answered_while_all_workers_are_taken_and_calls_wait_for_one(slow: Slow) -> None:
    service = Service("test", "127.0.0.1:0", WORKERS, slow, {}, health_listen="127.0.0.1:0")
    service.start()
    try:
        transport, asked = ask(service, 3 * WORKERS)
        with closing(transport):
            slow.wait_until_handling(WORKERS)
            assert not serving(service.host_port, WITHIN_S)  # it waits for a worker, as every call does
            assert serving(service.health_host_port, WITHIN_S)
            slow.go()
            assert [reply.result(10).payload for reply in asked] == [b""] * len(asked)
    finally:
        slow.go()
        service.stop(5.0)


def test_a_service_that_drains_says_so_until_it_has_drained(slow: Slow) -> None:
    service = Service("test", "127.0.0.1:0", WORKERS, slow, {}, health_listen="127.0.0.1:0")
    service.start()
    transport, [asked] = ask(service, 1)
    with closing(transport):
        slow.wait_until_handling(1)
        stopping = threading.Thread(target=service.stop, args=(10.0,))
        stopping.start()
        try:
            assert stopping.is_alive()
            assert not serving(service.health_host_port, WITHIN_S)
        finally:
            slow.go()
            stopping.join(20)
        assert asked.result(10).payload == b""
        assert not stopping.is_alive()


def test_without_a_place_of_its_own_health_is_where_requests_are() -> None:
    service = Service("test", "127.0.0.1:0", WORKERS, Slow(), {})
    service.start()
    try:
        assert service.health_host_port == service.host_port
        assert serving(service.host_port, 5.0)
    finally:
        service.stop(1.0)


def test_a_place_for_health_that_is_taken_is_said(slow: Slow) -> None:
    service = Service("test", "127.0.0.1:0", WORKERS, slow, {})
    service.start()
    try:
        with pytest.raises(ConfigurationError, match="another process may have the port"):
            Service("test", "127.0.0.1:0", WORKERS, slow, {}, health_listen=service.host_port)
    finally:
        service.stop(1.0)
