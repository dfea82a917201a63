"""When requests are due."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import PlanError
from loadgen.schedule import is_closed, parse_schedule

RATES = st.floats(0.1, 10_000, allow_nan=False).map(lambda rate: round(rate, 3))
COUNTS = st.integers(1, 300)


@given(kind=st.sampled_from(["constant", "poisson"]), rate=RATES, requests=COUNTS, seed=st.integers())
def test_an_open_schedule_is_ascending_whole_and_the_same_for_the_same_seed(
    kind: str, rate: float, requests: int, seed: int
) -> None:
    schedule = parse_schedule(f"{kind}({rate})", requests, seed)
    assert schedule.concurrency == 0
    assert len(schedule.due_ns) == requests == schedule.requests
    assert list(schedule.due_ns) == sorted(schedule.due_ns)
    assert schedule.due_ns[0] >= 0
    assert schedule == parse_schedule(f"{kind}({rate})", requests, seed)


@given(rate=RATES, requests=COUNTS)
def test_constant_arrivals_are_equally_far_apart_without_drift(rate: float, requests: int) -> None:
    due = parse_schedule(f"constant({rate})", requests, 1).due_ns
    assert all(abs(at - i * 1e9 / rate) <= 1 for i, at in enumerate(due))


@given(seed=st.integers(0, 10_000))
def test_poisson_gaps_have_the_rate_asked_for_and_are_as_dispersed_as_exponential_ones(seed: int) -> None:
    n, rate = 4000, 250.0
    due = parse_schedule(f"poisson({rate:g})", n, seed).due_ns
    gaps = [b - a for a, b in zip((0, *due), due, strict=False)]
    mean = statistics.fmean(gaps)
    # The mean of n exponential gaps has a relative deviation of 1/sqrt(n) = 1.6 %; six of them never happen.
    assert mean == pytest.approx(1e9 / rate, rel=6 / n**0.5)
    # Their deviation equals their mean; constant arrivals would have none.
    assert statistics.pstdev(gaps) / mean == pytest.approx(1, abs=0.2)
    # Memoryless: the share of gaps beyond the mean is 1/e.
    assert sum(gap > mean for gap in gaps) / n == pytest.approx(0.368, abs=0.05)


def test_poisson_arrivals_differ_with_the_seed() -> None:
    assert parse_schedule("poisson(10)", 50, 1).due_ns != parse_schedule("poisson(10)", 50, 2).due_ns


def test_a_closed_schedule_has_senders_and_no_instants() -> None:
    schedule = parse_schedule(" closed( 16 ) ", 100, 1)
    assert (schedule.concurrency, schedule.requests, schedule.due_ns) == (16, 100, ())


@pytest.mark.parametrize(("text", "closed"), [("closed(1)", True), (" closed (2)", True), ("poisson(1)", False)])
def test_closed_and_open_are_told_apart(text: str, closed: bool) -> None:
    assert is_closed(text) is closed
    assert (parse_schedule(text, 1, 1).concurrency > 0) is closed


@pytest.mark.parametrize(
    ("text", "requests", "says"),
    [
        ("closed", 1, "none of closed(n), constant(rate), poisson(rate)"),
        ("burst(3)", 1, "none of"),
        ("closed(-1)", 1, "none of"),
        ("closed(1) or so", 1, "none of"),
        ("closed(1.5)", 1, "whole"),
        ("closed(0)", 1, "positive"),
        ("closed(100000)", 1, "at most 4096"),
        ("poisson(0)", 1, "positive"),
        ("poisson(1.2.3)", 1, "'1.2.3' is no number"),
        ("constant(5)", 0, "at least 1 request"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_said_with_its_text(text: str, requests: int, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_schedule(text, requests, 1)
    assert says in str(caught.value)
    assert f"'{text}'" in str(caught.value)
