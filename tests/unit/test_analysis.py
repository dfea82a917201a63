"""Exchanges to numbers: means add up, floors are per hop, and a run that cannot be trusted says so."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadgen.analysis import ROWS, analyse, apportion, percentile
from loadgen.calibration import Floor
from loadgen.statistics import minimum_count, quantile
from loadgen.target import HOP, Exchange
from services.accounting import CPU_STAGES, GROUP_OF, UNKNOWN_CPU, Stage, Tile
from tests.exchanges import INNER, MS, exchange, tile, walk

IDLE: dict[str, Any] = {"processes": [], "cpu_pressure_share": 0.0}


def floor(hop: str, ms: float) -> Floor:
    return Floor(hop, round(ms * MS), round(ms * MS * 0.9), round(ms * MS * 1.1), 40)


def cell(
    exchanges: Sequence[Exchange], floors: Sequence[Floor] = (), *, emulated: bool = False, closed: bool = True
) -> dict[str, Any]:
    return analyse(exchanges, floors, IDLE, 1.0, emulated, closed=closed)


def group(result: dict[str, Any], name: str) -> float | None:
    return next((g["mean_ms"] for g in result["groups"] if g["group"] == name), None)


def stage(result: dict[str, Any], name: str, where: str) -> float | None:
    return next((s["mean_ms"] for s in result["stages"] if (s["stage"], s["where"]) == (name, where)), None)


# --- sums ------------------------------------------------------------------------------------------------------------

TILES = st.lists(
    st.builds(
        Tile,
        st.sampled_from(list(Stage)),
        st.integers(-1000, 10**10),
        st.one_of(st.just(UNKNOWN_CPU), st.integers(0, 10**9)),
        st.sampled_from(["client", "preprocess", "inference", HOP, INNER]),
    ),
    min_size=1,
    max_size=12,
).filter(lambda tiles: sum(t.duration_ns for t in tiles) > 0)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # on a busy machine
@given(
    ledgers=st.lists(TILES, min_size=1, max_size=10),
    floors=st.lists(st.builds(floor, st.sampled_from([HOP, INNER]), st.floats(0, 50)), max_size=2),
)
def test_means_of_groups_and_stages_add_up_to_the_mean_total(ledgers: list[list[Tile]], floors: list[Floor]) -> None:
    result = cell([exchange(tiles, id_=f"r-{i}") for i, tiles in enumerate(ledgers)], floors)
    mean = result["latency_ms"]["mean"]
    assert mean == pytest.approx(sum(t.duration_ns for tiles in ledgers for t in tiles) / len(ledgers) / 1e6)
    for parts in (result["groups"], result["stages"]):
        magnitude = sum(abs(part["mean_ms"]) for part in parts)  # parts may cancel out: rounding is of their size
        assert sum(part["mean_ms"] for part in parts) == pytest.approx(mean, abs=1e-9 * magnitude)
        assert sum(part["share"] for part in parts) == pytest.approx(1, abs=1e-9 * magnitude / mean)
    assert [g["group"] for g in result["groups"]] == [row for row in ROWS if group(result, row) is not None]


def test_every_stage_has_a_row() -> None:
    for one in Stage:
        result = cell([exchange([tile(one, 1.0, HOP)])])
        row = "excess" if one is Stage.TRANSIT else GROUP_OF[one].value
        assert [g["group"] for g in result["groups"]] == [row]


def test_stages_stand_in_the_order_of_the_walk() -> None:
    result = cell([walk()], [floor(HOP, 0.3), floor(INNER, 0.5)])
    assert [s["stage"] for s in result["stages"]] == [
        "schedule_lag", "serialize", "admission", "decode", "serialize", "inference_queue", "infer",
        "network", "excess", "network", "excess", "deserialize",
    ]  # fmt: skip


# --- movement: network and excess ------------------------------------------------------------------------------------


def test_transit_is_split_per_hop_at_its_own_floor() -> None:
    result = cell([walk(outer=0.4, inner=0.6), walk(1, outer=0.6, inner=1.0)], [floor(HOP, 0.3), floor(INNER, 0.5)])
    assert stage(result, "network", HOP) == pytest.approx(0.3)
    assert stage(result, "excess", HOP) == pytest.approx(0.2)
    assert stage(result, "network", INNER) == pytest.approx(0.5)
    assert stage(result, "excess", INNER) == pytest.approx(0.3)
    assert group(result, "network") == pytest.approx(0.8)
    assert group(result, "excess") == pytest.approx(0.5)


def test_a_hop_without_a_floor_has_no_network() -> None:
    """Only what was calibrated may be called network."""
    result = cell([walk(outer=0.4, inner=0.6)], [floor(INNER, 0.5)])
    assert stage(result, "network", HOP) is None
    assert stage(result, "excess", HOP) == pytest.approx(0.4)
    assert group(result, "network") == pytest.approx(0.5)
    # The median over requests is of the same quantity as the row.
    assert result["excess"]["p50_ms"] == pytest.approx(0.4 + 0.1) == pytest.approx(group(result, "excess"))
    alone = cell([walk(outer=0.4, inner=0.6)])
    assert group(alone, "network") is None
    assert group(alone, "excess") == pytest.approx(1.0)
    assert alone["excess"] is None


def test_a_request_that_did_not_take_a_hop_is_not_charged_its_floor() -> None:
    # Of four requests one took the inner hop.
    requests = [walk(0, inner=0.7), *(walk(i, inner=None) for i in (1, 2, 3))]
    result = cell(requests, [floor(HOP, 0.4), floor(INNER, 0.4)])
    assert stage(result, "network", INNER) == pytest.approx(0.4 / 4)
    assert stage(result, "excess", INNER) == pytest.approx(0.3 / 4)
    assert result["excess"]["p50_ms"] == pytest.approx(0)  # 0.3, 0, 0, 0


def test_two_tiles_of_one_hop_share_one_floor() -> None:
    """A door reports the time in which a request's bytes came in as transit of its own."""
    tiles = [tile(Stage.TRANSIT, 0.2, HOP), tile(Stage.DECODE, 1.0, cpu_ms=1.0), tile(Stage.TRANSIT, 0.5, HOP)]
    result = cell([exchange(tiles)], [floor(HOP, 0.6)])
    assert stage(result, "network", HOP) == pytest.approx(0.6)
    assert stage(result, "excess", HOP) == pytest.approx(0.1)
    assert result["excess"]["p50_ms"] == pytest.approx(0.1)


