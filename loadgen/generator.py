"""The generator's own ceiling: what its senders can send to nobody. Beyond most of it, its own queue is in the latency.

An upper bound: the null target is asked with the same bytes and the same code, but no link carries them.
"""

from __future__ import annotations

import math

from loadgen.errors import PlanError
from loadgen.schedule import Schedule
from loadgen.sender import Job
from loadgen.senders import Senders
from loadgen.target import NULL
from loadgen.verdict import SATURATED

_PILOT = 10  # per sender
_SECONDS = 0.5
_MOST = 100_000
_TIMEOUT_S = 60.0


def ceiling_rps(senders: Senders, size: str) -> float:
    """Requests per second that the senders send to a target that answers at once, measured for half a second."""
    pilot = _PILOT * senders.count
    _rate(senders, size, pilot)  # the first ones are slower
    rate = _rate(senders, size, pilot)
    return _rate(senders, size, max(pilot, min(_MOST, round(rate * _SECONDS))))


def _rate(senders: Senders, size: str, count: int) -> float:
    """All due at once, so that each sender sends as fast as it can."""
    schedule = Schedule("ceiling", count, 0, (0,) * count)
    exchanges = senders.run(Job(NULL, size, schedule, "ceiling-", _TIMEOUT_S, math.inf)).exchanges
    taken = max(e.done_ns for e in exchanges) - min(e.due_ns for e in exchanges)
    return len(exchanges) / max(1, taken) * 1e9


def refuse_saturated(schedule: Schedule, size: str, ceiling: float, senders: int) -> None:
    """Raises `PlanError` for a rate that is over 70 % of the ceiling: it would measure the generator."""
    rate = schedule.peak_rps
    if rate is None or rate <= SATURATED * ceiling:
        return
    who = "one sender" if senders == 1 else f"{senders} senders"
    raise PlanError(
        f"schedule '{schedule.text}' for {size} asks for {rate:g} requests/s, over {SATURATED:.0%} of the "
        f"{ceiling:.0f} that this generator ({who}) can send to nobody: it would measure the generator. Give it more "
        "senders (the plan's 'senders = N', with as many free CPUs), lower the rate, or run all the same with "
        "'allow_saturated = true'"
    )
