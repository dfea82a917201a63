"""The Job that makes topics, against a real broker."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from services.local.broker import Broker
from services.transports.kafka_client import MESSAGE_LIMIT
from tests.chart.conftest import CHART
from tests.secured_broker import PASSWORD, USER, SecuredBroker, openssl

pytestmark = pytest.mark.kafka

WAIT_S = 20


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("topics", CHART / "files" / "topics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def partitions(broker: Broker, topic: str) -> dict[str, int]:
    """Of a link's topics."""
    known = AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics(timeout=WAIT_S).topics
    return {name: len(found.partitions) for name, found in known.items() if name.startswith(topic)}


def test_topics_are_made_and_grow_and_never_shrink(broker: Broker, job: ModuleType) -> None:
    url = f"kafka://{broker.bootstrap}/chart-topics"
    # Given nothing, then what the link wants is made
    assert job.main([f"{url}?partitions=4&replies=4"]) == 0
    made = {"chart-topics": 4, "chart-topics.replies": 4, "chart-topics.dead": 1}
    assert partitions(broker, "chart-topics") == made
    # When it is there, then it stays
    assert job.main([f"{url}?partitions=4&replies=4"]) == 0
    assert partitions(broker, "chart-topics") == made
    # When more are wanted, then there are more; when fewer are, they stay
    assert job.main([f"{url}?partitions=7&replies=4"]) == 0
    assert job.main([f"{url}?partitions=5&replies=4"]) == 0
    assert partitions(broker, "chart-topics") == {**made, "chart-topics": 7}


def test_a_topic_that_does_not_take_the_links_messages_is_said(
    broker: Broker, job: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    small = NewTopic("chart-small", 4, 1, config={"max.message.bytes": "1000000"})
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    admin.create_topics([small])["chart-small"].result(WAIT_S)
    assert job.main([f"kafka://{broker.bootstrap}/chart-small"]) == 2
    assert f"max.message.bytes={MESSAGE_LIMIT}" in capsys.readouterr().err


def test_a_broker_that_does_not_answer_is_waited_for_and_then_said(
    job: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "DEADLINE_S", 0.1)
    assert job.main(["kafka://127.0.0.1:9/chart"]) == 1
    assert "did not do it within 0 s" in capsys.readouterr().err


@pytest.mark.skipif(openssl() is None, reason="no openssl here, which makes the certificates")
def test_a_broker_that_asks_who_is_there_is_told_by_the_environment(
    job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = SecuredBroker(tmp_path / "secured")
    url = f"kafka://{broker.listeners['SASL_SSL']}/chart-secured"
    monkeypatch.setenv("BEYOND_KAFKA_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("BEYOND_KAFKA_CA_FILE", str(broker.authority.ca))
    monkeypatch.setenv("BEYOND_KAFKA_USER", USER)
    # Given no password, then it says so
    assert job.main([url]) == 2
    assert "BEYOND_KAFKA_PASSWORD" in capsys.readouterr().err
    monkeypatch.setenv("BEYOND_KAFKA_PASSWORD", PASSWORD)
    try:
        broker.start(120)
        # Given the right one, then topics are made, and grow
        assert job.main([f"{url}?partitions=4"]) == 0
        assert job.main([f"{url}?partitions=6"]) == 0
        assert partitions(broker, "chart-secured")["chart-secured"] == 6
        # Given a wrong one, then it is waited for a while, and said
        monkeypatch.setattr(job, "DEADLINE_S", 0.1)
        monkeypatch.setenv("BEYOND_KAFKA_PASSWORD", "wrong-horse")
        assert job.main([url]) == 1
        said = capsys.readouterr().err
        assert "uthentication failed" in said
        assert "--kafka-user" in said
        assert "wrong-horse" not in said
    finally:
        broker.discard()
