"""A real Kafka with further listeners, which speak TLS and ask who is there; openssl makes the certificates."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from confluent_kafka.admin import (  # type: ignore[attr-defined] # its annotations forget some
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from services.local.broker import Broker
from services.local.ports import free_ports

USER = "vision"
PASSWORD = "correct horse; battery=staple"  # noqa: S105 # of a broker that lives for a test
LISTENERS = ("SASL_SSL", "SASL_PLAINTEXT", "SSL")
WAIT_S = 20


def openssl() -> str | None:
    return shutil.which("openssl")


class Authority:
    """A certificate authority, and what it signs: PEM files in a folder of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self._folder = folder
        self.ca = folder / "ca.crt"
        self._key = folder / "ca.key"
        constraints = "basicConstraints=critical,CA:TRUE"
        self._make("-subj", f"/CN={name}", "-keyout", self._key, "-out", self.ca, "-addext", constraints)

    def sign(self, name: str, *, hosts: str = "") -> tuple[Path, Path]:
        """A certificate and its key; `hosts` as openssl's subjectAltName, e.g. `IP:127.0.0.1`."""
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        names = ("-addext", f"subjectAltName={hosts}") if hosts else ()
        plain = ("-addext", "basicConstraints=CA:FALSE")
        signed = ("-CA", self.ca, "-CAkey", self._key)
        self._make("-subj", f"/CN={name}", "-keyout", key, "-out", certificate, *names, *plain, *signed)
        return certificate, key

    @staticmethod
    def _make(*arguments: str | Path) -> None:
        path = openssl()
        assert path is not None
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        subprocess.run(  # noqa: S603 # our own command
            [path, "req", "-x509", *kind, *arguments], check=True, capture_output=True, timeout=60
        )


class SecuredBroker(Broker):
    """`listeners`: host:port by listener's name. `SSL` wants a client certificate of `authority`'s."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = Authority(folder / "authority", "a test's authority")
        self.client = self.authority.sign("client")
        self._store = folder / "broker.pem"
        certificate, key = self.authority.sign("broker", hosts="IP:127.0.0.1")
        self._store.write_bytes(key.read_bytes() + certificate.read_bytes())
        ports = free_ports(len(LISTENERS))
        self.listeners = {name: f"127.0.0.1:{port}" for name, port in zip(LISTENERS, ports, strict=True)}

    def properties(self, index: int) -> str:
        plain = super().properties(index)
        known = dict(line.split("=", 1) for line in plain.splitlines())
        added = ",".join(f"{name}://{address}" for name, address in self.listeners.items())
        module = "org.apache.kafka.common.security"
        escaped = PASSWORD.replace("\\", "\\\\")
        lines = [
            f"listeners={known['listeners']},{added}",
            f"advertised.listeners={known['advertised.listeners']},{added}",
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
            + ",".join(f"{name}:{name}" for name in LISTENERS),
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={self._store}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={self.authority.ca}",
            "listener.name.ssl.ssl.client.auth=required",
        ]
        for listener in ("sasl_ssl", "sasl_plaintext"):
            prefix = f"listener.name.{listener}"
            lines += [
                f"{prefix}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
                f'{prefix}.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_{USER}="{escaped}";',
                *(
                    f"{prefix}.scram-sha-{bits}.sasl.jaas.config={module}.scram.ScramLoginModule required;"
                    for bits in (256, 512)
                ),
            ]
        return plain + "\n".join(lines) + "\n"

    def start(self, deadline_s: float = 60.0) -> None:
        super().start(deadline_s)
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):  # one user a request
            known_by = UserScramCredentialUpsertion(USER, ScramCredentialInfo(mechanism, 4096), PASSWORD.encode())
            for done in admin.alter_user_scram_credentials([known_by]).values():
                done.result(WAIT_S)
