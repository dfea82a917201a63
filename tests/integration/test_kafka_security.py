"""Links over Kafka with TLS and SASL, against a real broker's listeners: who has the secret gets through, and who has

not learns why, in time. For both client libraries.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from services import transports
from services.errors import ConfigurationError, Unavailable
from services.local.broker import Broker
from services.transports.kafka_security import KafkaSecurity
from services.transports.transport import Delivery, Listener, Response, Transport
from tests.brokered import eventually
from tests.secured_broker import LISTENERS, PASSWORD, USER, Authority, SecuredBroker, openssl

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(openssl() is None, reason="no openssl here, which makes the certificates"),
    # kafka-python reads its message schemas, when it is imported, in a way that Python 3.11 and 3.12 frown upon.
    pytest.mark.filterwarnings(r"ignore:(open|read)_text is deprecated:DeprecationWarning"),
]

ROWS = [scheme for scheme in transports.TABLE if scheme.startswith("kafka")]
TIMEOUT_S = 60.0
# Opening waits for a broker so long (README), and so long again for a machine that is busy.
KNOWN_S = 2 * 5.0
WRONG = "wrong-horse"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    broker = SecuredBroker(tmp_path_factory.mktemp("secured"))
    try:
        broker.start(120)
        yield broker
    finally:
        broker.discard()


def right(broker: SecuredBroker, protocol: str, mechanism: str = "SCRAM-SHA-512") -> KafkaSecurity:
    ca = str(broker.authority.ca) if protocol.endswith("SSL") else ""
    if protocol == "SSL":
        certificate, key = map(str, broker.client)
        return KafkaSecurity(protocol, ca_file=ca, certificate_file=certificate, key_file=key)
    return KafkaSecurity(protocol, mechanism, USER, PASSWORD, ca_file=ca)


class Link:
    """One topic, and both ends on it."""

    def __init__(self, scheme: str, address: str) -> None:
        self.url = f"{scheme}://{address}/secured-{uuid.uuid4().hex[:12]}?session_ms=3000"
        self._ends: list[Transport | Listener] = []

    def listen(self, security: KafkaSecurity) -> Listener:
        listener = transports.listen(self.url, security)
        self._ends.append(listener)
        listener.serve(echo)
        return listener

    def connect(self, security: KafkaSecurity) -> Transport:
        transport = transports.connect(self.url, security)
        self._ends.append(transport)
        return transport

    def close(self) -> None:
        for end in self._ends:
            end.close()


def echo(delivery: Delivery) -> Future[Response]:
    future: Future[Response] = Future()
    future.set_result(Response(delivery.payload, {}))
    return future


@pytest.mark.parametrize(
    ("protocol", "mechanism"),
    [
        ("SASL_SSL", "SCRAM-SHA-512"),
        ("SASL_SSL", "SCRAM-SHA-256"),
        ("SASL_SSL", "PLAIN"),
        ("SASL_PLAINTEXT", "SCRAM-SHA-512"),
        ("SSL", ""),
    ],
)
@pytest.mark.parametrize("scheme", ROWS)
def test_who_has_the_secret_gets_through(secured: SecuredBroker, scheme: str, protocol: str, mechanism: str) -> None:
    link = Link(scheme, secured.listeners[protocol])
    security = right(secured, protocol, mechanism)
    try:
        # Given both ends with the secret
        listener, transport = link.listen(security), link.connect(security)
        # When requests are sent, small and larger than a TLS record and a socket's buffer
        for size in (0, 7, 3_000_000):
            payload = bytes(size)
            # Then they are answered
            assert transport.request(payload, {}, TIMEOUT_S).result(TIMEOUT_S).payload == payload
        assert transport.healthy()
        assert listener.healthy()
        assert sum(listener.lag().values()) <= 3  # asked over connections of its own
    finally:
        link.close()


def wrong(kind: str, broker: SecuredBroker, folder: Path) -> tuple[str, KafkaSecurity, list[str]]:
    """The listener, what it is met with, and words of the refusal: the remedy, and what the library may say."""
    best = right(broker, "SASL_SSL")
    match kind:
        case "password":
            return "SASL_SSL", dataclasses.replace(best, password=WRONG), ["uthentication failed", "--kafka-user"]
        case "user":
            return "SASL_SSL", dataclasses.replace(best, user="nobody"), ["uthentication failed", "--kafka-user"]
        case "password, in PLAIN":
            plain = dataclasses.replace(best, mechanism="PLAIN", password=WRONG)
            return "SASL_SSL", plain, ["uthentication failed", "--kafka-user"]
        case "authority":
            stranger = Authority(folder / "stranger", "nobody's authority")
            security = dataclasses.replace(best, ca_file=str(stranger.ca))
            return "SASL_SSL", security, ["certificate", "--kafka-ca-file"]
        case "no TLS against TLS":
            return "SASL_SSL", KafkaSecurity(), ["over PLAINTEXT", "--kafka-protocol"]
        case "TLS against none":
            return "SASL_PLAINTEXT", best, ["over SASL_SSL", "--kafka-protocol"]
        case "no SASL against SASL":
            return "SASL_PLAINTEXT", KafkaSecurity(), ["over PLAINTEXT", "--kafka-protocol"]
        case _:
            certificateless = KafkaSecurity("SSL", ca_file=best.ca_file)
            return "SSL", certificateless, ["over SSL", "certificate"]


WRONGS = [
    "password",
    "user",
    "password, in PLAIN",
    "authority",
    "no TLS against TLS",
    "TLS against none",
    "no SASL against SASL",
    "no client certificate",
]

# What a listener meets, too: it asks the same client, and takes seconds.
LISTENED = ("password", "no TLS against TLS")


@pytest.mark.parametrize("kind", WRONGS)
@pytest.mark.parametrize("scheme", ROWS)
def test_who_has_not_learns_why_in_time(
    secured: SecuredBroker, scheme: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, security, words = wrong(kind, secured, tmp_path)
    link = Link(scheme, secured.listeners[name])
    said: list[str] = []
    caplog.set_level(logging.DEBUG)
    try:
        # When a caller opens
        begin = time.monotonic()
        transport = link.connect(security)

        def refusal() -> str:
            with pytest.raises(Unavailable) as refused:
                transport.request(b"", {}, TIMEOUT_S).result(TIMEOUT_S)
            said.append(refused.value.message)
            return said[-1]

        # Then calls fail within the time in which callers learn that a broker is away
        refusal()
        assert time.monotonic() - begin < KNOWN_S
        # And soon with cause and remedy (a broker that is busy takes longer to refuse than one attempt may last)
        assert eventually(lambda: all(word in refusal() for word in words), every=0.1), said[-1]
        assert not transport.healthy()
        transport.close()
        if kind not in LISTENED:
            return
        # And so it is with a listener, which logs it and tries on
        caplog.clear()
        begin = time.monotonic()
        listener = link.listen(security)
        assert time.monotonic() - begin < KNOWN_S + 5
        assert not listener.healthy()
        assert eventually(lambda: any(all(word in line for word in words) for line in caplog.messages))
    finally:
        begin = time.monotonic()
        link.close()
        assert time.monotonic() - begin < 2 * KNOWN_S
        # And no secret is in what was said
        for secret in (PASSWORD, WRONG):
            assert secret not in caplog.text
            assert secret not in "".join(said)


@pytest.mark.parametrize("scheme", ROWS)
def test_a_listener_that_learns_why_after_it_was_opened_says_so_then(
    secured: SecuredBroker, scheme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a listener without the secret, and a broker that says nothing while it opens
    name, security, words = wrong("password", secured, tmp_path)
    link = Link(scheme, secured.listeners[name])
    caplog.set_level(logging.WARNING)

    def said() -> int:
        return sum(all(word in line for word in words) for line in caplog.messages)

    assert secured.pid is not None
    try:
        os.kill(secured.pid, signal.SIGSTOP)
        try:
            link.listen(security)
            assert caplog.messages, "that it is away is said"
            assert not said()
        finally:
            os.kill(secured.pid, signal.SIGCONT)
        # When the broker goes on, and refuses it
        # Then that is said, with the remedy, and once
        assert eventually(lambda: said() > 0)
        time.sleep(2.0)  # several tries
        assert said() == 1
    finally:
        link.close()


@pytest.mark.parametrize("scheme", ROWS)
def test_a_file_that_cannot_be_used_is_said_at_once(secured: SecuredBroker, scheme: str, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    url = f"{scheme}://{secured.listeners['SASL_SSL']}/secured"
    for path, words in ((tmp_path / "missing.pem", "cannot be read"), (nonsense, "is not a certificate authority")):
        security = dataclasses.replace(right(secured, "SASL_SSL"), ca_file=str(path))
        for opener in (transports.connect, transports.listen):
            with pytest.raises(ConfigurationError, match=words):
                opener(url, security)


@pytest.mark.parametrize("protocol", ["PLAINTEXT", *LISTENERS])
def test_the_local_stack_sees_that_a_secured_broker_of_yours_is_there(
    secured: SecuredBroker, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEYOND_KAFKA_PROTOCOL", protocol)
    if protocol == "SSL":
        certificate, key = secured.client
        monkeypatch.setenv("BEYOND_KAFKA_CERTIFICATE_FILE", str(certificate))
        monkeypatch.setenv("BEYOND_KAFKA_KEY_FILE", str(key))
    addresses = {"PLAINTEXT": secured.bootstrap, **secured.listeners}
    assert Broker(tmp_path, addresses[protocol]).running()
    # And that it is not, where it speaks something else
    other = "SASL_PLAINTEXT" if protocol.endswith("SSL") else "SASL_SSL"
    assert not Broker(tmp_path, addresses[other]).running()
