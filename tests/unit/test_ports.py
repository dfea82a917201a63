"""Free ports: the first one as asked for, if it can be had, and none that somebody else was given."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services.local.errors import LocalStackError
from services.local.ports import Pool, free_ports

_TAKES = """
import sys
from pathlib import Path
from services.local.ports import Pool
pool = Pool(range({first}, {first} + 4), Path(sys.argv[1]))
print(*(pool.take() for _ in range(3)), flush=True)
sys.stdin.read()
"""


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


def test_none_is_one_that_outgoing_connections_are_given() -> None:
    lowest = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not lowest.exists() or int(lowest.read_text().split()[0]) < 30000:
        pytest.skip("this system's range of ports for outgoing connections is unusual")
    assert all(port < int(lowest.read_text().split()[0]) for port in free_ports(50))


def test_what_one_process_was_given_no_other_one_is_until_it_ends(tmp_path: Path) -> None:
    """Nobody listens on any of them: a service that was told its port has yet to start."""
    # Given four ports that are free here, of which another process was given three
    first = _four_free()
    command = [sys.executable, "-c", _TAKES.format(first=first), str(tmp_path / "claims")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:  # noqa: S603 # ours
        assert other.stdin is not None
        assert other.stdout is not None
        theirs = [int(port) for port in other.stdout.readline().split()]
        pool = Pool(range(first, first + 4), tmp_path / "claims")
        # When ports are taken here
        ours = pool.take()
        # Then it is the fourth
        assert {*theirs, ours} == set(range(first, first + 4))
        # And what is left are those that are ours already
        assert pool.take() == ours
        other.stdin.close()
        other.wait(10)
        assert {pool.take() for _ in range(4)} == set(range(first, first + 4))


def test_a_claim_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for wrong in (tmp_path, tmp_path / "link", tmp_path / "nowhere" / "claims"):
        with pytest.raises(LocalStackError, match=r"cannot be written: .*; remove it, or set TMPDIR"):
            Pool(range(20000, 20004), wrong)


def test_that_all_are_taken_is_said(tmp_path: Path) -> None:
    [port] = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        pool = Pool(range(port, port + 1), tmp_path / "claims")
        with pytest.raises(LocalStackError, match="none of 1 ports is free: stop something that listens"):
            pool.take()


def _four_free() -> int:
    """The first of four ports in a row on which nobody listens."""
    for first in range(30000, 32000, 4):
        try:
            for port in range(first, first + 4):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return first
    raise AssertionError("no four ports in a row are free")
