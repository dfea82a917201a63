"""The highest rate that meets an objective: `p99<50ms`.

First the rate is doubled until a trial fails, then the bracket is halved (on a logarithmic scale). A trial is judged by
the interval of its percentile, not by the percentile: it holds where the upper end is within the objective, fails where
the lower end is not, and is sent anew with twice the requests where the objective lies between (with as many where the
generator was late: nothing was learned of the server then). So the answer is a
bracket, and each end of it holds with the confidence that was asked for. The highest of many rates that held is the one
that was luckiest, so it is tried once more with fresh requests, and given up for a lower one where it does not hold
again.

A request that fails never meets the objective. A trial whose latency grows from its begin to its end does not hold,
however small it still is: that rate has no steady state. Arrivals are random (Poisson) and latency counts from the
instant at which a request was due, so a queue cannot slow down the asking.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from loadgen.analysis import schedule_lag, throughput
from loadgen.errors import PlanError
from loadgen.statistics import Values, drift, minimum_count, quantile, quantile_interval, warm_up_cut
from loadgen.target import Exchange
from loadgen.verdict import DRIFT_P, DRIFT_SHARE, LAG_LIMIT_MS, LAG_SHARE

SCHEMA = "beyond-inference/knee/1"

_OBJECTIVE = re.compile(r"^\s*p([0-9]{1,2}(?:\.[0-9]+)?)\s*(?:<=?)\s*([0-9.]+)\s*(us|ms|s)\s*$")
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
# However few its percentile asks for, a trial lasts long enough for a queue to show itself, and for drift to be told.
_LEAST_S = 5.0
_LEAST = 100
_DOUBLINGS = 3
_LATE = 2
_WAS_LATE = "the generator was late"
_DOWN = 64.0


class Objective(NamedTuple):
    """The share `q` of requests is to be answered within `limit_ms`."""

    text: str
    q: float
    limit_ms: float


class Trial(NamedTuple):
    """One rate, tried once. `held`: None where that cannot be told, `reason` says why. Of `counted` requests."""

    rate_rps: float
    requests: int
    counted: int
    errors: int
    value_ms: float | None
    low_ms: float | None
    high_ms: float | None
    effective_n: float
    achieved_rps: float
    warmup_cut: int
    held: bool | None
    reason: str
    seconds: float


class Limits(NamedTuple):
    """Of a search. `budget_s` is not exceeded: a trial that does not fit is not begun.

    `start_rps`: the first rate. `most_rps`: what the generator can be trusted with. `precision`: the bracket is narrow
    enough where its ends differ by this share. `patience_s`: a request is given up after that.
    """

    budget_s: float
    start_rps: float
    most_rps: float
    precision: float
    confidence: float
    patience_s: float


class Found(NamedTuple):
    """`held_rps`: the highest rate that held, None where none did; `failed_rps`: the lowest above it that did not.

    `confirmed`: it held twice.
    """

    held_rps: float | None
    failed_rps: float | None
    confirmed: bool
    because: str
    trials: Sequence[Trial]
    seconds: float


Measure = Callable[[float, int], Sequence[Exchange]]  # (requests per second, requests) -> what came back


def parse_objective(text: str) -> Objective:
    """`p99<50ms`, `p99.9<=1.5s`. Raises `PlanError`."""
    match = _OBJECTIVE.match(text)
    if match is None:
        raise PlanError(f"--slo '{text}' is no objective; give a percentile and a limit, e.g. p99<50ms")
    try:
        percent, limit = float(match[1]), float(match[2]) * _MS[match[3]]
    except ValueError:
        raise PlanError(f"--slo '{text}': '{match[2]}' is no number") from None
    if not 1 <= percent < 100 or not 0 < limit < math.inf:
        raise PlanError(f"--slo '{text}': the percentile is 1 or more and below 100, the limit is above 0")
    return Objective(text.replace(" ", ""), percent / 100, limit)


def requests_for(objective: Objective, rate_rps: float) -> int:
    """How many a trial sends: the minimum count of its percentile twice; 100, and five seconds of them, at least."""
    return max(_LEAST, 2 * minimum_count(objective.q), math.ceil(_LEAST_S * rate_rps))


def judge(
    objective: Objective, rate_rps: float, exchanges: Sequence[Exchange], limits: Limits, seconds: float
) -> Trial:
    """A trial from what came back."""
    ordered = sorted(exchanges, key=lambda exchange: exchange.due_ns)
    whole: Values = np.array([e.total_ns / 1e6 if e.error is None else math.inf for e in ordered], dtype=np.float64)
    cut = warm_up_cut(whole) or 0
    series, counted = whole[cut:], ordered[cut:]
    errors = sum(1 for e in counted if e.error is not None)
    # Each end by itself is to hold with the confidence that was asked for.
    low, high, effective = quantile_interval(series, objective.q, 2 * limits.confidence - 1)
    value = quantile(np.sort(series), objective.q) if len(series) >= minimum_count(objective.q) else None
    held, reason = _held(objective, series, low, high, value, limits)
    lag = schedule_lag([e for e in counted if e.error is None])
    if not held and lag is not None and value is not None:
        late = max(LAG_LIMIT_MS, LAG_SHARE * (value if math.isfinite(value) else objective.limit_ms))
        if lag["p99"] > late:
            held, reason = None, f"{_WAS_LATE}: schedule lag p99 {lag['p99']:.1f} ms"

    def told(ms: float | None) -> float | None:
        return ms if ms is not None and math.isfinite(ms) else None

    return Trial(
        rate_rps,
        len(ordered),
        len(series),
        errors,
        told(value),
        told(low),
        told(high),
        effective,
        throughput([ordered]),
        cut,
        held,
        reason,
        seconds,
    )


def _held(
    objective: Objective, series: Values, low: float | None, high: float | None, value: float | None, limits: Limits
) -> tuple[bool | None, str]:
    limit = objective.limit_ms
    if value is None:
        return None, f"{len(series)} requests are too few to tell"
    if low is not None and low > limit:
        return False, "the lower end of the interval is over the limit"
    patient = np.minimum(series, limits.patience_s * 1e3)
    trend = drift(patient)
    middle = float(np.median(patient))
    if trend is not None and trend.p < DRIFT_P and trend.change > DRIFT_SHARE * middle:
        return False, f"latency grew by {trend.change:.1f} ms during the trial: no steady state"
    if high is not None and high <= limit:
        return True, "the upper end of the interval is within the limit"
    return None, "the limit lies within the interval"


class Search:
    """One search; `run` it once."""

    def __init__(
        self,
        objective: Objective,
        limits: Limits,
        measure: Measure,
        say: Callable[[Trial], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`say` hears of every trial when it is over. Raises `PlanError` where not even the first trial fits."""
        self._objective = objective
        self._limits = limits
        self._measure = measure
        self._say = say
        self._clock = clock
        self._begin = 0.0
        self._trials: list[Trial] = []
        self._held: list[float] = []  # rates, ascending
        self._failed: float | None = None
        self._first = min(limits.start_rps, limits.most_rps)
        first = 2 * self.takes_s(self._first)
        if first > limits.budget_s:
            raise PlanError(
                f"to try {objective.text} at {self._first:g} requests/s twice takes up to {first:.0f} s "
                f"({requests_for(objective, self._first)} requests each), over the {limits.budget_s:.1f} s left "
                "of the budget; give a larger --budget-s, or begin with a higher rate (--from)"
            )

    def takes_s(self, rate_rps: float, times: int = 1) -> float:
        """How long a trial may take: its schedule, and the patience with the last request."""
        return times * requests_for(self._objective, rate_rps) / rate_rps + self._limits.patience_s

    def run(self) -> Found:
        """Bracket, bisection, confirmation; within the budget."""
        self._begin = self._clock()
        while True:
            rate, because = self._next()
            trial = None if rate is None else self._try(rate)
            if trial is not None:
                self._note(trial)
                continue
            if rate is not None:
                because = f"the next trial, at {rate:.4g}/s, does not fit into the budget (--budget-s)"
            again = self._try(self._held[-1], confirming=True) if self._held else None
            if again is None or again.held:
                return Found(
                    self._held[-1] if self._held else None,
                    self._failed,
                    again is not None,
                    because,
                    self._trials,
                    self._clock() - self._begin,
                )
            self._held.pop()
            self._note(again)

    def _note(self, trial: Trial) -> None:
        if trial.held:
            self._held.append(trial.rate_rps)
        else:
            self._failed = trial.rate_rps

    def _next(self) -> tuple[float | None, str]:
        """The rate to try next; None, and why, where the search is over."""
        held, failed, limits = self._held[-1] if self._held else None, self._failed, self._limits
        if held is None and failed is None:
            return self._first, ""
        if held is None:
            assert failed is not None  # noqa: S101 # for the type checker
            if failed / 2 < self._first / _DOWN:
                return None, self._nothing()
            return failed / 2, ""
        if failed is None:
            if held >= limits.most_rps:
                return None, "the generator itself cannot be trusted with a higher rate"
            return min(2 * held, limits.most_rps), ""
        if failed <= held * (1 + limits.precision):
            return None, f"the bracket is within {limits.precision:.0%}"
        return math.sqrt(held * failed), ""

    def _nothing(self) -> str:
        """Why no rate was shown to hold, down to the lowest that was tried."""
        last = self._trials[-1]
        at = f"{last.rate_rps:.4g}/s"
        if last.held is False:
            return f"not even {at} held ({last.reason}); begin lower (--from)"
        if was_late(last.reason):
            return (
                f"even at {at} {last.reason}, so nothing was learned of the door; give the generator more senders "
                "(--senders), or a machine that is less busy"
            )
        return f"not even of {at} could it be told ({last.reason}); begin lower (--from)"

    def _try(self, rate_rps: float, *, confirming: bool = False) -> Trial | None:
        """The last word on a rate; None where no trial fits into what is left of the budget.

        Until the end there is to be time to confirm what holds.
        """
        told: Trial | None = None
        reserved = 0.0 if confirming else self.takes_s(min([rate_rps, *self._held[-1:]]))
        doubling = late = 0
        while doubling <= _DOUBLINGS and late <= _LATE:
            left = self._limits.budget_s - (self._clock() - self._begin)
            if self.takes_s(rate_rps, 2**doubling) + reserved > left:
                break
            begin = self._clock()
            exchanges = self._measure(rate_rps, 2**doubling * requests_for(self._objective, rate_rps))
            told = judge(self._objective, rate_rps, exchanges, self._limits, self._clock() - begin)
            self._trials.append(told)
            self._say(told)
            if told.held is not None:
                break
            # More requests do not make a generator punctual, but what kept it from its CPU may be over.
            if was_late(told.reason):
                late += 1
            else:
                doubling += 1
        return told


