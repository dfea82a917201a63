"""The suite on one machine, through its command line: it comes up, says how it is, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.local import state
from services.local.broker import MESSAGE_LIMIT, RETENTION_BYTES, SEGMENT_BYTES, Broker
from services.local.deployments import Options
from services.local.errors import LocalStackError
from services.local.preflight import preflight
from services.local.processes import Process
from services.local.stack import Stack
from tests.integration.test_door import infer, request
from tests.photographs import jpeg

WAIT = 60.0
ROOT = Path(__file__).parents[2]
# The emulated model: it loads at once, and what it answers is beside the point here.
EMULATED = ("--model", "emulated")


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "services.local", "--folder", str(folder), *arguments]


def local(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 # our own command
        command(folder, *arguments),
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a test's suite lives; taken down after it, whatever became of the test."""
    yield tmp_path / "local"
    state.take_down(tmp_path / "local", 30)


def recorded(folder: Path) -> list[state.Running]:
    content = state.read(folder)
    assert content is not None
    return list(content["processes"])


def supervisor(folder: Path) -> int:
    content = state.read(folder)
    assert content is not None
    return int(content["supervisor"]["pid"])


def processes(folder: Path, addresses: list[str]) -> dict[int, str]:
    """Every process on this machine whose command line has one of these addresses, or the folder, in it."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if any(word in line for word in (*addresses, str(folder))):
            found[int(entry.name)] = line[:200]
    return found


def assert_nothing_is_left(folder: Path, addresses: list[str], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while left := processes(folder, addresses):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def follow(process: subprocess.Popen[str], word: str) -> str:
    """Its output, up to the line that begins with `word`."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(word):
            return "".join(lines)
    raise AssertionError("".join(lines))


