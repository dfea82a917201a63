"""A load Job's results come home whole, and say where they were made."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from charts import loadtest
from services.local.ports import free_ports
from tests.chart.conftest import CHART, ROOT, release, setting


@pytest.fixture(scope="module")
def in_pod() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_load", CHART / "files" / "run_load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def logged(in_pod: ModuleType, data: bytes) -> str:
    return f"a report\n{in_pod.BEGIN}\n{in_pod.text(data)}\n{in_pod.END}\n"


def run_of(folder: Path, rows: bytes = b"id\n1\n") -> Path:
    folder.mkdir()
    (folder / "run.json").write_bytes(b"{}")
    (folder / "requests.csv").write_bytes(rows)
    (folder / "report.html").write_bytes(b"made anew at home")
    return folder


def test_results_come_home_through_the_log(in_pod: ModuleType, tmp_path: Path) -> None:
    data, left_out = in_pod.archive(run_of(tmp_path / "pod"))
    report, results = loadtest.split(logged(in_pod, data))
    assert results is not None
    loadtest.unpack(results, tmp_path / "home")
    assert report == "a report\n"
    assert left_out == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "home").iterdir()} == {
        "run.json": b"{}",
        "requests.csv": b"id\n1\n",
    }


def test_rows_that_are_too_many_for_a_log_are_left_out_and_named(in_pod: ModuleType, tmp_path: Path) -> None:
    folder = run_of(tmp_path / "pod", rows=os.urandom(50_000))
    data, left_out = in_pod.archive(folder, most_bytes=20_000)
    assert left_out == ["requests.csv"]
    assert len(data) < 20_000
    loadtest.unpack(data, tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["run.json"]
    # Also in base64, with what a node adds to each line, and with a report, it is below what Kubernetes keeps
    assert len(in_pod.text(bytes(in_pod.MOST_BYTES)).splitlines()) * 41 + in_pod.MOST_BYTES * 4 / 3 < 9.9 * 1024 * 1024


@pytest.mark.parametrize("cut", ["no mark", "no end"])
def test_a_log_without_results_has_none(in_pod: ModuleType, tmp_path: Path, cut: str) -> None:
    data, _ = in_pod.archive(run_of(tmp_path / "pod"))
    log = logged(in_pod, data)
    log = log.partition(in_pod.BEGIN)[0] if cut == "no mark" else log[: log.index(in_pod.END) - 5]
    assert loadtest.split(log) == ("a report\n", None)


def test_the_job_hands_on_the_status_of_its_run(
    in_pod: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real command, which is asked something wrong: no results, and its own status."""
    assert in_pod.main([str(tmp_path / "results"), str(tmp_path / "no-plan.toml")]) == 2
    out, err = capfd.readouterr()
    assert "no-plan.toml" in err
    assert in_pod.BEGIN not in out


def pods(state: dict[str, Any]) -> dict[str, Any]:
    """As kubectl lists them."""
    return {
        "items": [
            {
                "metadata": {"name": "p", "labels": {"app.kubernetes.io/component": "preprocess"}},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i:1", "resources": {"limits": {}}}]},
                "status": {
                    "containerStatuses": [{"name": "c", "imageID": "i@sha256:1", "restartCount": 2, "state": state}]
                },
            }
        ]
    }


def test_the_status_is_that_of_the_container_once_it_has_ended() -> None:
    assert loadtest.ended({"items": []}) == {}
    assert loadtest.ended({"items": [{"status": {}}]}) == {}
    assert loadtest.ended(pods({"running": {}})) == {}
    assert loadtest.ended(pods({"terminated": {"exitCode": 3}})) == {0: ("p", 3)}


def test_several_pods_have_each_their_own() -> None:
    """As kubectl lists the pods of an indexed Job: in any order, each with its index."""
    listed: list[dict[str, Any]] = []
    for index, state in [
        (2, {"terminated": {"exitCode": 1}}),
        (0, {"terminated": {"exitCode": 0}}),
        (1, {"running": {}}),
    ]:
        [pod] = pods(state)["items"]
        annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
        listed.append({**pod, "metadata": {"name": f"j-{index}-x", "annotations": annotations}})
    assert loadtest.ended({"items": listed}) == {2: ("j-2-x", 1), 0: ("j-0-x", 0)}


