"""How sure a number is: intervals that respect autocorrelation, warm-up, drift, and counts below which nothing is said.

Requests that follow one another share a queue, so their latencies are not independent, and a formula that takes them
for it gives intervals that are too narrow by a factor of five in a busy queue. What is used instead:

* Variance of a mean: **overlapping batch means** (Meketon and Schmeiser, "Overlapping batch means: something for
  nothing?", WSC 1984). Length of a batch: n/30, by Schmeiser's finding ("Batch size effects in the analysis of
  simulation output", Operations Research 30(3), 1982) that more than 30 batches gain little precision and cost
  validity. Batches that still hang together widen it, as those of a first-order autoregression would (Skart: Tafazzoli
  and others, 2011). Interval: Student's t with 1.5 * (batches - 1) degrees of freedom (Meketon and Schmeiser).
* **Effective n**: how many independent observations would give the same variance; never above n.
* Quantiles: the share of observations at most as large as the quantile is a mean, so its effective n is known too. The
  interval of Clopper and Pearson for that share with the effective n (Korn and Graubard, Survey Methodology 24, 1998)
  is turned back into latencies (Woodruff, JASA 47, 1952). Only batches with observations beyond the quantile count as
  degrees of freedom: three bursts are three facts, however many requests suffered them. Where the effective n is too
  small for an upper end, there is none: it is None, and not the maximum.
* **Minimum counts**: the early stopping of MLPerf's load generator (mlcommons/inference, loadgen/early_stopping.cc).
* Warm-up: **MSER-5** (White, "An effective truncation heuristic for bias reduction in simulation output", Simulation
  69(6), 1997; batches of five: Spratt 1998). Drift: Mann and Kendall's test with the slope of Sen (JASA 63, 1968).
* Differences of quantiles: **moving-block bootstrap** (Kuensch, Annals of Statistics 17, 1989), seeded.

Pure functions on numbers; whatever unit comes in goes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

CONFIDENCE = 0.95
_BATCHES = 30
# MLPerf's: odds of at most so many beyond the quantile, by chance, are below 1 %.
_EARLY_CONFIDENCE = 0.99

_MSER_BATCH = 5
_MSER_LEAST = 20  # batches: with fewer, five requests are more than a twentieth of all
# A cut is the largest of many possible ones, so it takes more than the usual two standard errors to be believed.
_MSER_ERRORS = 3.5

_WINDOWS = 20

_AT_ONCE = 1_000_000  # numbers of resamples in memory


class Interval(NamedTuple):
    """Of the mean or a quantile. `low`, `high`: None where the data cannot bound it. `effective_n` <= n."""

    low: float | None
    high: float | None
    effective_n: float


class Drift(NamedTuple):
    """`p`: probability of as much trend by chance; `change`: by Sen's slope, from the first window to the last."""

    p: float
    change: float
    windows: int


# --- distributions (scipy is a large dependency for three functions) -------------------------------------------------


def beta_regularized(x: float, a: float, b: float) -> float:
    """I_x(a, b), the distribution function of Beta(a, b) at `x`; by its continued fraction (DLMF 8.17.22)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # where it converges fast
        return 1.0 - beta_regularized(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    tiny = 1e-300
    c, d = 1.0, 1.0 / _away(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / _away(1 + even * d, tiny)
        c = _away(1 + even / c, tiny)
        fraction *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / _away(1 + odd * d, tiny)
        c = _away(1 + odd / c, tiny)
        step = d * c
        fraction *= step
        if abs(step - 1) < 1e-14:
            break
    return front * fraction / a


def _away(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def beta_quantile(p: float, a: float, b: float) -> float:
    """The inverse of `beta_regularized` in x: Newton's steps, and bisection where they lead away."""
    low, high = 0.0, 1.0
    x = a / (a + b)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    for _ in range(100):
        error = beta_regularized(x, a, b) - p
        low, high = (x, high) if error < 0 else (low, x)
        log_density = log_front + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x)
        step = error * math.exp(-log_density) if log_density > -600 else math.inf
        following = x - step
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - x) <= 1e-14 * x or not 0 < following < 1:
            break
        x = following
    return x


@lru_cache(maxsize=1024)
def student_quantile(p: float, degrees: float) -> float:
    """Student's t: the value below which it lies with probability `p` >= 0.5. 0 < `degrees`."""
    # P(|T| > t) = I_{d / (d + t^2)}(d / 2, 1 / 2)
    x = beta_quantile(2 * (1 - p), degrees / 2, 0.5)
    return math.sqrt(degrees * (1 - x) / x) if x > 0 else math.inf


