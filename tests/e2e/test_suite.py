"""The suite in a real Kubernetes, as its chart installs it, with Kafka between the services. In the order of a life."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from loadgen.samples import photographs
from loadgen.target import HOP, Exchange, OipTarget, image_tensor
from services import wire
from services.accounting import Fact, Stage, monotonic_ns
from services.errors import Unavailable
from services.tracing.conventions import DURATION, STAGE
from tests.answers import check_answer
from tests.critical_path import nodes
from tests.e2e.kubernetes import CHART, Cluster, Release, name, ready
from tests.e2e.load import DEADLINE_S, Load, failures
from tests.faces import ASTRONAUT, overlap
from tests.photographs import jpeg

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

INFERENCE, PREPROCESS = "inference-efficientnet-lite0", "preprocess"
VALUES = "models.efficientnet-lite0"
LINK = "preprocess>inference"
TRACE_WAIT_S = 60.0
# A broker has a minute to end, and the kubelet to see that it has.
GRACE_S = 90.0
PLAN = """
name = "e2e"
task = "classification"
senders = 1
[samples]
medium = 4
[[load]]
name = "2 in flight"
schedule = "closed(2)"
requests = 40
warmup = 10
"""


def ask(door: str, *, sampled: bool = False) -> dict[str, Exchange]:
    """The four photographs whose contents are known, one after the other."""
    target = OipTarget(door, "classification", DEADLINE_S, sample_ratio=float(sampled))
    try:
        return {
            photo.name: target.send(image_tensor(photo.data), photo.name, monotonic_ns()).result(DEADLINE_S + 10)
            for photo in photographs()
        }
    finally:
        target.close()


def check_answers(exchanges: dict[str, Exchange]) -> None:
    for photo in photographs():
        exchange = exchanges[photo.name]
        assert exchange.error is None, exchange.message
        check_answer(photo.name, exchange.outputs, data=photo.data)


def way(exchange: Exchange) -> set[str]:
    """The hops behind the door that a request took."""
    return {tile.where for tile in exchange.tiles if ">" in tile.where} - {HOP}


def links(exchanges: dict[str, Exchange]) -> set[int | str]:
    """Of what systems the hops behind the door were."""
    tiles = [tile for exchange in exchanges.values() for tile in exchange.tiles if tile.where == LINK]
    return {value for tile in tiles for fact, value in tile.facts if fact is Fact.SYSTEM}


def restarts(pod: Mapping[str, Any]) -> int:
    """Of its only container."""
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def test_all_pods_are_ready_and_restricted(release: Release) -> None:
    pods = release.pods()
    roles = Counter(pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods)
    assert set(roles.values()) == {1}
    assert {INFERENCE, PREPROCESS, "kafka", "collector", "jaeger"} <= set(roles)
    for pod in pods:
        assert ready(pod), name(pod)
        assert restarts(pod) == 0, name(pod)
        assert pod["spec"]["automountServiceAccountToken"] is False
        [container] = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_helms_test_is_green(release: Release) -> None:
    release.cluster.helm("test", release.name, "--namespace", release.namespace, "--timeout", "5m")


def test_a_client_outside_gets_words_and_a_ledger_that_adds_up(door: str) -> None:
    exchanges = ask(door)
    check_answers(exchanges)
    for exchange in exchanges.values():
        # To the nanosecond, over both services and the broker between them
        assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns
        assert way(exchange) == {LINK}
        stages = {(tile.stage, tile.where) for tile in exchange.tiles}
        assert {(Stage.DECODE, "preprocess"), (Stage.INFER, "inference")} <= stages


def test_jaeger_has_one_tree_over_both_services_with_the_ledgers_figures(
    cluster: Cluster, release: Release, door: str
) -> None:
    exchange = ask(door, sampled=True)["coffee"]
    trace_id, parent = exchange.traceparent.split("-")[1:3]
    with cluster.forwarded(release.namespace, release.component("jaeger"), 16686) as jaeger:
        deadline = time.monotonic() + TRACE_WAIT_S
        while True:
            try:
                with urllib.request.urlopen(f"http://{jaeger}/api/traces/{trace_id}", timeout=10) as answer:
                    [trace] = json.load(answer)["data"]
                break
            except urllib.error.HTTPError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
    spans = nodes(trace)
    [root] = [node for node in spans.values() if node.parent not in spans]
    assert (root.service, root.parent) == ("preprocess", parent)
    assert {node.service for node in spans.values()} == {"preprocess", "inference"}
    [sent] = [node for node in spans.values() if node.kind == "producer"]
    [taken] = [node for node in spans.values() if node.kind == "consumer"]
    assert (sent.service, taken.service) == ("preprocess", "inference")
    assert (trace_id, sent.id) in taken.links
    # Every part that the door knows of is in the ledger that its caller has, to the nanosecond; what is in the ledger
    # beside it is the caller's: its own work, and what is left of its call
    told = Counter((tile.stage.value, tile.duration_ns) for tile in exchange.tiles if tile.where != "client")
    kept = Counter((node.tags[STAGE], node.tags[DURATION]) for node in spans.values() if STAGE in node.tags)
    assert not kept - told
    assert [stage for stage, _ in (told - kept).elements()] == ["transit"]


def carried_out(cluster: Cluster, *command: str) -> subprocess.CompletedProcess[str]:
    """A command of ours that uses kubectl."""
    folders = f"{Path(cluster.kubectl_path).parent}:{cluster.environment['PATH']}"
    return subprocess.run(  # noqa: S603 # our own command
        [sys.executable, "-m", *command],
        env={**cluster.environment, "PATH": folders},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize(("pods", "entrance"), [(1, "frames"), (2, "grpc")])
def test_a_load_job_ends_with_a_verdict(
    cluster: Cluster, release: Release, tmp_path: Path, pods: int, entrance: str
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN, encoding="utf-8")
    done = carried_out(
        cluster,
        *("charts.loadtest", str(plan), "--out", str(tmp_path), "--wait-s", "300", "--pods", str(pods)),
        *("--entrance", entrance),
        *("--release", release.name, "--namespace", release.namespace, "--helm", cluster.helm_path),
    )
    # 0: numbers that can be used; 1: not, as a machine with other work may have it
    assert done.returncode in (0, 1), done.stdout + done.stderr
    [results] = tmp_path.glob("*/run.json")
    [cell] = json.loads(results.read_text(encoding="utf-8"))["cells"]
    assert cell["verdict"] in ("VALID", "CONTENDED", "INVALID"), cell["verdict"]
    assert (cell["ok"], cell["ledger"]["complete"], cell["ledger"]["mismatched"]) == (40, 40, 0)
    where = json.loads((results.parent / "environment.json").read_text(encoding="utf-8"))
    assert all("sha256:" in image for pod in where["pods"] for image in pod["image_ids"].values())
    assert (results.parent / "report.html").exists()


def test_a_grid_of_replicas_is_measured_and_set_back(cluster: Cluster, release: Release, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.toml", tmp_path / "grid"
    plan.write_text(PLAN, encoding="utf-8")
    done = carried_out(
        cluster,
        *("loadgen", "scale", str(plan), "--preprocess", "1", "--inference", "1,2", "--out", str(out)),
        *("--settle-s", "8"),  # above connectionAgeS of values.yaml
        *("--release", release.name, "--namespace", release.namespace, "--helm", cluster.helm_path, "--no-live"),
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # as above
    grid = json.loads((out / "scale.json").read_text(encoding="utf-8"))
    assert [(p["preprocess"], p["inference"], p["balanced"]) for p in grid["points"]] == [(1, 1, True), (1, 2, True)]
    assert [len(p["served"]) for p in grid["points"]] == [2, 3]
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert [(cell["target"], cell["ok"], cell["ledger"]["mismatched"]) for cell in run["cells"]] == [
        ("1x1", 40, 0),
        ("1x2", 40, 0),
    ]
    assert len(release.wait_ready(INFERENCE, 1)) == 1  # as before


def test_two_inference_pods_share_the_work(release: Release, door: str) -> None:
    release.upgrade("inference.replicas=2")
    pods = release.wait_ready(INFERENCE, 2)

    def handled() -> list[float]:
        return [
            sum(v for series, v in release.metrics(pod).items() if series.startswith("beyond_batch_size_count{"))
            for pod in pods
        ]

    before = handled()
    with Load(door, in_flight=8) as load:
        load.wait_answers(200)
    assert not failures(load.exchanges)
    shares = [after - was for after, was in zip(handled(), before, strict=True)]
    # A partition is one pod's, and who asks is spread over partitions: both have work, if not the same
    assert min(shares) >= 0.1 * len(load.exchanges), shares


def test_deleting_one_of_two_inference_pods_under_load_loses_nothing(
    cluster: Cluster, release: Release, door: str
) -> None:
    [victim, _] = release.wait_ready(INFERENCE, 2)
    with Load(door) as load:
        load.wait_answers(50)
        cluster.kubectl("delete", "pod", "-n", release.namespace, name(victim), "--wait=false")
        load.wait_answers(100)
        release.wait_ready(INFERENCE, 2)
        load.wait_answers(50)
    assert not failures(load.exchanges)
    after = {name(pod): restarts(pod) for pod in release.pods(INFERENCE)}
    assert name(victim) not in after
    assert set(after.values()) == {0}, after


def test_a_crash_of_one_of_two_inference_pods_under_load_loses_nothing(
    cluster: Cluster, release: Release, door: str
) -> None:
    if cluster.kill is None:
        pytest.skip("SIGKILL from outside a pod takes the node's container runtime: only in the cluster of cluster-up")
    [victim, _] = release.wait_ready(INFERENCE, 2)
    with Load(door, in_flight=8) as load:
        load.wait_answers(50)
        # No SIGTERM, no goodbye to the broker: what it had in hand is given to the other
        cluster.kill(victim)
        load.wait_answers(50)
        release.wait_ready(INFERENCE, 2)
        load.wait_answers(50)
    assert not failures(load.exchanges)
    again = {name(pod): restarts(pod) for pod in release.pods(INFERENCE)}
    assert again[name(victim)] == restarts(victim) + 1
    redelivered = [e for e in load.exchanges if any(tile.stage is Stage.REDELIVERY for tile in e.tiles)]
    assert redelivered, "nothing was in hand when it died"
    assert max(e.total_ns for e in redelivered) < DEADLINE_S * 1e9


def test_a_rolling_upgrade_of_both_services_fails_no_request(release: Release, door: str) -> None:
    before = {name(pod) for component in (PREPROCESS, INFERENCE) for pod in release.pods(component)}
    with Load(door) as load:
        load.wait_answers(50)
        release.upgrade("inference.replicas=2", "logLevel=WARNING")
        load.wait_answers(50)
    after = {name(pod) for component in (PREPROCESS, INFERENCE) for pod in release.pods(component)}
    assert not before & after, "pods that were not replaced"
    assert not failures(load.exchanges)


def test_an_upgrade_changes_the_link_and_a_rollback_changes_it_back(release: Release, door: str) -> None:
    release.upgrade(f"{VALUES}.link=grpc")
    release.wait_replaced(PREPROCESS)
    check_answers(over_grpc := ask(door))
    release.upgrade(f"{VALUES}.link=kafka")
    release.wait_replaced(PREPROCESS)
    check_answers(over_kafka := ask(door))
    release.cluster.helm("rollback", release.name, "--namespace", release.namespace, "--wait", "--timeout", "5m")
    release.wait_replaced(PREPROCESS)
    check_answers(again_over_grpc := ask(door))
    assert [links(exchanges) for exchanges in (over_grpc, over_kafka, again_over_grpc)] == [
        {"grpc"},
        {"kafka"},
        {"grpc"},
    ]


def test_redis_between_the_services_may_die_under_load_and_kafka_takes_over_again(
    cluster: Cluster, release: Release, door: str
) -> None:
    # Given the link over Redis
    release.upgrade(f"{VALUES}.link=redis")
    release.wait_replaced(PREPROCESS)
    check_answers(before := ask(door))
    assert links(before) == {"redis"}
    assert all(sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns for exchange in before.values())
    [victim] = release.wait_ready("redis", 1)
    with Load(door) as load:
        load.wait_answers(50)
        # When it dies
        kill_or_delete(cluster, release, victim)
        release.wait_started_again("redis", victim)
        release.wait_ready("redis", 1)
        # By itself, in a moment
        load.wait_well(100)
    # Then callers are told so at once, or get their answers: what it took before, it has kept
    assert {exchange.error for exchange in load.exchanges} <= {None, Unavailable.kind}, failures(load.exchanges)[:5]
    # And then all is as it was, in the same pods
    release.wait_ready(INFERENCE, 1)
    release.wait_ready(PREPROCESS, 1)
    with Load(door) as load:
        load.wait_answers(50)
    assert not failures(load.exchanges)
    for component in (INFERENCE, PREPROCESS):
        assert {restarts(pod) for pod in release.pods(component)} == {0}, component
    check_answers(after := ask(door))
    assert links(after) == {"redis"}
    # And back
    release.upgrade(f"{VALUES}.link=kafka")
    release.wait_replaced(PREPROCESS)
    check_answers(over_kafka := ask(door))
    assert links(over_kafka) == {"kafka"}


def test_what_crosses_is_changed_at_the_door_alone(release: Release, door: str) -> None:
    release.upgrade(f"{VALUES}.link=kafka")
    pods = {name(pod) for pod in release.pods(INFERENCE)}
    for cut, where in (("jpeg", "inference"), ("f32", "preprocess")):
        release.upgrade(f"{VALUES}.link=kafka", f"{VALUES}.cut={cut}")
        release.wait_replaced(PREPROCESS)
        check_answers(exchanges := ask(door))
        tiles = [tile for exchange in exchanges.values() for tile in exchange.tiles]
        assert {tile.where for tile in tiles if tile.stage is Stage.DECODE} == {where}
    assert {name(pod) for pod in release.pods(INFERENCE)} == pods


def test_frames_that_are_published_are_answered_also_when_their_door_dies(cluster: Cluster, release: Release) -> None:
    # Given a camera, and somebody who reads results
    kafka = f"{release.component('kafka')}:9092"
    script = (Path(__file__).parent / "camera.py").read_text(encoding="utf-8")
    [where] = release.pods(INFERENCE)  # which stays
    run = ("exec", "-i", "-n", release.namespace, name(where), "--", "python", "-c", script)
    [door] = release.wait_ready(PREPROCESS, 1)
    photos = {photo.name: photo for photo in photographs()}
    frames = [
        {"key": f"{photo}-{number}", "value": base64.b64encode(sample.data).decode()}
        for number in range(10)
        for photo, sample in photos.items()
    ]
    # When frames are published, and some are answered, and the door dies
    cluster.kubectl(*run, "publish", kafka, "images", given=json.dumps(frames))
    answers: dict[str, wire.InferResponse] = {}
    with cluster.printed(*run, "collect", kafka, "results", "4", "120") as lines:
        for row in map(json.loads, lines):
            assert not row["failure"], row
            if not answers:
                kill_or_delete(cluster, release, door)
            answers[row["key"]] = wire.decode_response(base64.b64decode(row["value"]))
            if len(answers) == len(frames):
                break
    # Then every one has its answer, by the door that came after it too, and a ledger over the link
    assert answers.keys() == {frame["key"] for frame in frames}
    for key, response in answers.items():
        photo = photos[key.rpartition("-")[0]]
        check_answer(photo.name, response.outputs, data=photo.data)
        assert {Stage.DECODE, Stage.INFER} <= {tile.stage for tile in response.tiles}
    release.wait_ready(PREPROCESS, 1)


def test_faces_are_found_at_the_door_and_asked_about_behind_kafka(release: Release, door: str) -> None:
    # Given the pipeline of two networks, as the chart's profile has it
    release.upgrade(profiles=[CHART / "values-faces.yaml"])
    release.wait_replaced(PREPROCESS)
    # When it is asked about a photograph of one person
    target = OipTarget(door, "faces", DEADLINE_S)
    try:
        exchange = target.send(image_tensor(jpeg("astronaut")), "one", monotonic_ns()).result(DEADLINE_S + 10)
    finally:
        target.close()
    # Then it finds the face, and has asked about it in another pod
    assert exchange.error is None, exchange.message
    [box] = exchange.outputs["boxes"][0]
    assert overlap(box, ASTRONAUT) > 0.7
    assert exchange.outputs["embeddings"].shape[:2] == (1, 1)
    assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns
    assert links({"one": exchange}) == {"kafka"}


def kill_or_delete(cluster: Cluster, release: Release, pod: Mapping[str, Any]) -> None:
    """SIGKILL where the node can be reached."""
    if cluster.kill is not None:
        cluster.kill(pod)
    else:
        cluster.kubectl("delete", "pod", "-n", release.namespace, name(pod), "--wait=false")


def test_uninstalling_leaves_only_the_brokers_claims(cluster: Cluster, release: Release) -> None:
    cluster.helm("uninstall", release.name, "--namespace", release.namespace, "--wait", "--timeout", "3m")
    listed = cluster.kubectl("api-resources", "--verbs=list,delete", "--namespaced", "--output", "name").split()
    kinds = ",".join(kind for kind in listed if not kind.startswith("events"))
    # What Kubernetes makes in every namespace, what the chart's README says, and what was run by hand beside it
    expected = {
        "ConfigMap/kube-root-ca.crt",
        "ServiceAccount/default",
        *(f"PersistentVolumeClaim/data-{release.component(broker)}-0" for broker in ("kafka", "redis")),
    }
    deadline = time.monotonic() + GRACE_S
    while True:
        kept = {
            f"{found['kind']}/{found['metadata']['name']}"
            for found in cluster.get(kinds, "-n", release.namespace)["items"]
        }
        others = {entry for entry in kept - expected if "-load-" not in entry and "-test-" not in entry}
        if not others or time.monotonic() > deadline:  # pods have their time to end
            break
        time.sleep(1)
    assert not others
    assert expected <= kept
