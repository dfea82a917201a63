"""Numbers of figures, with their intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.figures.cells import Value, cells_of, contended_of, unusable_of, worst
from loadgen.figures.conclusion import every
from loadgen.figures.conduct import Done
from loadgen.figures.figure import Step
from loadgen.stored import SCHEMA
from loadgen.verdict import judge
from services.accounting import Group, Stage
from tests.figures import cell

POSITIVE = st.floats(0.1, 1e3)


def test_a_number_is_printed_with_its_interval_where_it_has_one() -> None:
    assert f"{Value(1.234, 1.0, 2.0):.1f}" == "1.2 [1.0, 2.0]"
    assert f"{Value(0.5, None, 0.9):.0%}" == "50%"


@given(POSITIVE, POSITIVE, st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_quotients_interval_is_around_it_and_no_narrower_than_either_part(
    a: float, b: float, wide: float, narrow: float
) -> None:
    one, other = (Value(x, x * math.exp(-e), x * math.exp(e)) for x, e in ((a, wide), (b, narrow)))
    ratio = one.over(other)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low <= ratio.value <= ratio.high
    assert math.log(ratio.high / ratio.low) / 2 >= max(wide, narrow) - 1e-9
    # Its reciprocal has the reciprocal interval.
    back = other.over(one)
    assert back.low == pytest.approx(1 / ratio.high)


def test_the_interval_of_a_quotient_covers_it_as_often_as_it_says() -> None:
    # Given pairs of means of 2 % and 3 % error, of which the quotient is 2
    rng = np.random.default_rng(3)
    tries, covered = 2000, 0
    for _ in range(tries):
        a, b = 20 * (1 + 0.02 * rng.standard_normal()), 10 * (1 + 0.03 * rng.standard_normal())
        # When it is taken, of 95 % intervals
        ratio = Value(a, a - 1.96 * 0.4, a + 1.96 * 0.4).over(Value(b, b - 1.96 * 0.3, b + 1.96 * 0.3))
        assert ratio.low is not None
        assert ratio.high is not None
        covered += ratio.low <= 2 <= ratio.high
    # Then 95 % of the intervals have it
    assert covered / tries == pytest.approx(0.95, abs=0.015)


def test_a_quotient_by_what_has_no_interval_has_none() -> None:
    assert Value(4.0, 3.0, 5.0).over(Value(2.0)) == Value(2.0)
    assert Value(4.0, -1.0, 9.0).over(Value(2.0, 1.9, 2.1)) == Value(2.0)


def test_a_share_is_of_all_requests_time_and_not_the_mean_of_shares(tmp_path: Path) -> None:
    # Given a request of 10 ns, all of it inference, and one of 90 ns, all of it decoding
    one = cell(tmp_path, {}, requests=[(0, 0, 10), (0, 90, 0)])
    # Then decoding has 90 % of the time
    assert one.share(Group.PREPROCESSING).value == pytest.approx(0.9)
    assert one.share(Group.PREPROCESSING, Group.INFERENCE).value == pytest.approx(1)
    assert one.group_ms(Group.INFERENCE).value == pytest.approx(5e-6)


def test_a_share_on_a_hop_is_of_that_hop_alone(tmp_path: Path) -> None:
    # Given a tenth of the time on one hop, three tenths on the other; and CPU time, which is none of its own
    ways = {"transit@a>b_ns": 10, "transit@b>c_ns": 30, "infer@c_cpu_ns": 15}
    one = cell(tmp_path, {}, requests=[(0, 20, 25)] * 3, others=ways)
    assert one.hop_share("a>b", Stage.TRANSIT).value == pytest.approx(0.1)
    assert one.hop_share("b>c", Stage.TRANSIT).value == pytest.approx(0.3)
    assert one.hop_share("b>c", Stage.INFER).value == 0
    assert one.share(Group.MOVEMENT).value == pytest.approx(0.4)
    assert one.share(Group.INFERENCE).value == pytest.approx(0.25)


def test_only_cells_whose_numbers_can_be_used_are_concluded_from_and_the_others_are_told(tmp_path: Path) -> None:
    # Given a run with a cell of each verdict, and one that could not be started
    names = {"target": "grpc", "size": "medium", "label": "MEASURED", "schedule": "closed(1)", "reasons": ["a reason"]}
    verdicts = ("VALID", "CONTENDED", "INVALID")
    cells: list[dict[str, Any]] = [{**names, "load": verdict, "verdict": verdict} for verdict in verdicts]
    cells.append({**names, "load": "NOT RUN", "label": "NOT RUN"})
    (tmp_path / "run.json").write_text(json.dumps({"schema": SCHEMA, "environment": {"cpus": 2}, "cells": cells}))
    step = Step("a step", ("grpc",))
    done = [Done(step, tmp_path, ""), Done(Step("elsewhere", ("grpc",)), None, "no GPU")]
    # Then
    assert [one.load for one in cells_of(done)] == ["VALID", "CONTENDED"]
    assert unusable_of(done) == [
        ("a step", "grpc, medium, INVALID", "a reason"),
        ("a step", "grpc, medium, NOT RUN", "a reason"),
        ("elsewhere", "", "no GPU"),
    ]


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        ({"contention": {}, "stalled_ms": 2.0}, "computing threads were stalled"),
        ({"drift": {"p": 0.001, "change_ms": 3.0}}, "latency drifted"),
        ({"warmup": {"stable": False, "seconds": 3.0, "probes": 500}}, "not warm"),
        ({"warmup": {"stable": True, "enough": False, "seconds": 3.0, "probes": 500}}, "perhaps not warm"),
        ({"schedule_lag_ms": {"p99": 9.0}}, "the generator was late"),
        ({"offered_rps": 100.0, "throughput_rps": 50.0}, "the target did not keep up"),
    ],
)
def test_why_cells_are_contended_is_said_in_few_words(tmp_path: Path, judged: dict[str, Any], said: str) -> None:
    # Given two cells, of which one is contended for that reason, as the judge says it
    cell = {
        "ok": 10,
        "errors": {},
        "ledger": {"mismatched": 0, "complete": 10},
        "latency_ms": {"mean": 10.0},
        "stalled_ms": 0.0,
        "duration_s": 1.0,
        "quantiles_ms": {0: 1.0, 50: 10.0, 99: 20.0},
        "intervals": {"throughput": {"high_rps": 50.0}},
    }
    verdict, reasons = judge(cell | judged, closed=True)
    assert verdict == "CONTENDED"
    cells = [{"verdict": "VALID", "reasons": ["a notice"]}, {"verdict": verdict, "reasons": reasons}]
    (tmp_path / "run.json").write_text(json.dumps({"schema": SCHEMA, "cells": cells}))
    # Then
    done = [Done(Step("a step", ("grpc",)), tmp_path, ""), Done(Step("elsewhere", ("grpc",)), None, "no GPU")]
    assert contended_of(done) == f"1 of 2: {said} (1)"
    assert contended_of(done[1:]) == ""


def test_the_interval_of_a_share_is_of_shares(tmp_path: Path) -> None:
    # Given few requests, of which hardly any decoded, and that for long; and the other way round
    rare = [(0, 0, 100)] * 19 + [(0, 900, 100)]
    share = cell(tmp_path, {}, requests=rare).share(Group.PREPROCESSING)
    # Then its interval has neither shares below 0 nor above 1
    assert share.low == 0
    assert cell(tmp_path, {}, requests=rare).share(Group.INFERENCE).high == 1


def test_the_interval_of_a_share_covers_it_as_often_as_it_says(tmp_path: Path) -> None:
    # Given requests whose decoding has two thirds of the time, in the mean
    rng = np.random.default_rng(5)
    tries, covered = 200, 0
    for _ in range(tries):
        decode, infer = rng.gamma(8, 2500, 200), rng.gamma(8, 1250, 200)
        requests = [(0, int(d), int(i)) for d, i in zip(decode, infer, strict=True)]
        share = cell(tmp_path, {}, requests=requests).share(Group.PREPROCESSING)
        assert share.low is not None
        assert share.high is not None
        covered += share.low <= 2 / 3 <= share.high
    assert covered / tries == pytest.approx(0.95, abs=0.04)


def test_what_failed_or_warmed_up_or_is_of_another_cell_does_not_count(tmp_path: Path) -> None:
    # Given a file with one request that counts
    one = cell(tmp_path, {}, requests=[(0, 30, 70)])
    path = tmp_path / "0.csv"
    good = path.read_text().splitlines()[1].split(",")
    for column, odd in ((0, "kafka"), (1, "large"), (2, "closed(9)"), (4, "timeout"), (5, "1")):
        row = [*good[:column], odd, *good[column + 1 :]]
        row[-2] = "1000000"
        with path.open("a") as file:
            file.write(",".join(row) + "\n")
    # Then its share is the cell's
    assert one.share(Group.PREPROCESSING).value == pytest.approx(0.3)


def test_a_mean_that_was_too_few_to_have_is_none(tmp_path: Path) -> None:
    assert cell(tmp_path, {}).latency("p99") is None
    assert cell(tmp_path, {}, mean_ms=4).latency() == Value(4, pytest.approx(3.6), pytest.approx(4.4))


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (Value(2.5, 2.0, 3.0), True),
        (Value(1.5, 1.0, 1.9), False),
        (Value(2.1, 1.9, 2.3), None),
        (Value(1.9, 1.8, 2.0), None),
        (Value(2.5), None),
    ],
)
def test_what_an_interval_does_not_decide_is_not_decided(value: Value, held: bool | None) -> None:
    assert value.at_least(2) is held


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (Value(1.0, 0.8, 1.2), True),
        (Value(1.0, 0.7, 1.1), None),
        (Value(0.5, 0.1, 40.0), None),
        (Value(2.0, 1.3, 3.0), False),
        (Value(0.5, 0.4, 0.7), False),
        (Value(1.0), None),
    ],
)
def test_what_lies_between_two_ends_does_so_with_its_interval(value: Value, held: bool | None) -> None:
    assert value.within(0.8, 1.2) is held


def test_what_a_share_leaves_has_its_interval_turned_around() -> None:
    assert Value(0.25, 0.0, 0.5).rest() == Value(0.75, 0.5, 1.0)
    assert Value(0.25).rest() == Value(0.75)


def test_a_product_is_a_quotient_by_the_reciprocal() -> None:
    a, b = Value(4.0, 3.0, 5.0), Value(2.0, 1.5, 2.5)
    product, quotient = a.times(b), a.over(Value(1 / 2.0, 1 / 2.5, 1 / 1.5))
    assert product.value == 8
    assert product.low == pytest.approx(quotient.low)
    assert product.high == pytest.approx(quotient.high)


def test_of_several_one_that_fails_decides_and_one_that_is_not_known_leaves_it_open() -> None:
    assert every([True, True]) is True
    assert every([True, None, False]) is False
    assert every([True, None]) is None


def test_a_number_made_of_several_cells_is_as_good_as_the_least_good(tmp_path: Path) -> None:
    valid, contended = cell(tmp_path, {}), cell(tmp_path, {}, verdict="CONTENDED")
    measured = cell(tmp_path, {}, label="MEASURED")
    assert worst(valid, contended) == worst(contended, valid) == ("EMULATED", "CONTENDED")
    assert worst(measured, valid) == ("EMULATED", "VALID")
    assert worst(measured) == ("MEASURED", "VALID")
