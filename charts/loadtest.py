"""Carries out a plan from a Job beside an installed release, and brings its results home: `make loadtest PLAN=...`.

Needs helm and kubectl, and the chart of this checkout in the version that is installed. Writes run.json, requests.csv,
the report, and environment.json: nodes, pods with the digests of their images, limits, the release's values. Where
several pods sent the plan (--pods, load.pods), their results are merged, and lie beside in parts/. Exit status: that
of the run, or of what was merged (0 numbers that can be used, 1 not, 2 wrong input, 3 a broken threshold), 4 where no
run came about.

Interrupted (Ctrl-C, SIGTERM), it takes its Job away. A Job that brought no results stays, to be looked at.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).parent / "beyond-inference"
# As files/run_load.py writes them.
BEGIN, END = "----- results, tar.xz in base64 -----", "----- end of results -----"
_EVERY_S = 2.0
# A server that does not answer may be back; pods of a Job that is over end, or never will.
_AWAY_S, _OVER_S = 60.0, 60.0
NOT_RUN = 4
_REMEDIES = {
    "helm": ": `make helm` prints the path of a Helm, or builds one; --helm PATH takes it",
    "kubectl": " on the PATH; install it: https://kubernetes.io/docs/tasks/tools",
}


class NotRun(Exception):
    """No run came about; the message says why, and what may help."""


def ask(*command: str, given: str | None = None) -> str:
    """What a command answers. Raises `NotRun` with what it says."""
    try:
        done = subprocess.run(  # noqa: S603 # what the user has
            command, input=given, capture_output=True, text=True, timeout=120, check=False
        )
    except FileNotFoundError:
        raise NotRun(f"there is no {command[0]}{_REMEDIES.get(Path(command[0]).name, '')}") from None
    except subprocess.TimeoutExpired:
        raise NotRun(f"{' '.join(command)} did not end within 120 s") from None
    if done.returncode:
        raise NotRun(f"{' '.join(command[:3])}: {done.stderr.strip()}")
    return done.stdout


def split(log: str) -> tuple[str, bytes | None]:
    """A Job's log as its report and its results; None where it has none, or not all of them."""
    report, begun, rest = log.partition(f"{BEGIN}\n")
    text, ended, _ = rest.partition(END)
    return report, base64.b64decode(text) if begun and ended else None


def unpack(results: bytes, folder: Path) -> None:
    """Write the files of the archive to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(results)) as tar:
        tar.extractall(folder, filter="data")


def environment(nodes: Any, pods: Any, values: Any) -> dict[str, Any]:
    """What a result must say of where it was made, of kubectl's lists and Helm's values."""
    return {
        "nodes": [
            {
                "name": node["metadata"]["name"],
                "labels": node["metadata"].get("labels", {}),
                "allocatable": node["status"]["allocatable"],
                **{
                    key: node["status"]["nodeInfo"][key]
                    for key in ("kubeletVersion", "kernelVersion", "containerRuntimeVersion", "architecture", "osImage")
                },
            }
            for node in nodes["items"]
        ],
        "pods": [
            {
                "name": pod["metadata"]["name"],
                "component": pod["metadata"]["labels"].get("app.kubernetes.io/component"),
                "node": pod["spec"].get("nodeName"),
                "containers": [
                    {"name": c["name"], "image": c["image"], "resources": c.get("resources", {})}
                    for c in pod["spec"]["containers"]
                ],
                "image_ids": {c["name"]: c["imageID"] for c in pod["status"].get("containerStatuses", [])},
                "restarts": sum(c["restartCount"] for c in pod["status"].get("containerStatuses", [])),
            }
            for pod in pods["items"]
        ],
        "values": values,
    }


class Ended(NamedTuple):
    """A pod of a Job that has ended, and its exit status."""

    pod: str
    status: int


def told(values: Any) -> Any:
    """Helm's values without what may be a secret: the values of variables, and texts that are passed on as they are."""
    if not isinstance(values, dict):
        return values
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if key == "extraEnv" and isinstance(value, list):
            kept[key] = [{"name": entry.get("name"), "value": "not kept"} for entry in value]
        elif key == "extraObjects" or (key == "config" and value):
            kept[key] = "not kept"
        else:
            kept[key] = told(value)
    return kept


_INDEX = "batch.kubernetes.io/job-completion-index"


