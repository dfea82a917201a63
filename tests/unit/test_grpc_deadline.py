"""Both ends of a gRPC call watch its deadline: whichever is faster, the caller's time was spent."""

from __future__ import annotations

from concurrent.futures import Future

import grpc
import pytest

from services.accounting import monotonic_ns
from services.errors import DeadlineExceeded, ServiceError, Unavailable
from services.transports.grpc import GrpcTransport
from services.transports.transport import Reply


class Cancelled:
    """A call whose stream the peer has reset."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED

    def details(self) -> str:
        return "CANCELLED"

    def trailing_metadata(self) -> tuple[()]:
        return ()


@pytest.mark.parametrize(
    ("left_ns", "expected"),
    [pytest.param(-1, DeadlineExceeded, id="after the deadline"), pytest.param(10**12, Unavailable, id="before it")],
)
def test_a_stream_that_the_peer_reset_is_a_deadline_only_when_that_is_over(
    left_ns: int, expected: type[ServiceError]
) -> None:
    transport = GrpcTransport("127.0.0.1:9")
    future: Future[Reply] = Future()
    transport._in_flight.add(future)
    transport._complete(Cancelled(), future, 0.02, monotonic_ns() + left_ns)
    assert type(future.exception(0)) is expected
    transport.close()
