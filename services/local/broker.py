"""A real Apache Kafka broker, single-node KRaft, on loopback: from jars (Java 17+ and Maven), or as a container.

Started, killed and started again on the same port with the same data, it is the same broker.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

from services.local import jars
from services.local.errors import LocalStackError
from services.local.ports import free_ports
from services.local.processes import Process

# Above the largest payload that a link carries (16 MiB), with its headers.
MESSAGE_LIMIT = 24 * 1024 * 1024

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
num.partitions=4
auto.create.topics.enable=false
message.max.bytes={limit}
replica.fetch.max.bytes={limit}
socket.request.max.bytes=104857600
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
group.min.session.timeout.ms=3000
log.retention.bytes={retention}
log.segment.bytes={segment}
log.index.size.max.bytes=1048576
log.segment.delete.delay.ms=1000
log.retention.check.interval.ms=5000
log.initial.task.delay.ms=5000
"""

# What a partition keeps before its oldest segment goes, read or not: far above what may be under way, since a door has
# 128 requests inside (`--admission-limit`), and a partition's 256 MiB hold 445 tensors of 602 kB. A message must fit
# into a segment. What is too much is looked for from the start and is gone within seconds; Kafka's own half and whole
# minute are gigabytes of load. An index is as large as such a segment's can be, not 10 MiB, twice per partition.
RETENTION_BYTES = 256 * 1024 * 1024
SEGMENT_BYTES = 64 * 1024 * 1024
# Of the topic of one link, whose requests are what fills a disk, with a segment more that waits for its deletion.
DATA_BYTES = 4 * (RETENTION_BYTES + 2 * SEGMENT_BYTES)


_DATA = "kafka-data"
_LOG = "kafka.log"
_FORMAT_S = 60


def discard(folder: Path) -> None:
    """Delete the data of a broker in `folder` that does not run any more; its log stays."""
    shutil.rmtree(folder / _DATA, ignore_errors=True)


def begin_log(folder: Path) -> None:
    """Forget the log of the broker that was in `folder` before: an error of the last run is not one of this."""
    (folder / _LOG).unlink(missing_ok=True)


def java() -> str:
    """A Java of at least 17. Raises `LocalStackError` with the remedy."""
    found = shutil.which("java")
    version = java_version(found) if found else None
    if found is None or version is None or version < 17:
        what = "Java is missing" if version is None else f"Java {version} is too old"
        raise LocalStackError(
            f"{what}, Kafka needs 17 or later; on Debian: apt install openjdk-17-jre-headless; "
            "or name a running broker: --kafka host:port"
        )
    return found


