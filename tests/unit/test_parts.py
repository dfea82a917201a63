"""A plan in parts: disjoint, and together the plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import PlanError
from loadgen.parts import Part, agreement, check_divisible, parse_part
from loadgen.plan import Plan, load_plan
from loadgen.samples import Sample
from loadgen.schedule import parse_schedule

PLAN = """
seed = 3
rounds = {rounds}
[targets]
a = "null:"
[samples]
medium = 1
[[load]]
name = "load"
schedule = "{schedule}"
requests = {requests}
"""


def plan(folder: Path, schedule: str = "poisson(50)", requests: int = 30, rounds: int = 1) -> Plan:
    file = folder / "plan.toml"
    file.write_text(PLAN.format(schedule=schedule, requests=requests, rounds=rounds))
    return load_plan(file)


@given(
    text=st.sampled_from(["poisson(50)", "constant(7)", "bursts(20, 200, 0.2, 0.1)", "offline(400)", "cameras(7, 10)"]),
    requests=st.integers(1, 400),
    of=st.integers(2, 9),
    senders=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_open_parts_are_disjoint_and_together_the_plan(
    text: str, requests: int, of: int, senders: int, seed: int
) -> None:
    whole = parse_schedule(text, requests, seed)
    sent = []
    for number in range(1, of + 1):
        mine = Part(number, of).schedule(whole)
        # ... also where each of them is sent by several processes
        for piece in (mine.part(sender, senders) for sender in range(senders)):
            sent += [(piece.number(i), piece.due_ns[i]) for i in range(piece.requests)]
    assert sorted(sent) == list(enumerate(whole.due_ns))


@given(n=st.integers(1, 40), requests=st.integers(1, 300), of=st.integers(2, 9))
def test_closed_parts_share_what_is_in_flight_and_the_requests(n: int, requests: int, of: int) -> None:
    whole = parse_schedule(f"closed({n})", requests, 1)
    parts = [Part(number, of).schedule(whole) for number in range(1, of + 1)]
    assert sorted(part.number(i) for part in parts for i in range(part.requests)) == list(range(requests))
    busy = [part.concurrency for part in parts if part.requests]
    assert sum(busy) <= n
    if requests >= n:
        assert sum(busy) == n
        assert max(part.concurrency for part in parts) - min(part.concurrency for part in parts) <= 1


def test_cameras_of_a_part_are_shared_by_all_of_its_senders() -> None:
    """A part has every other camera, so that their numbers alone would leave one of two senders without any."""
    mine = Part(1, 2).schedule(parse_schedule("cameras(8, 10)", 80, 1))
    assert set(mine.streams) == {0, 2, 4, 6}
    assert [set(mine.part(sender, 2).streams) for sender in range(2)] == [{0, 4}, {2, 6}]


def test_a_part_is_one_of_several() -> None:
    assert parse_part(" 2/3 ") == Part(2, 3)
    assert str(parse_part("2/3")) == "part 2 of 3"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2", "is not I/N"),
        ("2/x", "is not I/N"),
        ("1/1", "2 to 64"),
        ("1/65", "2 to 64"),
        ("0/3", "1 to 3"),
        ("4/3", "1"),
    ],
)
def test_what_is_no_part_is_refused(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse_part(text)


@pytest.mark.parametrize(
    ("schedule", "requests", "rounds", "words"),
    [
        ("closed(2)", 30, 1, "has 2 in flight, too few for 3 parts"),
        ("single_stream", 30, 1, "has 1 in flight, too few for 3 parts"),
        ("closed(8)", 2, 1, "has 2 in flight, too few"),
        ("cameras(2, 10)", 30, 1, "has 2 cameras, too few"),
        ("poisson(50)", 2, 1, "has 2 requests, too few"),
        ("poisson(50)", 8, 4, "has 2 requests in a round, too few"),
    ],
)
def test_a_plan_that_leaves_a_part_without_work_is_refused(
    tmp_path: Path, schedule: str, requests: int, rounds: int, words: str
) -> None:
    mine = plan(tmp_path, schedule, requests, rounds)
    with pytest.raises(PlanError, match=rf"load 'load' .*{words}.* give it 3 or more, or send it in fewer parts"):
        check_divisible(mine, 3)


def test_a_part_whose_first_request_is_due_too_late_is_refused(tmp_path: Path) -> None:
    """Whoever sends a part sends its first request whenever it is due: the whole plan would not have sent it."""
    mine = plan(tmp_path, "constant(1)", 30)
    [load] = mine.loads
    check_divisible(mine.with_loads((replace(load, at_most_s=2.5),)), 3)
    with pytest.raises(PlanError, match="has 2 requests in time, too few for 3 parts"):
        check_divisible(mine.with_loads((replace(load, at_most_s=1.5),)), 3)


@pytest.mark.parametrize("schedule", ["closed(3)", "poisson(50)", "cameras(3, 10)", "constant(5)"])
def test_a_plan_that_has_work_for_all_is_not(tmp_path: Path, schedule: str) -> None:
    check_divisible(plan(tmp_path, schedule, 12, rounds=2), 3)


def test_parts_agree_on_the_plan_its_instants_and_files_but_not_on_addresses(tmp_path: Path) -> None:
    files = {"medium": [Sample("a", b"1", 1, 1)]}
    mine = plan(tmp_path)
    agreed = agreement(mine, files)
    assert agreement(mine.with_targets({"a": "grpc://10.0.0.1:8001"}), files) == agreed
    assert agreement(mine.with_targets({"b": "null:"}), files) != agreed
    assert agreement(replace(mine, seed=4), files) != agreed
    assert agreement(mine, {"medium": [Sample("a", b"2", 1, 1)]}) != agreed
    # Given the same plan, and a trace of the same name that says something else
    (tmp_path / "t.csv").write_text("arrival_s\n0\n1\n2\n")
    before = agreement(plan(tmp_path, "replay(t.csv)", 3), files)
    (tmp_path / "t.csv").write_text("arrival_s\n0\n1\n3\n")
    assert agreement(plan(tmp_path, "replay(t.csv)", 3), files) != before
