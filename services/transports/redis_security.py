"""How a Redis client proves who it is and knows its server: a user and a password, TLS.

Secrets come with `RedisSecurity`, never in a link's URL, which is logged, traced and quoted in errors.
https://redis.io/docs/latest/operate/oss_and_stack/management/security/
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.errors import ConfigurationError, Unavailable
from services.transports.tls import client_context


@dataclass(frozen=True, slots=True)
class RedisSecurity:
    """Files are PEM; without `ca_file` the system's authorities are trusted. A password without a user is the default

    user's. A server's certificate must name the host that the link names. Raises `ConfigurationError` for what does not
    fit together.
    """

    tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    key_password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.user and not self.password:
            raise ConfigurationError(
                "a user for Redis needs a password; set BEYOND_REDIS_PASSWORD (or --redis-password-file)"
            )
        if not self.tls and (self.ca_file or self.certificate_file or self.key_file):
            raise ConfigurationError("a certificate for Redis was given, and its links have no TLS; use --redis-tls on")
        if bool(self.certificate_file) != bool(self.key_file):
            raise ConfigurationError("a client certificate for Redis needs both files, its own and its key's")

    def check(self) -> None:
        """Read the files. Raises `ConfigurationError` for those that cannot be used."""
        if self.tls:
            client_context("Redis", self.ca_file, self.certificate_file, self.key_file, self.key_password)


OPEN = RedisSecurity()

CREDENTIALS = "check the user and the password (--redis-user, BEYOND_REDIS_PASSWORD), and what the user may do"
TLS = (
    "check that --redis-ca-file has the authority that signed the server's certificate, that the certificate names the "
    "link's host, that the port speaks TLS (--redis-tls), and, where it asks for one, the client certificate"
)


class Refused(Unavailable):
    """The server is there, and this link and it do not come to terms. It is tried again: a secret may be on its way."""

    def __init__(self, address: str, said: str, remedy: str) -> None:
        """`said`: by the server, or the client library."""
        super().__init__(f"Redis at {address} cannot be used ({said}); {remedy}")
