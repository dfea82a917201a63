"""Links over Redis with a password and TLS, against a real server: who has the secret gets through, and who has not

learns why, in time.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from services import transports
from services.errors import Unavailable
from services.local.ports import free_ports
from services.local.redis_server import REMEDY, RedisServer, RedisServerSettings, redis_server
from services.transports.redis_security import RedisSecurity
from tests.brokered import AWAY_S, TIMEOUT_S, echo
from tests.secured_broker import Authority, openssl

pytestmark = [
    pytest.mark.skipif(redis_server() is None, reason=f"redis-server is not here: {REMEDY}"),
    pytest.mark.skipif(openssl() is None, reason="no openssl here, which makes the certificates"),
]

USER, PASSWORD, WRONG = "vision", "correct horse; battery=staple", "wrong-horse"


class Secured(NamedTuple):
    """A server that asks who is there, on a plain port and on one that speaks TLS and wants a client certificate."""

    plain: str
    tls: str
    authority: Authority
    security: RedisSecurity  # of the TLS port


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured-redis")
    authority = Authority(folder / "authority", "a test's authority")
    certificate, key = authority.sign("server", hosts="IP:127.0.0.1")
    own, own_key = authority.sign("client")
    (port,) = free_ports(1)
    # What a link needs, and nothing else.
    rights = "+xadd +xlen +xtrim +xread +xreadgroup +xack +xdel +xclaim +xpending +xgroup +xinfo +expire +unlink +eval"
    users = folder / "users.acl"
    users.write_text(f"user default off\nuser {USER} on >{PASSWORD.replace(' ', '')} ~work* +ping +info {rights}\n")
    files = ("--tls-ca-cert-file", authority.ca, "--tls-cert-file", certificate, "--tls-key-file", key)
    settings = ("--tls-port", str(port), *map(str, files), "--aclfile", str(users))
    server = RedisServer(folder, settings=RedisServerSettings(flags=settings))
    try:
        server.start(30)
        security = RedisSecurity(True, USER, PASSWORD.replace(" ", ""), str(authority.ca), str(own), str(own_key))
        yield Secured(server.bootstrap, f"127.0.0.1:{port}", authority, security)
    finally:
        server.discard()


@pytest.mark.parametrize("tls", [False, True])
def test_who_has_the_secret_gets_through_with_no_more_rights_than_a_link_needs(
    secured: Secured, tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    security = secured.security if tls else RedisSecurity(user=USER, password=secured.security.password)
    url = f"redis://{secured.tls if tls else secured.plain}/work?session_ms=1000"
    listener, transport = transports.listen(url, redis=security), transports.connect(url, redis=security)
    try:
        listener.serve(echo)
        for size in (0, 7, 3_000_000):
            payload = bytes(size)
            assert transport.request(payload, {}, TIMEOUT_S).result(TIMEOUT_S).payload == payload
        time.sleep(1.2)  # it looks for what the dead have left
        assert transport.healthy()
        assert listener.healthy()
        assert sum(listener.lag().values()) == 0
    finally:
        transport.close()
        listener.close()
    assert "permission" not in caplog.text
    assert secured.security.password not in caplog.text


WRONGS = {
    "password": ["cannot be used", "BEYOND_REDIS_PASSWORD"],
    "nobody": ["cannot be used", "BEYOND_REDIS_PASSWORD"],
    "authority": ["certificate", "--redis-ca-file"],
    "TLS against none": ["--redis-tls"],
    "no client certificate": ["--redis-ca-file"],
    "rights": ["permission", "what the user may do"],
}


@pytest.mark.parametrize("kind", WRONGS)
def test_who_has_not_learns_why_in_time(
    secured: Secured, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    best, address, stream = secured.security, secured.tls, "work"
    match kind:
        case "password":
            best = dataclasses.replace(best, password=WRONG)
        case "nobody":
            best, address = RedisSecurity(), secured.plain
        case "authority":
            best = dataclasses.replace(best, ca_file=str(Authority(tmp_path / "stranger", "nobody's").ca))
        case "TLS against none":
            address = secured.plain
        case "no client certificate":
            best = dataclasses.replace(best, certificate_file="", key_file="")
        case _:
            stream = "of-others"
    url = f"redis://{address}/{stream}"
    begin = time.monotonic()
    transport = transports.connect(url, redis=best)
    try:
        assert time.monotonic() - begin < 2 * AWAY_S
        with pytest.raises(Unavailable) as refused:
            transport.request(b"", {}, TIMEOUT_S).result(TIMEOUT_S)
        for word in WRONGS[kind]:
            assert word in refused.value.message
        assert not transport.healthy()
    finally:
        transport.close()
    listener = transports.listen(url, redis=best)
    try:
        assert all(any(word in line for line in caplog.messages) for word in WRONGS[kind])
        assert any("reading 'work' begins when it can" in line for line in caplog.messages) == (stream == "work")
    finally:
        listener.close()
    for secret in (best.password, WRONG):
        assert not secret or secret not in caplog.text