def ended(pods: Any) -> dict[int, Ended]:
    """Those of a Job's pods that have, by their index; the only one is 0."""
    found = {}
    for pod in pods["items"]:
        for container in pod["status"].get("containerStatuses", []):
            state = container["state"].get("terminated")
            if state is not None:
                index = int(pod["metadata"].get("annotations", {}).get(_INDEX, 0))
                found[index] = Ended(pod["metadata"]["name"], int(state["exitCode"]))
    return found


def over(job: Any) -> str | None:
    """Why a Job is over, whatever its pods say; None while it is not."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return str(condition.get("message") or condition.get("reason") or condition["type"])
    return None


def held_up(pods: Any) -> dict[str, str]:
    """What keeps pods from starting, by their names."""
    found = {}
    for pod in pods["items"]:
        reasons = [
            f"{state.get('reason')}: {state.get('message', '')}"
            for container in pod["status"].get("containerStatuses", [])
            if (state := container["state"].get("waiting")) and state.get("reason") not in _ON_THEIR_WAY
        ] + [
            f"{condition.get('reason')}: {condition.get('message', '')}"
            for condition in pod["status"].get("conditions", [])
            if condition["type"] == "PodScheduled" and condition["status"] == "False"
        ]
        if reasons:
            found[pod["metadata"]["name"]] = "; ".join(reasons)
    return found


_ON_THEIR_WAY = ("ContainerCreating", "PodInitializing", None)


def wait(
    look: Callable[[], tuple[Any, Any]],
    job: str,
    count: int,
    wait_s: float,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[int, Ended]:
    """Until `count` pods have ended; says what keeps them from starting. `look`: the Job, then its pods.

    Raises `NotRun` where they have not within `wait_s`, where the Job is over and they are gone, and where the server
    is away for long.
    """
    begin = seen = now()
    over_since: float | None = None
    said: dict[str, str] = {}
    while True:
        sleep(_EVERY_S)
        try:
            found, pods = look()
        except NotRun:
            if now() - seen > _AWAY_S:
                raise
            continue
        seen = now()
        done = ended(pods)
        if len(done) >= count:
            return done
        short = "" if count == 1 else f": {len(done)} of its {count} pods did"
        why = over(found)
        if why is not None:
            over_since = over_since or seen
            if seen - over_since > _OVER_S:
                raise NotRun(f"job {job} is over, and its pods left no results{short}: {why}")
        for pod, reason in held_up(pods).items():
            if said.get(pod) != reason:
                print(f"pod {pod} waits: {reason}", file=sys.stderr, flush=True)
                said[pod] = reason
        if seen - begin > wait_s:
            raise NotRun(
                f"job {job} did not end within {wait_s:.0f} s{short}; WAIT=seconds gives it more. It goes on until "
                f"load.deadlineS; kubectl delete job/{job} ends it"
            )


def loadgen(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The load generator here, on what has come home."""
    command = [sys.executable, "-m", "loadgen", *arguments]
    return subprocess.run(  # noqa: S603 # our own
        command, capture_output=True, text=True, timeout=600, check=False
    )


def merged(parts: Mapping[int, bytes], folder: Path) -> int:
    """One result of those of all pods, by their index; its exit status. Raises `NotRun` with why there is none."""
    homes = []
    for index, results in sorted(parts.items()):
        homes.append(folder / "parts" / f"{index + 1}-of-{len(parts)}")
        unpack(results, homes[-1])
    made = loadgen("merge", *map(str, homes), "--out", str(folder))
    print(made.stdout)
    print(made.stderr, file=sys.stderr)
    # What could not be merged is wrong input to whoever merges
    if made.returncode == 2:
        raise NotRun(f"the parts cannot be merged; they are in {folder / 'parts'}")
    return made.returncode


