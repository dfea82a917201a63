"""Free ports: the first one as asked for, if it can be had."""

from __future__ import annotations

import socket

from services.local.ports import free_ports


def test_ports_differ_and_the_first_is_the_one_asked_for() -> None:
    [wanted] = free_ports(1)
    ports = free_ports(3, wanted)
    assert ports[0] == wanted
    assert len(set(ports)) == 3


def test_a_port_that_is_taken_is_another_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        [found] = free_ports(1, port)
    assert found not in (0, port)