def test_excess_below_the_floor_stays_negative() -> None:
    result = cell([walk(outer=0.2, inner=None)], [floor(HOP, 0.3)])
    assert group(result, "excess") == pytest.approx(-0.1)
    assert result["excess"]["p50_ms"] == pytest.approx(-0.1)
    assert sum(g["share"] for g in result["groups"]) == pytest.approx(1)


@given(
    transits=st.lists(st.integers(-5 * MS, 500 * MS), min_size=1, max_size=40),
    p50=st.integers(0, 300 * MS),
)
def test_network_and_excess_are_transit_to_the_nanosecond(transits: list[int], p50: int) -> None:
    fixed = Tile(Stage.DECODE, 1000 * MS, 1000 * MS, "preprocess")
    requests = [exchange([fixed, Tile(Stage.TRANSIT, ns, UNKNOWN_CPU, HOP)]) for ns in transits]
    result = cell(requests, [Floor(HOP, p50, p50, p50, 5)])
    split = [s["mean_ms"] for s in result["stages"] if s["group"] == "movement"]
    assert round(math.fsum(split) * 1e6 * len(transits)) == sum(transits)


# --- quantiles, throughput -------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_quantiles_lie_between_and_keep_the_ends(values: list[float], q: float) -> None:
    ordered = sorted(values)
    assert (quantile(ordered, 0), quantile(ordered, 1)) == (ordered[0], ordered[-1])
    assert ordered[0] <= quantile(ordered, q) <= ordered[-1]


