"""Helm, for the tests of the chart: the one on the PATH, else one that Go builds once. `python -m tests.chart.helm`."""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from services.local import jars

VERSION = "3.19.0"
MODULE = "helm.sh/helm/v3"
# Of Kubernetes, for which this Helm is made: what it takes a cluster for that it does not ask.
KUBERNETES = ("1", "34")
_BUILD_S = 3600
_LEAST = 3


class NoHelm(Exception):
    """There is none, and none can be made."""


def built() -> Path:
    """Where the built one is, if it is there."""
    return jars.cache().parent / f"helm-{VERSION}" / "helm"


def find() -> Path | None:
    """A Helm that can be run now."""
    path = shutil.which("helm")
    if path is not None and _major(path) >= _LEAST:
        return Path(path)
    return built() if built().exists() else None


def _major(path: str) -> int:
    try:
        said = subprocess.run(  # noqa: S603 # what `which` found
            [path, "version", "--short"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r"v(\d+)\.", said)
    return int(found.group(1)) if found else 0


def make(say: Callable[[str], object] = lambda line: sys.stderr.write(f"{line}\n")) -> Path:
    """Find it, else build it; safe against interruption and a second process. Raises `NoHelm`."""
    found = find()
    if found is not None:
        return found
    go = shutil.which("go")
    if go is None:
        raise NoHelm("neither Helm 3 nor Go, which builds it, is on the PATH; on Debian: apt install golang-go")
    target = built()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():  # another process was faster
            return target
        say(f"building Helm {VERSION} by Go, once: 100 MB to download, three to ten minutes")
        work = target.parent / "building"
        values = {
            "internal/version.version": f"v{VERSION}",
            **{f"{package}.k8sVersionMajor": KUBERNETES[0] for package in ("pkg/lint/rules", "pkg/chartutil")},
            **{f"{package}.k8sVersionMinor": KUBERNETES[1] for package in ("pkg/lint/rules", "pkg/chartutil")},
        }
        flags = " ".join(["-s -w", *(f"-X {MODULE}/{name}={value}" for name, value in values.items())])
        command = [go, "install", "-trimpath", "-ldflags", flags, f"{MODULE}/cmd/helm@v{VERSION}"]
        try:
            done = subprocess.run(  # noqa: S603 # our own command
                ["nice", "-n", "19", *command],  # noqa: S607
                env={**os.environ, "GOBIN": str(work)},
                cwd=target.parent,
                capture_output=True,
                text=True,
                timeout=_BUILD_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NoHelm(f"Go did not build Helm within {_BUILD_S} s") from None
        if done.returncode != 0:
            last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-10:])
            raise NoHelm(f"Helm cannot be built, go install says:\n{last}")
        (work / "helm").rename(target)
        work.rmdir()
    return target


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optional", action="store_true", help="status 0 also where there is none: tests skip, then")
    given = parser.parse_args()
    try:
        sys.stdout.write(f"{make()}\n")
    except NoHelm as error:
        sys.stderr.write(f"{error}\n" + ("the tests of the chart are skipped without Helm\n" if given.optional else ""))
        return 0 if given.optional else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
