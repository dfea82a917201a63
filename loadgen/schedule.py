"""WHEN: the instants at which requests are due, decided before the first is sent.

An open schedule does not wait for answers, so a slow server cannot slow down the asking, and latency is counted from
the instant at which a request was due (against "coordinated omission", as Gil Tene named it).
"""

from __future__ import annotations

import math
import random
import re
from typing import NamedTuple

from loadgen.errors import PlanError


class Schedule(NamedTuple):
    """`concurrency` > 0: closed, that many senders, each due again when it is answered. 0: open, with `due_ns`.

    `due_ns`: nanoseconds from the start, ascending, one per request. `text`: as it stood in the plan.
    """

    text: str
    requests: int
    concurrency: int
    due_ns: tuple[int, ...]


# A closed schedule has a thread per sender.
_MOST_SENDERS = 4096
_FORM = re.compile(r"^\s*(closed|constant|poisson)\s*\(\s*([0-9.]+)\s*\)\s*$")


def is_closed(text: str) -> bool:
    """Whether a schedule, which `parse_schedule` accepts, is closed."""
    return text.strip().startswith("closed")


def parse_schedule(text: str, requests: int, seed: int) -> Schedule:
    """`closed(n)`, `constant(rate)`, `poisson(rate)`; rates in requests per second. Raises `PlanError`.

    The same seed gives the same instants, so that targets are asked alike.
    """
    match = _FORM.match(text)
    if match is None:
        raise PlanError(f"schedule '{text}' is none of closed(n), constant(rate), poisson(rate)")
    if requests < 1:
        raise PlanError(f"schedule '{text}' needs at least 1 request, not {requests}")
    kind, argument = match.groups()
    try:
        value = float(argument)
    except ValueError:
        raise PlanError(f"schedule '{text}': '{argument}' is no number") from None
    if not value > 0 or not math.isfinite(value):
        raise PlanError(f"schedule '{text}': the number must be positive")
    if kind == "closed":
        if value != int(value):
            raise PlanError(f"schedule '{text}': the number of senders must be whole")
        if value > _MOST_SENDERS:
            raise PlanError(f"schedule '{text}': at most {_MOST_SENDERS} senders; an open schedule has no such limit")
        return Schedule(text, requests, int(value), ())
    mean_ns = 1e9 / value
    if kind == "constant":
        return Schedule(text, requests, 0, tuple(round(i * mean_ns) for i in range(requests)))
    generator = random.Random(seed)  # noqa: S311 # arrivals, not secrets
    due, now = [], 0.0
    for _ in range(requests):
        now += generator.expovariate(1.0) * mean_ns
        due.append(round(now))
    return Schedule(text, requests, 0, tuple(due))
