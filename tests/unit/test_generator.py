"""The generator's own ceiling, and plans that would measure it instead of a target."""

from __future__ import annotations

import pytest

from loadgen.analysis import throughput
from loadgen.errors import PlanError
from loadgen.generator import ceiling_rps, refuse_saturated
from loadgen.schedule import parse_schedule
from loadgen.sender import Job
from loadgen.senders import OwnSender, Result
from loadgen.tally import Reading
from services.accounting import Stage
from tests.exchanges import exchange as made
from tests.exchanges import tile, walk


class Sending:
    """Senders that need `ms` for a request, in virtual time."""

    def __init__(self, ms: float, count: int = 1) -> None:
        self.count = count
        self.jobs: list[Job] = []
        self._ms = ms

    def run(self, job: Job) -> Result:
        self.jobs.append(job)
        each = [job.schedule.part(i, self.count).requests for i in range(self.count)]
        exchanges = [
            made([tile(Stage.SEND_QUEUE, (number + 1) * self._ms, "client")]) for part in each for number in range(part)
        ]
        return Result(exchanges, 0, {})

    def pids(self) -> dict[str, int]:
        return {}

    def load(self, size: str, images: object) -> None:
        pass

    def reading(self) -> Reading:
        return Reading()

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("ms", "count", "rps"), [(0.1, 1, 10_000), (0.1, 4, 40_000), (20.0, 2, 100)])
def test_the_ceiling_is_what_all_senders_send_together(ms: float, count: int, rps: float) -> None:
    senders = Sending(ms, count)
    assert ceiling_rps(senders, "medium") == pytest.approx(rps, rel=0.01)
    # Nobody is asked, for half a second or a little more
    assert {(job.target, job.size) for job in senders.jobs} == {("null:", "medium")}
    assert senders.jobs[-1].schedule.requests == max(10 * count, rps / 2)


def test_a_real_one_has_a_ceiling() -> None:
    own = OwnSender({})
    own.load("medium", [b"x" * 120_000])
    assert 500 < ceiling_rps(own, "medium") < 1_000_000


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("constant(700)", False),
        ("constant(701)", True),
        ("poisson(701)", True),
        ("bursts(10, 701, 100, 0.1)", True),  # the burst is what the generator has to keep up with
        ("cameras(70, 10)", False),
        ("cameras(71, 10)", True),
        ("closed(4000)", False),  # the pace is the target's
        ("offline(5000)", False),
    ],
)
def test_a_rate_over_seventy_percent_of_the_ceiling_is_refused(text: str, refused: bool) -> None:
    schedule = parse_schedule(text, 100, 1)
    if not refused:
        refuse_saturated(schedule, "medium", 1000.0, 1)
        return
    with pytest.raises(PlanError) as caught:
        refuse_saturated(schedule, "medium", 1000.0, 2)
    assert f"'{text}' for medium asks for 70" in str(caught.value) or "asks for 710" in str(caught.value)
    assert "over 70% of the 1000 that this generator (2 senders) can send to nobody" in str(caught.value)
    assert "allow_saturated = true" in str(caught.value)


def test_the_time_between_two_rounds_is_not_time_without_answers() -> None:
    # Given two rounds of 100 requests, one every 10 ms, with a minute in between, in which another target was asked
    rounds = [[walk(i, due_ms=begin + i * 10) for i in range(100)] for begin in (0, 60_000)]
    assert throughput(rounds) == pytest.approx(100, rel=0.01)
    assert throughput([rounds[0] + rounds[1]]) == pytest.approx(200 / 61, rel=0.02)
    # A round without an answer has none
    refused = [walk(i, due_ms=i * 10, error="unavailable") for i in range(3)]
    assert throughput([refused]) == 0
