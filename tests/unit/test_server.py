"""A server of ours, in a process or several, or somebody else's: what starting, killing and discarding do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.local.broker import Broker, BrokerSettings
from services.local.errors import LocalStackError
from services.local.processes import Process
from services.local.redis_server import RedisServer, RedisServerSettings
from services.local.server import Server, begin_logs, discard


class Sleeper(Server):
    """Two processes that write a file, and then sleep."""

    name = "sleeper"
    title = "A sleeper"
    answering = True

    def _launch(self, index: int) -> Process:
        script = f"echo {index} > {self.data}/{index}; exec sleep 100"
        return Process(self._label(index), ["/bin/sh", "-c", script], self._log(index))

    def _answers(self, address: str) -> bool:
        written = self.data / str(self.addresses.index(address))
        return self.answering and written.exists() and bool(written.read_text())


ADDRESSES = ("127.0.0.1:1", "127.0.0.1:2")


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Sleeper]:
    server = Sleeper(tmp_path / "it", ADDRESSES, external=False)
    yield server
    server.stop()


def test_a_server_of_ours_starts_all_its_processes_and_stops_them(sleeper: Sleeper) -> None:
    assert sleeper.bootstrap == "127.0.0.1:1,127.0.0.1:2"
    sleeper.start(10)
    assert [(member.name, member.address) for member in sleeper.members] == [
        ("sleeper", "127.0.0.1:1"),
        ("sleeper-2", "127.0.0.1:2"),
    ]
    assert sleeper.pid == sleeper.members[0].pid
    sleeper.stop()
    assert (sleeper.members, sleeper.pid) == ([], None)
    assert sleeper.data.exists()


def test_what_was_killed_is_reported_and_started_again_alone(sleeper: Sleeper) -> None:
    sleeper.start(10)
    first, second = sleeper.members
    sleeper.kill(1)
    assert sleeper.members == [first]
    report = sleeper.ended()
    assert report is not None
    assert report.startswith("sleeper-2 ended with status 137")
    sleeper.start(10)
    assert sleeper.members[0] == first
    assert sleeper.members[1].pid != second.pid
    assert sleeper.ended() is None
    sleeper.kill()
    assert sleeper.members == []


def test_who_does_not_answer_in_time_is_named(sleeper: Sleeper) -> None:
    sleeper.answering = False
    with pytest.raises(LocalStackError, match=r"A sleeper at 127\.0\.0\.1:1,127\.0\.0\.1:2 does not answer within 0 s"):
        sleeper.start(0.1)


def test_its_data_go_with_it_and_its_logs_stay_until_the_next_one(sleeper: Sleeper, tmp_path: Path) -> None:
    sleeper.start(10)
    sleeper.discard()
    sleeper.discard()
    assert not (tmp_path / "it" / "sleeper-data").exists()
    assert (tmp_path / "it" / "sleeper-2.log").exists()
    begin_logs(tmp_path / "it")
    assert not list((tmp_path / "it").glob("*.log"))


def test_data_can_be_elsewhere_and_are_found_after_a_crash(tmp_path: Path) -> None:
    # Given a server with its data elsewhere, in a folder that is others' too
    elsewhere = tmp_path / "memory"
    elsewhere.mkdir()
    (elsewhere / "another's").touch()
    server = Sleeper(tmp_path / "it", ADDRESSES, external=False, data=elsewhere)
    server.start(10)
    assert server.data.parent == elsewhere
    assert (server.data / "1").exists()
    # When it starts once more, then they are the same
    place = server.data
    server.kill()
    server.start(10)
    assert server.data == place
    # When all that is known is where the stack was, then they go, and nothing else
    server.kill()
    discard(tmp_path / "it", "sleeper")
    assert [path.name for path in elsewhere.iterdir()] == ["another's"]
    assert not list((tmp_path / "it").glob("*-data"))
    # And another one can begin there
    again = Sleeper(tmp_path / "it", ADDRESSES, external=False, data=elsewhere)
    again.start(10)
    again.discard()


def test_somebody_elses_is_neither_started_nor_stopped_nor_deleted(tmp_path: Path) -> None:
    (tmp_path / "sleeper-data").mkdir()
    (tmp_path / "sleeper-data" / "1").write_text("theirs")
    server = Sleeper(tmp_path, ADDRESSES, external=True)
    server.start(5)  # one of its two answers
    assert server.members == []
    server.stop()
    server.kill()
    server.discard()
    assert (tmp_path / "sleeper-data" / "1").read_text() == "theirs"


@pytest.mark.parametrize(
    "settings",
    [
        BrokerSettings(brokers=0),
        BrokerSettings(brokers=1, replication=3),
        BrokerSettings(brokers=3, replication=2, min_insync_replicas=3),
        BrokerSettings(min_insync_replicas=0),
        BrokerSettings(producer_byte_rate=-1),
        BrokerSettings(flush_interval_messages=-1),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(settings: BrokerSettings, tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match=r"at most the one before it|below 0"):
        Broker(tmp_path, settings=settings)


def test_what_runs_already_cannot_be_set(tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match="Kafka at a:1 is not started here"):
        Broker(tmp_path, "a:1", BrokerSettings(brokers=3))
    with pytest.raises(LocalStackError, match="Redis at a:1 is not started here"):
        RedisServer(tmp_path, "a:1", RedisServerSettings("always"))
    with pytest.raises(LocalStackError, match="appendfsync 'sometimes' is none of always, everysec, no"):
        RedisServer(tmp_path, settings=RedisServerSettings("sometimes"))


def test_by_default_a_broker_is_one_that_flushes_when_the_system_does(tmp_path: Path) -> None:
    properties = Broker(tmp_path).properties(0)
    assert "default.replication.factor=1\nmin.insync.replicas=1\n" in properties
    assert "flush" not in properties
    assert "quota" not in properties
