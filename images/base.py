"""The base image: the official one, or where no registry can be reached, the like of it from Debian's packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from images.engine import Engine
from images.errors import ImageError
from images.table import BASE, cache

OWN = "localhost/beyond-inference/python:3.11-bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"
_DEBOOTSTRAP_S = 3600


def base(engine: Engine, say: Callable[[str], None]) -> str:
    """The reference of a base image that the engine has. Raises `ImageError`."""
    for reference in (BASE, OWN):
        if engine.has(reference):
            return reference
    say(f"pulling {BASE}")
    if engine.pull(BASE):
        return BASE
    say("no registry can be reached: making a base image of Debian's packages, 100 MB to download, 2 to 4 minutes")
    engine.add_base(_archive(), OWN)
    return OWN


def _archive() -> Path:
    """A Debian with Python, as an archive that is kept."""
    archive = cache() / "python-3.11-bookworm.tar"
    if archive.exists():
        return archive
    debootstrap = shutil.which("debootstrap")
    if debootstrap is None or os.geteuid() != 0:
        raise ImageError(
            f"the base image {BASE} cannot be pulled, and to make one takes root and debootstrap (on Debian: apt "
            "install debootstrap); or give one that you have: make images BASE_IMAGE=registry/python:3.11-slim-bookworm"
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        root = Path(folder) / "root"
        _do([debootstrap, "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root)])
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        for rubbish in ("var/cache/apt", "var/lib/apt/lists", "usr/share/locale", "usr/share/man", "var/log"):
            for path in (root / rubbish).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _do(["tar", "--numeric-owner", "-C", str(root), "-cf", f"{folder}/base.tar", "."])
        Path(folder, "base.tar").rename(archive)
    return archive


def _do(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 # our own command
            ["nice", "-n", "19", *command],  # noqa: S607 # the one of the PATH
            capture_output=True,
            text=True,
            timeout=_DEBOOTSTRAP_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"{command[0]} did not end within {_DEBOOTSTRAP_S} s") from None
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise ImageError(f"{command[0]} failed:\n" + "\n".join(lines[-10:]))