def test_quantiles_interpolate() -> None:
    assert quantile([1, 2, 3, 4], 0.5) == 2.5
    assert quantile([10, 20], 0.25) == 12.5


@pytest.mark.parametrize(("p", "enough"), [(50, 11), (90, 64), (95, 130), (99, 662)], ids=["p50", "p90", "p95", "p99"])
def test_a_percentile_of_fewer_than_mlperf_asks_for_is_not_told(p: int, enough: int) -> None:
    assert percentile([1.0] * (enough - 1), p) is None
    assert percentile([1.0] * enough, p) == 1.0
    assert minimum_count(p / 100) == enough
    # Then it has no interval either.
    few, many = (cell([walk(i, decode=2 + i % 7 / 10) for i in range(n)]) for n in (enough - 1, enough))
    assert (few["latency_ms"][f"p{p}"], f"p{p}" in few["intervals"]) == (None, False)
    interval = many["intervals"][f"p{p}"]
    assert (interval["low_ms"] or 0) <= many["latency_ms"][f"p{p}"] <= (interval["high_ms"] or math.inf)


def test_the_mean_of_the_whole_and_of_each_group_has_an_interval_around_it() -> None:
    result = cell([walk(i, decode=2 + i % 7 / 10, inner=0.6 + i % 3 / 10) for i in range(200)], [floor(HOP, 0.3)])
    mean = result["intervals"]["mean"]
    assert mean["low_ms"] < result["latency_ms"]["mean"] < mean["high_ms"]
    assert 1 <= mean["effective_n"] <= 200
    for row in result["groups"]:
        assert row["low_ms"] <= row["mean_ms"] + 1e-9
        assert row["mean_ms"] <= row["high_ms"] + 1e-9
    constant = next(row for row in result["groups"] if row["group"] == "network")
    assert constant["high_ms"] - constant["low_ms"] == pytest.approx(0, abs=1e-9)
    rate = result["intervals"]["throughput"]
    assert rate["low_rps"] < result["throughput_rps"] < rate["high_rps"]


# --- warm-up, drift --------------------------------------------------------------------------------------------------


def test_a_cold_start_is_cut_off_and_said() -> None:
    # Given 40 requests that become faster, due every 10 ms, and 360 that are alike
    cold = [walk(i, decode=2 + (40 - i) / 2 + i % 7 / 10, due_ms=i * 10) for i in range(40)]
    warm = [walk(i, decode=2 + i % 7 / 10, due_ms=i * 10) for i in range(40, 400)]
    result = cell(cold + warm)
    # Then about those are not counted, and what is said is of the others
    cut = result["warmup_cut"]
    assert 35 <= cut["requests"] <= 50
    assert cut["seconds"] == pytest.approx(cut["requests"] / 100)
    assert cut["before_due_ns"] == cut["requests"] * 10 * MS
    assert (result["requests"], result["ok"], result["counted"]) == (400, 400, 400 - cut["requests"])
    assert result["latency_ms"]["mean"] == pytest.approx(cell(warm)["latency_ms"]["mean"], rel=0.01)
    assert result["latency_ms"]["max"] < 12
    # A failure among them is a failure all the same.
    failed = walk(0, due_ms=1, error="unavailable")
    assert cell([*cold, *warm, failed])["verdict"] == "INVALID"