def java_version(executable: str) -> int | None:
    """Its major version; None where it does not say."""
    try:
        done = subprocess.run(  # noqa: S603 # what `which` found
            [executable, "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(\d+)', done.stderr + done.stdout)
    return int(match.group(1)) if match else None


def container_engine() -> str | None:
    """docker or podman, whichever has a running engine behind it; None without one."""
    for name in ("docker", "podman"):
        path = shutil.which(name)
        if path is None:
            continue
        try:
            done = subprocess.run(  # noqa: S603 # what `which` found
                [path, "info"], capture_output=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return path
    return None


class Broker:
    """One broker; `bootstrap` is host:port."""

    def __init__(self, folder: Path, external: str | None = None) -> None:
        """`folder`: for data, configuration and logs. `external`: a running broker, never started or stopped here."""
        self._folder = folder
        self._external = external
        # The services that are started here read the same variable, and what belongs to it.
        self._tls = external is not None and os.environ.get("BEYOND_KAFKA_PROTOCOL", "").endswith("SSL")
        self._process: Process | None = None
        if external is None:
            self._port, self._controller = free_ports(2)
        self.bootstrap = external or f"127.0.0.1:{self._port}"

    @property
    def data(self) -> Path:
        """Where ours keeps its topics."""
        return self._folder / _DATA

    @property
    def pid(self) -> int | None:
        """Of the broker's process, if it is ours and runs."""
        return self._process.pid if self._process is not None and self._process.running() else None

    def properties(self) -> str:
        """What ours is configured with; of a key that is there twice, the last one counts."""
        return _PROPERTIES.format(
            port=self._port,
            controller=self._controller,
            data=self.data,
            limit=MESSAGE_LIMIT,
            retention=RETENTION_BYTES,
            segment=SEGMENT_BYTES,
        )

    def running(self) -> bool:
        """Whether it answers."""
        return answers(self.bootstrap, tls=self._tls)

    def ended(self) -> str | None:
        """A report if it is ours, was started, and has ended."""
        return None if self._process is None or self._process.running() else self._process.exit_report()

    def start(self, deadline_s: float = 60.0) -> None:
        """Start it if it is ours, and wait until it answers. Raises `LocalStackError`."""
        if self._external is None and self.pid is None:
            self._process = self._launch()
        deadline = time.monotonic() + deadline_s
        while not self.running():
            if self._process is not None and not self._process.running():
                raise LocalStackError(self._process.exit_report())
            if time.monotonic() > deadline:
                raise LocalStackError(f"the broker at {self.bootstrap} does not answer within {deadline_s:.0f} s")
            time.sleep(0.05)

    def stop(self, deadline_s: float = 15.0) -> None:
        """Stop it if it is ours; its data stay. May be called twice."""
        if self._process is not None:
            self._process.stop(deadline_s)

    def discard(self) -> None:
        """Stop it if it is ours, and delete its data; its log stays. May be called twice."""
        if self._external is None:
            self.stop()
            discard(self._folder)

    def kill(self) -> None:
        """SIGKILL, as a crash; its data stay."""
        if self._process is not None:
            self._process.kill()

    def _launch(self) -> Process:
        log = self._folder / _LOG
        properties = self._folder / "server.properties"
        data = self.data
        data.mkdir(parents=True, exist_ok=True)
        properties.write_text(self.properties(), encoding="utf-8")
        try:
            return self._launch_jars(properties, data, log)
        except LocalStackError as error:
            engine = container_engine()
            if engine is None:
                raise LocalStackError(f"{error}; or start docker or podman") from None
            return self._launch_container(engine, properties, data, log)

    def _launch_jars(self, properties: Path, data: Path, log: Path) -> Process:
        executable = java()
        folder = jars.fetch()
        command = [
            executable,
            "-Xms256m",
            "-Xmx512m",
            "-XX:+UseG1GC",
            "-XX:MaxGCPauseMillis=20",
            "-Xshare:auto",
            # The quick compiler only. A broker of this stack lives for minutes, on CPUs that it shares with what is
            # measured: the optimizing one would still be compiling, at several milliseconds of CPU per request, when
            # the measurement is over (docs/adr/0005).
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-cp",
            f"{folder}/*",
        ]
        if not (data / "meta.properties").exists():
            cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            arguments = ["format", "--standalone", f"--cluster-id={cluster}", "-c", str(properties)]
            try:
                done = subprocess.run(  # noqa: S603 # our own command
                    [*command, "kafka.tools.StorageTool", *arguments],
                    capture_output=True,
                    text=True,
                    timeout=_FORMAT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise LocalStackError(
                    f"Kafka's storage in {data} was not formatted within {_FORMAT_S} s: the machine has no CPU to "
                    "spare, or that disk hangs; try again, or name a running broker: --kafka host:port"
                ) from None
            if done.returncode != 0:
                raise LocalStackError(f"Kafka's storage cannot be formatted:\n{(done.stdout + done.stderr)[-2000:]}")
        return Process("kafka", [*command, "kafka.Kafka", str(properties)], log)

    def _launch_container(self, engine: str, properties: Path, data: Path, log: Path) -> Process:
        """The official image, by explicit command and mounted configuration. Has not run on a machine of ours yet."""
        image = f"docker.io/apache/kafka:{jars.VERSION}"
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        bin_ = "/opt/kafka/bin"
        script = (
            f"test -f {data}/meta.properties || "
            f"{bin_}/kafka-storage.sh format --standalone --cluster-id={cluster} -c {properties}; "
            f"exec {bin_}/kafka-server-start.sh {properties}"
        )
        command = [
            engine,
            "run",
            "--rm",
            "--init",
            "--network",
            "host",
            "--user",
            "0",
            "--name",
            f"beyond-kafka-{self._port}",
        ]
        mounts = ["-v", f"{self._folder}:{self._folder}"]
        return Process("kafka", [*command, *mounts, "--entrypoint", "bash", image, "-c", script], log)


def _unverified() -> ssl.SSLContext:
    """To ask whether somebody is there: nothing is told, and nothing believed. The services do verify."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    certificate = os.environ.get("BEYOND_KAFKA_CERTIFICATE_FILE")
    if certificate:
        key, password = os.environ.get("BEYOND_KAFKA_KEY_FILE"), os.environ.get("BEYOND_KAFKA_KEY_PASSWORD", "")
        context.load_cert_chain(certificate, key, password)
    return context


def answers(bootstrap: str, timeout_s: float = 2.0, *, tls: bool = False) -> bool:
    """Whether a Kafka broker answers there: an ApiVersions request (version 0), by hand; a bare port is not enough.

    It is what a client may ask before it has said who it is.
    """
    host, _, port = bootstrap.split(",")[0].rpartition(":")
    # api_key 18, api_version 0, correlation id 1, client id "probe"
    body = struct.pack(">hhih5s", 18, 0, 1, 5, b"probe")
    try:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection((host, int(port)), timeout_s))
            sock.settimeout(timeout_s)
            if tls:
                sock = stack.enter_context(_unverified().wrap_socket(sock))
            sock.sendall(struct.pack(">i", len(body)) + body)
            reply = sock.recv(10)
            return len(reply) == 10 and reply[4:8] == b"\0\0\0\1" and reply[8:10] == b"\0\0"
    except (OSError, ValueError):
        return False
