"""Parts of a plan, merged: the same as if one generator had sent all of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import PlanError
from loadgen.experiment import Finished, Round, cell_of, save
from loadgen.merge import merge
from loadgen.parts import Part
from loadgen.rendezvous import Begin
from loadgen.schedule import Schedule, parse_schedule
from loadgen.service_spans import Lost
from loadgen.table import tables
from loadgen.target import HOP, Exchange
from services.accounting import UNKNOWN_CPU, Stage
from tests.exchanges import INNER, exchange, tile, walk
from tests.runs import ACCOUNT, floor, run

# Monotonic clocks begin when their machines do.
CLOCKS = (0, 5_000_000_000_000, -7_000_000_000)
START = 90_000_000_000
FLOORS = [floor(HOP, 0.3), floor(INNER, 0.5)]
LIMITS = {"p99_ms": 50.0, "throughput_rps": 20.0}
N = 900


def asked(schedule: Schedule, begin_ns: int) -> dict[int, Exchange]:
    """By number: walks of different lengths, one with a stage of its own, some without an answer."""
    made = {}
    for i in range(schedule.requests):
        if i % 90 == 7:
            made[i] = exchange([tile(Stage.SCHEDULE_LAG, 0, "client"), tile(Stage.UNANSWERED, 3, HOP)], error="late")
        else:
            made[i] = walk(
                i, lag=0.0 if i % 5 else 0.02, decode=2 + (i * i % 31) / 10, infer=5 + (i % 11) / 10, decode_cpu=1.5
            )
        if i == 11:
            made[i] = exchange([*made[i].tiles, tile(Stage.RETRY, 1.5, HOP)])
        due = begin_ns + schedule.due_ns[i]
        made[i] = made[i]._replace(id=f"r-{i}", due_ns=due, done_ns=due + made[i].total_ns)
    return made


def names(text: str) -> dict[str, str]:
    return {"target": "door", "size": "medium", "load": "open", "schedule": text}


def source(rounds: int, text: str) -> dict[str, Any]:
    load = {"name": "open", "schedule": {"medium": text}, "requests": {"medium": N}, "warmup": 0}
    limits = {name: {"medium": value} for name, value in LIMITS.items()}
    return {"name": "mine", "seed": 1, "rounds": rounds, "targets": {"door": "x"}, "load": [load], "thresholds": limits}


def facts(planned: int) -> dict[str, Any]:
    return {"planned": planned, "ceiling_rps": 500.0, "warmup": {"probes": 10, "seconds": 1.0, "stable": True}}


def rounds_of(whole: Schedule, rounds: int, part: Part | None = None, clock_ns: int = 0) -> list[Round]:
    """What came back of all of it, or of a part, whose clock is ahead by so much."""
    found, begin = [], START
    for piece in whole.rounds(rounds):
        all_of_it = asked(piece, begin)
        positions = range(piece.requests)
        if part is not None:
            positions = range(part.number - 1, piece.requests, part.of)
        mine = [
            e._replace(due_ns=e.due_ns + clock_ns, done_ns=e.done_ns + clock_ns) for e in map(all_of_it.get, positions)
        ]  # type: ignore[union-attr]
        told = None if part is None else Begin(begin + clock_ns, 40_000 * (part.number - 1))
        sent = piece if part is None else part.schedule(piece)
        found.append(Round(mine, len(mine), 0, sent.offered_rps(), ACCOUNT, 30.0, told))
        begin += piece.due_ns[-1] + 60_000_000_000
    return found


def written(rounds: Sequence[Round], folder: Path, part: Part, text: str) -> Path:
    """As `loadgen run --part` does."""
    cell = cell_of(names(text), rounds, FLOORS, False, facts(sum(len(r.exchanges) for r in rounds)), {})
    told = run(
        cell,
        plan=source(len(rounds), text),
        part={**part._asdict(), "run": "r1"},
        generator={"senders": 2, "ceiling_rps": 500.0, "ceilings_rps": {"medium": 500.0}},
        service_spans=[],
    )
    kept = [({**names(text), "round": str(n)}, e) for n, round_ in enumerate(rounds) for e in round_.exchanges]
    save(Finished(told, kept), folder)
    return folder


def three(folder: Path, rounds: int = 1, text: str = "poisson(40)") -> list[Path]:
    whole = parse_schedule(text, N, 4)
    return [
        written(rounds_of(whole, rounds, Part(i, 3), CLOCKS[i - 1]), folder / str(i), Part(i, 3), text)
        for i in (1, 2, 3)
    ]


def change(path: Path, how: Callable[[dict[str, Any]], None]) -> None:
    told = json.loads((path / "run.json").read_text())
    how(told)
    (path / "run.json").write_text(json.dumps(told))


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("text", ["poisson(40)", "constant(40)"])
def test_parts_that_are_merged_are_the_analysis_of_all_at_once(tmp_path: Path, rounds: int, text: str) -> None:
    # Given what one generator would have made of the plan
    whole = rounds_of(parse_schedule(text, N, 4), rounds)
    expected = cell_of(names(text), whole, FLOORS, False, facts(N), LIMITS)
    # When three have sent a third of it each, on three clocks
    merged = merge([tmp_path / str(i) for i in (3, 1, 2)] if three(tmp_path, rounds, text) else [])
    # Then every ledger is there, and adds up to the nanosecond as before, on the clock of part 1
    before = [e for round_ in whole for e in round_.exchanges]
    after = [e for _, e in merged.exchanges]
    assert [(e.id, e.due_ns, e.done_ns, e.error) for e in after] == [
        (e.id, e.due_ns, e.done_ns, e.error) for e in before
    ]
    assert [sums(e) for e in after] == [sums(e) for e in before]
    assert all(sum(t.duration_ns for t in e.tiles) == e.total_ns for e in after)
    # and the result is the same, but for what is of the generators themselves
    [cell] = merged.run["cells"]
    own = {"contention", "parts", "rounds", "calibration", "ceiling_rps", "warmup"}
    for key in expected.keys() - own:
        assert cell[key] == expected[key], key
    assert cell.keys() - expected.keys() == {"parts"}
    both = cell["rounds"], expected["rounds"]
    ours, theirs = ([{k: v for k, v in row.items() if k not in own | {"part"}} for row in rounds] for rounds in both)
    assert ours == theirs
    assert (cell["ceiling_rps"], cell["warmup"]) == (
        1500.0,
        {"probes": 30, "seconds": 1.0, "stable": True, "enough": True},
    )
    assert [row["p50_ms"] for row in cell["calibration"]] == [row["p50_ms"] for row in expected["calibration"]]
    assert [row["n"] for row in cell["calibration"]] == [120, 120]
    assert [row["held"] for row in cell["thresholds"]] == [True, True]


def sums(e: Exchange) -> dict[tuple[Stage, str], tuple[int, int]]:
    found: dict[tuple[Stage, str], tuple[int, int]] = {}
    for t in e.tiles:
        wall, cpu = found.get((t.stage, t.where), (0, 0))
        found[t.stage, t.where] = (wall + t.duration_ns, cpu + (0 if t.cpu_ns == UNKNOWN_CPU else t.cpu_ns))
    return found


def test_a_merged_result_can_be_kept_and_shown(tmp_path: Path) -> None:
    merged = merge(three(tmp_path))
    save(merged, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "door" in tables(stored)
    assert stored["generator"] == {"senders": 6, "ceiling_rps": 1500.0, "ceilings_rps": {"medium": 1500.0}}
    assert [part["part"] for part in stored["parts"]] == [1, 2, 3]
    assert "part" not in stored  # so that it is not merged once more
    assert len((tmp_path / "out" / "requests.csv").read_text().splitlines()) == 1 + N
    # Two parts are at most as far from each other as both are from part 1: 0.04 and 0.08 ms
    assert "3 parts, which began each load within 0.120 ms of each other" in stored["notes"][-1]


def test_each_senders_processes_are_in_the_account_per_request_of_all(tmp_path: Path) -> None:
    [cell] = merge(three(tmp_path)).run["cells"]
    processes = {row["name"]: row for row in cell["contention"]["processes"]}
    assert set(processes) == {f"part {i}, {name}" for i in (1, 2, 3) for name in ("client", "preprocess")}
    # 0.5 ms of each of its own requests, which are a third of all
    assert processes["part 2, client"]["cpu_ms_per_request"] == pytest.approx(0.5 / 3)
    assert cell["contention"]["cpu_pressure_share"] == 0.125


def test_the_machine_with_most_pressure_counts_and_one_that_does_not_tell_makes_it_unknown(tmp_path: Path) -> None:
    paths = three(tmp_path)

    def pressed(share: float | None) -> Callable[[dict[str, Any]], None]:
        def change_(told: dict[str, Any]) -> None:
            told["cells"][0]["rounds"][0]["contention"]["cpu_pressure_share"] = share

        return change_

    change(paths[1], pressed(0.6))
    assert merge(paths).run["cells"][0]["contention"]["cpu_pressure_share"] == 0.6
    change(paths[2], pressed(None))
    assert merge(paths).run["cells"][0]["contention"]["cpu_pressure_share"] is None


def test_one_part_that_was_late_makes_the_whole_invalid(tmp_path: Path) -> None:
    """Among the requests of all parts its own late ones may be too few to move their p99."""
    paths = three(tmp_path)
    assert not any("lag" in reason for reason in merge(paths).run["cells"][0]["reasons"])

    def late(told: dict[str, Any]) -> None:
        told["cells"][0]["schedule_lag_ms"]["p99"] = 4.0

    change(paths[1], late)
    [cell] = merge(paths).run["cells"]
    assert cell["verdict"] == "INVALID"
    late = "part 2 of the generator was late: schedule lag p99 4.00 ms, over 1.00 ms; "
    assert any(reason.startswith(late) for reason in cell["reasons"])


def test_what_parts_did_not_send_adds_up(tmp_path: Path) -> None:
    paths = three(tmp_path)
    for number, path in enumerate(paths):
        change(path, lambda told, n=number: told["cells"][0]["rounds"][0]["part"].update(unsent=n))  # type: ignore[misc]
    [cell] = merge(paths).run["cells"]
    assert cell["unsent"] == 3
    assert "3 requests of the plan were not sent" in cell["reasons"]


def test_lost_spans_of_a_service_count_once_though_every_part_asked_it(tmp_path: Path) -> None:
    paths = three(tmp_path)
    row = Lost("door", "preprocess", "http://127.0.0.1:9464/metrics", None, True, 10, 2, 1)._asdict()
    for path in paths:
        change(path, lambda told: told["service_spans"].append(row))
        change(path, lambda told: told.update(spans={"requests": 9, "spans": 80, "requests_lost": 1, "spans_lost": 0}))
    merged = merge(paths).run
    assert merged["spans"] == {"requests": 27, "spans": 240, "requests_lost": 3, "spans_lost": 0}
    [cell] = merged["cells"]
    assert cell["spans_lost"] == [
        {"by": "the load generator", "requests": 3, "spans": 0},
        {"by": "preprocess", "requests": 1, "spans": 2},
    ]


def test_a_cell_that_one_part_did_not_finish_is_left_out_and_said(tmp_path: Path) -> None:
    paths = three(tmp_path)
    change(paths[2], lambda told: told.update(cells=[], interrupted=True))
    merged = merge(paths).run
    assert (merged["cells"], merged["interrupted"]) == ([], True)
    assert "medium, door, open: part 3 did not finish it, so it is left out" in merged["notes"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda told: told["part"].update(run="r2"), "did not run together"),
        (lambda told: told.update(seed=2), "differ in their seed"),
        (lambda told: told["plan"].update(rounds=7), "differ in their plan"),
        (lambda told: told["samples"]["medium"].update(files=3), "differ in their samples"),
        (lambda told: told["part"].update(number=1), "part 1 is named twice"),
        (lambda told: told.pop("part"), "is no part of a run; name results of `loadgen run --part I/N`"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, how: Callable[[dict[str, Any]], None], words: str
) -> None:
    paths = three(tmp_path)
    change(paths[1], how)
    with pytest.raises(PlanError, match=words):
        merge(paths)


def test_parts_whose_rounds_differ_are_refused(tmp_path: Path) -> None:
    parts = three(tmp_path, rounds=2)
    change(parts[1], lambda told: told["cells"][0]["rounds"].pop())
    with pytest.raises(PlanError, match="differ in the rounds of medium, door, open: part 1 has 2, part 2 has 1, part"):
        merge(parts)
    change(parts[0], lambda told: told["cells"][0]["rounds"].pop())
    change(parts[2], lambda told: told["cells"][0]["rounds"].pop())
    assert merge(parts).run["cells"]  # what all have can be merged


def test_parts_may_reach_their_targets_by_other_addresses(tmp_path: Path) -> None:
    paths = three(tmp_path)
    change(paths[1], lambda told: told["plan"].update(targets={"door": "grpc://10.0.0.9:8001"}))
    assert merge(paths).run["plan"]["targets"] == {"door": "x"}


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="of 3 parts, 1, 3 is missing"):
        merge(three(tmp_path)[1:2])


def test_rows_that_are_missing_are_named(tmp_path: Path) -> None:
    paths = three(tmp_path)
    file = paths[1] / "requests.csv"
    whole = file.read_text()
    file.write_text("".join(whole.splitlines(keepends=True)[:-5]))
    with pytest.raises(PlanError, match=r"has 295 rows of door, medium, open, and run.json says 300"):
        merge(paths)
    file.write_text(whole.replace("due_ns", "when"))
    with pytest.raises(PlanError, match=r"is not the requests\.csv of a run"):
        merge(paths)
    file.unlink()
    with pytest.raises(PlanError, match="cannot be read"):
        merge(paths)


def test_the_floor_of_a_hop_is_that_of_the_mean_request(tmp_path: Path) -> None:
    paths = three(tmp_path)

    def floors(told: dict[str, Any]) -> None:
        told["cells"][0]["calibration"][0].update(p50_ms=0.6, low_ms=0.5, high_ms=0.9)

    before = copy.deepcopy(merge(paths).run["cells"][0])
    change(paths[0], floors)
    [cell] = merge(paths).run["cells"]
    assert cell["calibration"][0]["p50_ms"] == pytest.approx((0.6 + 0.3 + 0.3) / 3)
    assert (cell["calibration"][0]["low_ms"], cell["calibration"][0]["high_ms"]) == (0.27, 0.9)
    # What the network has more, excess has less: the sum is the clock's
    movement = {row["group"]: row["mean_ms"] for row in cell["groups"]}
    earlier = {row["group"]: row["mean_ms"] for row in before["groups"]}
    assert movement["network"] - earlier["network"] == pytest.approx(0.1, rel=1e-3)
    assert movement["network"] + movement["excess"] == pytest.approx(earlier["network"] + earlier["excess"])
    assert cell["latency_ms"] == before["latency_ms"]


def test_the_floor_of_a_broker_has_no_interval_where_a_part_has_none(tmp_path: Path) -> None:
    paths = three(tmp_path)

    def floors(told: dict[str, Any]) -> None:
        told["cells"][0]["calibration"][1].update(low_ms=None, high_ms=None)

    change(paths[1], floors)
    [cell] = merge(paths).run["cells"]
    direct, brokered = cell["calibration"]
    assert (brokered["p50_ms"], brokered["low_ms"], brokered["high_ms"]) == (pytest.approx(0.5), None, None)
    assert direct["low_ms"] is not None