def foreground(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`up` as a shell would start it, in a process group of its own, up to the moment at which all is healthy."""
    process = subprocess.Popen(  # noqa: S603 # our own command
        command(folder, "up", *EMULATED, *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    follow(process, "try: ")
    return process


# --- up, status, down ------------------------------------------------------------------------------------------------


def test_up_in_the_background_status_and_down(folder: Path) -> None:
    # Given nothing
    before = local(folder, "status")
    assert (before.returncode, before.stdout) == (1, "nothing is running\n")
    # When it is started in the background
    up = local(folder, "up", "--detach", "--transports", "fused,grpc", *EMULATED)
    # Then it returns when all is healthy, and says where
    assert up.returncode == 0, up.stderr
    running = recorded(folder)
    assert [(r.deployment, r.name) for r in running] == [
        ("fused", "preprocess"),
        ("grpc", "inference"),
        ("grpc", "preprocess"),
    ]
    for r in running:
        if r.name == "preprocess":
            assert f"grpc://{r.host_port}" in up.stdout
            assert infer(r.host_port, request(jpeg("coffee"))).outputs["scores"].shape == (1, 5)
    status = local(folder, "status")
    for r in running:
        for said in (up.stdout, status.stdout):
            assert f"http://{r.metrics}/metrics" in said
    assert status.returncode == 0
    assert status.stdout.count(" healthy") == 3
    # And a second one is refused, with the remedy
    second = local(folder, "up", "--transports", "fused", *EMULATED)
    assert second.returncode == 1
    assert "runs already" in second.stderr
    assert f"services.local --folder {folder} down" in second.stderr  # as it is typed, for this folder
    assert f"stop it with: {state.how_to_stop(folder)}\n" in up.stdout
    # When a service hangs, then the status says which
    os.kill(running[0].pid, signal.SIGSTOP)
    hung = local(folder, "status")
    os.kill(running[0].pid, signal.SIGCONT)
    assert hung.returncode == 1
    assert [line.split()[0] for line in hung.stdout.splitlines() if "not healthy" in line] == ["fused"]
    # When it is taken down, then nothing is left
    down = local(folder, "down")
    assert (down.returncode, down.stdout) == (0, "stopped 3 processes\n")
    assert_nothing_is_left(folder, [r.host_port for r in running])
    assert local(folder, "status").returncode == 1
    assert local(folder, "down").stdout == "nothing was running\n"


def test_down_stops_jaeger_as_well(folder: Path) -> None:
    # Given a process that is recorded as `jaeger` records its own
    with subprocess.Popen(["/bin/sleep", str(WAIT)]) as process:  # noqa: S603 # a process, any
        running = state.Running("", "jaeger", process.pid, state.start_time(process.pid), "127.0.0.1:1")
        state.write(folder / "jaeger", 0, [running], "", folder)
        # Then the status has it, beside a suite that is not there
        status = local(folder, "status")
        assert (status.returncode, status.stdout) == (
            1,
            f"Jaeger: http://127.0.0.1:1, pid {process.pid}, running\nnothing of the suite is running\n",
        )
        # When all is taken down, then it is, too, and that is said
        down = local(folder, "down")
        assert (down.returncode, down.stdout) == (0, "stopped Jaeger\n")
        assert process.wait(WAIT) == -signal.SIGTERM
    assert local(folder, "down").stdout == "nothing was running\n"


@pytest.mark.kafka
def test_a_supervisor_that_is_killed_takes_everything_with_it(folder: Path) -> None:
    # Given a suite with a broker of its own
    up = local(folder, "up", "--detach", "--transports", "grpc,kafka", *EMULATED)
    assert up.returncode == 0, up.stderr
    running = recorded(folder)
    assert [r.name for r in running].count("kafka") == 1
    data = folder / "broker" / "kafka-data"
    assert (data / "kafka" / "meta.properties").exists()
    # When its supervisor is killed without a chance to clean up
    os.kill(supervisor(folder), signal.SIGKILL)
    # Then the guards end every process, their own included
    assert_nothing_is_left(folder, [r.host_port for r in running])
    # And both ways on work: down, which takes the broker's data, too, and up over the record of what is gone
    assert data.exists()
    assert local(folder, "down").stdout == "nothing was running\n"
    assert not data.exists()
    assert (folder / "broker" / "kafka.log").exists()
    for _ in range(2):
        up = local(folder, "up", "--detach", "--transports", "fused", *EMULATED)
        assert up.returncode == 0, up.stderr
        running += recorded(folder)
        os.kill(supervisor(folder), signal.SIGKILL)
    assert local(folder, "down").returncode == 0
    assert_nothing_is_left(folder, [r.host_port for r in running])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_stop_it_in_the_foreground(folder: Path, number: signal.Signals) -> None:
    process = foreground(folder, "--transports", "grpc")
    addresses = [r.host_port for r in recorded(folder)]
    # When the terminal sends it to the whole process group
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 0, errors
    assert output.endswith("stopped\n")
    assert_nothing_is_left(folder, addresses)
    assert state.read(folder) is None


def test_a_service_that_dies_is_reported_and_stops_all(folder: Path) -> None:
    process = foreground(folder, "--transports", "fused,grpc")
    running = recorded(folder)
    victim = next(r for r in running if r.name == "inference")
    os.kill(victim.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 1
    assert "grpc inference ended with status 137" in errors
    assert "inference listens on" in errors  # the end of its log
    assert_nothing_is_left(folder, [r.host_port for r in running])


# --- the disk --------------------------------------------------------------------------------------------------------


@pytest.mark.kafka
def test_a_broker_leaves_no_data_when_its_suite_stops_and_another_suite_does_not_touch_them(folder: Path) -> None:
    # Given a suite with a broker
    up = local(folder, "up", "--detach", "--transports", "kafka", *EMULATED)
    assert up.returncode == 0, up.stderr
    data = folder / "broker" / "kafka-data"
    # When a second one is refused because of it, then the first one's broker keeps its data, and works
    with pytest.raises(LocalStackError, match="runs already"), Stack(["kafka"], Options(("emulated",)), folder):
        pass
    assert (data / "kafka" / "meta.properties").exists()
    [door] = [r.host_port for r in recorded(folder) if r.name == "preprocess"]
    assert infer(door, request(jpeg("coffee"))).outputs["scores"].shape == (1, 5)
    # When it is taken down, then they go
    assert local(folder, "down").returncode == 0
    assert not data.exists()


@pytest.mark.kafka
def test_what_a_topic_keeps_on_disk_is_bounded(broker: Broker) -> None:
    # Given half a gigabyte of records in one partition, which nobody reads
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    producer = Producer({"bootstrap.servers": broker.bootstrap, "message.max.bytes": MESSAGE_LIMIT, "linger.ms": 0})
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    [created] = admin.create_topics([NewTopic("bounded", 1, 1)]).values()
    created.result(WAIT)
    failures: list[object] = []
    for _ in range(34):
        producer.produce("bounded", bytes(16_000_000), on_delivery=lambda error, _: error and failures.append(error))
        producer.flush(WAIT)
    assert not failures
    # Then soon no more is left than what a partition may keep, and a segment that is on its way out
    folder = broker.log_dir() / "bounded-0"

    def kept() -> int:
        blocks = 0
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # the broker is deleting
                blocks += path.stat().st_blocks
        return 512 * blocks

    assert kept() > RETENTION_BYTES
    deadline = time.monotonic() + 30
    while kept() > RETENTION_BYTES + SEGMENT_BYTES and time.monotonic() < deadline:
        time.sleep(0.2)
    # And what was written last is there still
    assert RETENTION_BYTES / 2 < kept() <= RETENTION_BYTES + SEGMENT_BYTES


def test_a_disk_without_room_for_the_broker_is_said_before_anything_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.local.preflight.DATA_BYTES", 10**18)
    [short] = [check for check in preflight(["fused", "kafka"], folder=folder) if check.ok is False]
    assert short.name == "disk"
    assert "1000000000.0 GB are needed" in short.remedy or "1000000000.0 GB in" in short.remedy
    assert "--folder moves it" in short.remedy
    # And who has no broker here needs no room for one
    assert all(check.ok for check in preflight(["fused"], folder=folder))


def test_a_command_that_is_not_there_is_said_within_the_deadline(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(LocalStackError, match=r"absent did not start: /no/such/thing[\s\S]*No such file"):
        Process("absent", ["/no/such/thing"], tmp_path / "log")
    assert time.monotonic() - begin < 20


def test_the_command_that_stops_it_names_a_folder_that_is_not_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert state.how_to_stop(ROOT / ".local").endswith("python -m services.local down")
    assert state.how_to_stop(Path("/a b")).endswith("python -m services.local --folder '/a b' down")


# --- what is missing, or in the way ----------------------------------------------------------------------------------


def test_what_is_missing_is_listed_with_remedies_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    # Given a PATH without Java, Maven or a container engine, and no jars
    (tmp_path / "empty").mkdir()
    env = {"PATH": str(tmp_path / "empty"), "BEYOND_CACHE": str(tmp_path / "cache")}
    for arguments in (("up",), ("up", "--detach"), ("preflight",)):
        done = local(folder, *arguments, "--transports", "grpc,kafka", env=env)
        assert done.returncode == 2
        lines = (done.stdout + done.stderr).splitlines()
        missing = {
            line.split("MISSING", 1)[1].strip(): lines[i + 1] for i, line in enumerate(lines) if "MISSING" in line
        }
        assert set(missing) == {"Java 17+", "Kafka"}
        assert "apt install openjdk-17-jre-headless" in missing["Java 17+"]
        assert "apt install maven" in missing["Kafka"]
        assert all("--kafka host:port" in remedy for remedy in missing.values())
    assert state.read(folder) is None
    assert not (folder / "logs").exists()
    assert not (tmp_path / "cache").exists()
    # And what does not need it does not ask for it
    assert local(folder, "preflight", "--transports", "fused,grpc", env=env).returncode == 0
    assert local(folder, "preflight", "--transports", "kafka", "--kafka", "127.0.0.1:9092", env=env).returncode == 0


def test_the_size_of_a_download_is_said_before(folder: Path, tmp_path: Path) -> None:
    # Given Java and Maven, and no jars yet
    for name, text in (("java", "echo 'openjdk version \"21.0.1\"' >&2"), ("mvn", "exit 1")):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{text}\n")
        tool.chmod(0o755)
    env = {"PATH": str(tmp_path / "bin"), "BEYOND_CACHE": str(tmp_path / "cache")}
    done = local(folder, "preflight", "--transports", "kafka", env=env)
    assert done.returncode == 0, done.stdout
    assert "will download: Apache Kafka" in done.stdout
    assert "44 MB" in done.stdout
    # A Java that is too old is not one
    (tmp_path / "bin" / "java").write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    assert local(folder, "preflight", "--transports", "kafka", env=env).returncode == 2


def test_an_unknown_transport_is_named(folder: Path) -> None:
    done = local(folder, "up", "--transports", "grpc,pigeon")
    assert done.returncode == 2
    assert "unknown transport 'pigeon'" in done.stderr


def test_a_port_that_is_taken_is_said_and_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a port that somebody took between choosing and listening
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        free = iter([port, 0])
        monkeypatch.setattr("services.local.stack.free_ports", lambda count, _: [next(free) for _ in range(count)])
        with (
            pytest.raises(LocalStackError, match="another process may have the port") as raised,
            Stack(["fused"], Options(("emulated",)), tmp_path),
        ):
            pass
    assert "fused preprocess ended with status 2" in str(raised.value)
    assert_nothing_is_left(tmp_path, [f"127.0.0.1:{port}"])


@pytest.mark.kafka
def test_a_broker_that_is_given_is_used_and_left_alone(folder: Path, broker: Broker) -> None:
    # Given a broker of somebody else's
    up = local(folder, "up", "--detach", "--transports", "kafka", "--kafka", broker.bootstrap, *EMULATED)
    assert up.returncode == 0, up.stderr
    running = recorded(folder)
    assert [r.name for r in running] == ["inference", "preprocess"]
    assert infer(running[1].host_port, request(jpeg("coffee"))).outputs["scores"].shape == (1, 5)
    # When the suite goes, then the broker stays
    assert local(folder, "down").returncode == 0
    assert broker.running()
    assert broker.pid is not None


@pytest.mark.kafka
def test_a_broker_that_is_given_and_not_there_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.local.stack._EXTERNAL_S", 0.5)
    with (
        pytest.raises(LocalStackError, match=r"Kafka at 127\.0\.0\.1:1 does not answer"),
        Stack(["kafka"], Options(("emulated",)), folder, kafka="127.0.0.1:1"),
    ):
        pass
