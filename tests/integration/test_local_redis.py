"""Redis in the local stack: one of its own, somebody else's, and none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py

from services.local import state
from services.local.deployments import Options
from services.local.errors import LocalStackError
from services.local.redis_server import REMEDY, RedisServer, redis_server
from services.local.stack import Stack
from tests.brokered import eventually
from tests.integration.test_door import infer, request
from tests.photographs import jpeg

ROOT = Path(__file__).parents[2]
EMULATED = ("--model", "emulated")

needs_redis = pytest.mark.skipif(redis_server() is None, reason=f"redis-server is not here: {REMEDY}")


def run(*command: str, path: str | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **({} if path is None else {"PATH": path})}
    return subprocess.run(  # noqa: S603 # our own command
        [sys.executable, "-m", *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=110, check=False
    )


def local(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("services.local", "--folder", str(folder), *arguments)


def recorded(folder: Path) -> list[state.Running]:
    content = state.read(folder)
    assert content is not None
    return list(content["processes"])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "stack"
    yield folder
    local(folder, "down")


@needs_redis
def test_a_redis_of_its_own_serves_is_listed_and_leaves_no_data(folder: Path) -> None:
    # Given a suite with a Redis that writes to a file, too
    up = local(folder, "up", "--detach", "--transports", "redis", "--redis-appendfsync", "always", *EMULATED)
    assert up.returncode == 0, up.stderr
    by_name = {process.name: process for process in recorded(folder)}
    assert set(by_name) == {"redis", "inference", "preprocess"}
    assert infer(by_name["preprocess"].host_port, request(jpeg("coffee"))).outputs["scores"].shape == (1, 5)
    host, _, port = by_name["redis"].host_port.rpartition(":")
    with redis_py.Redis(host, int(port)) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert eventually(lambda: client.xlen("emulated.redis") == 0), "what is answered is gone"
    data = folder / "broker" / "redis-data"
    assert list(data.rglob("*.aof"))
    assert local(folder, "status").returncode == 0
    # When its supervisor is killed without a chance to clean up, then the guards end it, and down takes its data
    content = state.read(folder)
    assert content is not None
    os.kill(content["supervisor"]["pid"], signal.SIGKILL)
    assert local(folder, "down").returncode == 0
    assert not data.exists()
    assert not any(process.alive for process in by_name.values())


@needs_redis
def test_a_redis_that_is_given_is_used_and_left_alone(folder: Path, redis: RedisServer) -> None:
    up = local(folder, "up", "--detach", "--transports", "redis", "--redis", redis.bootstrap, *EMULATED)
    assert up.returncode == 0, up.stderr
    running = recorded(folder)
    assert [process.name for process in running] == ["inference", "preprocess"]
    assert infer(running[1].host_port, request(jpeg("coffee"))).outputs["scores"].shape == (1, 5)
    assert local(folder, "down").returncode == 0
    assert redis.running()


def test_a_redis_that_is_given_and_not_there_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.local.stack._EXTERNAL_S", 0.3)
    with (
        pytest.raises(LocalStackError, match=r"Redis at 127\.0\.0\.1:1 does not answer"),
        Stack(["redis"], Options(("emulated",)), folder, redis="127.0.0.1:1"),
    ):
        pass


def test_without_redis_who_needs_it_is_told_how_to_get_it(folder: Path, tmp_path: Path) -> None:
    empty = str(tmp_path / "empty")
    for command in ("up", "preflight"):
        done = run("services.local", "--folder", str(folder), command, "--transports", "grpc,redis", path=empty)
        assert done.returncode == 2
        assert "MISSING    redis-server" in done.stdout
        assert "make setup-redis" in done.stdout
        assert "--redis host:port" in done.stdout
    assert state.read(folder) is None
    # And who does without it is not kept
    flags = ("--transports", "grpc,redis", "--optional", "redis")
    done = run("services.local", "--folder", str(folder), "preflight", *flags, path=empty)
    assert done.returncode == 0
    assert "NOT RUN    redis-server" in done.stdout
    given = run("services.local", "preflight", "--transports", "redis", "--redis", "127.0.0.1:6379", path=empty)
    assert given.returncode == 0


DEMO = """\
name = "demo"
task = "classification"
warmup_s = 0.1
calibration_probes = 2

[samples]
medium = 2

[[load]]
name = "alone"
schedule = "closed(1)"
requests = { medium = 5 }
"""


def test_without_redis_the_demo_measures_the_rest_and_says_what_was_not_run(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(DEMO, encoding="utf-8")
    flags = ("--transports", "fused,redis", "--plan", str(plan), "--out", "demo", *EMULATED)
    done = run("loadgen", "demo", *flags, path=str(tmp_path / "empty"), cwd=tmp_path)
    assert (tmp_path / "demo" / "run.json").exists(), done.stderr
    cells = json.loads((tmp_path / "demo" / "run.json").read_text())["cells"]
    assert [cell["target"] for cell in cells] == ["fused", "redis"]
    assert cells[1]["label"] == "NOT RUN"
    assert "make setup-redis" in cells[1]["reasons"][0]
    assert "NOT RUN" in done.stdout
