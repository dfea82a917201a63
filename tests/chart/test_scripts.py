"""What helm's test looks at, where it is wrong; and configurations, by the programs that read them."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from services.local import jaeger
from services.local.ports import free_ports
from services.local.processes import Process
from services.local.redis_server import REMEDY, redis_server
from services.transports.redis import RedisConnection
from services.transports.redis_client import ask, check_server, parse_url
from services.transports.redis_security import OPEN
from tests.chart.conftest import CHART, release, setting


@pytest.fixture(scope="module")
def suite_test() -> ModuleType:
    spec = importlib.util.spec_from_file_location("suite_test", CHART / "files" / "suite_test.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trace(*spans: tuple[str, str, str]) -> dict[str, Any]:
    """As Jaeger's query API has it; spans of (id, parent, service)."""
    return {
        "processes": {service: {"serviceName": service} for _, _, service in spans},
        "spans": [
            {
                "spanID": name,
                "processID": service,
                "references": [{"refType": "CHILD_OF", "spanID": parent}] if parent else [],
            }
            for name, parent, service in spans
        ],
    }


# Of the manifest of otelcol-contrib and of Jaeger's components.go.
SECTIONS = {
    "receivers": {"otlp"},
    "processors": {"memory_limiter", "batch", "tail_sampling"},
    "connectors": {"spanmetrics", "forward"},
    "exporters": {"prometheus", "otlp", "nop"},
}

TREE = (("a", "", "loadgen"), ("b", "a", "preprocess"), ("c", "b", "inference"))


@pytest.mark.parametrize(
    ("spans", "wrong"),
    [
        pytest.param(TREE, None, id="one tree"),
        pytest.param((*TREE, ("d", "", "loadgen")), "2 roots", id="two trees"),
        pytest.param((*TREE, ("d", "x", "loadgen")), "1 orphans", id="an orphan"),
        pytest.param(TREE[:2], "no span of inference", id="a service is missing"),
        pytest.param((), "0 roots", id="nothing"),
    ],
)
def test_a_trace_must_be_one_tree_over_all_services(
    suite_test: ModuleType, spans: tuple[tuple[str, str, str], ...], wrong: str | None
) -> None:
    found = suite_test.wrong_with_tree(trace(*spans), {"loadgen", "preprocess", "inference"})
    assert found is None if wrong is None else wrong in found


