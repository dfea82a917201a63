"""Where a gRPC server listens: what cannot be had is said once, in words of ours, before gRPC says it in its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from services.errors import ConfigurationError
from services.transports.grpc import GrpcListener


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield int(sock.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])  # noqa: S104 # that it cannot be had is tried
def test_a_port_that_is_taken_is_said_and_by_nobody_else(
    taken: int, host: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if host == "localhost" and {a[0] for a in socket.getaddrinfo(host, taken)} != {socket.AF_INET}:
        pytest.skip("localhost has an address here on which the port is free")
    with pytest.raises(ConfigurationError, match=f"cannot listen on {host}:{taken}.*another process may have the port"):
        GrpcListener(f"{host}:{taken}")
    assert capfd.readouterr() == ("", "")  # gRPC writes its own, past Python, to the descriptor


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("127.0.0.1:65536", "a port of 0"),  # gRPC would take port 0 for it
        ("127.0.0.1:http", "a port of 0"),
        ("127.0.0.1", "host:port"),
        (":8001", "host:port"),
        ("192.0.2.1:0", "none of this machine's addresses"),  # an address for documentation: RFC 5737
    ],
)
def test_what_is_no_place_to_listen_is_said(target: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match=says):
        GrpcListener(target)
    assert capfd.readouterr() == ("", "")


def test_a_port_that_was_left_just_now_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            pass  # the server ends first: its side of the connection stays for a while
    listener = GrpcListener(f"127.0.0.1:{port}")
    listener.close()
