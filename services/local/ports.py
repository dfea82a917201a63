"""Free loopback ports."""

from __future__ import annotations

import contextlib
import socket


def free_ports(count: int, first: int = 0) -> list[int]:
    """Ports that nobody listens on now. Held together while they are chosen, so that they differ.

    `first`: what the first of them should be, if it is free.
    """
    with contextlib.ExitStack() as stack:
        ports = []
        for index in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            if first and not index:
                # As servers do: a port whose last connections have only just ended is free.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", 0 if index else first))
            except OSError:
                sock.bind(("127.0.0.1", 0))
            ports.append(int(sock.getsockname()[1]))
        return ports
