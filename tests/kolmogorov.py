"""Are two samples of one distribution? Kolmogorov and Smirnov's test, for series whose neighbours hang together."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from loadgen.statistics import Values, effective_n


class Same(NamedTuple):
    """`distance`: the largest between the two distribution functions; `p`: of as large a one by chance.

    `n`: how many of each sample were compared.
    """

    distance: float
    p: float
    n: tuple[int, int]


def thinned(series: Values) -> Values:
    """Every k-th value, such that as many are left as independent observations would say as much.

    The test takes observations for independent: of a queue's latencies, which are not, it would find any two different.
    """
    step = math.ceil(len(series) / effective_n(series))
    return series[step // 2 :: step]


def same(a: Values, b: Values) -> Same:
    """The two-sample test of two sets of independent observations.

    With the correction of Stephens (Journal of the Royal Statistical Society B 32, 1970) for the distribution of the
    distance, which is accurate from a dozen observations on.
    """
    values = np.concatenate((a, b))
    at_most = (np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b))
    distance = float(np.max(np.abs(np.subtract(*at_most))))
    root = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    return Same(distance, _beyond((root + 0.12 + 0.11 / root) * distance), (len(a), len(b)))


def _beyond(x: float) -> float:
    """The probability that Kolmogorov's variable exceeds `x`."""
    if x < 0.2:  # where the series converges slowly, it is 1 to many digits
        return 1.0
    total = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))
    return min(1.0, max(0.0, total))


def least_shift(a: Values, b: Values, p: float = 0.05) -> float:
    """By how much `b` would have to be later for the test to notice: the power of a comparison that found nothing.

    0 where it notices a difference as they are.
    """
    if same(a, b).p < p:
        return 0.0
    low, high = 0.0, float(np.ptp(a)) + float(np.ptp(b)) + 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if same(a, b + middle).p >= p else (low, middle)
    return high