def answer(found: Found, objective: Objective, confidence: float) -> str:
    """The result in one sentence."""
    at = f"at {confidence:.0%} confidence, {'' if found.confirmed else 'not '}confirmed by a second trial"
    if found.held_rps is None:
        # A first trial that held was printed as one that holds: it is not to be taken for the answer.
        once = max((t.rate_rps for t in found.trials if t.held), default=None)
        but = "" if once is None else f" ({once:.4g}/s held once, and not when it was tried again)"
        return f"no rate was shown to meet {objective.text} at {confidence:.0%} confidence{but}: {found.because}"
    above = [f"{beyond(t.rate_rps, t.held, t.reason)}; " for t in found.trials if t.rate_rps == found.failed_rps]
    return f"{found.held_rps:.4g} requests/s meet {objective.text} ({at}); {''.join(above[-1:])}{found.because}"


def was_late(reason: str) -> bool:
    """Whether a trial says nothing of the door, because the generator was late."""
    return reason.startswith(_WAS_LATE)


def beyond(rate_rps: float, held: bool | None, reason: str) -> str:
    """What became of the lowest rate above the one that held."""
    if held is False:
        return f"{rate_rps:.4g} failed: {reason}"
    if was_late(reason):
        return f"at {rate_rps:.4g} {reason}, so the door may do more"
    return f"{rate_rps:.4g} was not shown to hold: {reason}"


