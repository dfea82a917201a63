"""Container engines: docker, podman and buildah, by their command lines."""

from __future__ import annotations

import configparser
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from images.errors import ImageError

PREFERENCE = ("docker", "podman", "buildah")
_BUILD_S, _QUICK_S, _TRANSFER_S, _PULL_S = 3600, 60, 1800, 300
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_UNITS = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def find(name: str = "") -> Engine:
    """The engine of that name, or the first that works. Raises `ImageError` with the remedy."""
    for candidate in (name,) if name else PREFERENCE:
        if candidate not in PREFERENCE:
            raise ImageError(f"'{candidate}' is no engine that is known; use one of {', '.join(PREFERENCE)}")
        path = shutil.which(candidate)
        if path is not None and _works(path, candidate):
            return Engine(candidate, path)
    raise ImageError(
        f"{name or 'no container engine'} {'does not run' if name else 'is'} here; start docker, or install podman or "
        "buildah (on Debian, as root: apt install --no-install-recommends buildah)"
    )


def _works(path: str, name: str) -> bool:
    try:
        done = subprocess.run(  # noqa: S603 # what `which` found
            [path, "images" if name == "buildah" else "info"], capture_output=True, timeout=_QUICK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class Engine:
    """One engine. Everything raises `ImageError` with the end of what the engine said."""

    def __init__(self, name: str, path: str) -> None:
        """`path`: its command."""
        self.name = name
        self._path = path

    def has(self, reference: str) -> bool:
        """Whether it has that image."""
        return bool(self.digest(reference))

    def digest(self, reference: str) -> str:
        """The id of an image's configuration: the same for the same image; empty where it is not there."""
        kind = ["inspect", "--type", "image", "--format", "{{.FromImageID}}"]
        if self.name != "buildah":
            kind = ["image", "inspect", "--format", "{{.Id}}"]
        done = self._ask([*kind, reference])
        return done.stdout.strip() if done.returncode == 0 else ""

    def size(self, reference: str) -> float:
        """Unpacked, in bytes; of buildah as exactly as it says."""
        if self.name != "buildah":
            return float(self._run(["image", "inspect", "--format", "{{.Size}}", reference]))
        [found, *_] = json.loads(self._run(["images", "--json", reference]))
        match = re.fullmatch(r"([\d.]+) ?(\w+)", found["size"])
        if match is None or match.group(2) not in _UNITS:
            raise ImageError(f"buildah says that {reference} has a size of '{found['size']}', which is not understood")
        return float(match.group(1)) * _UNITS[match.group(2)]

    def pull(self, reference: str) -> bool:
        """Whether it could be had from its registry."""
        try:
            return self._ask(["pull", "--quiet", reference], _PULL_S).returncode == 0
        except ImageError:  # a registry that does not answer
            return False

    def build(self, dockerfile: Path, context: Path, reference: str, target: str, arguments: Sequence[str]) -> None:
        """Build it; what is as it was is taken from the cache. `arguments`: NAME=VALUE for its ARGs."""
        command = ["build", "--file", str(dockerfile), "--tag", reference]
        if self.name == "buildah":
            # Isolation by chroot needs no more rights than building does, so that it also works inside a container.
            isolation = os.environ.get("BUILDAH_ISOLATION", "chroot")
            command = ["bud", "--layers", "--isolation", isolation, "--network", "host", *command[1:]]
        if target:
            command += ["--target", target]
        for argument in arguments:
            command += ["--build-arg", argument]
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as settings:
            settings.write(_pip_settings())
            settings.flush()
            command += ["--secret", f"id=pip,src={settings.name}"]
            if _CERTIFICATES.exists():
                command += ["--secret", f"id=ca,src={_CERTIFICATES}"]
            self._run([*command, str(context)], _BUILD_S)

    def add_base(self, archive: Path, reference: str) -> None:
        """An image of a root file system's archive."""
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        if self.name != "buildah":
            self._run(["import", "--change", f"ENV {path}", str(archive), reference], _TRANSFER_S)
            return
        container = self._run(["from", "scratch"]).strip()
        try:
            self._run(["add", "--quiet", container, str(archive), "/"], _TRANSFER_S)
            self._run(["config", "--env", path, "--cmd", "python3", container])
            self._run(["commit", "--quiet", container, reference], _TRANSFER_S)
        finally:
            self._ask(["rm", container])

    def save(self, reference: str, archive: Path) -> None:
        """As an archive that `docker load`, containerd and kind read."""
        archive.unlink(missing_ok=True)
        if self.name == "buildah":
            self._run(["push", "--quiet", reference, f"docker-archive:{archive}:{reference}"], _TRANSFER_S)
        else:
            self._run(["save", "--output", str(archive), reference], _TRANSFER_S)

    def push(self, reference: str, destination: str) -> None:
        """To a registry that you are logged in to."""
        if self.name == "docker":
            self._run(["tag", reference, destination])
            self._run(["push", "--quiet", destination], _TRANSFER_S)
        else:
            scheme = "docker://" if self.name == "buildah" else ""
            self._run(["push", "--quiet", reference, f"{scheme}{destination}"], _TRANSFER_S)

    def _ask(self, arguments: Sequence[str], limit_s: float = _QUICK_S) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        try:
            return subprocess.run(  # noqa: S603 # what `which` found
                [self._path, *arguments], capture_output=True, text=True, timeout=limit_s, check=False, env=environment
            )
        except subprocess.TimeoutExpired:
            raise ImageError(f"{self.name} {arguments[0]} did not end within {limit_s:.0f} s") from None

    def _run(self, arguments: Sequence[str], limit_s: float = _QUICK_S) -> str:
        done = self._ask(arguments, limit_s)
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).strip().splitlines()
            raise ImageError(f"{self.name} {' '.join(arguments)} failed:\n" + "\n".join(lines[-25:]))
        return done.stdout


def _pip_settings() -> str:
    """The host's settings of pip, an index of the user's among them, with the certificates that are mounted."""
    settings = configparser.RawConfigParser()
    settings.read(os.environ.get("PIP_CONFIG_FILE") or "/etc/pip.conf", encoding="utf-8")
    if _CERTIFICATES.exists():
        if not settings.has_section("global"):
            settings.add_section("global")
        settings.set("global", "cert", str(_CERTIFICATES))
    text = io.StringIO()
    settings.write(text)
    return text.getvalue()
