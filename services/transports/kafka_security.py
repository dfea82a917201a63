"""How a Kafka client proves who it is and knows its broker: TLS and SASL, the same for both client libraries.

Secrets come with `KafkaSecurity`, never in a link's URL, which is logged, traced and quoted in errors.
https://kafka.apache.org/documentation/#security
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from services.errors import ConfigurationError, Unavailable
from services.transports.tls import client_context

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """`protocol`: of the broker's listener. Files are PEM; without `ca_file` the system's authorities are trusted.

    A broker's certificate must name the host that the link names: that is always checked. Raises `ConfigurationError`
    for what does not fit together.
    """

    protocol: str = "PLAINTEXT"
    mechanism: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    key_password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ConfigurationError(f"Kafka's security protocol is '{self.protocol}'; use one of {_or(PROTOCOLS)}")
        if self.sasl:
            if self.mechanism not in MECHANISMS:
                raise ConfigurationError(
                    f"Kafka's SASL mechanism is '{self.mechanism}'; use {_or(MECHANISMS)}, which the broker must have"
                )
            if not (self.user and self.password):
                raise ConfigurationError(
                    f"{self.protocol} needs a user and a password for Kafka; set BEYOND_KAFKA_USER and "
                    "BEYOND_KAFKA_PASSWORD (or --kafka-password-file)"
                )
        elif self.user or self.password:
            raise ConfigurationError(
                f"a user or password for Kafka was given, and {self.protocol} sends neither; use SASL_SSL"
            )
        if not self.tls and (self.ca_file or self.certificate_file or self.key_file):
            raise ConfigurationError(
                f"a certificate for Kafka was given, and {self.protocol} has no TLS; use SSL or SASL_SSL"
            )
        if bool(self.certificate_file) != bool(self.key_file):
            raise ConfigurationError("a client certificate for Kafka needs both files, its own and its key's")

    @property
    def tls(self) -> bool:
        """Whether bytes travel encrypted."""
        return self.protocol.endswith("SSL")

    @property
    def sasl(self) -> bool:
        """Whether a user and a password are sent."""
        return self.protocol.startswith("SASL")

    def context(self) -> ssl.SSLContext | None:
        """For TLS, None without. Reads the files. Raises `ConfigurationError` for those that cannot be used."""
        if not self.tls:
            return None
        return client_context("Kafka", self.ca_file, self.certificate_file, self.key_file, self.key_password)


OPEN = KafkaSecurity()


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


class Cause(Enum):
    """Why a broker that is there cannot be used; the value is the remedy."""

    CREDENTIALS = "check the user, the password and the mechanism (--kafka-user, --kafka-mechanism)"
    TLS = (
        "check that --kafka-ca-file has the authority that signed the broker's certificate, that the certificate names "
        "the link's host, that the listener speaks TLS (--kafka-protocol), and, where it asks for one, the client "
        "certificate"
    )
    PROTOCOL = (
        "the listener speaks another protocol or wants a client certificate; check --kafka-protocol, and the port"
    )


class Refused(Unavailable):
    """The broker is there, and this link and it do not come to terms. It is tried again: a secret may be on its way."""

    def __init__(self, bootstrap: str, security: KafkaSecurity, cause: Cause, said: str) -> None:
        """`said`: by the client library."""
        self.cause = cause
        super().__init__(f"the broker at {bootstrap} cannot be used over {security.protocol} ({said}); {cause.value}")

    @property
    def certain(self) -> bool:
        """Whether it is of no use to ask again at once. A connection that was closed may be of a broker that starts."""
        return self.cause is not Cause.PROTOCOL