def test_each_pod_of_several_sends_the_part_of_its_index(in_pod: ModuleType) -> None:
    assert in_pod.part_of({}) is None
    assert in_pod.part_of({"JOB_COMPLETION_INDEX": "0"}) is None
    assert in_pod.part_of({"LOAD_PARTS": "3", "JOB_COMPLETION_INDEX": "0"}) == "1/3"
    assert in_pod.part_of({"LOAD_PARTS": "3", "JOB_COMPLETION_INDEX": "2"}) == "3/3"


PLAN = """
name = "pods"
calibration_probes = 0
allow_saturated = true
[targets]
door = "null:"
[samples]
medium = 1
[[load]]
name = "open"
schedule = "constant(100)"
requests = 50
warmup = 0
"""


def test_what_pods_log_is_merged_at_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real script of two pods: what both write to their logs is one result here."""
    (tmp_path / "plan.toml").write_text(PLAN)
    meet = f"--meet=127.0.0.1:{free_ports(1)[0]}"
    script = [sys.executable, CHART / "files" / "run_load.py", tmp_path / "results", tmp_path / "plan.toml", meet]
    running = [
        subprocess.Popen(  # noqa: S603 # our own
            [*script, "--no-live"],
            cwd=ROOT,
            env={**os.environ, "LOAD_PARTS": "2", "JOB_COMPLETION_INDEX": str(index)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    try:
        logs = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    brought = {index: loadtest.split(log)[1] for index, log in enumerate(logs)}
    assert None not in brought.values(), logs
    # A claim that both have keeps them apart
    assert {path.name for path in tmp_path.glob("results*")} == {"results-1-of-2", "results-2-of-2"}
    status = loadtest.merged({index: data for index, data in brought.items() if data}, tmp_path / "home")
    assert status in (0, 1)  # by how busy this machine is
    run = json.loads((tmp_path / "home" / "run.json").read_text())
    assert [cell["sent"] for cell in run["cells"]] == [50]
    assert (tmp_path / "home" / "parts" / "1-of-2" / "run.json").exists()
    assert "constant(100)" in capsys.readouterr().out
    # One that is missing is no smaller result
    with pytest.raises(loadtest.NotRun, match="the parts cannot be merged; they are in"):
        loadtest.merged({0: brought[0] or b""}, tmp_path / "half")
    assert "of 2 parts, 2 is missing" in capsys.readouterr().err


def test_a_result_says_where_it_was_made() -> None:
    info = dict.fromkeys(("kubeletVersion", "kernelVersion", "containerRuntimeVersion", "architecture", "osImage"), "x")
    node = {"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2"}, "nodeInfo": {**info, "bootID": "b"}}}
    where = loadtest.environment({"items": [node]}, pods({}), {"preprocess": {"replicas": 2}})
    assert where["nodes"] == [{"name": "n", "labels": {}, "allocatable": {"cpu": "2"}, **info}]
    [pod] = where["pods"]
    assert pod["image_ids"] == {"c": "i@sha256:1"}
    assert (pod["component"], pod["node"], pod["restarts"]) == ("preprocess", "n", 2)
    assert where["values"] == {"preprocess": {"replicas": 2}}


def test_marks_are_the_same_at_both_ends(in_pod: ModuleType) -> None:
    assert (in_pod.BEGIN, in_pod.END) == (loadtest.BEGIN, loadtest.END)
    [config] = [
        found
        for name, found in release(*setting("load.enabled=true", "load.plan=x")).all("ConfigMap").items()
        if name.startswith("load-")
    ]
    assert in_pod.BEGIN in config["data"]["run_load.py"]


class Clock:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


RUNNING: dict[str, Any] = {"status": {}}
FAILED = {"status": {"conditions": [{"type": "Failed", "status": "True", "message": "past its deadline"}]}}


def test_a_job_that_is_over_and_whose_pods_are_gone_is_not_waited_for() -> None:
    clock = Clock()
    with pytest.raises(loadtest.NotRun, match="job j is over, and its pods left no results: past its deadline"):
        loadtest.wait(lambda: (FAILED, {"items": []}), "j", 1, 3600.0, now=clock, sleep=clock.sleep)
    assert clock.now < 1100.0


def test_a_job_that_does_not_end_is_given_up_with_what_ends_it() -> None:
    clock = Clock()
    with pytest.raises(loadtest.NotRun, match=r"did not end within 30 s; WAIT=.* kubectl delete job/j ends it"):
        loadtest.wait(lambda: (RUNNING, pods({"running": {}})), "j", 1, 30.0, now=clock, sleep=clock.sleep)


def test_what_keeps_a_pod_from_starting_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    waiting = pods({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
    with pytest.raises(loadtest.NotRun):
        loadtest.wait(lambda: (RUNNING, waiting), "j", 1, 30.0, now=clock, sleep=clock.sleep)
    assert capsys.readouterr().err == "pod p waits: ImagePullBackOff: no such image\n"
    assert loadtest.held_up(pods({"waiting": {"reason": "ContainerCreating"}})) == {}


def test_a_server_that_is_away_for_a_moment_costs_no_load() -> None:
    clock = Clock()

    def look() -> tuple[Any, Any]:
        if 1004.0 < clock.now < 1030.0 or away:
            raise loadtest.NotRun("connection refused")
        return RUNNING, pods({"terminated": {"exitCode": 3}} if clock.now > 1020.0 else {"running": {}})

    away = False
    assert loadtest.wait(look, "j", 1, 3600.0, now=clock, sleep=clock.sleep) == {0: ("p", 3)}
    away = True
    with pytest.raises(loadtest.NotRun, match="connection refused"):
        loadtest.wait(look, "j", 1, 3600.0, now=clock, sleep=clock.sleep)


def test_what_may_be_a_secret_is_not_kept_with_a_result() -> None:
    values = {
        "preprocess": {"replicas": 2, "extraEnv": [{"name": "TOKEN", "value": "s3cret"}]},
        "models": {"m": {"link": "kafka", "extraEnv": [{"name": "A", "value": "s3cret"}]}},
        "collector": {"config": "headers: {authorization: s3cret}", "replicas": 1},
        "extraObjects": [{"kind": "Secret", "stringData": {"key": "s3cret"}}],
    }
    told = loadtest.told(values)
    assert "s3cret" not in json.dumps(told)
    assert (told["preprocess"]["replicas"], told["models"]["m"]["link"]) == (2, "kafka")
    assert told["preprocess"]["extraEnv"][0]["name"] == "TOKEN"


KUBECTL = """#!/bin/sh
echo "$@" >> "$TOLD"
case "$*" in
*version*) echo '{"serverVersion": {"gitVersion": "v1.34.0"}}' ;;
*get*nodes*|*get*pods*) echo '{"items": []}' ;;
*get*) echo '{}' ;;
*) cat > /dev/null ;;
esac
"""
HELM = """#!/bin/sh
case "$1" in
get) echo '{}' ;;
template) cat > /dev/null; printf 'kind: Job\\nmetadata: {name: j}\\nspec: {}\\n' ;;
esac
"""


def test_interrupted_it_takes_its_job_away(tmp_path: Path) -> None:
    """The real command with programs in place of kubectl and helm: SIGTERM, while it waits."""
    for name, script in (("kubectl", KUBECTL), ("helm", HELM)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    said = tmp_path / "told"
    running = subprocess.Popen(
        [sys.executable, "-m", "charts.loadtest", "plan.toml"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TOLD": str(said)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    try:
        assert "job j is on its way" in running.stdout.readline()
        running.terminate()
        _, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == loadtest.NOT_RUN
    assert "interrupted; job j was taken away" in err
    assert "delete --ignore-not-found --wait=false" in said.read_text().splitlines()[-1]


def test_a_release_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "helm").write_text("#!/bin/sh\necho 'Error: release: not found' >&2; exit 1\n")
    (tmp_path / "helm").chmod(0o755)
    done = subprocess.run(  # noqa: S603 # our own command
        [sys.executable, "-m", "charts.loadtest", "plan.toml", "--release", "other", "--helm", str(tmp_path / "helm")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == loadtest.NOT_RUN
    assert "namespace 'default' has no release 'other'" in done.stderr


def test_without_helm_it_is_said_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(loadtest.NotRun, match="`make helm` prints the path"):
        loadtest.ask(str(tmp_path / "helm"), "get")


def test_a_missing_tool_is_named() -> None:
    with pytest.raises(loadtest.NotRun, match="there is no no-such-helm"):
        loadtest.ask("no-such-helm", "get")
