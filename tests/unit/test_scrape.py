"""Scrapes end in time, whatever the other side does, and series are told by their whole names."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from loadgen import scrape


@pytest.fixture
def answering() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Serves one connection by what it is given; the URL to ask."""
    with contextlib.ExitStack() as stack:

        def serve(answer: Callable[[socket.socket], None]) -> str:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def once() -> None:
                with contextlib.suppress(OSError), listening.accept()[0] as connection:
                    connection.recv(4096)
                    answer(connection)

            thread = threading.Thread(target=once)
            thread.start()
            stack.callback(thread.join, 10)
            return f"http://127.0.0.1:{listening.getsockname()[1]}/metrics"

        yield serve


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"])
def test_who_sends_byte_by_byte_is_hung_up_on(
    begin: bytes, answering: Callable[[Callable[[socket.socket], None]], str]
) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(begin)
        while True:  # until it is hung up
            connection.sendall(b"H")
            time.sleep(0.02)

    began = time.monotonic()
    with pytest.raises(ValueError, match=r"does not end within 0\.3 s"):
        scrape.read(answering(drip), 0.3)
    assert time.monotonic() - began < 5


def test_a_whole_answer_is_read(answering: Callable[[Callable[[socket.socket], None]], str]) -> None:
    body = b"a 1\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert scrape.read(answering(lambda connection: connection.sendall(head + body)), 5) == "a 1\n"


def test_an_answer_without_end_is_refused(answering: Callable[[Callable[[socket.socket], None]], str]) -> None:
    def pour(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(40):
            connection.sendall(b"x" * (1 << 20))

    with pytest.raises(ValueError, match="does not end within 16 MiB"):
        scrape.read(answering(pour), 30)


def test_series_are_told_by_their_whole_name() -> None:
    text = '# HELP a 9\na 1\na_b 2\na{x="}"} 3\na{x="1",y="2"} 4e1 1700000000\nab{x="1"} 5\n'
    assert list(scrape.samples(text, "a")) == [("", 1.0), ('x="}"', 3.0), ('x="1",y="2"', 40.0)]
    with pytest.raises(ValueError, match="could not convert"):
        list(scrape.samples("a one\n", "a"))
