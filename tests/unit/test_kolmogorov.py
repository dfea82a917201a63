"""The test of two samples against figures of its literature, and against itself by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kolmogorov import _beyond, least_shift, same, thinned


@pytest.mark.parametrize(("x", "p"), [(1.2238, 0.10), (1.3581, 0.05), (1.6276, 0.01), (1.9495, 0.001)])
def test_the_limiting_distribution_has_the_published_quantiles(x: float, p: float) -> None:
    """Smirnov, Table for estimating the goodness of fit of empirical distributions, 1948."""
    assert _beyond(x) == pytest.approx(p, rel=2e-3)


def test_the_distance_is_that_of_the_two_distribution_functions() -> None:
    # F is 1/2 at 2, 1 at 4; G is 0 until 3: at 2 they are 1/2 apart, and ties are no step of one before the other
    assert same(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6])).distance == 0.5
    assert same(np.array([1.0, 1, 2]), np.array([1.0, 1, 2])) == (0.0, 1.0, (3, 3))


def test_samples_of_one_distribution_differ_as_often_as_the_level_says() -> None:
    generator = np.random.default_rng(1)
    found = [same(generator.exponential(1, 80), generator.exponential(1, 120)).p < 0.05 for _ in range(1000)]
    assert 0.03 < np.mean(found) < 0.07


def test_neighbours_that_hang_together_are_thinned_out() -> None:
    # Given pairs of series that are strongly correlated, of one distribution
    generator = np.random.default_rng(2)
    as_they_are, after_thinning = [], []
    for _ in range(200):
        pair = []
        for _ in range(2):
            steps = generator.normal(0, 1, 3000)
            series = np.empty(3000)
            series[0] = steps[0] / np.sqrt(1 - 0.9**2)
            for i in range(1, 3000):
                series[i] = 0.9 * series[i - 1] + steps[i]
            pair.append(series)
        as_they_are.append(same(*pair).p < 0.05)
        after_thinning.append(same(thinned(pair[0]), thinned(pair[1])).p < 0.05)
    # Then the test calls most of them different, and, thinned, about as many as it should
    assert np.mean(as_they_are) > 0.4
    assert np.mean(after_thinning) < 0.1


def test_a_shift_is_noticed_from_its_own_least_one_on() -> None:
    generator = np.random.default_rng(4)
    a, b = generator.exponential(1, 300), generator.exponential(1, 300)
    shift = least_shift(a, b)
    assert 0.02 < shift < 0.5
    assert same(a, b + 1.01 * shift).p < 0.05 <= same(a, b + 0.98 * shift).p
