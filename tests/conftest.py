"""What several suites share: one real broker for all that a process runs, started when the first test asks for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings
from xdist.remote import Producer

from services.local.broker import Broker
from services.local.redis_server import REMEDY, RedisServer, redis_server
from tests.sharing import ByModule, in_order

# How long an example takes is a matter of the machine: no property is wrong because it was busy.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_xdist_auto_num_workers() -> int:
    """One more than the CPUs, for there is always one that waits for a broker; more than four share too little."""
    return min(4, len(os.sched_getaffinity(0)) + 1)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByModule:
    return ByModule(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("numprocesses"):
        items[:] = in_order(items)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell's background job ignores SIGINT, and so would all children that tests mean to interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real Kafka. A test may kill it, and starts it again: its port and its data stay, until the last one."""
    broker = Broker(tmp_path_factory.mktemp("broker"))
    try:
        broker.start(120)
        yield broker
    finally:
        broker.discard()  # up to a gigabyte, which pytest would keep for three runs


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis, without a file. A test may kill it, and starts it again, empty."""
    if redis_server() is None:
        pytest.skip(f"redis-server is not here: {REMEDY}")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    try:
        server.start(30)
        yield server
    finally:
        server.discard()
