"""What waits for an answer: done once, in its order, whatever else of it fails and however often it is told."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future

import pytest

from services.transports.grpc import GrpcListener, GrpcTransport
from services.transports.transport import Afterwards, Delivery, Response


def test_all_is_done_once_in_the_order_in_which_it_was_given() -> None:
    done: list[int] = []
    after = Afterwards()
    for number in range(3):
        after(lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == []
    after.run()
    after.run()
    assert done == [0, 1, 2]


def test_what_comes_when_the_answer_is_gone_is_done_at_once() -> None:
    done: list[str] = []
    after = Afterwards()
    after(lambda: after(lambda: done.append("given meanwhile")))
    after.run()
    assert done == ["given meanwhile"]
    after(lambda: done.append("given later"))
    # Nobody runs it again
    assert done == ["given meanwhile", "given later"]


def test_what_fails_is_logged_and_the_rest_is_done(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    after = Afterwards()
    after(lambda: int("no number"))  # type: ignore[arg-type, return-value]
    after(lambda: done.append("the rest"))
    with caplog.at_level(logging.ERROR):
        after.run()
    assert done == ["the rest"]
    assert "after an answer failed" in caplog.text


def test_a_server_is_not_drained_before_that_is_done() -> None:
    """Spans and counts of the last requests before the end would be lost."""
    booked = threading.Event()

    def handle(delivery: Delivery) -> Future[Response]:
        delivery.after(lambda: booked.wait(10) and None)
        answer: Future[Response] = Future()
        answer.set_result(Response(b"", {}))
        return answer

    # Given a call that is answered, and what waited for that is not done
    listener = GrpcListener("127.0.0.1:0", workers=1)
    listener.serve(handle)
    transport = GrpcTransport(listener.host_port)
    transport.request(b"", {}, 10).result(10)
    try:
        # Then its server is not drained in whatever time, and is as soon as it is done
        assert not listener.drain(0.3)
        assert listener.in_hand() == 1
        booked.set()
        assert listener.drain(10)
    finally:
        booked.set()
        transport.close()
        listener.close()