def results(folder: Path, total: int = 10, ok: int = 8, mismatched: int = 0, **parts: int) -> Path:
    """What a run leaves: 8 requests of these parts."""
    cell = {"ok": ok, "ledger": {"complete": ok, "mismatched": mismatched}, "errors": {}}
    (folder / "run.json").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    with (folder / "requests.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "total_ns", "infer@inference_cpu_ns", *(f"{name}_ns" for name in parts)])
        rows.writerows([[str(n), total, 5, *parts.values()] for n in range(8)])
    return folder


HOP = {"transit@preprocess>inference": 4, "infer@inference": 6}


def test_ledgers_must_sum_and_go_over_the_hop(suite_test: ModuleType, tmp_path: Path) -> None:
    suite_test.check_ledgers(results(tmp_path, **HOP), "preprocess>inference")
    for arguments, says in (
        ({"total": 11, **HOP}, "parts sum to 10 ns, the total is 11"),
        ({"ok": 7, **HOP}, "7 of 8 answered"),
        ({"mismatched": 1, **HOP}, "'mismatched': 1"),
        ({"infer@preprocess": 10}, "did not go over preprocess>inference"),
    ):
        with pytest.raises(suite_test.Wrong, match=says):
            suite_test.check_ledgers(results(tmp_path, **arguments), "preprocess>inference")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        pytest.param(subprocess.TimeoutExpired("loadgen", 240), "loadgen ask did not end within 240 s", id="too slow"),
        pytest.param({"cells": []}, "the load was not measured: []", id="no cell"),
        pytest.param({"cells": [{"label": "NOT RUN", "reasons": ["gone"]}]}, "not measured: [['gone']]", id="not run"),
        pytest.param({}, "cannot be read: KeyError('cells')", id="no results"),
        pytest.param(None, "cannot be read: FileNotFoundError", id="no file"),
    ],
)
def test_what_fails_is_one_line(
    suite_test: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: dict[str, Any] | Exception | None,
    says: str,
) -> None:
    def loadgen(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if isinstance(found, Exception):
            raise found
        if "run" in command and found is not None:
            (tmp_path / "results").mkdir()
            (tmp_path / "results" / "run.json").write_text(json.dumps(found), encoding="utf-8")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(suite_test.subprocess, "run", loadgen)
    assert suite_test.main(["--door", "grpc://door:1", "--task", "t", "--folder", str(tmp_path)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("WRONG: ")
    assert says in line


def test_redis_understands_its_configuration_and_comes_back_with_what_it_took(tmp_path: Path) -> None:
    if redis_server() is None:
        pytest.skip(f"redis-server is not here: {REMEDY}")
    found = release(*setting("models.efficientnet-lite0.link=redis", "redis.resources.limits.memory=512Mi"))
    path = tmp_path / "redis.conf"
    path.write_text(found.get("ConfigMap", "redis")["data"]["redis.conf"], encoding="utf-8")
    [container] = found.get("StatefulSet", "redis")["spec"]["template"]["spec"]["containers"]
    [program, _] = container["command"]
    [port] = free_ports(1)
    url = parse_url(f"redis://127.0.0.1:{port}/chart")

    def probe(name: str) -> int:
        [client, *arguments] = container[name]["exec"]["command"]
        command = [client, "-p", str(port), *arguments]
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode  # noqa: S603 # the chart's

    def start(name: str, *flags: str) -> Process:
        """As the pod has it, but on loopback and on a port and in a folder of its own."""
        own = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(tmp_path), *flags]
        process = Process(name, [program, str(path), *own], tmp_path / f"{name}.log")
        deadline = time.monotonic() + 20
        while probe("readinessProbe"):
            assert process.running(), (tmp_path / f"{name}.log").read_text(encoding="utf-8")
            assert time.monotonic() < deadline, "Redis is not ready"
        return process

    first = start("first")
    connection = RedisConnection(url, OPEN, 5.0)
    try:
        # Given a Redis of the chart, then links take it, and it has what it was told
        check_server(connection, url)
        assert dict(
            pair
            for key in ("maxmemory", "maxmemory-policy", "appendfsync")
            for pair in [ask(connection, "CONFIG", "GET", key)]
        ) == {
            b"maxmemory": str(256 * 2**20).encode(),
            b"maxmemory-policy": b"noeviction",
            b"appendfsync": b"everysec",
        }
        ask(connection, "CONFIG", "SET", "appendfsync", "always")
        ask(connection, "XADD", "chart", "*", "a", "b")
    finally:
        # When it is killed
        connection.close()
        first.kill()
    assert probe("startupProbe"), "nobody answers there"
    second = start("second")
    connection = RedisConnection(url, OPEN, 5.0)
    try:
        # Then what it took is there
        assert ask(connection, "XLEN", "chart") == 1
    finally:
        connection.close()
        second.kill()


@pytest.mark.parametrize(
    "values", [(), ("collector.tailSampling.enabled=true",), ("jaeger.mode=off",)], ids=["plain", "tail", "no Jaeger"]
)
def test_jaeger_and_a_collector_understand_their_configurations(values: tuple[str, ...], tmp_path: Path) -> None:
    """Jaeger's own program looks at both; it is a collector, of the version that the chart names."""
    program = jaeger.binary()
    if program is None:
        pytest.skip("Jaeger is not built here; `make jaeger` builds it")
    found = release(*setting(*values)).all("ConfigMap")
    for name in {"collector", "jaeger"} & set(found):
        path = tmp_path / f"{name}.yaml"
        path.write_text(found[name]["data"]["config.yaml"], encoding="utf-8")
        done = subprocess.run(  # noqa: S603 # our own command
            [program, "validate", f"--config={path}"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_collectors_configuration_is_for_both_builds() -> None:
    """OpenTelemetry's contrib distribution and Jaeger have these in common, and not the health extensions."""
    values = setting("collector.tailSampling.enabled=true")
    config = yaml.safe_load(release(*values).get("ConfigMap", "collector")["data"]["config.yaml"])
    kinds = {section: {name.partition("/")[0] for name in config.get(section, {})} for section in SECTIONS}
    assert all(kinds[section] <= SECTIONS[section] for section in SECTIONS)
    assert set(config) == {*SECTIONS, "service"}
    assert "extensions" not in config["service"]


def test_a_configuration_of_ones_own_is_a_template() -> None:
    text = "service: {name: {{ .Release.Name }}}"
    found = release(*setting(f"collector.config={text}", f"jaeger.config={text}")).all("ConfigMap")
    for name in ("collector", "jaeger"):
        assert found[name]["data"]["config.yaml"].strip() == "service: {name: suite}"
