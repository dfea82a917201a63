"""A broker is away after two failures in a row, back after one answer; each is said once. No broker here: its absence

and return under load are in `tests/integration/test_kafka_contract.py`.
"""

from __future__ import annotations

import logging
import threading

import pytest

from services.errors import Unavailable
from services.transports.broker_watch import BrokerWatch


class Broker:
    """What `probe` finds, and who was told."""

    def __init__(self) -> None:
        self.there = True
        self.slow = 0.0  # time-outs that a failing probe takes
        self.now = 0.0
        self.asked: list[float] = []
        self.losses = 0
        self.watch = BrokerWatch("host:9092", self.probe, self.lost, lambda: self.now)

    def probe(self, timeout: float) -> None:
        self.asked.append(timeout)
        if not self.there:
            self.now += self.slow * timeout
            raise Unavailable("connection refused")

    def lost(self) -> None:
        assert not self.watch.up, "whoever is told can already see it"
        self.losses += 1


@pytest.fixture
def broker() -> Broker:
    return Broker()


def test_a_broker_counts_as_up_before_the_first_look(broker: Broker) -> None:
    assert broker.watch.up
    assert broker.asked == []


def test_one_failure_is_a_pause_and_is_looked_into_soon(broker: Broker) -> None:
    usual = broker.watch.look()
    broker.there = False
    soon = broker.watch.look()
    assert soon < usual
    assert broker.watch.up
    broker.there = True
    assert broker.watch.look() == usual
    broker.there = False
    broker.watch.look()
    assert broker.watch.up, "failures count in a row only"
    assert broker.losses == 0


def test_an_answer_that_is_overdue_is_a_loss_while_it_is_still_waited_for(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    def stuck(timeout: float) -> None:
        for _ in range(40):  # far longer than it may take
            broker.now += 0.25
            watch.hear()
            seen.append((broker.now, watch.up))

    seen: list[tuple[float, bool]] = []
    watch = BrokerWatch("host:9092", stuck, broker.lost, lambda: broker.now)
    broker.watch = watch
    watch.look()
    assert [up for at, up in seen if at < 3.2] == [True] * 12
    assert not any(up for at, up in seen if at >= 3.2)
    assert broker.losses == 1
    assert "has not answered for 3.2 s" in caplog.records[0].message
    assert watch.up, "it answered, late"


def test_the_time_without_an_answer_begins_with_the_first_question(broker: Broker) -> None:
    broker.there, broker.slow = False, 1.0
    broker.watch.look()
    broker.now += 1.6
    broker.watch.hear()
    assert broker.watch.up
    broker.now += 0.1
    broker.watch.hear()
    assert not broker.watch.up
    broker.there = True
    broker.watch.look()
    broker.now += 100.0
    broker.watch.hear()
    assert broker.watch.up, "nothing is asked"


def test_two_failures_are_a_loss_told_once(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    broker.there = False
    for _ in range(5):
        broker.watch.look()
    assert not broker.watch.up
    assert broker.losses == 1
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert "host:9092" in said.message
    assert "connection refused" in said.message


def test_a_loss_is_known_within_five_seconds_however_the_broker_is_silent(broker: Broker) -> None:
    """The worst case: it dies just after a look, and each look lasts as long as it may."""
    wait = broker.watch.look()
    broker.there = False
    took = 0.0
    while broker.watch.up:
        took += wait
        wait = broker.watch.look()
        took += broker.asked[-1]
    assert took < 4.0, "a second is left for a machine that is busy"


def test_the_return_is_told_once_with_how_long_it_took(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    broker.there = False
    broker.watch.look()
    broker.watch.look()
    caplog.clear()
    broker.there, broker.now = True, 42.0
    broker.watch.look()
    broker.watch.look()
    assert broker.watch.up
    (said,) = caplog.records
    assert "back after 42 s" in said.message


def test_who_reached_it_otherwise_may_say_so(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    broker.watch.found()
    assert caplog.records == [], "it was not away"
    broker.there = False
    broker.watch.look()
    broker.watch.look()
    broker.watch.found()
    assert broker.watch.up
    broker.watch.look()
    assert not broker.watch.up, "it is away all the same"
    assert broker.losses == 2


def test_a_question_from_before_its_return_is_not_held_against_it(broker: Broker) -> None:
    def waits_while_it_returns(timeout: float) -> None:
        broker.now += 4.0
        watch.hear()
        assert not watch.up
        watch.found()  # somebody else has reached it
        broker.now += 0.5
        watch.hear()
        seen.append(watch.up)

    seen: list[bool] = []
    watch = BrokerWatch("host:9092", waits_while_it_returns, broker.lost, lambda: broker.now)
    broker.watch = watch
    watch.look()
    assert seen == [True]
    assert broker.losses == 1


def test_doubt_makes_it_look_at_once(broker: Broker) -> None:
    looked = threading.Semaphore(0)
    probe = broker.probe

    def counted(timeout: float) -> None:
        looked.release()
        probe(timeout)

    watch = BrokerWatch("host:9092", counted, broker.lost)
    watch._wake.wait = lambda timeout=None: threading.Event.wait(watch._wake, 60)  # type: ignore[method-assign] # no period
    watch.start()
    try:
        assert looked.acquire(timeout=10)
        watch.doubt()
        assert looked.acquire(timeout=10), "nobody waits a minute here"
    finally:
        watch.close()


def test_close_ends_the_thread_also_from_within(broker: Broker) -> None:
    before = threading.active_count()
    closed = threading.Event()

    def lost() -> None:
        watch.close()
        closed.set()

    broker.there = False
    watch = BrokerWatch("host:9092", broker.probe, lost)
    watch.start()
    assert closed.wait(10)
    for thread in watch._threads:
        thread.join(10)
    assert threading.active_count() <= before
    watch.close()
    unstarted = BrokerWatch("host:9092", broker.probe, lost)
    unstarted.close()


def test_after_close_nobody_is_told(broker: Broker) -> None:
    broker.watch.close()
    broker.there = False
    broker.watch.look()
    broker.watch.look()
    assert broker.losses == 0