@lru_cache(maxsize=256)
def minimum_count(q: float, over: int = 1) -> int:
    """How many observations it takes to say anything about the quantile `q` (0 < q < 1).

    The least n with P(at most `over` of n lie beyond the quantile) < 1 %: MLPerf's early stopping with tolerance 0. It
    discards one, so `over` is 1: 64 for p90, 662 for p99. With 0 it is the bare rule: 459 for p99.
    """
    low, high = over, over + 1
    while beta_regularized(q, high - over, 1 + over) >= 1 - _EARLY_CONFIDENCE:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if beta_regularized(q, middle - over, 1 + over) < 1 - _EARLY_CONFIDENCE:
            high = middle
        else:
            low = middle
    return high


# --- intervals -------------------------------------------------------------------------------------------------------


def quantile(ordered: Sequence[float] | Values, q: float) -> float:
    """Linear interpolation between order statistics (Hyndman and Fan's type 7)."""
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    below, above = float(ordered[low]), float(ordered[high])
    # An infinity beside a number (a request without an answer) must not become "not a number".
    return below if position == low or below == above else below + (above - below) * (position - low)


def batch_size(n: int) -> int:
    """The length of a batch, or block, of a series of `n`: see the module."""
    return max(1, math.ceil(n / _BATCHES))


def variance_of_mean(series: Values) -> tuple[float, float]:
    """(variance of the mean, degrees of freedom) of a stationary series, by overlapping batch means; n >= 2."""
    n = len(series)
    b = batch_size(n)
    sums = np.concatenate(([0.0], np.cumsum(series - series.mean())))
    batches = (sums[b:] - sums[:-b]) / b
    # Meketon and Schmeiser's estimator, unbiased where observations are independent.
    variance = float(np.sum(batches**2)) * b / ((n - b + 1) * (n - b)) * _still_correlated(series, b)
    # Batches of one overlap in nothing.
    return variance, (n - 1.0 if b == 1 else 1.5 * (n / b - 1))


