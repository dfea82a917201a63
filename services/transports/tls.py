"""How a client of a broker knows its server, and proves who it is, by certificates: the same for every broker."""

from __future__ import annotations

import ssl
from pathlib import Path

from services.errors import ConfigurationError


def client_context(
    broker: str, ca_file: str = "", certificate_file: str = "", key_file: str = "", key_password: str = ""
) -> ssl.SSLContext:
    """Reads the files, PEM; without `ca_file` the system's authorities are trusted. `broker`: its name, in messages.

    Raises `ConfigurationError` for files that cannot be used.
    """
    for path in filter(None, (ca_file, certificate_file, key_file)):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise ConfigurationError(f"'{path}', for {broker}'s TLS, cannot be read: {error.strerror}") from None
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"'{ca_file}' is not a certificate authority in PEM ({_reason(error)}); take the one that signed "
            "the broker's certificate"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate_file:
        try:
            # A password that is given, be it empty, keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(certificate_file, key_file, key_password)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"'{certificate_file}' and '{key_file}' are not a certificate and its key in PEM, or the "
                f"key's password is wrong ({_reason(error)})"
            ) from None
    return context


def _reason(error: ssl.SSLError) -> str:
    return str(error.reason or error).lower().replace("_", " ")