def carry_out(given: argparse.Namespace) -> int:
    """Raises `NotRun`."""
    kubectl = ["kubectl", "--namespace", given.namespace]
    try:
        values = yaml.safe_load(ask(given.helm, "get", "values", given.release, "-n", given.namespace, "-o", "yaml"))
    except NotRun as error:
        if "release: not found" not in str(error):
            raise
        raise NotRun(
            f"namespace '{given.namespace}' has no release '{given.release}'; see `helm list -A`, and name it: "
            "make loadtest RELEASE=... NAMESPACE=..."
        ) from None
    values = values or {}
    # Seven digits, which begin anew after eight years: with the longest name of a release there is room for no more.
    run = f"{int(time.time()) & 0xFFFFFFF:07x}"
    flags = ["--set", "load.enabled=true", "--set-file", f"load.plan={given.plan}", "--set-string", f"load.run={run}"]
    if given.pods is not None:
        flags += ["--set", f"load.pods={given.pods}"]
    if given.entrance is not None:
        flags += ["--set", f"load.entrance={given.entrance}"]
    if given.sample_ratio:
        flags += ["--set", f"load.sampleRatio={given.sample_ratio}"]
    version = json.loads(ask("kubectl", "version", "-o", "json"))["serverVersion"]["gitVersion"]
    objects = ask(
        *(given.helm, "template", given.release, str(CHART), "-n", given.namespace, "-f", "-"),
        *("--show-only", "templates/load.yaml", "--kube-version", version, *flags),
        given=yaml.safe_dump(values),
    )
    [rendered] = [found for found in yaml.safe_load_all(objects) if found["kind"] == "Job"]
    job, count = rendered["metadata"]["name"], rendered["spec"].get("completions", 1)
    where = environment(
        json.loads(ask("kubectl", "get", "nodes", "-o", "json")),
        json.loads(ask(*kubectl, "get", "pods", "-l", f"app.kubernetes.io/instance={given.release}", "-o", "json")),
        told(values),
    )

    def look() -> tuple[Any, Any]:
        found = json.loads(ask(*kubectl, "get", f"job/{job}", "-o", "json"))
        return found, json.loads(ask(*kubectl, "get", "pods", "-l", f"job-name={job}", "-o", "json"))

    try:
        ask(*kubectl, "apply", "-f", "-", given=objects)
        print(f"job {job} is on its way; `kubectl -n {given.namespace} logs -f job/{job}` shows it", flush=True)
        done = wait(look, job, count, given.wait_s)
        folder = given.out / job
        status = _home(done, kubectl, folder, job)
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # once is enough; kubectl inherits it
        print(f"interrupted; job {job} goes", file=sys.stderr, flush=True)
        ask(*kubectl, "delete", "--ignore-not-found", "--wait=false", "-f", "-", given=objects)
        raise NotRun(f"interrupted; job {job} was taken away") from None
    (folder / "environment.json").write_text(json.dumps(where, indent=2) + "\n", encoding="utf-8")
    # Its status is the verdict's, which is told already
    made = loadgen("report", str(folder))
    if not (folder / "report.html").exists():
        raise NotRun(f"the report cannot be made of {folder}: {made.stderr.strip()}")
    try:
        ask(*kubectl, "delete", "--wait=false", "-f", "-", given=objects)
    except NotRun as error:
        print(f"job {job} has ended, and stays: {error}", file=sys.stderr)
    print(f"{folder} has run.json, requests.csv, the report, and environment.json")
    return status


def _home(done: Mapping[int, Ended], kubectl: list[str], folder: Path, job: str) -> int:
    """What all pods have left, as one result in `folder`, and its status. Raises `NotRun`."""
    brought: dict[int, bytes] = {}
    for index, (pod, status) in sorted(done.items()):
        report, results = split(ask(*kubectl, "logs", pod))
        if len(done) == 1 or results is None:  # the report of all is what counts, and follows
            print(report)
        if results is None:
            raise NotRun(f"pod {pod} of job {job} ended with status {status} and left no results; its log is above")
        brought[index] = results
    if len(done) > 1:
        return merged(brought, folder)
    unpack(brought[0], folder)
    return done[0].status


def _terminate(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m charts.loadtest", description=__doc__)
    parser.add_argument("plan", type=Path, help="a plan's file; its targets are replaced by the release's door")
    parser.add_argument("--release", default="beyond", help="default: %(default)s")
    parser.add_argument("--namespace", default="default", help="default: %(default)s")
    parser.add_argument("--pods", type=int, help="how many send it together (default: the release's load.pods, 1)")
    parser.add_argument(
        "--entrance",
        choices=["grpc", "frames"],
        help="how it comes to doors (default: the release's load.entrance, grpc)",
    )
    parser.add_argument("--sample-ratio", type=float, default=0.0, help="share of requests with spans (default: none)")
    parser.add_argument("--helm", default="helm", help="which one (default: that on the PATH)")
    parser.add_argument("--wait-s", type=float, default=3600.0, help="how long the Job may take (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="default: %(default)s")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return carry_out(given)
    except NotRun as error:
        print(error, file=sys.stderr)
        return NOT_RUN


if __name__ == "__main__":
    sys.exit(main())
