"""How sure a number is: checked against published values, and against queues whose law is known, in virtual time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.statistics import (
    Values,
    batch_size,
    beta_quantile,
    beta_regularized,
    difference_of_means,
    differences_of_quantiles,
    drift,
    effective_n,
    mean_interval,
    minimum_count,
    proportion_interval,
    quantile,
    quantile_interval,
    ranks,
    student_quantile,
    variance_of_mean,
    warm_up_cut,
)
from tests.queues import erlang_wait, lindley, many_servers, pollaczek_khinchine

# --- distributions, against tables -----------------------------------------------------------------------------------


# Of 95 %, as in tables of exact binomial limits.
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 100, 0.0, 0.0362), (100, 100, 0.9638, 1.0), (5, 10, 0.1871, 0.8129), (1, 20, 0.0013, 0.2487)],
)
def test_exact_limits_of_a_proportion_are_those_of_the_tables(hits: int, n: int, low: float, high: float) -> None:
    found = proportion_interval(hits, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_of_no_trial_nothing_is_known() -> None:
    assert proportion_interval(0, 0)[:2] == (None, None)


@pytest.mark.parametrize(
    ("p", "degrees", "value"),
    [(0.975, 1, 12.706), (0.975, 10, 2.228), (0.975, 29, 2.045), (0.995, 5, 4.032), (0.95, 1e6, 1.645)],
)
def test_students_quantiles_are_those_of_the_tables(p: float, degrees: float, value: float) -> None:
    assert student_quantile(p, degrees) == pytest.approx(value, abs=0.0006)


@given(n=st.integers(1, 300), q=st.floats(0.01, 0.99), data=st.data())
def test_the_beta_function_is_the_binomial_tail(n: int, q: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n - 1))
    # P(at most k of n, each with probability 1 - q), summed
    exact = math.fsum(math.comb(n, j) * (1 - q) ** j * q ** (n - j) for j in range(k + 1))
    assert beta_regularized(q, n - k, k + 1) == pytest.approx(exact, abs=1e-9)


@given(st.floats(0.001, 0.999), st.floats(0.5, 500), st.floats(0.5, 500))
def test_the_beta_quantile_inverts_it(p: float, a: float, b: float) -> None:
    x = beta_quantile(p, a, b)
    assert 0 <= x <= 1
    if 1e-9 < x < 1 - 1e-9:
        assert beta_regularized(x, a, b) == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize(
    ("q", "over", "count"),
    # MLPerf: 64 queries for p90 (single stream), 662 for p99 (multi stream), from 459 + ...; ln 0.01 / ln q for none.
    [(0.9, 1, 64), (0.99, 1, 662), (0.99, 0, 459), (0.9, 0, 44), (0.999, 0, 4603)],
)
def test_minimum_counts_are_those_that_mlperf_publishes(q: float, over: int, count: int) -> None:
    assert minimum_count(q, over) == count


@given(st.floats(0.3, 0.999), st.integers(0, 4))
def test_a_minimum_count_is_the_least_that_meets_its_law(q: float, over: int) -> None:
    def odds(n: int) -> float:
        return sum(math.comb(n, j) * (1 - q) ** j * q ** (n - j) for j in range(over + 1))

    n = minimum_count(q, over)
    assert odds(n) < 0.01 + 1e-9
    assert odds(n - 1) >= 0.01 - 1e-9


# --- series ----------------------------------------------------------------------------------------------------------


def autoregression(n: int, r: float, seed: int) -> Values:
    noise = np.random.default_rng(seed).normal(0, math.sqrt(1 - r * r), n + 200)
    series, last = np.empty(n + 200), 0.0
    for index, step in enumerate(noise):
        last = r * last + step
        series[index] = last
    return series[200:]


def test_the_effective_n_of_an_autoregression_is_that_of_its_law() -> None:
    """(1 - r) / (1 + r) of n."""
    found = float(np.median([effective_n(autoregression(6000, 0.8, seed)) for seed in range(20)]))
    assert found == pytest.approx(6000 / 9, rel=0.25)
    independent = float(np.median([effective_n(autoregression(3000, 0.0, seed)) for seed in range(20)]))
    assert independent > 0.7 * 3000


def test_the_variance_of_a_mean_is_unbiased_for_independent_observations() -> None:
    """But for what it is widened by where batches happen to agree."""
    found = float(np.mean([variance_of_mean(autoregression(900, 0.0, seed))[0] for seed in range(200)]))
    assert 1 / 900 * 0.95 < found < 1 / 900 * 1.35
    assert batch_size(900) == 30


@pytest.mark.parametrize(("law", "load"), [("M/D/1", 0.5), ("M/D/1", 0.7), ("M/M/1", 0.6), ("M/M/3", 0.7)], ids=str)
def test_the_mean_wait_of_a_queue_lies_in_its_interval_about_as_often_as_it_says(law: str, load: float) -> None:
    seeds, n = 120, 6000
    if law == "M/M/3":
        seeds = 60
        true = erlang_wait(3, load)
        runs = [many_servers(n, 3, load, seed) for seed in range(seeds)]
    else:
        true = pollaczek_khinchine(load, deterministic=law == "M/D/1")
        runs = [lindley(n, load, seed, deterministic=law == "M/D/1") for seed in range(seeds)]
    intervals = [mean_interval(run) for run in runs]
    covered = sum(i.low is not None and i.high is not None and i.low <= true <= i.high for i in intervals) / seeds
    assert 0.87 <= covered <= 1
    # As if requests were independent, it would be half that: the test can fail.
    naive = [abs(run.mean() - true) < 1.96 * run.std() / math.sqrt(n) for run in runs]
    assert sum(naive) / seeds < 0.75


def test_a_percentile_of_a_queue_lies_in_its_interval_about_as_often_as_it_says() -> None:
    """M/M/1: P(wait > t) = load * exp(-(1 - load) t)."""
    load, seeds = 0.6, 120
    true = {q: math.log(load / (1 - q)) / (1 - load) for q in (0.9, 0.99)}
    covered, bounded = dict.fromkeys(true, 0), 0
    for seed in range(seeds):
        run = lindley(6000, load, seed, deterministic=False)
        for q, value in true.items():
            low, high, _ = quantile_interval(run, q)
            covered[q] += (low is None or low <= value) and (high is None or value <= high)
            bounded += q == 0.99 and high is not None
    assert covered[0.9] / seeds >= 0.87
    assert covered[0.99] / seeds >= 0.87
    assert bounded > seeds / 10  # an interval without an end would always do


def test_an_interval_of_independent_observations_is_the_textbooks() -> None:
    covered, lengths = 0, []
    for seed in range(300):
        run = np.random.default_rng(seed).exponential(1, 1000)
        low, high, _ = quantile_interval(run, 0.9)
        assert low is not None
        assert high is not None
        covered += low <= math.log(10) <= high
        lengths.append(high - low)
    assert 0.93 <= covered / 300 <= 1
    # Asymptotically 2 * 1.96 * sqrt(q (1 - q) / n) / density, and the density is 1 - q
    textbook = 2 * NormalDist().inv_cdf(0.975) * math.sqrt(0.9 * 0.1 / 1000) / 0.1
    assert textbook < float(np.mean(lengths)) < 1.6 * textbook


def test_a_percentile_that_so_few_cannot_bound_has_no_upper_end() -> None:
    run = np.random.default_rng(1).exponential(1, 300)
    low, high, _ = quantile_interval(run, 0.99)
    assert low is not None
    assert high is None  # 0.99 ** 300 = 5 %: the largest may well lie below p99
    # One long stall is one observation, however many requests suffered it.
    run = np.random.default_rng(1).exponential(1, 3000)
    run[1000:1100] += 50
    _, high, effective = quantile_interval(run, 0.99)
    assert high is None
    assert effective < 100


def test_requests_without_an_answer_are_infinitely_late() -> None:
    run = np.random.default_rng(1).exponential(1, 1000)
    run[::50] = math.inf
    low, high, _ = quantile_interval(run, 0.9)
    assert low is not None
    assert high is not None
    assert math.isfinite(low)
    assert quantile_interval(run, 0.99).high in (None, math.inf)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=80), st.floats(0.01, 0.99))
def test_whatever_the_numbers_an_interval_holds_what_it_is_of(values: list[float], q: float) -> None:
    series = np.array(values)
    for interval, middle in ((mean_interval(series), series.mean()), (quantile_interval(series, q), None)):
        assert 0 <= interval.effective_n <= len(values)
        if interval.low is not None and interval.high is not None:
            assert interval.low <= interval.high
            if middle is not None:
                assert interval.low - 1e-6 <= middle <= interval.high + 1e-6
    assert sorted(values)[0] <= quantile(np.sort(series), q) <= sorted(values)[-1]


# --- warm-up, drift --------------------------------------------------------------------------------------------------


def test_a_warm_up_is_found() -> None:
    for seed in range(20):
        series = np.random.default_rng(seed).exponential(1, 1000)
        series[:60] += 10 * np.exp(-np.arange(60) / 20)
        cut = warm_up_cut(series)
        assert cut is not None
        assert 20 <= cut <= 100
    series = np.random.default_rng(1).normal(5, 0.2, 1000)
    series[:12] += 30  # a compiler's first calls: twelve requests that would be p99
    assert warm_up_cut(series) == 15
    series[300:340] += 100  # a stall later on changes nothing of that
    assert warm_up_cut(series) == 15


def test_noise_and_queues_are_not_taken_for_warm_up() -> None:
    generator = np.random.default_rng(1)
    assert sum(warm_up_cut(generator.exponential(1, 600)) != 0 for _ in range(200)) <= 4
    assert sum(warm_up_cut(lindley(2000, 0.7, seed, deterministic=True)) != 0 for seed in range(100)) <= 6


def test_a_stall_in_the_middle_is_neither_cut_away_nor_a_trend() -> None:
    """MSER on the values themselves would remove all that comes before it, and the stall with it."""
    for seed in range(20):
        series = np.random.default_rng(seed).exponential(1, 1000)
        series[300:340] += np.linspace(1000, 0, 40)
        assert warm_up_cut(series) == 0
        found = drift(series)
        assert found is not None
        assert found.p > 1e-3


def test_a_drift_is_no_warm_up_and_is_found_with_its_size() -> None:
    series = np.random.default_rng(1).exponential(1, 2000) + np.linspace(0, 3, 2000)
    assert warm_up_cut(series) == 0
    found = drift(series)
    assert found is not None
    assert found.p < 1e-5
    assert found.change == pytest.approx(3, rel=0.15)


def test_a_steady_run_drifts_about_as_seldom_as_its_p_says() -> None:
    generator = np.random.default_rng(1)
    assert sum(_p(generator.exponential(1, 400)) < 0.05 for _ in range(400)) / 400 < 0.09
    # In a queue neighbours agree; windows much less.
    assert sum(_p(lindley(2000, 0.7, seed, deterministic=True)) < 0.01 for seed in range(200)) / 200 < 0.04
    assert _p(np.ones(500)) == 1.0


def _windows(medians: Sequence[float]) -> Values:
    """A series whose twenty windows have these medians."""
    return np.repeat(np.array(medians, dtype=np.float64), 5)


def _mann_kendall_z(medians: Sequence[float]) -> float:
    """Of independent values without ties (Kendall, Rank Correlation Methods)."""
    s = sum(math.copysign(1, later - earlier) for earlier, later in itertools.combinations(medians, 2))
    n = len(medians)
    return (s - math.copysign(1, s)) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)


def test_correlation_of_the_windows_widens_the_variance_of_the_trend_as_hamed_and_rao_say() -> None:
    # Given windows that rise and fall slowly upon a slope: without the slope their ranks hang together
    medians = [0.7, -0.34, -1.68, -4.0, -3.15, -0.87, -0.35, 0.55, 1.77, 0.8]
    medians += [3.64, 2.28, 2.53, 5.12, 4.23, 3.83, 2.93, 3.13, 0.85, 0.65]
    slope = float(np.median([(y - x) / (j - i) for (i, x), (j, y) in itertools.combinations(enumerate(medians), 2)]))
    # When the correction is computed as the paper has it: n / n* = 1 + 2 / (n (n - 1) (n - 2)) times the sum over lags
    # of (n - i) (n - i - 1) (n - i - 2) r_i, of ranks, where r_i is no chance
    n = len(medians)
    left = [value - slope * i for i, value in enumerate(medians)]
    rank = [sum(other < value for other in left) + 1 - (n + 1) / 2 for value in left]
    correlations = {
        lag: sum(rank[i] * rank[i + lag] for i in range(n - lag)) / sum(r * r for r in rank) for lag in range(1, n - 3)
    }
    factor = 1 + 2 / (n * (n - 1) * (n - 2)) * sum(
        (n - lag) * (n - lag - 1) * (n - lag - 2) * r for lag, r in correlations.items() if abs(r) > 1.96 / math.sqrt(n)
    )
    assert factor > 1.9
    # Then the probability is that of the wider variance
    z = _mann_kendall_z(medians) / math.sqrt(factor)
    assert _p(_windows(medians)) == pytest.approx(2 * (1 - NormalDist().cdf(abs(z))), abs=1e-9)
    # and where windows are independent nothing is widened
    plain = [4, 11, 7, 15, 1, 18, 9, 3, 13, 6, 17, 2, 12, 20, 5, 16, 8, 14, 19, 10]
    assert _p(_windows(plain)) == pytest.approx(2 * (1 - NormalDist().cdf(abs(_mann_kendall_z(plain)))), abs=1e-9)


def _p(series: Values) -> float:
    found = drift(series)
    assert found is not None
    return found.p


def test_too_few_to_tell() -> None:
    assert warm_up_cut(np.ones(99)) is None
    assert drift(np.ones(99)) is None
    assert mean_interval(np.ones(1)) == (None, None, 1.0)
    assert quantile_interval(np.ones(0), 0.5) == (None, None, 0.0)


def test_ranks_share_ties() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


# --- differences -----------------------------------------------------------------------------------------------------


def test_the_difference_of_two_queues_is_zero_as_often_as_it_says() -> None:
    seeds = 100
    covered = 0
    for seed in range(seeds):
        a, b = (lindley(3000, 0.6, 2 * seed + i, deterministic=True) for i in (0, 1))
        low, high, _ = difference_of_means(a, b)
        assert low is not None
        assert high is not None
        covered += low <= 0 <= high
    assert 0.87 <= covered / seeds <= 1


def test_a_difference_that_is_there_is_shown() -> None:
    a, b = lindley(3000, 0.6, 1, deterministic=True), lindley(3000, 0.6, 2, deterministic=True) + 1
    low, high, _ = difference_of_means(a, b)
    assert low is not None
    assert high is not None
    assert 0 < low < 1 < high


def test_pairs_tell_what_two_means_cannot() -> None:
    # Given the same requests, of very different lengths, through two targets of which one takes 0.1 longer
    a = np.random.default_rng(1).exponential(10, 800)
    b = a + np.random.default_rng(2).normal(0.1, 0.05, 800)
    (paired, _), (unpaired, _) = (
        differences_of_quantiles(a, b, (0.5, 0.9), paired=pairs, seed=1) for pairs in (True, False)
    )
    assert paired.low is not None
    assert unpaired.low is not None
    assert paired.low > 0 > unpaired.low
    assert paired == differences_of_quantiles(a, b, (0.5,), paired=True, seed=1)[0]
    assert paired != differences_of_quantiles(a, b, (0.5,), paired=True, seed=2)[0]
    with pytest.raises(ValueError, match="one length"):
        differences_of_quantiles(a, b[1:], (0.5,), paired=True, seed=1)


def test_one_burst_in_each_of_two_runs_shows_no_difference_of_tails() -> None:
    a, b = (np.random.default_rng(seed).exponential(1, 1000) for seed in (1, 2))
    a[300:340] += 50
    b[600:640] += 80
    ((low, high, effective),) = differences_of_quantiles(a, b, (0.99,), paired=True, seed=1)
    assert (low, high) == (None, None)
    assert effective < 100


def test_the_difference_of_two_medians_is_zero_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        a, b = (lindley(2000, 0.6, 2 * seed + i, deterministic=True) for i in (0, 1))
        ((low, high, _),) = differences_of_quantiles(a, b, (0.75,), paired=False, seed=1, resamples=300)
        assert low is not None
        assert high is not None
        covered += low <= 0 <= high
    assert 0.83 <= covered / 60 <= 1
