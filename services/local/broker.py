"""A real Apache Kafka (KRaft) on loopback, one broker or several: from jars (Java 17+ and Maven), or as containers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from services.local import jars, kafka_protocol
from services.local.errors import LocalStackError
from services.local.ports import free_ports
from services.local.processes import Process
from services.local.server import Server

# Above the largest payload that a link carries (16 MiB), with its headers.
MESSAGE_LIMIT = 24 * 1024 * 1024

_PROPERTIES = """\
process.roles=broker,controller
node.id={node}
controller.quorum.bootstrap.servers={controllers}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{address},CONTROLLER://{controller}
advertised.listeners=PLAINTEXT://{address},CONTROLLER://{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
num.partitions=4
auto.create.topics.enable=false
default.replication.factor={replication}
min.insync.replicas={in_sync}
message.max.bytes={limit}
replica.fetch.max.bytes={limit}
socket.request.max.bytes=104857600
offsets.topic.replication.factor={replication}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={replication}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.replication.factor={replication}
share.coordinator.state.topic.min.isr={in_sync}
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

# A limit on what is written is kept over so many windows of a second. Kafka's own are eleven, which let ten seconds'
# worth through at once after every silence; a disk of limited bandwidth has no such reserve.
_QUOTA_WINDOWS = 2

_FORMAT_S = 60


class BrokerSettings(NamedTuple):
    """What a Kafka that is started here is like: what an experiment varies."""

    brokers: int = 1
    # Of every topic: links make theirs as the cluster has it. With acks=all a record counts as sent when all replicas
    # that are in sync have it, and is refused when those are fewer than the second number.
    replication: int = 1
    min_insync_replicas: int = 1
    # So many records of a partition, and its log is flushed to the disk; 1: before each acknowledgement; 0: when the
    # operating system does.
    flush_interval_messages: int = 0
    # Bytes that all links together may write to each broker in a second; 0: all they can. Kafka takes the request that
    # exceeds it, however large, acknowledges it, and reads no further from that connection until the rate is kept.
    producer_byte_rate: int = 0
    # The folder below which the logs of records are, e.g. one in memory; None: they are in the stack's own.
    data: Path | None = None

    def check(self) -> None:
        """Raise `LocalStackError` for what no cluster can be."""
        if not 1 <= self.min_insync_replicas <= self.replication <= self.brokers:
            raise LocalStackError(
                f"{self.brokers} brokers, replication {self.replication}, min.insync.replicas "
                f"{self.min_insync_replicas}: each is at least 1 and at most the one before it"
            )
        if self.flush_interval_messages < 0 or self.producer_byte_rate < 0:
            raise LocalStackError("neither flush_interval_messages nor producer_byte_rate can be below 0")


ALONE = BrokerSettings()


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


class Broker(Server):
    """See `Server`; a process of it is one broker, and a controller as well."""

    name = "kafka"
    title = "Kafka"

    def __init__(self, folder: Path, external: str | None = None, settings: BrokerSettings = ALONE) -> None:
        """`folder`: for data, configuration and logs. `external`: one that runs, never started or stopped here.

        Raises `LocalStackError` for settings that cannot be.
        """
        settings.check()
        if settings != ALONE:
            self._refuse_external(external)
        self._settings = settings
        # The services that are started here read the same variable, and what belongs to it.
        self._tls = external is not None and os.environ.get("BEYOND_KAFKA_PROTOCOL", "").endswith("SSL")
        ports = [] if external is not None else free_ports(2 * settings.brokers)
        addresses = external.split(",") if external is not None else _at(ports[::2])
        super().__init__(folder, addresses, external=external is not None, data=settings.data)
        self._controllers = _at(ports[1::2])
        self._cluster = _uuid()
        self._directories = [_uuid() for _ in self._controllers]

    def properties(self, index: int) -> str:
        """What one of ours is configured with; of a key that is there twice, the last one counts."""
        own = self._settings
        text = _PROPERTIES.format(
            node=index + 1,
            address=self.addresses[index],
            controller=self._controllers[index],
            controllers=",".join(self._controllers),
            data=self.log_dir(index),
            replication=own.replication,
            in_sync=own.min_insync_replicas,
            limit=MESSAGE_LIMIT,
            retention=RETENTION_BYTES,
            segment=SEGMENT_BYTES,
        )
        if own.flush_interval_messages:
            text += f"log.flush.interval.messages={own.flush_interval_messages}\n"
        if own.producer_byte_rate:
            text += f"quota.window.num={_QUOTA_WINDOWS}\nquota.window.size.seconds=1\n"
        return text

    def log_dir(self, index: int = 0) -> Path:
        """Where one of ours has its partitions."""
        return self.data / self._label(index)

    def _answers(self, address: str) -> bool:
        return kafka_protocol.answers(address, tls=self._tls)

    def _ready(self) -> bool:
        """A broker answers before the others know it, and a topic of three replicas wants three that are known."""
        return self._external or kafka_protocol.members(self.addresses[0]) == len(self.addresses)

    def start(self, deadline_s: float = 60.0) -> None:
        """See `Server.start`."""
        super().start(deadline_s)
        if self._settings.producer_byte_rate:
            kafka_protocol.limit_producers(self.addresses[0], self._settings.producer_byte_rate)

    def _launch(self, index: int) -> Process:
        properties = self._folder / f"{self._label(index)}.properties"
        self.log_dir(index).mkdir(parents=True, exist_ok=True)
        properties.write_text(self.properties(index), encoding="utf-8")
        try:
            return self._launch_jars(index, properties)
        except LocalStackError as error:
            engine = container_engine()
            if engine is None:
                raise LocalStackError(f"{error}; or start docker or podman") from None
            return self._launch_container(index, engine, properties)

    def _format(self, properties: Path) -> list[str]:
        """Arguments of Kafka's storage tool. A cluster knows all its controllers, by address and directory."""
        controllers = ",".join(
            f"{number}@{address}:{directory}"
            for number, (address, directory) in enumerate(zip(self._controllers, self._directories, strict=True), 1)
        )
        return [
            "format",
            f"--cluster-id={self._cluster}",
            f"--initial-controllers={controllers}",
            "-c",
            str(properties),
        ]

    def _launch_jars(self, index: int, properties: Path) -> Process:
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
        data = self.log_dir(index)
        if not (data / "meta.properties").exists():
            try:
                done = subprocess.run(  # noqa: S603 # our own command
                    [*command, "kafka.tools.StorageTool", *self._format(properties)],
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
        return Process(self._label(index), [*command, "kafka.Kafka", str(properties)], self._log(index))

    def _launch_container(self, index: int, engine: str, properties: Path) -> Process:
        """The official image, by explicit command and mounted configuration. Has not run on a machine of ours yet."""
        image = f"docker.io/apache/kafka:{jars.VERSION}"
        bin_ = "/opt/kafka/bin"
        script = (
            f"test -f {self.log_dir(index)}/meta.properties || "
            f"{bin_}/kafka-storage.sh {' '.join(self._format(properties))}; "
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
            f"beyond-kafka-{self.addresses[index].rpartition(':')[2]}",
        ]
        mounts = [word for place in (self._folder, self.data) for word in ("-v", f"{place}:{place}")]
        arguments = [*command, *mounts, "--entrypoint", "bash", image, "-c", script]
        return Process(self._label(index), arguments, self._log(index))


def _at(ports: Sequence[int]) -> list[str]:
    return [f"127.0.0.1:{port}" for port in ports]


def _uuid() -> str:
    """As Kafka writes one. Never with a dash in front, which its tools take for a flag."""
    return "b" + urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
