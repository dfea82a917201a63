"""When requests are due."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.arrivals import busiest_second
from loadgen.errors import PlanError
from loadgen.schedule import Schedule, is_closed, own_count, parse_schedule

RATES = st.floats(0.1, 10_000, allow_nan=False).map(lambda rate: round(rate, 3))
COUNTS = st.integers(1, 300)
FOR_EVER: dict[str, object] = {
    "poisson": (1442911, 20244473, 34674163, 37618800),
    "bursts": (14429689, 17374326, 24214914, 30184035),
    "cameras": ((17741303, 30978291, 51207795, 64427943), (1, 0, 1, 0)),
}


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


def test_a_seed_means_the_same_instants_for_ever() -> None:
    """Results of other versions are compared with these: the numbers are the contract, on every platform."""
    assert parse_schedule("poisson(100)", 4, 1).due_ns == FOR_EVER["poisson"]
    assert parse_schedule("bursts(10, 100, 1, 1)", 4, 1).due_ns == FOR_EVER["bursts"]
    cameras = parse_schedule("cameras(2, 30, jitter_ms=2)", 4, 1)
    assert (cameras.due_ns, cameras.streams) == FOR_EVER["cameras"]


def test_poisson_arrivals_differ_with_the_seed() -> None:
    assert parse_schedule("poisson(10)", 50, 1).due_ns != parse_schedule("poisson(10)", 50, 2).due_ns


def test_a_closed_schedule_has_senders_and_no_instants() -> None:
    schedule = parse_schedule(" closed( 16 ) ", 100, 1)
    assert (schedule.concurrency, schedule.requests, schedule.due_ns) == (16, 100, ())


@pytest.mark.parametrize(
    ("text", "closed"),
    [("closed(1)", True), (" closed (2)", True), ("single_stream", True), ("poisson(1)", False), ("offline(1)", False)],
)
def test_closed_and_open_are_told_apart(text: str, closed: bool) -> None:
    assert is_closed(text) is closed
    assert (parse_schedule(text, 1, 1).concurrency > 0) is closed


def test_the_scenarios_of_mlperf() -> None:
    single = parse_schedule("single_stream", 9, 1)
    assert single._replace(text="") == parse_schedule("closed(1)", 9, 1)._replace(text="")
    offline = parse_schedule("offline(8)", 8, 1)
    assert (offline.due_ns, offline.at_once, offline.offered_rps()) == ((0,) * 8, True, None)
    assert (own_count("offline(8)"), own_count("poisson(8)")) == (8, None)


@given(seed=st.integers(0, 10_000))
def test_bursts_have_the_mean_rate_of_their_states_and_are_more_dispersed_than_poisson(seed: int) -> None:
    """Fischer and Meier-Hellstern's cookbook: the mean rate, and the index of dispersion of counts above 1."""
    low, high, low_s, high_s = 20.0, 400.0, 0.4, 0.2
    due = parse_schedule(f"bursts({low}, {high}, low_s={low_s}, high_s={high_s})", 20_000, seed).due_ns
    assert list(due) == sorted(due)
    seconds = due[-1] / 1e9
    mean = (low * low_s + high * high_s) / (low_s + high_s)
    # The variance of a count over a long time t is t * mean * (1 + 2 (high-low)^2 p q / (mean (1/low_s + 1/high_s))).
    p = low_s / (low_s + high_s)
    dispersion = 1 + 2 * (high - low) ** 2 * p * (1 - p) / (mean * (1 / low_s + 1 / high_s))
    deviation = (seconds * mean * dispersion) ** 0.5
    assert abs(len(due) - mean * seconds) < 6 * deviation
    counts = [0] * int(seconds / 2)
    for at in due:
        if at / 2e9 < len(counts):
            counts[int(at / 2e9)] += 1
    assert statistics.variance(counts) / statistics.fmean(counts) > 3  # Poisson has 1; this one, in the long run, 59


def test_bursts_may_be_silent_in_between() -> None:
    due = parse_schedule("bursts(0, 1000, 1, 0.1)", 2000, 3).due_ns
    gaps = sorted(b - a for a, b in itertools.pairwise(due))
    assert gaps[-1] > 100_000_000
    assert statistics.median(gaps) < 2_000_000


