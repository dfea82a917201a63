"""What is asked of a Kafka broker without a client library: who is there, and how much they may write.

Requests by hand, in the oldest version that brokers of today answer: https://kafka.apache.org/protocol
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct

from services.local.errors import LocalStackError

_API_VERSIONS, _METADATA, _ALTER_CLIENT_QUOTAS = 18, 3, 49
_CORRELATION = 1
_MOST_BYTES = 1 << 24


def answers(address: str, timeout_s: float = 2.0, *, tls: bool = False) -> bool:
    """Whether a Kafka broker answers there: an ApiVersions request; a bare port is not enough.

    It is what a client may ask before it has said who it is.
    """
    try:
        return _ask(address, _API_VERSIONS, b"", timeout_s, tls=tls)[:2] == b"\0\0"
    except (OSError, ValueError):
        return False


def members(address: str, timeout_s: float = 2.0) -> int:
    """How many brokers take part in the cluster, as the one there knows it; 0 where none answers."""
    try:
        (count,) = struct.unpack_from(">i", _ask(address, _METADATA, struct.pack(">i", 0), timeout_s))
    except (OSError, ValueError, struct.error):
        return 0
    return int(count)


def limit_producers(address: str, bytes_per_s: int, timeout_s: float = 5.0) -> None:
    """Let all clients of one name write so many bytes a second to each broker. Raises `LocalStackError`."""
    entity = struct.pack(">i", 1) + _text("client-id") + struct.pack(">h", -1)  # null: whoever has no own limit
    operation = struct.pack(">i", 1) + _text("producer_byte_rate") + struct.pack(">db", bytes_per_s, 0)
    body = struct.pack(">i", 1) + entity + operation + b"\0"
    try:
        reply = _ask(address, _ALTER_CLIENT_QUOTAS, body, timeout_s)
        _, entries, code = struct.unpack_from(">iih", reply)
    except (OSError, ValueError, struct.error) as error:
        raise LocalStackError(f"Kafka at {address} was not told how much may be written to it: {error}") from None
    if code or entries != 1:
        raise LocalStackError(f"Kafka at {address} refuses to limit what is written to it: error {code}")


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _ask(address: str, api: int, body: bytes, timeout_s: float, *, tls: bool = False) -> bytes:
    """A request of version 0; what its reply says. Raises `OSError`, `ValueError`."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection((host, int(port)), timeout_s))
        sock.settimeout(timeout_s)
        if tls:
            sock = stack.enter_context(_unverified().wrap_socket(sock))
        request = struct.pack(">hhi", api, 0, _CORRELATION) + _text("probe") + body
        sock.sendall(struct.pack(">i", len(request)) + request)
        size, correlation = struct.unpack(">ii", _exactly(sock, 8))
        if correlation != _CORRELATION or not 4 <= size <= _MOST_BYTES:
            raise ValueError(f"{address} does not speak Kafka's protocol")
        return _exactly(sock, size - 4)


def _exactly(sock: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = sock.recv(count)
        if not part:
            raise ConnectionError("the connection was closed")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _unverified() -> ssl.SSLContext:
    """To ask whether somebody is there: nothing is told, and nothing believed. The services do verify."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    certificate = os.environ.get("BEYOND_KAFKA_CERTIFICATE_FILE")
    if certificate:
        key, password = os.environ.get("BEYOND_KAFKA_KEY_FILE"), os.environ.get("BEYOND_KAFKA_KEY_PASSWORD", "")
        context.load_cert_chain(certificate, key, password)
    return context
