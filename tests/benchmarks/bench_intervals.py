"""How often a 95 % interval of `loadgen/statistics.py` holds the true value, for queues whose law is known.

Virtual time, so the figures are the same on every machine: they are those of docs/results-schema.md.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from loadgen.statistics import Values, mean_interval, quantile_interval
from tests.queues import erlang_wait, lindley, many_servers, pollaczek_khinchine

# (law, servers, load, requests)
CASES = (
    ("M/D/1", 1, 0.5, 2_000),
    ("M/D/1", 1, 0.7, 5_000),
    ("M/M/1", 1, 0.7, 5_000),
    ("M/M/1", 1, 0.7, 20_000),
    ("M/M/3", 3, 0.7, 5_000),
    ("M/D/1", 1, 0.9, 5_000),
    ("M/D/1", 1, 0.9, 40_000),
)
# Long enough for its own p99 to be taken for the true one.
LONG = 2_000_000


def waits(law: str, servers: int, load: float, n: int, seed: int) -> Values:
    if servers > 1:
        return many_servers(n, servers, load, seed)
    return lindley(n, load, seed, deterministic=law == "M/D/1")


def coverage(law: str, servers: int, load: float, n: int, seeds: int) -> tuple[float, float, float]:
    """Shares of the mean, of the mean as if requests were independent, and of p99."""
    true = erlang_wait(servers, load) if servers > 1 else pollaczek_khinchine(load, deterministic=law == "M/D/1")
    true_p99 = float(np.quantile(waits(law, servers, load, LONG // servers, 99), 0.99))
    mean = independent = p99 = 0
    for seed in range(1000, 1000 + seeds):
        series = waits(law, servers, load, n, seed)
        low, high, _ = mean_interval(series)
        mean += low is not None and high is not None and low <= true <= high
        independent += abs(float(series.mean()) - true) < 1.96 * float(series.std()) / math.sqrt(n)
        low, high, _ = quantile_interval(series, 0.99)
        p99 += (low is None or low <= true_p99) and (high is None or true_p99 <= high)
    return mean / seeds, independent / seeds, p99 / seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="queues per row (default: %(default)s)")
    seeds = parser.parse_args().seeds
    print("| queue, load | requests | mean | mean, as if independent | p99 |")  # noqa: T201
    print("| --- | --- | --- | --- | --- |")  # noqa: T201
    for law, servers, load, n in CASES:
        mean, independent, p99 = coverage(law, servers, load, n, seeds)
        print(  # noqa: T201
            f"| {law}, {load} | {n:,} | {mean:.0%} | {independent:.0%} | {p99:.0%} |", flush=True
        )


if __name__ == "__main__":
    main()
