"""A plan, carried out, against senders of virtual time: the order of rounds, and what becomes of a failure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from loadgen import experiment
from loadgen.errors import GeneratorError, PlanError
from loadgen.experiment import Deployment, Finished, carry_out
from loadgen.live import Watched
from loadgen.plan import load_plan
from loadgen.samples import Sample
from loadgen.sender import Job
from loadgen.senders import Result
from loadgen.tally import Reading
from loadgen.target import NULL, Exchange
from services.accounting import Stage
from services.tracing.tracer import Counts
from tests.exchanges import MS, tile
from tests.exchanges import exchange as made
from tests.photographs import jpeg

PLAN = """
name = "mine"
rounds = {rounds}
{keys}
[targets]
a = "null:"
b = "null:"
[samples]
medium = 1
[[load]]
name = "load"
schedule = "{schedule}"
requests = 12
warmup = 0
{more}
"""


class Display:
    """Remembers what it was told to show."""

    def __init__(self) -> None:
        self.watched: list[Watched] = []

    def __call__(self, what: str, done: int, of: int) -> None:
        pass

    @contextlib.contextmanager
    def watching(self, watched: Watched) -> Iterator[None]:
        self.watched.append(watched)
        yield


class Senders:
    """Sends when it is due, on a clock that goes on by a minute between two jobs; each answer takes 10 ms."""

    count = 1

    def __init__(self, fails: Callable[[Job, int], BaseException | None], unsent: int = 0) -> None:
        self.jobs: list[Job] = []
        self.closed = False
        self._fails = fails
        self._unsent = unsent
        self._now_ns = 0

    def run(self, job: Job) -> Result:
        if job.target == NULL:  # 10,000 per second can be sent to nobody
            number = job.schedule.requests
            return Result([made([tile(Stage.SEND_QUEUE, (i + 1) / 10, "client")]) for i in range(number)], 0, {})
        error = self._fails(job, len([j for j in self.jobs if j.target == job.target]))
        self.jobs.append(job)
        if error is not None:
            raise error
        self._now_ns += 60_000 * MS
        return Result([self._answered(job, i) for i in range(job.schedule.requests)], self._unsent, {})

    def _answered(self, job: Job, position: int) -> Exchange:
        due_ms = (self._now_ns + job.schedule.due_ns[position]) / MS
        tiles = [tile(Stage.SCHEDULE_LAG, 0, "client"), tile(Stage.INFER, 10, "inference", 10)]
        return made(tiles, id_=f"{job.prefix}{job.schedule.number(position)}", due_ms=due_ms)

    def pids(self) -> Mapping[str, int]:
        return {}

    def load(self, size: str, images: Sequence[bytes]) -> None:
        pass

    def reading(self) -> Reading:
        return Reading()

    def close(self) -> None:
        self.closed = True


def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    rounds: int = 3,
    schedule: str = "constant(10)",
    keys: str = "",
    more: str = "",
    fails: Callable[[Job, int], BaseException | None] = lambda job, number: None,
    unsent: int = 0,
    urls: str = "null:",
) -> tuple[Finished, Senders, Display]:
    path = tmp_path / "mine.toml"
    path.write_text(PLAN.format(rounds=rounds, keys=keys, schedule=schedule, more=more), encoding="utf-8")
    senders, display = Senders(fails, unsent), Display()
    monkeypatch.setattr(experiment, "open_senders", lambda count, door, targets: senders)
    plan = load_plan(path)
    deployments = {name: Deployment(urls, {}) for name in plan.targets}
    sample = Sample("coffee", jpeg("coffee"), 600, 400)
    return carry_out(plan, deployments, {"medium": [sample]}, display), senders, display


def test_rounds_go_over_all_targets_and_share_the_schedule_and_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, senders, display = run(tmp_path, monkeypatch, more="at_most_s = 30.0")
    assert [job.target for job in senders.jobs] == ["a", "b", "a", "b", "a", "b"]
    assert [tuple(job.schedule.numbers) for job in senders.jobs[::2]] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    assert [job.schedule for job in senders.jobs[::2]] == [job.schedule for job in senders.jobs[1::2]]
    assert {job.at_most_s for job in senders.jobs} == {10.0}
    assert [w.what for w in display.watched[:2]] == ["medium, a, load, round 1 of 3", "medium, b, load, round 1 of 3"]
    assert display.watched[0].offered_rps == pytest.approx(10)
    assert senders.closed
    for cell in finished.run["cells"]:
        assert [(r["round"], r["requests"], r["ok"], r["dropped"]) for r in cell["rounds"]] == [
            (0, 4, 4, 0),
            (1, 4, 4, 0),
            (2, 4, 4, 0),
        ]
        assert (cell["planned"], cell["sent"], cell["unsent"]) == (12, 12, 0)
        # One every 100 ms, and two minutes in between, in which nobody was asked, are not counted.
        assert cell["offered_rps"] == pytest.approx(10)
        assert cell["throughput_rps"] == pytest.approx(10, rel=0.35)
        assert all(r["mean_ms"] == pytest.approx(10) for r in cell["rounds"])
    rounds = [names["round"] for names, _ in finished.exchanges if names["target"] == "a"]
    assert rounds == ["0"] * 4 + ["1"] * 4 + ["2"] * 4


def test_a_target_that_fails_in_a_later_round_is_not_run_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(job: Job, number: int) -> BaseException | None:
        return TimeoutError("3 of 4 requests had no answer") if (job.target, number) == ("a", 1) else None

    finished, senders, _ = run(tmp_path, monkeypatch, fails=fails, keys="[thresholds]\nerror_rate = 0.5")
    assert [job.target for job in senders.jobs] == ["a", "b", "a", "b", "b"], "once is enough"
    not_run, ran = finished.run["cells"]
    assert (not_run["target"], not_run["label"], not_run["reasons"]) == (
        "a",
        "NOT RUN",
        ["3 of 4 requests had no answer"],
    )
    assert [entry["held"] for entry in not_run["thresholds"]] == [False], "no evidence is not a pass"
    assert [entry["held"] for entry in ran["thresholds"]] == [True]
    assert ran["ok"] == 12
    assert {names["target"] for names, _ in finished.exchanges} == {"b"}


@pytest.mark.parametrize(
    ("error", "note"),
    [(GeneratorError("sender 1 is gone"), ["the generator failed: sender 1 is gone"]), (KeyboardInterrupt(), [])],
)
def test_what_is_finished_is_kept_when_the_run_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, note: list[str]
) -> None:
    finished, senders, _ = run(
        tmp_path, monkeypatch, rounds=1, fails=lambda job, number: error if job.target == "b" else None
    )
    assert finished.run["interrupted"]
    assert finished.run["notes"] == note
    assert [cell["target"] for cell in finished.run["cells"]] == ["a"]
    assert senders.closed


def test_requests_that_were_never_sent_make_it_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished, _, _ = run(tmp_path, monkeypatch, unsent=2)
    for cell in finished.run["cells"]:
        assert cell["unsent"] == 6  # two in each round
        assert cell["verdict"] == "INVALID"
        assert any("6 requests of the plan were not sent" in reason for reason in cell["reasons"])


def test_a_rate_beyond_the_generator_is_refused_before_anybody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a generator that sends 10,000 per second to nobody, and a target that cannot even be reached
    with pytest.raises(PlanError, match=r"asks for 7001 requests/s, over 70% of the 10000 that this generator"):
        run(tmp_path, monkeypatch, schedule="constant(7001)", urls="grpc://127.0.0.1:9")
    finished, _, _ = run(tmp_path, monkeypatch, schedule="constant(7001)", keys="allow_saturated = true")
    assert finished.run["generator"] == {
        "senders": 1,
        "ceiling_rps": pytest.approx(10_000),
        "ceilings_rps": {"medium": pytest.approx(10_000)},
    }


@pytest.mark.parametrize(("requests_lost", "spans_lost"), [(1, 0), (0, 1), (0, 0)])
def test_lost_spans_make_every_cell_invalid(requests_lost: int, spans_lost: int) -> None:
    class Tracing:
        def counts(self) -> Counts:
            return Counts(5, 100, requests_lost, spans_lost)

    cells: list[dict[str, Any]] = [{"verdict": "VALID", "reasons": []}, {"label": "NOT RUN"}]
    experiment._judge_spans(cells, Tracing())  # type: ignore[arg-type] # as much of a tracer as is asked
    lost = bool(requests_lost or spans_lost)
    assert cells[0]["verdict"] == ("INVALID" if lost else "VALID")
    assert bool(cells[0]["reasons"]) == lost
    assert cells[1] == {"label": "NOT RUN"}