@given(
    streams=st.integers(1, 12),
    fps=st.sampled_from([5, 15, 29.97]),
    jitter=st.sampled_from([0, 3, 30]),
    requests=COUNTS,
    seed=st.integers(0, 99),
)
def test_every_camera_keeps_its_pace_within_the_jitter(
    streams: int, fps: float, jitter: int, requests: int, seed: int
) -> None:
    schedule = parse_schedule(f"cameras({streams}, {fps}, jitter_ms={jitter})", requests, seed)
    assert list(schedule.due_ns) == sorted(schedule.due_ns)
    assert len(schedule.due_ns) == len(schedule.streams) == requests
    for stream in range(streams):
        frames = [due for due, of in zip(schedule.due_ns, schedule.streams, strict=True) if of == stream]
        assert requests // streams - 2 <= len(frames) <= requests // streams + 3, "no camera is preferred"
        for a, b in itertools.pairwise(frames):
            assert abs((b - a) - 1e9 / fps) <= jitter * 1e6 + 2
    # More frames change nothing of those that were there, so that a warm-up or a longer run has the same cameras.
    more = parse_schedule(f"cameras({streams}, {fps}, jitter_ms={jitter})", requests + 7, seed)
    assert more.due_ns[:requests] == schedule.due_ns


def test_cameras_have_phases_of_their_own() -> None:
    schedule = parse_schedule("cameras(50, 10)", 50, 1)
    assert schedule.due_ns[-1] - schedule.due_ns[0] > 80_000_000  # spread over the 100 ms of a frame
    assert len(set(schedule.due_ns)) == 50


TRACE = "arrival_s,size,sample\n1700000000.5,medium,3\n1700000001.0,large,\n1700000002.5,medium,\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "arrivals.csv"
    path.write_text(TRACE, encoding="utf-8")
    return path


def test_a_trace_is_replayed_as_it_was(trace: Path) -> None:
    schedule = parse_schedule("replay(arrivals.csv)", 2, 1, "medium", trace.parent)
    assert schedule.due_ns == (0, 2_000_000_000)
    assert [schedule.sample(i) for i in range(2)] == [3, 1]
    # Of another size, the rows of that size, at their instants in the whole.
    assert parse_schedule("replay(arrivals.csv)", 1, 1, "large", trace.parent).due_ns == (500_000_000,)
    assert parse_schedule(f"replay({trace}, speed=4)", 2, 1, "medium").due_ns == (0, 500_000_000)
    assert own_count("replay(arrivals.csv)", "medium", trace.parent) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the header must name each column once, with 'arrival_s'"),
        ("1.0\n2.0\n", "line 1: the header"),
        ("arrival_s,arrival_s\n1,1\n", "line 1: the header"),
        ("arrival_s\n1.0\nsoon\n", "line 3: 'soon' is no time"),
        ("arrival_s\n1.0\nnan\n", "line 3: 'nan' is no time"),
        ("arrival_s\n-1e308\n1e308\n", "line 2: '-1e308' is no time"),
        (f"arrival_s,sample\n1,{'9' * 5000}\n", "is no whole number"),
        ("arrival_s\n1.0\n\n3.0\n2.0\n", "line 5: it arrives at 2 s, before the line above (3 s); sort the file"),
        ("arrival_s,size\n1.0\n", "line 2: 1 fields, and the header has 2"),
        ("arrival_s,sample\n1.0,-1\n", "line 2: sample '-1' is no whole number"),
        ("arrival_s,size\n1.0,large\n", "has no row for 'medium'"),
        ("arrival_s\n1.0\n", "has 1 requests, not 2"),
    ],
)
def test_what_is_wrong_with_a_trace_is_said_with_its_line(trace: Path, text: str, says: str) -> None:
    trace.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        parse_schedule("replay(arrivals.csv)", 2, 1, "medium", trace.parent)
    assert says in str(caught.value)
    assert "arrivals.csv" in str(caught.value)


def test_a_trace_that_is_not_there_or_no_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"gone\.csv cannot be read: No such file"):
        parse_schedule("replay(gone.csv)", 1, 1, "medium", tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"arrival_s\n\xff\xfe\n")
    with pytest.raises(PlanError, match=r"binary\.csv is not CSV in UTF-8"):
        parse_schedule("replay(binary.csv)", 1, 1, "medium", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "constant(1e-300)",
        "poisson(1e-300)",
        "poisson(1e300)",
        "cameras(1, 1e-300)",
        "bursts(0, 1, 1e17, 1)",
        "bursts(1e-300, 1e-299, 1e299, 1e300)",
    ],
)
def test_numbers_beyond_any_load_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match="must be between 1e-06 and 1e"):
        parse_schedule(text, 5, 1)


ANY = st.sampled_from(
    [
        "closed(1)",
        "closed(7)",
        "single_stream",
        "constant(50)",
        "poisson(50)",
        "bursts(5, 90, 1, 1)",
        "cameras(5, 10, jitter_ms=4)",
        "offline(300)",
    ]
)


