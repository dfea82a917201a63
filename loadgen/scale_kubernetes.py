"""A grid in a cluster: replicas of an installed release, patched by kubectl; the plan in a Job beside it.

Needs kubectl, helm and the chart's checkout (`charts/loadtest.py` carries out the plan and brings its results home).
While replicas are changed, each Deployment says in an annotation how many it had: whoever is killed before all is set
back leaves that, and the next experiment, or `restore`, sets it back.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadgen.errors import PlanError
from loadgen.progress import Display
from loadgen.scale import Point, until
from loadgen.scrape import Served, samples, served
from services.errors import ServiceError

# Of a Deployment: its replicas before an experiment that has not set them back.
BEFORE = "beyond-inference/replicas-before"
_INSTANCE, _COMPONENT = "app.kubernetes.io/instance", "app.kubernetes.io/component"
_PREPROCESS, _INFERENCE = "preprocess", "inference"
_READY_S = 600.0
_BALANCE_S = 120.0
_COMMAND_S = 120.0
_METRICS_PORT = 9464
_NO_RUN = 4  # of charts.loadtest
_CLEAN_UP_S = 60.0  # it deletes its Job

Ask = Callable[[list[str], float], str]


def kubectl(arguments: list[str], seconds: float) -> str:
    """What it answers. Raises `ServiceError` with what it says."""
    try:
        done = subprocess.run(  # noqa: S603 # what the user has
            ["kubectl", *arguments],  # noqa: S607 # the same
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError:
        raise ServiceError("kubectl is not on the PATH; install it: https://kubernetes.io/docs/tasks/tools") from None
    except subprocess.TimeoutExpired:
        raise ServiceError(f"kubectl {' '.join(arguments[:4])} did not end within {seconds:.0f} s") from None
    if done.returncode:
        raise ServiceError(f"kubectl {' '.join(arguments[:4])}: {done.stderr.strip()}")
    return done.stdout


def helm(name: str) -> str:
    """The Helm of that name or path, looked for before replicas are changed. Raises `ServiceError` where it is not."""
    if shutil.which(name) is None:
        raise ServiceError(
            f"there is no {name}: `make helm` prints the path of a Helm, or builds one; --helm PATH takes it"
        )
    return name


class Cluster:
    """See `Site`."""

    def __init__(
        self,
        plan: Path,
        release: str,
        namespace: str,
        report: Display,
        *,
        helm: str = "helm",
        settle_s: float = 20.0,
        wait_s: float = 3600.0,
        ask: Ask = kubectl,
    ) -> None:
        """`settle_s`: after replicas are ready, until connections are spread over them (the chart's connectionAgeS).

        `wait_s`: how long the Job of a point may take.

        Raises `ServiceError`, and `PlanError` where there is no such release, or something else scales it.
        """
        self._plan = plan
        self._release = release
        self._namespace = namespace
        self._report = report
        self._helm = helm
        self._settle_s = settle_s
        self._wait_s = wait_s
        self._ask = ask
        self._selector = f"{_INSTANCE}={release}"
        self._refuse_scaled()
        found = self._list("deployments")
        self._before = {d["metadata"]["name"]: _before(d) for d in found if _service(d)}
        self._marked = {d["metadata"]["name"] for d in found if _service(d) and _mark(d) is not None}
        self._services = {d["metadata"]["name"]: _service(d) for d in found}
        if _PREPROCESS not in self._services.values():
            raise PlanError(
                f"namespace '{namespace}' has no door of a release '{release}'; see `helm list -n {namespace}`"
            )

    def _refuse_scaled(self) -> None:
        for item in self._list("horizontalpodautoscalers"):
            raise PlanError(
                f"{item['metadata']['name']} scales the release itself; set autoscaling.type to none for an experiment"
            )

    def _get(self, *arguments: str) -> str:
        return self._ask(["--namespace", self._namespace, *arguments], _COMMAND_S)

    def _list(self, kind: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self._get("get", kind, "-l", self._selector, "-o", "json"))["items"]
        return items

    def change(self, point: Point) -> None:
        """See `Site.change`."""
        if point.inference != 1 and _INFERENCE not in self._services.values():
            raise PlanError("the release has its engine in the door's process: --inference can only be 1")
        wanted = {name: getattr(point, service) for name, service in self._services.items() if service}
        for name in wanted.keys() - self._marked:
            self._get("annotate", f"deployment/{name}", f"{BEFORE}={self._before[name]}", "--overwrite")
            self._marked.add(name)
        self._scale(wanted)
        for name in wanted:
            self._report(f"waiting for {name} ({wanted[name]})", 0, 0)
            self._ask(
                [
                    "--namespace",
                    self._namespace,
                    "rollout",
                    "status",
                    f"deployment/{name}",
                    f"--timeout={_READY_S:.0f}s",
                ],
                _READY_S + 10,
            )
        until(
            lambda: len(self._pods()) == sum(wanted.values()), _READY_S, lambda: "pods that should go are still there"
        )
        self._report("waiting until work is spread", 0, 0)
        time.sleep(self._settle_s)
        idle: list[str] = []
        until(lambda: self._spread(idle), _BALANCE_S, lambda: f"no partition is given to {', '.join(idle)}")

    def _scale(self, wanted: Mapping[str, int]) -> None:
        for name, replicas in wanted.items():
            self._get("scale", f"deployment/{name}", f"--replicas={replicas}")

    def _pods(self) -> dict[str, str]:
        """Those that are there, with their services."""
        return {pod["metadata"]["name"]: service for pod in self._list("pods") if (service := _service(pod))}

    def _spread(self, idle: list[str]) -> bool:
        """Over Kafka, whether each consumer holds a partition; else nothing can be seen without work."""
        held = {
            pod: sum(1 for _ in samples(text, "beyond_consumer_lag_records"))
            for pod, service in self._pods().items()
            if service == _INFERENCE and "beyond_consumer_lag_records" in (text := self._scrape(pod))
        }
        idle[:] = [pod for pod, partitions in held.items() if not partitions]
        return not idle

    def _scrape(self, pod: str) -> str:
        path = f"/api/v1/namespaces/{self._namespace}/pods/{pod}:{_METRICS_PORT}/proxy/metrics"
        return self._ask(["get", "--raw", path], _COMMAND_S)

    def served(self) -> Mapping[str, Served]:
        """See `Site.served`."""
        found = {}
        for pod in self._pods():
            try:
                found[pod] = served(self._scrape(pod))
            except ValueError as error:
                raise ServiceError(f"pod {pod}: {error}") from None
        return found

    def carry_out(self, point: Point, folder: Path) -> None:
        """See `Site.carry_out`."""
        self._report(f"a Job carries out the plan for {point.name}", 0, 0)
        with tempfile.TemporaryDirectory() as jobs:
            command = [
                *(sys.executable, "-m", "charts.loadtest", str(self._plan), "--out", jobs),
                *("--release", self._release, "--namespace", self._namespace, "--helm", self._helm),
                *("--wait-s", f"{self._wait_s:g}"),
            ]
            status, said = _ended(command)
            found = sorted(Path(jobs).glob("*/run.json"))
            if status == _NO_RUN or not found:
                raise ServiceError(f"the Job brought no results: {said.strip()[-2000:]}")
            shutil.copytree(found[-1].parent, folder, dirs_exist_ok=True)

    def left(self) -> Mapping[str, int]:
        """Deployments that an experiment which was killed has left, and the replicas that they had before it."""
        return {name: self._before[name] for name in sorted(self._marked)}

    def close(self) -> None:
        """See `Site.close`: also after an experiment that was killed. Tries all of them; raises `ServiceError` with
        what is left to be done by hand.
        """
        self._report("as many replicas as there were", 0, 0)
        left = []
        for name, replicas in self._before.items():
            try:
                self._scale({name: replicas})
                if name in self._marked:
                    self._get("annotate", f"deployment/{name}", f"{BEFORE}-")
                    self._marked.discard(name)
            except ServiceError as error:
                by_hand = f"kubectl -n {self._namespace} scale deployment/{name} --replicas={replicas}"
                left.append(f"{by_hand} ({error.message})")
        if left:
            raise ServiceError(f"replicas are not what they were; set them by hand: {'; '.join(left)}")


def _ended(command: Sequence[str]) -> tuple[int, str]:
    """The status of a command that has a limit of its own, and what it said; interrupted, it has time to clean up."""
    with subprocess.Popen(  # noqa: S603 # our own
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as running:
        try:
            said, _ = running.communicate()
        except BaseException:
            running.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.communicate(timeout=_CLEAN_UP_S)
            running.kill()
            raise
        return running.returncode, said


def _mark(item: Mapping[str, Any]) -> int | None:
    """The replicas that an experiment found, and has not set back."""
    text = item["metadata"].get("annotations", {}).get(BEFORE, "")
    return int(text) if text.isdecimal() else None


def _before(item: Mapping[str, Any]) -> int:
    marked = _mark(item)
    return int(item["spec"]["replicas"]) if marked is None else marked


def _service(item: Mapping[str, Any]) -> str:
    """Of a deployment or pod; empty for what is neither a door nor an engine."""
    component = str(item["metadata"].get("labels", {}).get(_COMPONENT, ""))
    if component == _PREPROCESS:
        return _PREPROCESS
    return _INFERENCE if component.startswith(_INFERENCE) else ""