def test_a_warm_up_that_takes_longer_than_a_round_is_cut_over_several() -> None:
    # Given five rounds of 100, a minute apart, and a target that needs the first 160 requests to become warm
    requests = [
        walk(i, decode=2 + max(0, 160 - i) / 4 + i % 7 / 10, due_ms=i // 100 * 60_000 + i % 100 * 10)
        for i in range(500)
    ]
    rounds_ns = [n * 60_000 * MS for n in range(5)]
    result = analyse(requests, (), IDLE, 1.0, False, closed=True, rounds_ns=rounds_ns)
    # Then the first round is cut as a whole, the second one in part
    first, second, *others = result["warmup_cut"]["rounds"]
    assert first["requests"] == 100
    assert 40 <= second["requests"] <= 75
    assert first["before_due_ns"] == second["before_due_ns"] == requests[100 + second["requests"]].due_ns
    assert [row["requests"] for row in others] == [0, 0, 0]
    assert result["counted"] == 400 - second["requests"]
    assert result["warmup_cut"]["seconds"] == pytest.approx(0.99 + second["requests"] / 100)


@pytest.mark.parametrize("silent", [{2}, {1, 2}, {0}, {1}])
def test_a_round_that_nobody_answers_costs_only_itself(silent: set[int]) -> None:
    # Given three rounds of 200, a minute apart, the first of them cold, and a target that is away for some
    away = [None, "unavailable"]
    requests = [
        walk(
            i,
            decode=2 + max(0, 40 - i) + i % 7 / 10,
            due_ms=i // 200 * 60_000 + i % 200 * 10,
            error=away[i // 200 in silent],
        )
        for i in range(600)
    ]
    result = analyse(requests, (), IDLE, 1.0, False, closed=True, rounds_ns=[n * 60_000 * MS for n in range(3)])
    # Then what is known of the others is told
    assert result["ok"] == 600 - 200 * len(silent)
    rounds = result["warmup_cut"]["rounds"]
    assert [row["sought"] for row in rounds] == [number not in silent for number in range(3)]
    assert (rounds[0]["requests"] >= 35) == (0 not in silent)
    assert [row["requests"] for row in rounds[1:]] == [0, 0]
    assert [row["before_due_ns"] for row in rounds[1:]] == [None, None]
    assert result["verdict"] == "INVALID"


def test_a_queue_that_is_long_by_chance_at_the_start_of_one_round_is_no_warm_up() -> None:
    # Given five rounds of 200, of which the third begins with 40 requests that had to wait
    chance = range(400, 440)
    requests = [
        walk(i, decode=2 + (20 if i in chance else 0) + i * 7919 % 101 / 20, due_ms=i // 200 * 60_000 + i % 200 * 10)
        for i in range(1000)
    ]
    result = analyse(requests, (), IDLE, 1.0, False, closed=True, rounds_ns=[n * 60_000 * MS for n in range(5)])
    # Then they are counted as all others are
    assert result["warmup_cut"]["requests"] == 0
    # But where every later round begins so, it is cut off each
    requests = [
        walk(
            i,
            decode=2 + (20 if i % 200 < 40 <= i else 0) + i * 7919 % 101 / 20,
            due_ms=i // 200 * 60_000 + i % 200 * 10,
        )
        for i in range(1000)
    ]
    result = analyse(requests, (), IDLE, 1.0, False, closed=True, rounds_ns=[n * 60_000 * MS for n in range(5)])
    first, *others = result["warmup_cut"]["rounds"]
    assert first["requests"] == 0
    assert all(40 <= row["requests"] <= 50 for row in others)


def test_throughput_is_of_what_is_counted_in_each_round() -> None:
    # Given one sender, and two rounds a minute apart, each of which begins cold
    requests: list[Exchange] = []
    for number in range(2):
        due_ms = number * 60_000.0
        for i in range(200):
            requests.append(walk(i, decode=2 + max(0, 40 - i) + i % 7 / 10, due_ms=due_ms))
            due_ms += requests[-1].total_ns / MS
    result = analyse(requests, (), IDLE, 1.0, False, closed=True, rounds_ns=[0, 60_000 * MS])
    assert all(35 <= row["requests"] <= 50 for row in result["warmup_cut"]["rounds"])
    # Then it is that of the warm ones
    warm = [r.total_ns / 1e9 for r in requests[60:200]]
    assert result["throughput_rps"] == pytest.approx(len(warm) / sum(warm), rel=0.02)
    assert result["throughput_rps"] == pytest.approx(1e3 / result["latency_ms"]["mean"], rel=0.02)


def test_a_steady_run_is_not_cut_and_a_short_one_cannot_be_told() -> None:
    cut = cell([walk(i, decode=2 + i % 7 / 10) for i in range(400)])["warmup_cut"]
    assert (cut["requests"], cut["before_due_ns"]) == (0, None)
    short = cell([walk(i, decode=2 + i % 7 / 10) for i in range(99)])
    assert (short["warmup_cut"], short["drift"], short["counted"]) == (None, None, 99)


def test_a_drift_makes_it_contended_and_says_its_p() -> None:
    result = cell([walk(i, decode=2 + i % 7 / 10 + i / 100) for i in range(400)])
    assert result["verdict"] == "CONTENDED"
    assert result["drift"]["p"] < 0.001
    assert result["drift"]["change_ms"] == pytest.approx(3.8, rel=0.05)
    assert result["reasons"][0].startswith("latency drifted by +3.8")
    # A drift of less than a twentieth is no matter, however certain.
    slight = cell([walk(i, decode=2 + i % 7 / 10 + i / 2000) for i in range(400)])
    assert slight["drift"]["p"] < 0.001
    assert slight["verdict"] == "VALID"


def test_throughput_of_a_closed_run_is_without_ramp_and_drain() -> None:
    # Four senders and a server that answers one every 10 ms, from the first on: 100 requests/s.
    requests = []
    for index in range(60):
        due, done = max(0, (index - 3) * 10), (index + 1) * 10
        requests.append(exchange([tile(Stage.INFER, done - due, "inference", done - due)], due_ms=due))
    assert cell(requests)["throughput_rps"] == pytest.approx(100)


def test_throughput_of_an_open_run_is_the_rate_of_arrivals_that_are_kept_up_with() -> None:
    requests = [exchange([tile(Stage.INFER, 250, "inference", 250)], due_ms=i * 20) for i in range(100)]
    assert cell(requests, closed=False)["throughput_rps"] == pytest.approx(50, rel=0.01)


def test_throughput_of_a_few_requests_is_what_was_answered_over_the_whole_time() -> None:
    requests = [exchange([tile(Stage.INFER, 50, "inference", 50)], due_ms=i * 50) for i in range(3)]
    assert cell(requests)["throughput_rps"] == pytest.approx(20)


def test_failed_requests_are_not_throughput() -> None:
    requests = [walk(i, due_ms=i * 10, error="overloaded" if i % 2 else None) for i in range(100)]
    assert cell(requests)["throughput_rps"] == pytest.approx(50, rel=0.03)


# --- tail ------------------------------------------------------------------------------------------------------------


def test_the_tail_is_taken_apart_over_the_requests_in_the_band_and_adds_up() -> None:
    # Given 1000 requests of which every hundredth waits long for the engine, a few of them much longer
    requests = [walk(i, infer=5.0) for i in range(980)]
    requests += [walk(i, infer=5.0, outer=40.0 + i % 10) for i in range(980, 996)]
    requests += [walk(i, infer=500.0) for i in range(996, 1000)]
    result = cell(requests, [floor(HOP, 0.3)])
    tail = result["tail"]
    # Then the tail is the waiters: neither the fast nor the very slow are in it
    assert 5 <= tail["requests"] <= 16
    assert result["latency_ms"]["mean"] < 40 < tail["low_ms"] <= tail["mean_ms"] <= tail["high_ms"] < 100
    parts = {g["group"]: g["mean_ms"] for g in tail["groups"]}
    assert parts["excess"] > 40
    assert parts["inference"] == pytest.approx(5)
    assert sum(parts.values()) == pytest.approx(tail["mean_ms"])
    assert sum(s["mean_ms"] for s in tail["stages"]) == pytest.approx(tail["mean_ms"])


def test_a_tail_of_fewer_than_five_requests_is_not_told() -> None:
    assert cell([walk(i, decode=2 + i / 100) for i in range(300)])["tail"] is None
    assert cell([walk(i, decode=2 + i / 100) for i in range(600)])["tail"]["requests"] >= 5


@pytest.mark.parametrize(("count", "gap_ms"), [(20, 100), (60, 10), (400, 10)])
def test_a_target_that_answers_one_a_second_does_not_keep_up(count: int, gap_ms: int) -> None:
    # Given a server that answers one a second, and a short run, so that hardly any answer comes while it is asked
    requests = [
        exchange([tile(Stage.TRANSIT, (i + 1) * 1000 - i * gap_ms)], id_=f"r-{i}", due_ms=i * gap_ms)
        for i in range(count)
    ]
    facts = {"offered_rps": 1000 / gap_ms}
    result = analyse(requests, (), IDLE, float(count), False, closed=False, facts=facts)
    # Then it is not VALID, and says why
    assert result["verdict"] == "CONTENDED"
    assert any("did not keep up" in reason for reason in result["reasons"])
    # But one that answers each at once is, however few they are
    prompt = [exchange([tile(Stage.TRANSIT, 30)], id_=f"r-{i}", due_ms=i * gap_ms) for i in range(5)]
    result = analyse(prompt, (), IDLE, 4 * gap_ms / 1e3 + 0.03, False, closed=False, facts=facts)
    assert (result["verdict"], result["reasons"]) == ("VALID", [])


# --- verdicts: each for its own reason -------------------------------------------------------------------------------


def test_a_sound_run_is_valid() -> None:
    result = cell([walk(i) for i in range(20)])
    assert (result["verdict"], result["reasons"]) == ("VALID", [])
    assert result["label"] == "MEASURED"
    assert result["ledger"] == {"complete": 20, "mismatched": 0}


def test_errors_make_it_invalid() -> None:
    requests = [walk(i) for i in range(10)] + [walk(10, error="unavailable"), walk(11, error="unavailable")]
    result = cell(requests)
    assert result["verdict"] == "INVALID"
    assert result["reasons"] == ["errors: 2 unavailable"]
    assert (result["requests"], result["ok"], result["errors"]) == (12, 10, {"unavailable": 2})


def test_a_ledger_that_does_not_add_up_makes_it_invalid() -> None:
    wrong = walk(3)._replace(done_ns=walk(3).done_ns + 1)
    result = cell([walk(0), walk(1), walk(2), wrong])
    assert result["verdict"] == "INVALID"
    assert result["reasons"] == ["1 ledgers do not add up to the client's total"]
    assert result["ledger"]["mismatched"] == 1


def test_a_reply_without_a_ledger_makes_it_invalid() -> None:
    result = cell([walk(0), exchange([tile(Stage.REMOTE, 5.0, HOP)])])
    assert result["verdict"] == "INVALID"
    assert result["reasons"] == ["1 replies came without a ledger"]
    assert result["ledger"] == {"complete": 1, "mismatched": 0}
    assert group(result, "exceptional") == pytest.approx(2.5)


@pytest.mark.parametrize(("every", "verdict"), [(50, "INVALID"), (200, "VALID")])
def test_a_generator_is_late_where_more_than_one_in_a_hundred_is_sent_late(every: int, verdict: str) -> None:
    requests = [walk(i, lag=20.0 if i % every == 7 else 0.01, decode=2 + i % 7 / 10) for i in range(1000)]
    assert cell(requests, closed=False)["verdict"] == verdict


def test_a_generator_late_for_an_open_schedule_makes_it_invalid() -> None:
    requests = [walk(i, lag=3.0) for i in range(20)]
    result = cell(requests, closed=False)
    assert result["verdict"] == "INVALID"
    [reason] = result["reasons"]
    assert reason.startswith("the generator was late: schedule lag p99 3.00 ms, over 1.00 ms; ")
    assert "give it a lower rate, or a machine of its own" in reason
    # Nobody is late for a closed one: a sender waited for a CPU, and the wait is in the total.
    result = cell(requests, closed=True)
    assert result["verdict"] == "CONTENDED"
    assert group(result, "client") == pytest.approx(3.0)


def test_a_lag_of_one_percent_of_a_long_latency_is_not_late() -> None:
    requests = [walk(i, lag=3.0, infer=400.0) for i in range(20)]
    assert cell(requests, closed=False)["verdict"] == "VALID"
    assert cell([walk(i, lag=0.9) for i in range(20)], closed=False)["verdict"] == "VALID"


def test_stalls_make_it_contended() -> None:
    requests = [walk(i, decode=2.0, decode_cpu=1.0) for i in range(20)]
    result = cell(requests)
    assert result["verdict"] == "CONTENDED"
    assert result["stalled_ms"] == pytest.approx(1.0)
    assert "stalled for" in result["reasons"][0]
    # The limit is 5 % of a total of about 8 ms
    assert cell([walk(i, decode=2.0, decode_cpu=1.55) for i in range(20)])["verdict"] == "CONTENDED"
    assert cell([walk(i, decode=2.0, decode_cpu=1.7) for i in range(20)])["verdict"] == "VALID"


def test_only_stages_that_compute_can_stall() -> None:
    assert Stage.DECODE in CPU_STAGES
    assert Stage.BROKER_WAIT not in CPU_STAGES
    requests = [exchange([tile(Stage.BROKER_WAIT, 5.0, cpu_ms=0.0), tile(Stage.DECODE, 5.0)])]
    assert cell(requests)["stalled_ms"] == 0


def test_waiting_for_a_device_is_no_stall() -> None:
    waited = [exchange([tile(Stage.INFER, 8.0, "inference"), tile(Stage.DECODE, 1.0, cpu_ms=1.0)])]
    result = cell(waited, emulated=True)
    assert (result["label"], result["verdict"], result["stalled_ms"]) == ("EMULATED", "VALID", 0)
    slept = [exchange([tile(Stage.INFER, 8.0, "inference", 0.1), tile(Stage.DECODE, 1.0, cpu_ms=1.0)])]
    assert cell(slept)["verdict"] == "CONTENDED"


@pytest.mark.parametrize(
    ("facts", "verdict", "reason"),
    [
        ({"unsent": 3}, "INVALID", "3 requests of the plan were not sent"),
        (
            {"spans_lost": [{"by": "preprocess", "requests": 2, "spans": 9}]},
            "INVALID",
            "preprocess lost spans: 2 requests have none, 9 were not delivered",
        ),
        (
            {"offered_rps": 710, "ceiling_rps": 1000},
            "INVALID",
            "the generator was saturated: 710 requests/s are over 70%",
        ),
        ({"ceiling_rps": 100}, "INVALID", "the generator was saturated"),  # closed: what was achieved counts
        ({"offered_rps": 200}, "CONTENDED", "offered 200.0 requests/s, answered 1"),
        ({"warmup": {"probes": 9, "seconds": 3.0, "stable": False}}, "CONTENDED", "not warm: it still became faster"),
        (
            {"warmup": {"probes": 9, "seconds": 3.0, "stable": True, "enough": False}},
            "CONTENDED",
            "perhaps not warm: a broker's virtual machine compiles for longer than 9 probes",
        ),
    ],
)
def test_what_else_is_known_of_a_cell_is_judged(facts: dict[str, Any], verdict: str, reason: str) -> None:
    requests = [walk(i, decode=2 + i % 7 / 10) for i in range(100)]
    result = analyse(requests, (), IDLE, 1.0, False, closed=True, facts=facts)
    assert result["verdict"] == verdict
    assert any(said.startswith(reason) for said in result["reasons"])
    assert facts.items() <= result.items()
    harmless = {"unsent": 0, "spans_lost": [], "offered_rps": 120, "ceiling_rps": 5000, "dropped": 0}
    assert analyse(requests, (), IDLE, 1.0, False, closed=True, facts=harmless)["verdict"] == "VALID"


def test_a_percentile_of_too_few_independent_requests_is_told_and_changes_no_verdict() -> None:
    # Given 800 requests that were slow together: a stall of one and a half seconds, felt by all that came meanwhile
    stalled = [
        walk(i, infer=5 + i % 7 / 10 + (max(0, 600 - i) * 10 if i >= 450 else 0), due_ms=i * 10) for i in range(800)
    ]
    result = cell(stalled, closed=False)
    interval = result["intervals"]["p99"]
    assert interval["effective_n"] < 20
    said = [reason for reason in result["reasons"] if reason.startswith("too few independent requests to bound ")]
    assert len(said) == 1
    assert f"p99 (effective n at p99: {interval['effective_n']:.0f}): send more" in said[0]
    assert "p50" not in said[0]
    assert result["verdict"] == "VALID"
    # where latencies are independent, nothing has to be said
    chance = random.Random(1)  # noqa: S311
    alone = [walk(i, infer=5 + chance.random(), due_ms=i * 10) for i in range(1500)]
    assert cell(alone, closed=False)["reasons"] == []


def test_dropped_frames_are_told_and_change_no_verdict() -> None:
    requests = [walk(i, decode=2 + i % 7 / 10) for i in range(60)]
    result = analyse(requests, (), IDLE, 1.0, False, closed=False, facts={"dropped": 20})
    assert result["verdict"] == "VALID"
    assert any(reason.startswith("20 of 80 frames (25.0%) were dropped") for reason in result["reasons"])


def test_invalid_outweighs_contended_and_all_reasons_are_told() -> None:
    requests = [walk(i, decode_cpu=0.0) for i in range(4)] + [walk(4, error="internal")]
    result = cell(requests)
    assert result["verdict"] == "INVALID"
    assert len(result["reasons"]) == 2


def test_a_run_without_an_answer_has_no_numbers() -> None:
    failed = exchange([tile(Stage.SERIALIZE, 0.1, "client"), tile(Stage.UNANSWERED, 30, HOP)], error="unavailable")
    result = cell([failed, failed])
    assert (result["verdict"], result["reasons"]) == (
        "INVALID",
        ["no request was answered", "errors: 2 unavailable"],
    )
    # What was not measured is not there; it is never a zero.
    assert not {"latency_ms", "groups", "stages", "throughput_rps", "stalled_ms", "excess"} & result.keys()
    assert result["ledger"]["mismatched"] == 0  # a failure's ledger adds up, too
    assert cell([])["reasons"] == ["no request was answered"]


def test_a_failed_request_does_not_touch_the_means() -> None:
    slow = exchange([tile(Stage.UNANSWERED, 30_000, HOP)], error="deadline_exceeded")
    with_failure, without = cell([walk(0), walk(1), slow]), cell([walk(0), walk(1)])
    assert with_failure["latency_ms"] == without["latency_ms"]
    assert with_failure["groups"] == without["groups"]


# --- exemplars, and numbers as they are printed ----------------------------------------------------------------------


def test_the_median_and_the_slowest_request_are_kept_whole() -> None:
    requests = [walk(i, infer=float(i)) for i in range(1, 22)]
    result = cell(requests)
    assert result["exemplars"]["median"]["id"] == "r-11"
    slowest = result["exemplars"]["slowest"]
    assert slowest["id"] == "r-21"
    assert slowest["total_ms"] == pytest.approx(sum(t["ms"] for t in slowest["tiles"]))
    assert slowest["tiles"][3] == {"stage": "decode", "where": "preprocess", "ms": 2.0, "cpu_ms": 2.0, "facts": {}}
    assert slowest["tiles"][2]["cpu_ms"] is None


@given(st.lists(st.floats(-5, 500), min_size=1, max_size=12), st.integers(0, 3))
def test_rounded_parts_add_up_to_the_rounded_total(values: list[float], digits: int) -> None:
    total = math.fsum(values)
    parts = apportion(values, total, digits)
    assert sum(parts) == pytest.approx(round(total, digits), abs=1e-9)
    assert all(abs(part - value) <= 10**-digits for part, value in zip(parts, values, strict=True))


def test_the_total_is_rounded_as_it_is_printed() -> None:
    assert f"{8.285:.2f}" == "8.29"  # though 8.285 * 100 rounds to 828
    assert sum(apportion([4.1425, 4.1425], 8.285, 2)) == pytest.approx(8.29)


def test_a_wrong_sum_is_not_made_right() -> None:
    assert apportion([50.0, 40.0], 100.0, 1) == [50.0, 40.0]
