"""What services lost of the spans that they make themselves, as their metrics count it, before a run and after it.

A door makes the trees of requests whose sender makes none, and of slow and failed ones; an engine makes those of
batches (docs/traces.md). Only they know what became of these: it is in their metrics, where those are named. What is
not known is said to be so, and is no zero.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from loadgen import scrape

# As services.metrics names them; a reader depends on the names, not on the writer.
_SENT = "beyond_spans_sent_total"
_LOST = "beyond_spans_lost_total"
_LOST_REQUESTS = "beyond_spans_lost_requests_total"
_WAITING = "beyond_spans_waiting"
_STARTED = "process_start_time_seconds"
# A collector that does not answer is tried for some 20 s before spans are given up.
_PATIENCE_S = 40.0
_EVERY_S = 0.25

NOT_NAMED = "no metrics are named ([metrics] of the plan, or --metrics)"


class Reading(NamedTuple):
    """Of a service's life so far, which began at `started_s` (since the epoch). `makes`: whether it makes spans.

    `waiting`: requests and batches whose spans are neither delivered nor lost.
    """

    service: str
    started_s: float
    makes: bool
    sent: int = 0
    lost: int = 0
    lost_requests: int = 0
    waiting: int = 0


Read = Callable[[str], Reading]


class Lost(NamedTuple):
    """Of one service of a target, in a run. `unknown`: why its counts are not known; they are None then.

    `makes`: whether it makes spans (None: not known). `sent`, `lost`: spans; `lost_requests`: chosen, without spans.
    """

    target: str
    service: str | None
    url: str | None
    unknown: str | None
    makes: bool | None = None
    sent: int | None = None
    lost: int | None = None
    lost_requests: int | None = None


def read(url: str) -> Reading:
    """Ask a service now. Raises `OSError`, or `ValueError` for an answer that is not one of ours."""
    text = scrape.read(url)
    service = scrape.service_of(text)
    values = {
        name: value
        for name in (_SENT, _LOST, _LOST_REQUESTS, _WAITING, _STARTED)
        for labels, value in scrape.samples(text, name)
        if not labels
    }
    if service is None or _STARTED not in values:
        raise ValueError("these are not the metrics of a service of this suite")
    counts = [values.get(name) for name in (_SENT, _LOST, _LOST_REQUESTS, _WAITING)]
    if counts == [None] * len(counts):  # a service without a destination for spans counts none
        return Reading(service, values[_STARTED], False)
    whole = [int(count) for count in counts if count is not None and math.isfinite(count)]
    if len(whole) < len(counts):
        raise ValueError("a count of spans is missing, or is no number")
    return Reading(service, values[_STARTED], True, *whole)


class ServiceSpans:
    """The services of a run's targets: created before the first request, `end` after the last."""

    def __init__(
        self,
        urls: Mapping[str, Sequence[str]],
        read: Read = read,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`urls`: by target, of its services' metrics; read now."""
        self._read = read
        self._clock = clock
        self._sleep = sleep
        self._unnamed = [target for target, named in urls.items() if not named]
        self._first = [(target, url, self._tried(url)) for target, named in urls.items() for url in named]

    def _tried(self, url: str) -> Reading | str:
        """Why not, where it cannot be read."""
        try:
            return self._read(url)
        except (OSError, ValueError) as error:
            return f"{url}: {error}"

    def end(self, patience_s: float = _PATIENCE_S) -> list[Lost]:
        """What became of the run's spans, when no more of them are on their way; within `patience_s` seconds."""
        deadline = self._clock() + patience_s
        found = [Lost(target, None, None, NOT_NAMED) for target in self._unnamed]
        return found + [self._ended(target, url, first, deadline) for target, url, first in self._first]

    def _ended(self, target: str, url: str, first: Reading | str, deadline: float) -> Lost:
        if isinstance(first, str):
            return Lost(target, None, url, first)
        last = self._settled(url, deadline)
        if isinstance(last, str):
            return Lost(target, first.service, url, last)
        if last.started_s != first.started_s:
            return Lost(target, first.service, url, f"{url}: it was started anew during the run")
        if last.waiting:
            return Lost(target, first.service, url, f"{url}: spans of {last.waiting} requests were still on their way")
        return Lost(
            target,
            first.service,
            url,
            None,
            last.makes,
            last.sent - first.sent,
            last.lost - first.lost,
            last.lost_requests - first.lost_requests,
        )

    def _settled(self, url: str, deadline: float) -> Reading | str:
        """The last reading; the same twice, because a request is offered to the tracer after its reply has left."""
        before: Reading | str | None = None
        while True:
            now = self._tried(url)
            if isinstance(now, str) or not now.makes or (now == before and not now.waiting):
                return now
            if self._clock() >= deadline:
                return now
            before = now
            self._sleep(_EVERY_S)


def of_target(rows: Iterable[Lost], target: str) -> list[dict[str, Any]]:
    """Of those of `target` that lost some, for its cells."""
    return [
        {"by": row.service, "requests": row.lost_requests, "spans": row.lost}
        for row in rows
        if row.target == target and (row.lost or row.lost_requests)
    ]


def words(rows: Iterable[Mapping[str, Any]]) -> str:
    """What is known of them, for people; `rows` as a results file has them. Empty where there are none."""
    said: dict[str, list[str]] = {}
    for row in rows:
        who = " ".join(part for part in (row["target"], row["service"]) if part)
        if row["unknown"] is not None:
            said.setdefault(f"not known of WHO: {row['unknown']}", []).append(who)
        elif not row["makes"]:
            said.setdefault("none are made by WHO", []).append(who)
        elif row["lost"] or row["lost_requests"]:
            lost = f"{who} ({row['lost']} spans, and all of {row['lost_requests']} requests or batches)"
            said.setdefault("LOST by WHO", []).append(lost)
        else:
            said.setdefault("none were lost by WHO", []).append(f"{who} ({row['sent']} sent)")
    return "; ".join(what.replace("WHO", ", ".join(who), 1) for what, who in said.items())
