"""Carries out a plan from a Job beside an installed release, and brings its results home: `make loadtest PLAN=...`.

Needs helm and kubectl, and the chart of this checkout in the version that is installed. Writes run.json, requests.csv,
the report, and environment.json: nodes, pods with the digests of their images, limits, the release's values. Where
several pods sent the plan (--pods, load.pods), their results are merged, and lie beside in parts/. Exit status: that
of the run, or of what was merged (0 numbers that can be used, 1 not, 2 wrong input, 3 a broken threshold), 4 where no
run came about.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).parent / "beyond-inference"
# As files/run_load.py writes them.
BEGIN, END = "----- results, tar.xz in base64 -----", "----- end of results -----"
_EVERY_S = 2.0
NOT_RUN = 4


class NotRun(Exception):
    """No run came about; the message says why, and what may help."""


def ask(*command: str, given: str | None = None) -> str:
    """What a command answers. Raises `NotRun` with what it says."""
    try:
        done = subprocess.run(  # noqa: S603 # what the user has
            command, input=given, capture_output=True, text=True, timeout=120, check=False
        )
    except FileNotFoundError:
        raise NotRun(f"{command[0]} is not on the PATH") from None
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
    values = yaml.safe_load(ask(given.helm, "get", "values", given.release, "-n", given.namespace, "-o", "yaml")) or {}
    run = f"{int(time.time()):x}"
    flags = ["--set", "load.enabled=true", "--set-file", f"load.plan={given.plan}", "--set-string", f"load.run={run}"]
    if given.pods is not None:
        flags += ["--set", f"load.pods={given.pods}"]
    if given.sample_ratio:
        flags += ["--set", f"load.sampleRatio={given.sample_ratio}"]
    objects = ask(
        *(given.helm, "template", given.release, str(CHART), "-n", given.namespace, "-f", "-"),
        *("--show-only", "templates/load.yaml", *flags),
        given=yaml.safe_dump(values),
    )
    [rendered] = [found for found in yaml.safe_load_all(objects) if found["kind"] == "Job"]
    job, count = rendered["metadata"]["name"], rendered["spec"].get("completions", 1)
    where = environment(
        json.loads(ask("kubectl", "get", "nodes", "-o", "json")),
        json.loads(ask(*kubectl, "get", "pods", "-l", f"app.kubernetes.io/instance={given.release}", "-o", "json")),
        values,
    )
    ask(*kubectl, "apply", "-f", "-", given=objects)
    print(f"job {job} is on its way; `kubectl -n {given.namespace} logs -f job/{job}` shows it", flush=True)
    deadline = time.monotonic() + given.wait_s
    done: dict[int, Ended] = {}
    while len(done) < count:
        if time.monotonic() > deadline:
            of = "" if count == 1 else f": {len(done)} of its {count} pods did"
            raise NotRun(f"job {job} did not end within {given.wait_s:.0f} s{of}; WAIT=seconds gives it more")
        time.sleep(_EVERY_S)
        done = ended(json.loads(ask(*kubectl, "get", "pods", "-l", f"job-name={job}", "-o", "json")))
    brought: dict[int, bytes] = {}
    for index, (pod, status) in sorted(done.items()):
        report, results = split(ask(*kubectl, "logs", pod))
        if count == 1 or results is None:  # the report of all is what counts, and follows
            print(report)
        if results is None:
            raise NotRun(f"pod {pod} of job {job} ended with status {status} and left no results; its log is above")
        brought[index] = results
    folder = given.out / job
    if count == 1:
        unpack(brought[0], folder)
        status = done[0].status
    else:
        status = merged(brought, folder)
    (folder / "environment.json").write_text(json.dumps(where, indent=2) + "\n", encoding="utf-8")
    # Its status is the verdict's, which is told already
    made = loadgen("report", str(folder))
    if not (folder / "report.html").exists():
        raise NotRun(f"the report cannot be made of {folder}: {made.stderr.strip()}")
    ask(*kubectl, "delete", "--wait=false", "-f", "-", given=objects)
    print(f"{folder} has run.json, requests.csv, the report, and environment.json")
    return status


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m charts.loadtest", description=__doc__)
    parser.add_argument("plan", type=Path, help="a plan's file; its targets are replaced by the release's door")
    parser.add_argument("--release", default="beyond", help="default: %(default)s")
    parser.add_argument("--namespace", default="default", help="default: %(default)s")
    parser.add_argument("--pods", type=int, help="how many send it together (default: the release's load.pods, 1)")
    parser.add_argument("--sample-ratio", type=float, default=0.0, help="share of requests with spans (default: none)")
    parser.add_argument("--helm", default="helm", help="which one (default: that on the PATH)")
    parser.add_argument("--wait-s", type=float, default=3600.0, help="how long the Job may take (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="default: %(default)s")
    given = parser.parse_args()
    try:
        return carry_out(given)
    except NotRun as error:
        print(error, file=sys.stderr)
        return NOT_RUN


if __name__ == "__main__":
    sys.exit(main())
