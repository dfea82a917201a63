"""A cluster and a release in it, by kubectl and helm."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.table import cache
from services.local.ports import free_ports
from tests.e2e.cluster.places import HERE

CHART = Path(__file__).parents[2] / "charts" / "beyond-inference"
_QUICK_S = 60


class Failed(Exception):
    """What kubectl or helm refused, in its own words."""


@dataclass(frozen=True)
class Cluster:
    """`environment`: with its KUBECONFIG. `kill`: SIGKILL for what runs in a pod, where its node can be reached."""

    kubectl_path: str
    helm_path: str
    environment: Mapping[str, str]
    kill: Callable[[Mapping[str, Any]], None] | None = None

    def kubectl(self, *arguments: str, limit_s: float = _QUICK_S, given: str | None = None) -> str:
        """What it prints, of what it is `given` to read. Raises `Failed`."""
        return self._run([self.kubectl_path, *arguments], limit_s, given)

    def helm(self, *arguments: str, limit_s: float = 400) -> str:
        """What it prints. Raises `Failed`."""
        return self._run([self.helm_path, *arguments], limit_s)

    def get(self, *arguments: str) -> Any:
        """What `kubectl get` finds."""
        return json.loads(self.kubectl("get", *arguments, "--output", "json"))

    @contextlib.contextmanager
    def printed(self, *arguments: str) -> Iterator[Iterator[str]]:
        """The lines that a kubectl prints which does not end by itself, as they come. It is stopped afterwards."""
        process = subprocess.Popen(  # noqa: S603 # what `which` found
            [self.kubectl_path, *arguments],
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            yield iter(process.stdout)
        finally:
            process.kill()
            process.communicate(timeout=10)

    @contextlib.contextmanager
    def forwarded(self, namespace: str, service: str, port: int) -> Iterator[str]:
        """host:port on this machine that leads to a pod of a Service."""
        [local] = free_ports(1)
        command = [self.kubectl_path, "-n", namespace, "port-forward", f"service/{service}", f"{local}:{port}"]
        process = subprocess.Popen(  # noqa: S603 # what `which` found
            command, env=dict(self.environment), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            deadline = time.monotonic() + 30
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", local), 1):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    raise Failed(f"port-forward to {service}: {process.communicate()[1]}")
                time.sleep(0.1)
            yield f"127.0.0.1:{local}"
        finally:
            process.terminate()
            process.communicate(timeout=10)

    def _run(self, command: Sequence[str], limit_s: float, given: str | None = None) -> str:
        try:
            done = subprocess.run(  # noqa: S603 # what `which` found
                command,
                env=dict(self.environment),
                input=given,
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{' '.join(command[:4])} did not end within {limit_s:.0f} s") from None
        if done.returncode != 0:
            raise Failed(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
        return done.stdout


@dataclass(frozen=True)
class Release:
    """The suite, installed. `values`: files and settings that every install and upgrade is given."""

    cluster: Cluster
    name: str
    namespace: str
    values: tuple[str, ...]

    def component(self, name: str) -> str:
        """An object's name."""
        return f"{self.name}-beyond-inference-{name}"

    def upgrade(self, *settings: str, profiles: Sequence[Path] = ()) -> None:
        """Install or upgrade, and wait until all is ready. `profiles`: further files of values. Raises `Failed`."""
        flags = [flag for profile in profiles for flag in ("-f", str(profile))]
        flags += [flag for setting in settings for flag in ("--set", setting)]
        self.cluster.helm(
            *("upgrade", "--install", self.name, str(CHART), "--namespace", self.namespace, *self.values, *flags),
            *("--wait", "--wait-for-jobs", "--timeout", "5m"),
        )

    def pods(self, component: str = "") -> list[dict[str, Any]]:
        """Those that are not on their way out, finished ones left out."""
        labels = f"app.kubernetes.io/instance={self.name}"
        if component:
            labels += f",app.kubernetes.io/component={component}"
        found = self.cluster.get("pods", "-n", self.namespace, "-l", labels)["items"]
        return [
            pod for pod in found if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] == "Running"
        ]

    def wait_ready(self, component: str, count: int, limit_s: float = 120) -> list[dict[str, Any]]:
        """Until just so many pods are there and ready. Raises `Failed`."""
        deadline = time.monotonic() + limit_s
        while True:
            pods = self.pods(component)
            if len(pods) == count and all(ready(pod) for pod in pods):
                return pods
            if time.monotonic() > deadline:
                raise Failed(f"{count} ready pods of {component} are wanted, there are {[name(pod) for pod in pods]}")
            time.sleep(0.5)

    def wait_started_again(self, component: str, before: Mapping[str, Any], limit_s: float = 120) -> None:
        """Until the container of the only pod of it is another than in `before`. Raises `Failed`."""
        deadline = time.monotonic() + limit_s
        [was] = before["status"]["containerStatuses"]
        while True:
            statuses = [status for pod in self.pods(component) for status in pod["status"].get("containerStatuses", [])]
            if statuses and all(status.get("containerID") not in (None, was["containerID"]) for status in statuses):
                return
            if time.monotonic() > deadline:
                raise Failed(f"{component} did not start again")
            time.sleep(0.2)

    def wait_replaced(self, component: str, limit_s: float = 120) -> None:
        """Until no pod of it is on its way out: those still answer who reaches them, as they were. Raises `Failed`."""
        deadline = time.monotonic() + limit_s
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        while True:
            found = self.cluster.get("pods", "-n", self.namespace, "-l", labels)["items"]
            leaving = [name(pod) for pod in found if "deletionTimestamp" in pod["metadata"]]
            if not leaving:
                return
            if time.monotonic() > deadline:
                raise Failed(f"{', '.join(leaving)} should have ended")
            time.sleep(0.5)

    def metrics(self, pod: dict[str, Any]) -> dict[str, float]:
        """What a pod of a service tells Prometheus: series -> value."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name(pod)}:9464/proxy/metrics"
        lines = self.cluster.kubectl("get", "--raw", path).splitlines()
        rows = (line.split(" # ")[0].rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {series: float(value) for series, _, value in rows}

    def describe(self, folder: Path) -> None:
        """Write what happened: pods, events, logs, those of containers that have ended, too."""
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("pods", "events"):
            listed = self.cluster.kubectl("get", kind, "-n", self.namespace, "--output", "yaml")
            (folder / f"{kind}.yaml").write_text(listed, encoding="utf-8")
        for pod in self.cluster.get("pods", "-n", self.namespace)["items"]:
            for flag, suffix in (("--previous=false", "log"), ("--previous=true", "previous.log")):
                with contextlib.suppress(Failed):  # most have no previous container
                    log = self.cluster.kubectl("logs", "-n", self.namespace, name(pod), flag)
                    (folder / f"{name(pod)}.{suffix}").write_text(log, encoding="utf-8")


def name(pod: Mapping[str, Any]) -> str:
    """A pod's name."""
    return str(pod["metadata"]["name"])


def ready(pod: Mapping[str, Any]) -> bool:
    """Whether all its containers are."""
    statuses = pod["status"].get("containerStatuses", [])
    return bool(statuses) and all(status["ready"] for status in statuses)


def kill(pod: Mapping[str, Any]) -> None:
    """SIGKILL for what runs in a pod of the cluster of this machine, from the node's container runtime."""
    [status] = pod["status"]["containerStatuses"]
    container = status["containerID"].removeprefix("containerd://")
    subprocess.run(  # noqa: S603 # our own script
        [str(HERE / "ctr.sh"), "tasks", "kill", "--signal", "SIGKILL", container], timeout=_QUICK_S, check=True
    )


def kubectl() -> str | None:
    """The one of the PATH, else the one that the local cluster's binary holds."""
    built = sorted(cache().glob("kubernetes-*/kubectl"))
    return shutil.which("kubectl") or (str(built[-1]) if built else None)
