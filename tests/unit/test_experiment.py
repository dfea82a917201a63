"""A plan, carried out, against senders of virtual time: the order of rounds, and what becomes of a failure."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from loadgen import experiment, service_spans
from loadgen.compare import compare, load
from loadgen.errors import GeneratorError, PlanError
from loadgen.experiment import Deployment, Finished, carry_out, save
from loadgen.live import Watched
from loadgen.plan import load_plan
from loadgen.samples import Sample
from loadgen.sender import Job
from loadgen.senders import Result
from loadgen.table import tables
from loadgen.tally import Reading
from loadgen.target import NULL, Exchange, NullTarget
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
requests = {requests}
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
    """Sends when it is due, on a clock that goes on by a minute between two jobs; each answer takes 10 ms.

    `cold_ms`: how much longer the first answer of every job takes; that fades within some ten requests.
    """

    count = 1

    def __init__(self, fails: Callable[[Job, int], BaseException | None], unsent: int = 0, cold_ms: float = 0) -> None:
        self.jobs: list[Job] = []
        self.closed = False
        self._fails = fails
        self._unsent = unsent
        self._cold_ms = cold_ms
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
        ms = 10 + position % 7 / 100 + self._cold_ms * math.exp(-position / 4)
        tiles = [tile(Stage.SCHEDULE_LAG, 0, "client"), tile(Stage.INFER, ms, "inference", ms)]
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
    metrics: Mapping[str, Sequence[str]] | None = None,
    requests: int = 12,
    cold_ms: float = 0,
) -> tuple[Finished, Senders, Display]:
    path = tmp_path / "mine.toml"
    path.write_text(
        PLAN.format(rounds=rounds, keys=keys, schedule=schedule, more=more, requests=requests), encoding="utf-8"
    )
    senders, display = Senders(fails, unsent, cold_ms), Display()
    monkeypatch.setattr(experiment, "open_senders", lambda count, door, targets: senders)
    plan = load_plan(path)
    deployments = {name: Deployment(urls, {}, (metrics or {}).get(name, ())) for name in plan.targets}
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
        assert all(r["mean_ms"] == pytest.approx(10, rel=0.01) for r in cell["rounds"])
    rounds = [names["round"] for names, _ in finished.exchanges if names["target"] == "a"]
    assert rounds == ["0"] * 4 + ["1"] * 4 + ["2"] * 4


def test_warm_up_is_sought_at_the_start_of_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two targets that are cold again whenever the other one was asked
    finished, _, _ = run(tmp_path, monkeypatch, rounds=3, requests=600, cold_ms=80)
    save(finished, tmp_path / "out")
    with (tmp_path / "out" / "requests.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for cell in finished.run["cells"]:
        # Then of each round the first requests are cut, and no others
        cut = cell["warmup_cut"]
        assert [row["round"] for row in cut["rounds"]] == [0, 1, 2]
        assert all(10 <= row["requests"] <= 40 and row["sought"] for row in cut["rounds"])
        assert cut["requests"] == sum(row["requests"] for row in cut["rounds"]) == 600 - cell["counted"]
        assert cut["seconds"] == pytest.approx(cut["requests"] / 10), "they were due ten times a second"
        assert cell["latency_ms"]["mean"] == pytest.approx(10.03, abs=0.02)
        # the file of requests marks just those
        for row in cut["rounds"]:
            mine = [r for r in rows if (r["target"], r["round"]) == (cell["target"], str(row["round"]))]
            assert [r["warmup"] for r in mine] == ["1"] * row["requests"] + ["0"] * (200 - row["requests"])
            assert int(mine[row["requests"]]["due_ns"]) == row["before_due_ns"]
        assert cell["throughput_rps"] == pytest.approx(10, rel=0.02)
    # and a comparison counts what is left
    side = load(tmp_path / "out")
    (compared,) = compare(side, side, "a", "b")["cells"]
    assert compared["requests"] == [cell["counted"] for cell in finished.run["cells"]]


def test_rounds_in_which_warm_up_cannot_be_sought_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished, _, _ = run(tmp_path, monkeypatch, rounds=3, requests=150, cold_ms=80)
    for cell in finished.run["cells"]:
        assert [row["sought"] for row in cell["warmup_cut"]["rounds"]] == [False] * 3
        assert any(reason.startswith("3 of 3 rounds have too few answers for warm-up") for reason in cell["reasons"])


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
def test_spans_that_the_generator_lost_make_every_cell_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requests_lost: int, spans_lost: int
) -> None:
    cells = run(tmp_path, monkeypatch)[0].run["cells"]
    before = [list(cell["reasons"]) for cell in cells]
    cells.append({"target": "c", "label": "NOT RUN", "reasons": ["away"]})
    experiment.judge_spans(cells, Counts(5, 100, requests_lost, spans_lost), [])
    why = [f"the load generator lost spans: {requests_lost} requests have none, {spans_lost} were not delivered"]
    for cell, reasons in zip(cells, before, strict=False):
        lost = bool(requests_lost or spans_lost)
        assert cell["verdict"] == ("INVALID" if lost else "VALID")
        assert cell["reasons"] == (why if lost else []) + reasons
    assert cells[-1] == {"target": "c", "label": "NOT RUN", "reasons": ["away"]}


URL = "http://127.0.0.1:9464/metrics"


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says what the service at `URL` has lost when the run is over; nothing before."""

    def lose(spans: int) -> None:
        readings = iter([0, *[spans] * 9])

        def read(url: str) -> service_spans.Reading:
            assert url == URL
            return service_spans.Reading("preprocess", 1.0, True, 100, next(readings), 0, 0)

        # A door is asked by nobody but these senders
        monkeypatch.setattr(experiment, "open_target", lambda *_, **__: NullTarget())

        monkeypatch.setattr(
            experiment,
            "ServiceSpans",
            lambda urls: service_spans.ServiceSpans(urls, read, clock=lambda: 0.0, sleep=lambda _: None),
        )

    return lose


def test_spans_that_a_door_lost_make_the_cells_of_its_target_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, services: Callable[[int], None]
) -> None:
    # Given two targets, of which one has named metrics; its door loses 12 spans during the run
    services(12)
    finished, _, _ = run(tmp_path, monkeypatch, urls="grpc://127.0.0.1:9", metrics={"a": [URL]})
    a, b = finished.run["cells"]
    assert (a["verdict"], b["verdict"]) == ("INVALID", "VALID")
    assert "preprocess lost spans: 0 requests have none, 12 were not delivered" in a["reasons"]
    assert a["spans_lost"] == [{"by": "preprocess", "requests": 0, "spans": 12}]
    # and what nobody can know of the other one is said
    known, unknown = sorted(finished.run["service_spans"], key=lambda row: str(row["target"]))
    assert (known["target"], known["lost"], known["unknown"]) == ("a", 12, None)
    assert (unknown["target"], unknown["lost"], unknown["unknown"]) == ("b", None, service_spans.NOT_NAMED)
    assert "LOST by a preprocess (12 spans" in tables(finished.run)
    assert f"not known of b: {service_spans.NOT_NAMED}" in tables(finished.run)


def test_a_door_that_lost_none_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, services: Callable[[int], None]
) -> None:
    services(0)
    finished, _, _ = run(tmp_path, monkeypatch, urls="grpc://127.0.0.1:9", metrics={"a": [URL]})
    assert [cell["verdict"] for cell in finished.run["cells"]] == ["VALID", "VALID"]
    assert "none were lost by a preprocess (0 sent)" in tables(finished.run)