def line(trial: Trial) -> str:
    """A trial for a terminal."""
    word = {True: "holds", False: "fails", None: "undecided"}[trial.held]
    low, high = ("-" if end is None else f"{end:.1f}" for end in (trial.low_ms, trial.high_ms))
    value = "over the patience" if trial.value_ms is None else f"{trial.value_ms:.1f} ms"
    cut = f", {trial.warmup_cut} cut as warm-up" if trial.warmup_cut else ""
    failed = f", {trial.errors} failed" if trial.errors else ""
    return (
        f"{trial.rate_rps:9.1f}/s  {word:<9}  {value} [{low}, {high}]  answered {trial.achieved_rps:.1f}/s, "
        f"{trial.requests} requests, effective n {trial.effective_n:.0f}{cut}{failed}; {trial.reason}"
    )


def as_json(found: Found, objective: Objective, limits: Limits, about: dict[str, Any]) -> dict[str, Any]:
    """Schema `beyond-inference/knee/1` (docs/results-schema.md)."""
    return {
        "schema": SCHEMA,
        **about,
        "objective": {"text": objective.text, "quantile": objective.q, "limit_ms": objective.limit_ms},
        "limits": {**limits._asdict(), "most_rps": limits.most_rps if math.isfinite(limits.most_rps) else None},
        "held_rps": found.held_rps,
        "failed_rps": found.failed_rps,
        "confirmed": found.confirmed,
        "because": found.because,
        "seconds": found.seconds,
        "trials": [trial._asdict() for trial in found.trials],
    }