def _still_correlated(series: Values, b: int) -> float:
    """By how much correlation between batches widens the variance; at least 1."""
    means = series[: len(series) // b * b].reshape(-1, b).mean(axis=1)
    centred = means - means.mean()
    power = float(np.sum(centred**2))
    if len(means) < 3 or power <= 0:
        return 1.0
    r = min(0.9, float(np.sum(centred[1:] * centred[:-1])) / power)
    return max(1.0, (1 + r) / (1 - r))


def effective_n(series: Values) -> float:
    """How many independent observations would say as much about the mean; 1 to n."""
    n = len(series)
    if n < 2:
        return float(n)
    spread = float(np.var(series, ddof=1))
    variance, _ = variance_of_mean(series)
    if spread <= 0 or variance <= 0:
        return float(n)
    return min(float(n), max(1.0, spread / variance))


def mean_interval(series: Values, confidence: float = CONFIDENCE) -> Interval:
    """Of the mean of a stationary series in the order of time."""
    if len(series) < 2:
        return Interval(None, None, float(len(series)))
    variance, degrees = variance_of_mean(series)
    effective = effective_n(series)
    # Where batches vary less than chance (a regular pattern), independence is assumed: no false precision.
    variance = max(variance, float(np.var(series, ddof=1)) / len(series))
    half = student_quantile((1 + confidence) / 2, degrees) * math.sqrt(variance)
    middle = float(series.mean())
    return Interval(middle - half, middle + half, effective)


def proportion_interval(hits: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Of the share of `hits` among `n` independent trials: the exact one (Clopper and Pearson, 1934)."""
    if n == 0:
        return Interval(None, None, 0.0)
    alpha = (1 - confidence) / 2
    low = beta_quantile(alpha, hits, n - hits + 1) if hits else 0.0
    high = beta_quantile(1 - alpha, hits + 1, n - hits) if hits < n else 1.0
    return Interval(low, high, float(n))


def quantile_interval(series: Values, q: float, confidence: float = CONFIDENCE) -> Interval:
    """Of the quantile `q` of a stationary series in the order of time. An infinity is a request without an answer."""
    n = len(series)
    if n == 0:
        return Interval(None, None, 0.0)
    # Ties in an order of chance: a clock's resolution, or a constant, is no burst of anything.
    order = np.lexsort((np.random.default_rng(n).random(n), series))
    ordered = series[order]
    beyond = np.zeros(n)
    beyond[order[math.ceil(q * n) :]] = 1.0
    effective = effective_n(beyond)
    # Korn and Graubard: what is known of the variance is itself uncertain.
    b = batch_size(n)
    active = int(np.count_nonzero(np.add.reduceat(beyond, np.arange(0, n, b))))
    tail = (1 + confidence) / 2
    shrink = student_quantile(tail, max(1, n - 1)) / student_quantile(tail, max(1, active - 1))
    effective = max(1.0, effective * min(1.0, shrink) ** 2)
    alpha = (1 - confidence) / 2
    under = q * effective
    low_share = beta_quantile(alpha, under, effective - under + 1)
    high_share = beta_quantile(1 - alpha, under + 1, effective - under)
    # With so many independent observations even the least, or the largest, might lie on the wrong side.
    low = float(ordered[math.floor(low_share * n)]) if (1 - q) ** effective <= alpha else None
    high = float(ordered[min(n - 1, math.ceil(high_share * n) - 1)]) if q**effective <= alpha else None
    return Interval(low, high, effective)


# --- warm-up and drift -----------------------------------------------------------------------------------------------


def ranks(series: Values) -> Values:
    """1 to n, ties sharing their mean."""
    _, inverse, counts = np.unique(series, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: Values = ((last - counts + 1 + last) / 2.0)[inverse.reshape(-1)]
    return shared


def warm_up_cut(series: Values) -> int | None:
    """How many observations at the start are warm-up; 0 where none are, None where there are too few to tell (100).

    MSER-5, on ranks: on the values themselves it takes all that comes before a stall of the server for warm-up, and
    cuts the stall away with it. For the same reason a cut is made only where its first half differs from what stays, by
    3.5 standard deviations; where it does not, shorter ones are tried. At the limit of half the series it is no warm-up
    (White's rule), but a drift. One batch more is cut than MSER says: the end of the warm-up may lie within it.
    """
    count = len(series) // _MSER_BATCH
    if count < _MSER_LEAST:
        return None
    batches = ranks(series)[: count * _MSER_BATCH].reshape(count, _MSER_BATCH).mean(axis=1)
    left = np.arange(count, 0, -1, dtype=np.float64)
    sums, squares = np.cumsum(batches[::-1])[::-1], np.cumsum(batches[::-1] ** 2)[::-1]
    statistic = (squares - sums**2 / left) / left**2
    limit = count // 2
    while limit > 0:
        cut = int(np.argmin(statistic[: limit + 1]))
        if cut == 0:
            return 0
        if cut < count // 2 and _starts_apart(batches, cut):
            return (cut + 1) * _MSER_BATCH
        limit = cut // 2
    return 0


def _starts_apart(batches: Values, cut: int) -> bool:
    """Whether the first half of what would be cut differs from pieces of the same length in what stays."""
    length = math.ceil(cut / 2)
    sums = np.concatenate(([0.0], np.cumsum(batches[cut:])))
    pieces = (sums[length:] - sums[:-length]) / length
    middle = float(np.median(pieces))
    # Median deviations: a stall that stays must not make the start look ordinary. 1.4826: as a standard deviation.
    spread = 1.4826 * float(np.median(np.abs(pieces - middle)))
    # A piece of half the rest has few others to be compared with: at least what chance alone would do.
    chance = 1.4826 * float(np.median(np.abs(batches[cut:] - np.median(batches[cut:])))) / math.sqrt(length)
    return abs(float(batches[:length].mean()) - middle) > _MSER_ERRORS * max(spread, chance)


def drift(series: Values) -> Drift | None:
    """Whether a series in the order of time has a trend; None where there are too few to tell (100).

    Mann and Kendall's test over the medians of 20 windows of equal count: medians, so that a stall is no trend;
    windows, so that the correlation of neighbours is within them. What correlation remains between windows widens the
    variance (Hamed and Rao, Journal of Hydrology 204, 1998).
    """
    n = len(series)
    if n < 5 * _WINDOWS:
        return None
    medians = np.array([np.median(part) for part in np.array_split(series, _WINDOWS)])
    k = _WINDOWS
    later, earlier = np.triu_indices(k, 1)[1], np.triu_indices(k, 1)[0]
    steps = medians[later] - medians[earlier]
    s = float(np.sign(steps).sum())
    _, ties = np.unique(medians, return_counts=True)
    variance = (k * (k - 1) * (2 * k + 5) - float(np.sum(ties * (ties - 1) * (2 * ties + 5)))) / 18
    slope = float(np.median(steps / (later - earlier)))
    if variance <= 0:  # all alike
        return Drift(1.0, 0.0, k)
    variance *= _hamed_rao(medians - slope * np.arange(k))
    z = (s - math.copysign(1, s)) / math.sqrt(variance) if s else 0.0
    return Drift(2 * (1 - NormalDist().cdf(abs(z))), slope * (k - 1), k)


def _hamed_rao(detrended: Values) -> float:
    """By how much correlation of the ranks widens the variance of Mann and Kendall's statistic; at least 1."""
    k = len(detrended)
    centred = ranks(detrended) - (k + 1) / 2
    power = float(np.sum(centred**2))
    if power <= 0:
        return 1.0
    total = 0.0
    for lag in range(1, k - 3):
        r = float(np.sum(centred[lag:] * centred[:-lag])) / power
        if abs(r) > 1.96 / math.sqrt(k):  # only what is not chance
            total += (k - lag) * (k - lag - 1) * (k - lag - 2) * r
    return max(1.0, 1 + 2 * total / (k * (k - 1) * (k - 2)))


# --- differences -----------------------------------------------------------------------------------------------------


def difference_of_means(a: Values, b: Values, confidence: float = CONFIDENCE) -> Interval:
    """Of mean(b) - mean(a), two independent series (Welch, Biometrika 34, 1947, with variances of batch means)."""
    if len(a) < 2 or len(b) < 2:
        return Interval(None, None, float(min(len(a), len(b))))
    parts = []
    for series in (a, b):
        variance, degrees = variance_of_mean(series)
        parts.append((max(variance, float(np.var(series, ddof=1)) / len(series)), degrees))
    total = sum(variance for variance, _ in parts)
    middle = float(b.mean() - a.mean())
    effective = min(effective_n(a), effective_n(b))
    if total <= 0:
        return Interval(middle, middle, effective)
    degrees = total**2 / sum(variance**2 / d for variance, d in parts)
    half = student_quantile((1 + confidence) / 2, degrees) * math.sqrt(total)
    return Interval(middle - half, middle + half, effective)


def differences_of_quantiles(
    a: Values,
    b: Values,
    qs: Sequence[float],
    *,
    paired: bool,
    seed: int,
    confidence: float = CONFIDENCE,
    resamples: int = 1000,
) -> list[Interval]:
    """Of quantile(b) - quantile(a) for each of `qs`, by the moving-block bootstrap, blocks as long as batches.

    `paired`: the same blocks are drawn of both. Raises `ValueError` where pairs are wanted and lengths differ.
    """
    if paired and len(a) != len(b):
        raise ValueError("paired series have one length")
    generator = np.random.default_rng(abs(seed))
    differences = np.empty((len(qs), 0))
    at_once = max(1, _AT_ONCE // max(len(a), len(b)))
    while (missing := resamples - differences.shape[1]) > 0:
        rows = min(missing, at_once)
        at = _blocks(len(a), rows, generator)
        other = at if paired else _blocks(len(b), rows, generator)
        more = np.quantile(b[other], qs, axis=1) - np.quantile(a[at], qs, axis=1)
        differences = np.concatenate((differences, more), axis=1)
    tail = (1 - confidence) / 2
    lows, highs = np.quantile(differences, [tail, 1 - tail], axis=1)
    found = []
    for q, low, high in zip(qs, lows, highs, strict=True):
        effective = min(_effective_at(a, q), _effective_at(b, q))
        # As few as cannot bound the quantile of one series say nothing of a difference, however alike resamples are.
        bounded = max(q, 1 - q) ** effective <= tail
        found.append(Interval(float(low) if bounded else None, float(high) if bounded else None, effective))
    return found


def _effective_at(series: Values, q: float) -> float:
    return effective_n((series > np.quantile(series, q)).astype(np.float64))


def _blocks(n: int, rows: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices of `rows` resamples: blocks of neighbours, each as likely as every other."""
    b = batch_size(n)
    starts = generator.integers(0, n - b + 1, size=(rows, math.ceil(n / b)))
    indices: npt.NDArray[np.int64] = (starts[:, :, None] + np.arange(b)).reshape(rows, -1)[:, :n]
    return indices
