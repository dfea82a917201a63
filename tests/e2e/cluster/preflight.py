"""Can a cluster run here? What is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from images import engine as engines
from images.errors import ImageError
from images.table import BASE, cache
from services.local.disk import Need, shortage
from tests.e2e.cluster.places import CLUSTER, HERE

ELSEWHERE = "or take a cluster that you have: make e2e KUBECONFIG=... REGISTRY=..."
# What is asked for -> the package of Debian that has it.
_COMMANDS = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "curl": "curl",
    "pgrep": "procps",
    "nsenter": "util-linux",
}
_BRIDGE = Path("/usr/lib/cni/bridge")
# Measured: what Go fetches and compiles once; and a cluster with the images and a broker's data.
_BUILD_BYTES, _CLUSTER_BYTES = 6 * 10**9, 6 * 10**9
_APT_S = 1800


class Missing(NamedTuple):
    """`package`: of Debian, if one brings it."""

    what: str
    remedy: str
    package: str = ""


def missing(
    which: Callable[[str], str | None] = shutil.which, *, root: bool | None = None, system: str = platform.system()
) -> list[Missing]:
    """What stands in the way, quickest to see first. Starts nothing that stays."""
    if system != "Linux":
        return [Missing(f"this is {system}", f"a node needs Linux; {ELSEWHERE}")]
    if not (os.geteuid() == 0 if root is None else root):
        return [
            Missing(
                "you are not root", f"a node needs namespaces and a packet filter of its own: use sudo; {ELSEWHERE}"
            )
        ]
    found = [_package(name, package) for name, package in _COMMANDS.items() if which(name) is None]
    if not _BRIDGE.exists():
        found.append(_package(str(_BRIDGE), "containernetworking-plugins"))
    try:
        engine = engines.find()
    except ImageError:
        found.append(Missing("a container engine", "start docker, or install podman or buildah", "buildah"))
    else:
        if (
            not engine.has(BASE)
            and not (cache() / "python-3.11-bookworm.tar").exists()
            and which("debootstrap") is None
        ):
            found.append(_package("debootstrap", "debootstrap"))
    if which("go") is None and not _built():
        found.append(Missing("Go", "Kubernetes is built with it; on Debian: apt install golang-go (1.21 or later)"))
    if not found and not _namespaces():
        found.append(Missing("namespaces", f"unshare is refused here, as in many containers; {ELSEWHERE}"))
    needs = [Need(_CLUSTER_BYTES, CLUSTER, "BEYOND_CLUSTER moves it")]
    if not _built():
        needs.append(Need(_BUILD_BYTES, cache(), "BEYOND_CACHE and GOCACHE move it"))
    short = shortage(needs)
    if short:
        found.append(Missing("room on disk", short))
    return found


def _package(what: str, package: str) -> Missing:
    return Missing(what, f"on Debian: apt install --no-install-recommends {package}", package)


def _built() -> bool:
    version = re.search(r"^\tk8s\.io/kubernetes (\S+)$", (HERE / "kubernetes/go.mod").read_text(encoding="utf-8"), re.M)
    return version is not None and (cache() / f"kubernetes-{version.group(1)}" / ".complete").exists()


def _namespaces() -> bool:
    command = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0  # noqa: S603 # our own


def install(packages: Sequence[str], say: Callable[[str], None]) -> str:
    """Packages of Debian, by apt; says their sizes first. Returns what went wrong, empty for nothing."""
    apt = shutil.which("apt-get")
    if apt is None:
        return "this is no Debian: get them by its own means"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 # what `which` found
            [apt, *arguments], capture_output=True, text=True, env=environment, timeout=_APT_S, check=False
        )

    command = ["--no-install-recommends", "install", *packages]
    sizes = run(*command, "--assume-no")
    if "Unable to locate" in sizes.stderr:  # its lists were never fetched
        run("-qq", "update")
        sizes = run(*command, "--assume-no")
    for line in sizes.stdout.splitlines():
        if line.startswith(("Need to get", "After this operation")):
            say(line)
    done = run(*command, "-qq", "--yes")
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()[-1000:]
