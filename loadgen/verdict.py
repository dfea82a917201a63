"""Whether the numbers of a cell can be used: VALID, CONTENDED or INVALID, and for which reasons.

INVALID when they cannot be used; CONTENDED when they hold for this run, but not for a quiet machine, or a longer run.
What a reader should know beside that is said as well, and changes no verdict. Judged from what the results file has of
a cell, so that whoever reads it can judge again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# The generator is late where 99 % of its requests are not sent within this, or 1 % of the p99 latency if that is more.
LAG_LIMIT_MS = 1.0
LAG_SHARE = 0.01
_STALL_LIMIT = 0.05
# Of what the generator can send to a target that answers at once; beyond, its own queue is in the latency.
SATURATED = 0.7
# A trend is told where it is no chance, and where it matters.
DRIFT_P = 0.01
DRIFT_SHARE = 0.05
# Answers per second below this share of the offered rate: the queue grows, and latency is a matter of patience.
_KEPT_UP = 0.95


def judge(cell: Mapping[str, Any], *, closed: bool) -> tuple[str, list[str]]:
    """The verdict and its reasons, the heaviest first; last, what is to be known and changes no verdict.

    A late generator makes an open run INVALID: the arrivals were not those of the plan, so the load was another one. In
    a closed run there is no instant to be late for: the lag is a sender's own wait for a CPU, and it is in the total.
    """
    invalid = _invalid(cell)
    contended: list[str] = []
    late = _late(cell)
    if late:
        (contended if closed else invalid).append(late)
    contended += _contended(cell)
    verdict = "INVALID" if invalid else "CONTENDED" if contended else "VALID"
    return verdict, [*invalid, *contended, *_notices(cell)]


def in_few_words(reason: str) -> str:
    """A reason of `judge` without its numbers and its remedy, so that those of many cells can be counted."""
    what, _, why = reason.partition(": ")
    if what.startswith("offered"):
        what = why
    return re.split(r",| (?:for|by) [-+\d]", what)[0]


def _invalid(cell: Mapping[str, Any]) -> list[str]:
    reasons = []
    if not cell["ok"]:
        reasons.append("no request was answered")
    if cell["errors"]:
        reasons.append("errors: " + ", ".join(f"{n} {kind}" for kind, n in cell["errors"].items()))
    ledger = cell["ledger"]
    if ledger["mismatched"]:
        reasons.append(f"{ledger['mismatched']} ledgers do not add up to the client's total")
    incomplete = cell["ok"] - ledger["complete"]
    if incomplete:
        reasons.append(f"{incomplete} replies came without a ledger")
    if cell.get("unsent"):
        reasons.append(f"{cell['unsent']} requests of the plan were not sent")
    # Traces that lack requests would be taken for the whole.
    reasons += [
        f"{lost['by']} lost spans: {lost['requests']} requests have none, {lost['spans']} were not delivered"
        for lost in cell.get("spans_lost", ())
    ]
    ceiling, rate = cell.get("ceiling_rps"), cell.get("offered_rps") or cell.get("throughput_rps")
    if ceiling and rate and rate > SATURATED * ceiling:
        reasons.append(
            f"the generator was saturated: {rate:.0f} requests/s are over {SATURATED:.0%} of the {ceiling:.0f} that it "
            "can send to nobody; give it more senders, or a lower rate"
        )
    return reasons


def _late(cell: Mapping[str, Any]) -> str:
    # Where several generators sent, the requests of one that was late may be few among all.
    lags = [("the generator", cell.get("schedule_lag_ms"))]
    lags += [(f"part {row['part']} of the generator", row["schedule_lag_ms"]) for row in cell.get("parts", ())]
    who, worst = max(((who, lag["p99"]) for who, lag in lags if lag), key=lambda pair: pair[1], default=("", 0.0))
    if not worst:
        return ""
    limit = max(LAG_LIMIT_MS, LAG_SHARE * float(cell["quantiles_ms"][99]))
    if worst <= limit:
        return ""
    return (
        f"{who} was late: schedule lag p99 {worst:.2f} ms, over {limit:.2f} ms; it had no CPU in time: end what else "
        "runs on its machine, give it a lower rate, or a machine of its own"
    )


def _contended(cell: Mapping[str, Any]) -> list[str]:
    reasons = []
    if "latency_ms" in cell:
        stalled = cell["stalled_ms"] / cell["latency_ms"]["mean"]
        if stalled > _STALL_LIMIT:
            reasons.append(f"computing threads were stalled for {stalled:.1%} of the time")
        drift, middle = cell.get("drift"), float(cell["quantiles_ms"][50])
        if drift and drift["p"] < DRIFT_P and abs(drift["change_ms"]) > DRIFT_SHARE * middle:
            reasons.append(
                f"latency drifted by {drift['change_ms']:+.2f} ms during the run (Mann-Kendall p {drift['p']:.2g}): "
                "its numbers are of no steady state"
            )
        offered, achieved = cell.get("offered_rps"), cell["intervals"]["throughput"]["high_rps"]
        if achieved is None:  # hardly any came while requests were sent: then all of them, until the last one
            achieved = cell["ok"] / max(1e-9, cell["duration_s"] - float(cell["quantiles_ms"][0]) / 1e3)
        # Who drops the oldest frame keeps up by that.
        if offered and not cell.get("dropped") and achieved < _KEPT_UP * offered:
            reasons.append(
                f"offered {offered:.1f} requests/s, answered {cell['throughput_rps']:.1f}: the target did not keep up, "
                "and a longer run would show longer latencies"
            )
    warmup = cell.get("warmup")
    if warmup and not warmup["stable"]:
        reasons.append(
            f"not warm: it still became faster after {warmup['seconds']:.0f} s and {warmup['probes']} probes; "
            "give it more time (warmup_s), or a quieter machine"
        )
    elif warmup and not warmup.get("enough", True):
        reasons.append(
            f"perhaps not warm: a broker's virtual machine compiles for longer than {warmup['probes']} probes, which "
            f"took {warmup['seconds']:.0f} s; give it more time (warmup_s)"
        )
    return reasons


def _notices(cell: Mapping[str, Any]) -> list[str]:
    notices = []
    if cell.get("dropped"):
        frames = cell["requests"] + cell["dropped"]
        notices.append(
            f"{cell['dropped']} of {frames} frames ({cell['dropped'] / frames:.1%}) were dropped for a newer one of "
            "their stream; latencies are those of the frames that were sent"
        )
    # Counts alone (MLPerf's) take requests for independent. Of those that share a queue there may be so few independent
    # ones that all of them might lie on one side of the percentile.
    few = [
        f"{name} (effective n at {name}: {interval['effective_n']:.0f})"
        for name, interval in (cell.get("intervals") or {}).items()
        if name.startswith("p") and None in (interval["low_ms"], interval["high_ms"])
    ]
    if few:
        notices.append(f"too few independent requests to bound {', '.join(few)}: send more of them, or at a lower rate")
    short = [row for row in (cell.get("warmup_cut") or {}).get("rounds", ()) if not row["sought"]]
    if short:
        notices.append(
            f"{len(short)} of {len(cell['warmup_cut']['rounds'])} rounds have too few answers for warm-up to be sought "
            "at their start (100), so it was sought over all rounds in a row only: give the load more requests, or "
            "fewer rounds"
        )
    return notices
