"""What E9 and E10 conclude, from cells whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.figures.cells import Cell, Value
from loadgen.figures.conclusion import Conclusion
from loadgen.figures.experiments import e9, e10
from loadgen.figures.experiments.e9 import crossing
from loadgen.figures.plots import Line
from tests.figures import cell


def _held(conclusion: Conclusion, what: str) -> list[bool | None]:
    return [check.held for check in conclusion.checks if what in check.what]


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        # 4 at 1 face, 1/4 at 16: the line between them is 1 at 4; that of 8 and 1/2 at 8, that of 2 and 1/8 at 2
        ([(1, Value(4, 2, 8)), (16, Value(0.25, 0.125, 0.5))], "equal at 4.0 faces [2.0, 8.0]"),
        ([(1, Value(0.25, 0.125, 0.5)), (16, Value(4, 2, 8))], "equal at 4.0 faces [2.0, 8.0]"),
        # The interval of the first point has 1 within, so it may be equal at fewer
        ([(1, Value(2, 0.5, 4)), (16, Value(0.5, 0.25, 0.5))], "equal at 4.0 faces [1 or fewer, 6.3]"),
        ([(1, Value(2, 2, 4)), (16, Value(0.5, 0.25, 2))], "equal at 4.0 faces [2.5, 16 or more]"),
        ([(1, Value(1.1, 0.9, 1.3)), (4, Value(0.8, 0.6, 1.01))], "equal at 1.5 faces [1 or fewer, 4 or more]"),
        # By its own numbers it is nowhere 1, but one point's interval does not exclude it
        (
            [(1, Value(4, 2, 8)), (4, Value(2, 0.5, 4)), (16, Value(4, 2, 8))],
            "nowhere equal, but perhaps at [2.0, 8.0] faces",
        ),
        ([(1, Value(2, 1.5, 3)), (16, Value(1.5, 1.2, 2))], "nowhere equal"),
        # Without intervals only the middle is known
        ([(1, Value(4)), (16, Value(0.25))], "equal at 4.0 faces"),
        ([(1, Value(2)), (16, Value(1.5))], "nowhere equal"),
        # Where one point has none, the whole has none
        ([(1, Value(4)), (2, Value(1.2, 0.8, 1.5)), (4, Value(0.5))], "equal at 2.3 faces"),
        ([(1, Value(4, 3, 5)), (2, Value(1.2, 0.8, 1.5)), (4, Value(0.5))], "equal at 2.3 faces"),
        ([(1, Value(1)), (4, Value(1))], "equal at 1.0 faces"),
        ([(1, Value(2, 1.5, 3)), (4, Value(1, 1, 1))], "equal at 4.0 faces [4.0, 4 or more]"),
        ([(3, Value(2, 1.5, 3))], "nowhere equal"),
        ([(3, Value(2, 0.5, 3))], "nowhere equal, but perhaps at [3 or fewer, 3 or more] faces"),
    ],
)
def test_where_a_quotient_crosses_one_and_within_what(ratios: list[tuple[float, Value]], words: str) -> None:
    assert str(crossing(ratios)) == words


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(1.01, 3), st.floats(1.01, 3)), min_size=2, max_size=6),
)
def test_a_crossing_lies_within_its_interval_and_that_within_the_points(
    ends: list[tuple[float, float, float]],
) -> None:
    ratios = [(float(2**i), Value(y, y / down, y * up)) for i, (y, down, up) in enumerate(ends)]
    found = crossing(ratios)
    least, most = ratios[0][0], ratios[-1][0]
    low = least if found.low is None else found.low
    high = most if found.high is None else found.high
    if found.somewhere:
        assert least - 1e-9 <= low <= high + 1e-9 <= most + 2e-9
    if found.value is not None:
        assert found.somewhere
        assert low - 1e-9 <= found.value <= high + 1e-9


def _face(folder: Path, target: str, faces: int, rps: float, variant: str = "plain") -> Cell:
    return cell(folder, {"variant": variant}, target=target, size=f"faces-{faces}", rps=rps, spread=0.02)


def test_e9_sets_redis_beside_kafka_and_fused_beside_redis(tmp_path: Path) -> None:
    # Given fused twice as fast as Redis at one face, half as fast at 16; Redis over Kafka from 1 to 2
    rates = {
        ("fused", 1): 40,
        ("fused", 16): 5,
        ("redis", 1): 20,
        ("redis", 16): 10,
        ("kafka", 1): 20,
        ("kafka", 16): 5,
    }
    cells = [_face(tmp_path, target, faces, rps) for (target, faces), rps in rates.items()]
    cells.append(_face(tmp_path, "kafka", 16, 4, "acks=all"))
    # When
    conclusion = e9.conclude(cells)
    # Then
    assert "redis over kafka 1.00 [0.97, 1.03] at 1 and 2.00" in conclusion.says
    assert "fused over redis 2.00" in conclusion.says
    assert "(equal at 4.0" in conclusion.says
    assert "kafka keeps 0.80" in conclusion.says
    assert "each at its best, redis over kafka 2.00 [1.94, 2.06] at 16 (plain over plain)" in conclusion.says
    assert _held(conclusion, "is above 1 at 16") == [True]
    assert _held(conclusion, "rises from 1 to 16") == [True]
    assert set(conclusion.pictures) == {"e9-throughput", "e9-ratios", "e9-settings"}
    # and of 16 faces a frame at 5 frames/s
    [row] = [row for row in conclusion.rows if row[:3] == ["plain", "kafka", "16"]]
    assert row[4] == "80"


def test_e9_sets_redis_beside_a_kafka_that_is_tuned(tmp_path: Path) -> None:
    # Given a Kafka that with larger batches passes Redis
    cells = [_face(tmp_path, "redis", 16, 10), _face(tmp_path, "kafka", 16, 5)]
    cells.append(_face(tmp_path, "kafka", 16, 12.5, "batches"))
    # Then that is said, whatever the plain one does
    assert "redis over kafka 0.80 [0.78, 0.82] at 16 (plain over batches)" in e9.conclude(cells).says


def test_e9_does_not_say_what_its_intervals_do_not(tmp_path: Path) -> None:
    # Given quotients of 1.02 and 1.04, each within 3 %
    rates = {("redis", 1): 20.4, ("redis", 16): 10.4, ("kafka", 1): 20, ("kafka", 16): 10}
    conclusion = e9.conclude([_face(tmp_path, target, faces, rps) for (target, faces), rps in rates.items()])
    # Then
    assert _held(conclusion, "rises") == [None]
    assert "nowhere equal, but perhaps at [1 or fewer, 3.4] faces" in conclusion.says
    # where both are far above 1, it is said
    rates |= {("redis", 1): 30, ("redis", 16): 20}
    conclusion = e9.conclude([_face(tmp_path, target, faces, rps) for (target, faces), rps in rates.items()])
    assert _held(conclusion, "is above 1 at 16") == [True]
    assert "(nowhere equal)" in conclusion.says


def test_e9_has_what_lies_between_publishing_a_face_and_taking_it(tmp_path: Path) -> None:
    # Given of 100 ns: 10 in the client's buffers, 20 on the way, 30 in the broker, all on the hop; 10 on another hop
    hop = "preprocess>inference"
    ways = {f"send_queue@{hop}_ns": 10, f"transit@{hop}_ns": 20, f"broker_wait@{hop}_ns": 30}
    ways |= {"transit@client>preprocess_ns": 10}
    one = cell(tmp_path, {"variant": "plain"}, size="faces-4", requests=[(0, 10, 20)] * 30, others=ways)
    # Then 60 % are between the two, and 30 % are movement, on both hops
    [row] = e9.conclude([one]).rows
    assert row[6].startswith("60.0% [")
    assert row[7] == "30.0%"


def test_e9_sees_a_ratio_that_falls(tmp_path: Path) -> None:
    rates = {("redis", 1): 40, ("redis", 16): 5, ("kafka", 1): 20, ("kafka", 16): 6}
    conclusion = e9.conclude([_face(tmp_path, target, faces, rps) for (target, faces), rps in rates.items()])
    assert _held(conclusion, "is above 1 at 16") == [False]
    assert _held(conclusion, "rises") == [False]
    assert "(equal at" in conclusion.says.partition(";")[0]


def _swept(folder: Path, target: str, limit: int, rates: dict[int, float]) -> list[Cell]:
    return [cell(folder, {"k": k, "limit": limit}, target=target, rps=rps, spread=0.02) for k, rps in rates.items()]


@pytest.mark.parametrize(("doubled", "held"), [(16, True), (8.5, False)])
def test_e10_finds_the_end_of_the_climb_and_what_moves_it(tmp_path: Path, doubled: float, held: bool) -> None:
    # Given a log that takes 8 frames/s, and one that should take 16
    cells = _swept(tmp_path, "kafka", 3_000_000, {8: 8, 1: 2, 4: 7.9, 32: 8})
    cells += _swept(tmp_path, "kafka", 6_000_000, {1: 2, 4: 8, 8: doubled, 32: doubled})
    cells += _swept(tmp_path, "redis", 0, {1: 2, 32: 60})
    conclusion = e10.conclude(cells)
    # Then
    assert "kafka, 3 MB/s: 32 times as fast gives 4.0" in conclusion.says
    assert "its end is at k = 4.0" in conclusion.says
    assert [row[1] for row in conclusion.rows[:4]] == ["1", "4", "8", "32"]
    assert "redis, no limit: 32 times as fast gives 30.0" in conclusion.says
    assert _held(conclusion, "2 times the log") == [held]


@pytest.mark.parametrize(
    ("free", "held"), [({1: 2, 32: 20}, [True]), ({1: 2, 32: 16}, [None]), ({1: 2, 32: 8}, [False])]
)
def test_e10_says_whether_the_limit_is_what_ends_the_climb(
    tmp_path: Path, free: dict[int, float], held: list[bool | None]
) -> None:
    # Given two limits, of which the larger one lets 16 frames/s through, and the same log without one
    cells = _swept(tmp_path, "kafka", 3_000_000, {1: 2, 32: 8}) + _swept(tmp_path, "kafka", 6_000_000, {1: 2, 32: 16})
    # Then the larger one is held against it, and another log against neither
    assert _held(e10.conclude(cells + _swept(tmp_path, "kafka", 0, free)), "is the limit") == held
    assert _held(e10.conclude(cells + _swept(tmp_path, "redis", 0, free)), "is the limit") == []


def test_e10_draws_what_k_times_the_first_would_be() -> None:
    drawn = [Line("kafka", [(1.0, Value(2)), (8.0, Value(9))]), Line("redis", [(1.0, Value(3)), (32.0, Value(50))])]
    assert e10.ideal(drawn) == [(1, Value(3)), (8, Value(24)), (32, Value(96))]
    assert e10.ideal([Line("kafka", [(2.0, Value(2))])]) == []


def test_e10_says_nothing_of_an_end_whose_interval_has_everything(tmp_path: Path) -> None:
    # Given logs of which the smaller one's most is known to a factor of ten
    cells = _swept(tmp_path, "kafka", 3_000_000, {1: 2, 4: 7.9})
    cells.append(cell(tmp_path, {"k": 32, "limit": 3_000_000}, target="kafka", rps=8, spread=0.9))
    cells += _swept(tmp_path, "kafka", 6_000_000, {1: 2, 4: 8, 32: 16})
    # Then the ends may be anywhere
    assert _held(e10.conclude(cells), "2 times the log") == [None]


def test_e10_has_no_end_where_the_climb_goes_on(tmp_path: Path) -> None:
    conclusion = e10.conclude(_swept(tmp_path, "kafka", 3_000_000, {1: 2, 4: 8, 8: 16}))
    assert "no end is in sight" in conclusion.says
    assert "its end is" not in conclusion.says
