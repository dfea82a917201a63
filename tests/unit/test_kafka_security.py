"""What secures a link over Kafka: what fits together, what each client library is told, and what nobody is."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest

from services import transports
from services.credentials import kafka_security
from services.errors import ConfigurationError
from services.settings import InferenceSettings, KafkaSettings, PreprocessSettings, parse
from services.transports.kafka_client import parse_url
from services.transports.kafka_librdkafka import Heard
from services.transports.kafka_security import Cause, KafkaSecurity, Refused

# kafka-python reads its message schemas, when it is imported, in a way that Python 3.11 and 3.12 frown upon.
pytestmark = pytest.mark.filterwarnings(r"ignore:(open|read)_text is deprecated:DeprecationWarning")

SECRET = "hunter2"  # noqa: S105 # of nothing
SASL: dict[str, str] = {"mechanism": "SCRAM-SHA-512", "user": "vision", "password": SECRET}


def secured(scheme: str, security: KafkaSecurity) -> dict[str, Any]:
    """The settings of a client library; imported when asked for, as the table does."""
    settings: dict[str, Any] = importlib.import_module(transports.TABLE[scheme]).secured(security)
    return settings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"protocol": "TLS"}, "'TLS'; use one of PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"),
        (
            {**SASL, "protocol": "SASL_SSL", "mechanism": "GSSAPI"},
            "'GSSAPI'; use PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
        ),
        ({**SASL, "protocol": "SASL_SSL", "password": ""}, "needs a user and a password"),
        ({**SASL, "protocol": "SASL_SSL", "user": ""}, "needs a user and a password"),
        ({"protocol": "SASL_SSL", "mechanism": "PLAIN"}, "needs a user and a password"),
        (SASL, "PLAINTEXT sends neither; use SASL_SSL"),
        ({**SASL, "protocol": "SSL"}, "SSL sends neither"),
        ({"ca_file": "ca.crt"}, "PLAINTEXT has no TLS; use SSL or SASL_SSL"),
        ({**SASL, "protocol": "SASL_PLAINTEXT", "ca_file": "ca.crt"}, "SASL_PLAINTEXT has no TLS"),
        ({"protocol": "SSL", "key_file": "tls.key"}, "needs both files"),
        ({"protocol": "SSL", "certificate_file": "tls.crt"}, "needs both files"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_remedy(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        KafkaSecurity(**given)
    assert words in refused.value.message
    assert SECRET not in refused.value.message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ca_file": "missing.pem"}, "'missing.pem', for Kafka's TLS, cannot be read: No such file"),
        ({"ca_file": "text.pem"}, "'text.pem' is not a certificate authority in PEM"),
        (
            {"certificate_file": "text.pem", "key_file": "text.pem", "key_password": SECRET},
            "not a certificate and its key",
        ),
    ],
)
@pytest.mark.parametrize("scheme", ["kafka", "kafka+python"])
def test_files_that_cannot_be_used_are_refused_by_both_clients(
    given: dict[str, str], words: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        secured(scheme, KafkaSecurity("SSL", **given))
    assert words in refused.value.message
    assert SECRET not in refused.value.message


def test_both_clients_are_told_the_same() -> None:
    security = KafkaSecurity("SASL_PLAINTEXT", **SASL)
    assert secured("kafka", security) == {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "vision",
        "sasl.password": SECRET,
    }
    assert secured("kafka+python", security) == {
        "security_protocol": "SASL_PLAINTEXT",
        "ssl_context": None,
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "vision",
        "sasl_plain_password": SECRET,
    }


def test_a_plain_link_sends_nothing() -> None:
    # Given a mechanism that settings name by default, then it is of no consequence
    security = KafkaSecurity(mechanism="SCRAM-SHA-512")
    assert secured("kafka", security) == {"security.protocol": "PLAINTEXT"}
    assert secured("kafka+python", security) == {"security_protocol": "PLAINTEXT", "ssl_context": None}


def test_a_broker_s_certificate_and_its_name_are_checked() -> None:
    context = secured("kafka+python", KafkaSecurity("SSL"))["ssl_context"]
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"
    assert "ssl.endpoint.identification.algorithm" not in secured("kafka", KafkaSecurity("SSL"))  # https


@pytest.mark.parametrize("cls", [PreprocessSettings, InferenceSettings])
def test_secrets_come_from_the_environment_and_have_no_flag(cls: Any, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {
        "BEYOND_KAFKA_PROTOCOL": "SASL_SSL",
        "BEYOND_KAFKA_USER": "vision",
        "BEYOND_KAFKA_PASSWORD": SECRET,
        "BEYOND_KAFKA_CA_FILE": "ca.crt",
    }
    settings = parse(cls, "", [], environment)
    assert kafka_security(settings.kafka) == KafkaSecurity("SASL_SSL", **SASL, ca_file="ca.crt")
    # ... are printed nowhere
    assert SECRET not in repr(settings)
    assert SECRET not in repr(kafka_security(settings.kafka))
    # ... and are not for `ps` to show
    with pytest.raises(SystemExit):
        parse(cls, "", ["--kafka-password", SECRET], {})
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parse(cls, "", ["--help"], environment)
    said = capsys.readouterr().out
    assert "BEYOND_KAFKA_PASSWORD" in said
    assert SECRET not in said


def test_a_password_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(f"{SECRET}\n")
    settings = KafkaSettings(kafka_protocol="SASL_SSL", kafka_user="vision", kafka_password_file=str(path))
    assert kafka_security(settings).password == SECRET
    both = KafkaSettings(kafka_password=SECRET, kafka_password_file=str(path))
    with pytest.raises(ConfigurationError, match="unset one of them"):
        kafka_security(both)
    with pytest.raises(ConfigurationError, match="No such file"):
        kafka_security(KafkaSettings(kafka_password_file=str(tmp_path / "missing")))


@pytest.mark.parametrize("cause", list(Cause))
def test_a_refusal_names_cause_and_remedy_and_no_secret(cause: Cause) -> None:
    refused = Refused("broker:9093", KafkaSecurity("SASL_SSL", **SASL), cause, "what the library said")
    assert refused.kind == "unavailable"  # as it crosses a wire
    for word in ("broker:9093", "SASL_SSL", "what the library said", cause.value):
        assert word in refused.message
    assert SECRET not in refused.message


AUTHENTICATION = (ck.KafkaError._AUTHENTICATION, "SASL authentication error: Invalid username or password")
CERTIFICATE = (ck.KafkaError._SSL, "SSL handshake failed: certificate verify failed")
ALERT = (ck.KafkaError._TRANSPORT, "Receive failed: SSL routines::ssl/tls alert bad certificate")
REFUSED = (ck.KafkaError._TRANSPORT, "sasl_ssl://broker:9093: Connect failed: Connection refused")
ALL_DOWN = (ck.KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down")


@pytest.mark.parametrize(
    ("met", "said", "cause"),
    [
        (False, [], None),
        (False, [AUTHENTICATION, ALL_DOWN], Cause.CREDENTIALS),
        (False, [CERTIFICATE], Cause.TLS),
        (False, [ALERT, ALL_DOWN], Cause.TLS),
        # Connections are closed, and the library says no more
        (False, [ALL_DOWN], Cause.PROTOCOL),
        # A broker that is away, or went
        (False, [REFUSED, ALL_DOWN], None),
        (True, [ALL_DOWN], None),
        (True, [REFUSED], None),
        # ... or came back, and wants another password
        (True, [REFUSED, ALL_DOWN, AUTHENTICATION], Cause.CREDENTIALS),
        (False, [AUTHENTICATION, REFUSED], None),
    ],
)
def test_what_librdkafka_says_of_connections_tells_who_refuses_from_who_is_away(
    met: bool, said: list[tuple[int, str]], cause: Cause | None
) -> None:
    heard = Heard()
    if met:
        heard.forget()
    for code, text in said:
        heard(ck.KafkaError(code, text))
    refusal = heard.refusal(parse_url("kafka://broker:9093/topic"), KafkaSecurity())
    assert (refusal is None) == (cause is None)
    if cause is not None:
        assert refusal is not None
        assert cause.value in refusal.message
