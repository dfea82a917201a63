"""What tests of links over a broker share. Run as a program, this file is a listener on the URL that it is given: a

child process that a test kills, or that a request kills.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from services import transports
from services.errors import ServiceError
from services.transports.kafka_client import Client, parse_url
from services.transports.transport import Delivery, Reply, Response

TIMEOUT_S = 60.0
# Within which callers and health checks learn that a broker is away.
AWAY_S = 5.0
ROOT = Path(__file__).parent.parent


def obey(delivery: Delivery) -> Response:
    """What the child does with a payload: dies of `poison`, sleeps `sleep MS`, echoes."""
    verb, _, argument = delivery.payload.partition(b" ")
    if verb == b"poison":
        os._exit(3)
    if verb == b"sleep":
        time.sleep(int(argument) / 1e3)
    return Response(delivery.payload, {"pid": b"%d" % os.getpid(), "attempt": b"%d" % delivery.attempt})


def done(response: Response) -> Future[Response]:
    future: Future[Response] = Future()
    future.set_result(response)
    return future


def child_main(url: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    listener = transports.listen(url)
    listener.serve(lambda delivery: done(obey(delivery)))
    signal.sigwait({signal.SIGTERM})
    listener.drain(5)
    listener.close()


class Children:
    """Listeners in processes of their own."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, url: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 # ourselves
                [sys.executable, "-m", "tests.brokered", url],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self._children.append(child)
        return child

    def stop(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait(10)


class Gate:
    """A handler that answers when, and in what order, it is told to."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.waiting: dict[bytes, Future[Response]] = {}
        self.attempts: dict[bytes, int] = {}

    def __call__(self, delivery: Delivery) -> Future[Response]:
        future: Future[Response] = Future()
        with self._changed:
            self.waiting[delivery.payload] = future
            self.attempts[delivery.payload] = delivery.attempt
            self._changed.notify_all()
        return future

    def wait(self, count: int, timeout: float = TIMEOUT_S) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self.waiting) >= count, timeout)

    def finish(self, payload: bytes) -> None:
        self.waiting[payload].set_result(Response(payload, {}))

    def open(self) -> None:
        for payload, future in list(self.waiting.items()):
            if not future.done():
                self.finish(payload)


def echo(delivery: Delivery) -> Future[Response]:
    return done(Response(delivery.payload, {}))


def kafka_client(url: str) -> Client:
    """The library's client that a link of this URL has."""
    from services.transports.kafka_librdkafka import LibrdkafkaClient  # where a test expects what they warn of
    from services.transports.kafka_python import KafkaPythonClient

    kind = KafkaPythonClient if url.startswith("kafka+python:") else LibrdkafkaClient
    return kind(parse_url(url))


def eventually(what: Callable[[], bool], within: float = TIMEOUT_S, every: float = 0.02) -> bool:
    """`within`: where it is a promise; otherwise a machine that is busy has time."""
    deadline = time.monotonic() + within
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def error_of(future: Future[Reply], within: float) -> ServiceError:
    error = future.exception(within)
    assert isinstance(error, ServiceError), repr(error)
    return error


if __name__ == "__main__":
    child_main(sys.argv[1])