@given(text=ANY, requests=COUNTS, senders=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_parts_of_several_senders_are_disjoint_and_together_the_schedule(
    text: str, requests: int, senders: int, seed: int
) -> None:
    whole = parse_schedule(text, requests, seed)
    parts = [whole.part(i, senders) for i in range(senders)]
    numbers = sorted(number for part in parts for number in part.numbers)
    assert numbers == list(range(requests))
    for part in parts:
        assert part.requests == len(part.numbers)
        assert [part.due_ns[i] for i in range(len(part.due_ns))] == [
            whole.due_ns[n] for n in part.numbers if whole.due_ns
        ]
        assert (part.concurrency > 0) == (whole.concurrency > 0 and part.requests > 0)
    if whole.concurrency and requests >= whole.concurrency:
        assert sum(part.concurrency for part in parts) == whole.concurrency
    for stream in set(whole.streams):
        assert sum(stream in part.streams for part in parts) == 1, "the frames of a camera are with one sender"


@given(text=ANY, requests=COUNTS, rounds=st.integers(1, 7), seed=st.integers(0, 99))
def test_rounds_are_the_schedule_in_pieces(text: str, requests: int, rounds: int, seed: int) -> None:
    whole = parse_schedule(text, requests, seed)
    pieces = whole.rounds(rounds)
    assert len(pieces) == min(rounds, requests)
    assert [number for piece in pieces for number in piece.numbers] == list(range(requests))
    for piece in pieces:
        assert piece.requests > 0
        assert piece.concurrency == whole.concurrency
        gaps = [b - a for a, b in zip(piece.due_ns, piece.due_ns[1:], strict=False)]
        due = [whole.due_ns[n] for n in piece.numbers] if whole.due_ns else []
        assert gaps == [b - a for a, b in itertools.pairwise(due)]


def test_what_is_offered_is_the_rate_of_what_is_due_in_time() -> None:
    assert parse_schedule("constant(50)", 200, 1).offered_rps() == pytest.approx(50)
    # A burst at the end, which is not due in time, is not offered.
    due = (*tuple(range(0, 1000000000, 100000000)), 1000000001, 1000000002)
    assert Schedule("trace", len(due), 0, due).offered_rps(at_most_s=1.0) == pytest.approx(10)
    assert parse_schedule("closed(4)", 10, 1).offered_rps() is None


def test_the_busiest_second_of_a_trace() -> None:
    assert busiest_second([0, 100, 999_999_999, 1_000_000_000, 1_500_000_000, 1_999_999_998]) == 4
    assert busiest_second([]) == 0


@pytest.mark.parametrize(
    ("text", "requests", "says"),
    [
        ("closed", 1, "lacks 'n'; the form is closed(n)"),
        ("burst(3)", 1, "none of closed(n), constant(rate), poisson(rate)"),
        ("closed(-1)", 1, "'n' must be positive"),
        ("closed(1) or so", 1, "none of"),
        ("closed(1.5)", 1, "whole"),
        ("closed(0)", 1, "positive"),
        ("closed(100000)", 1, "at most 4096"),
        ("closed(1, 2)", 1, "has '2' where nothing belongs"),
        ("closed(m=2)", 1, "'m=2' is not right"),
        ("closed(n=2, n=3)", 1, "'n=3' is not right"),
        ("closed(n=)", 1, "'n=' is not right"),
        ("single_stream(2)", 1, "has '2' where nothing belongs"),
        ("poisson(0)", 1, "positive"),
        ("poisson(inf)", 1, "positive"),
        ("poisson(1.2.3)", 1, "'1.2.3' is no number"),
        ("constant(5)", 0, "at least 1 request"),
        ("offline(5)", 6, "has 5 requests, not 6"),
        ("bursts(5, 5, 1, 1)", 1, "'high' must be above 'low'"),
        ("bursts(0, 0.001, 1, 1)", 1, "both states together have 0.001 requests on average"),
        ("cameras(100000, 30)", 1, "at most 10000 cameras"),
        ("bursts(5, 9, 1)", 1, "lacks 'high_s'"),
        ("bursts(high=9, 5, 1, 1)", 1, "'5' is not right"),
        ("bursts(5, 9, 0, 1)", 1, "'low_s' must be positive"),
        ("cameras(2.5, 30)", 1, "'n' must be whole"),
        ("cameras(2, 30, jitter_ms=40)", 1, "below the time of a frame, 33.3333 ms"),
        ("replay()", 1, "lacks 'file'"),
        ("replay(a.csv, speed=0)", 1, "'speed' must be positive"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_said_with_its_text(text: str, requests: int, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_schedule(text, requests, 1)
    assert says in str(caught.value)
    assert f"'{text}'" in str(caught.value)
