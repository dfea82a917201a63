"""Queues whose law is known, in virtual time: what waits, in mean service times."""

from __future__ import annotations

import heapq
import math

import numpy as np

from loadgen.statistics import Values


def lindley(n: int, load: float, seed: int, *, deterministic: bool, burn: int = 2000) -> Values:
    """Waiting times of one server with Poisson arrivals, M/D/1 or M/M/1, by Lindley's recursion; the start left out."""
    generator = np.random.default_rng(seed)
    between = generator.exponential(1 / load, n + burn)
    service = np.ones(n + burn) if deterministic else generator.exponential(1, n + burn)
    walk = np.cumsum(np.concatenate(([0.0], service[:-1] - between[1:])))
    waits: Values = (walk - np.minimum.accumulate(walk))[burn:]
    return waits


def many_servers(n: int, servers: int, load: float, seed: int, burn: int = 2000) -> Values:
    """Waiting times of M/M/c, first come, first served; the start left out."""
    generator = np.random.default_rng(seed)
    due = np.cumsum(generator.exponential(1 / (load * servers), n + burn))
    service = generator.exponential(1, n + burn)
    free = [0.0] * servers
    waits = np.empty(n + burn)
    for index, (now, takes) in enumerate(zip(due, service, strict=True)):
        start = max(float(now), heapq.heappop(free))
        waits[index] = start - now
        heapq.heappush(free, start + float(takes))
    return waits[burn:]


def pollaczek_khinchine(load: float, *, deterministic: bool) -> float:
    """The mean wait of M/D/1, or of M/M/1."""
    return load / (1 - load) / (2 if deterministic else 1)


def erlang_wait(servers: int, load: float) -> float:
    """The mean wait of M/M/c (Erlang C)."""
    a = load * servers
    last = a**servers / math.factorial(servers) / (1 - load)
    return last / (sum(a**k / math.factorial(k) for k in range(servers)) + last) / (servers * (1 - load))
