"""WHEN: the instants at which requests are due, decided before the first is sent.

An open schedule does not wait for answers, so a slow server cannot slow down the asking, and latency is counted from
the instant at which a request was due (against "coordinated omission", as Gil Tene named it).

`single_stream` and `offline` are scenarios of MLPerf Inference, under their names there (mlcommons/inference,
loadgen); its Server scenario is `poisson(rate)`, and its MultiStream is near to `cameras(n, fps)`, which drops frames.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from loadgen import arrivals
from loadgen.errors import PlanError

# As `--help` and every error have it.
FORMS: Mapping[str, str] = {
    "closed(n)": "n senders, each sends again when it is answered",
    "constant(rate)": "open: requests per second, equally far apart",
    "poisson(rate)": "open: random arrivals (MLPerf Server)",
    "bursts(low, high, low_s, high_s)": "open: random arrivals whose rate changes between two, after random times of "
    "low_s and high_s seconds on average (a Markov-modulated Poisson process)",
    "replay(file.csv, speed=1)": "open: the arrivals of a trace, column arrival_s, and size and sample where they are "
    "there; speed 2: twice as fast",
    "cameras(n, fps, jitter_ms=0)": "open: n video streams; a stream that waits for an answer keeps its newest frame "
    "and drops the older one, which is counted",
    "single_stream": "MLPerf SingleStream: the next when the last is answered; as closed(1)",
    "offline(n)": "MLPerf Offline: n requests at once; throughput is the metric",
}

# A closed schedule has a thread per sender.
_MOST_SENDERS = 4096
_MOST_CAMERAS = 10_000
# Of bursts: below, most of the time would go into drawing states in which nothing happens.
_LEAST_PER_CYCLE = 0.01
_CALL = re.compile(r"^\s*([a-z_]+)\s*(?:\((.*)\))?\s*$", re.DOTALL)
# Name -> its parameters, each with its default (None: it has to be given).
_PARAMETERS: Mapping[str, Mapping[str, str | None]] = {
    "closed": {"n": None},
    "constant": {"rate": None},
    "poisson": {"rate": None},
    "bursts": {"low": None, "high": None, "low_s": None, "high_s": None},
    "replay": {"file": None, "speed": "1"},
    "cameras": {"n": None, "fps": None, "jitter_ms": "0"},
    "single_stream": {},
    "offline": {"n": None},
}


class Schedule(NamedTuple):
    """`concurrency` > 0: closed, that many senders, each due again when it is answered. 0: open, with `due_ns`.

    `due_ns`: nanoseconds from the start, ascending, one per request. `text`: as it stood in the plan. Of each request,
    where the sequence is not empty: `numbers`, its number in the whole plan's schedule (else its place here);
    `streams`, the camera that it is a frame of; `samples`, the number of the file it asks about (else its own number).
    `peak_rps`: the rate that the sender has to keep up with; None where it sets the pace itself.
    """

    text: str
    requests: int
    concurrency: int
    due_ns: tuple[int, ...]
    numbers: Sequence[int] = ()
    streams: tuple[int, ...] = ()
    samples: tuple[int, ...] = ()
    peak_rps: float | None = None

    @property
    def at_once(self) -> bool:
        """Whether all are due at the start: nobody is late then, requests stand in line."""
        return not self.concurrency and self.requests > 1 and self.due_ns[-1] == self.due_ns[0]

    def number(self, position: int) -> int:
        """The number of the request at `position` in the whole plan's schedule."""
        return self.numbers[position] if self.numbers else position

    def sample(self, position: int) -> int:
        """Which file the request at `position` asks about; to be taken modulo the number of files."""
        return self.samples[position] if self.samples else self.number(position)

    def due_within(self, at_most_s: float) -> int:
        """How many requests are due in time; all of a closed schedule, whose number is only known when it is over."""
        return sum(1 for ns in self.due_ns if ns <= at_most_s * 1e9) if self.due_ns else self.requests

    def offered_rps(self, at_most_s: float = math.inf) -> float | None:
        """Requests per second that are asked for, of those due within `at_most_s`; None where there is no such rate."""
        due = [ns for ns in self.due_ns if ns <= at_most_s * 1e9]
        if len(due) < 2 or due[-1] == due[0]:
            return None
        return (len(due) - 1) / (due[-1] - due[0]) * 1e9

    def part(self, sender: int, of: int) -> Schedule:
        """What one of several senders sends: the parts are disjoint, and together they are this schedule.

        All frames of a camera are with one sender, which knows what is in flight; so are the turns of a closed sender.
        May be empty (`requests` 0), where there are more senders than there is to do.
        """
        if self.concurrency:
            mine = [i for i in range(self.requests) if (i % self.concurrency) % of == sender]
            share = len(range(sender, self.concurrency, of))
            return self._take(mine)._replace(concurrency=share if mine else 0)
        key: Sequence[int] = range(self.requests)
        if self.streams:
            # By rank: a part may itself be sent by several, and has every third camera only.
            rank = {stream: place for place, stream in enumerate(sorted(set(self.streams)))}
            key = [rank[stream] for stream in self.streams]
        return self._take([i for i in range(self.requests) if key[i] % of == sender])

    def rounds(self, count: int) -> list[Schedule]:
        """This schedule in `count` pieces, one after the other (fewer, where it has fewer requests)."""
        count = max(1, min(count, self.requests))
        bounds = [round(i * self.requests / count) for i in range(count + 1)]
        pieces = []
        for begin, end in itertools.pairwise(bounds):
            piece = self._take(range(begin, end))
            origin = self.due_ns[begin] if begin and self.due_ns else 0
            pieces.append(piece._replace(due_ns=tuple(due - origin for due in piece.due_ns)))
        return pieces

    def _take(self, positions: Sequence[int]) -> Schedule:
        def taken(values: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(values[i] for i in positions) if values else ()

        return self._replace(
            requests=len(positions),
            due_ns=taken(self.due_ns),
            numbers=tuple(self.number(i) for i in positions),
            streams=taken(self.streams),
            samples=taken(self.samples),
        )


def is_closed(text: str) -> bool:
    """Whether a schedule, which `parse_schedule` accepts, is closed."""
    return text.strip().startswith(("closed", "single_stream"))


def own_count(text: str, size: str = "", folder: Path | None = None) -> int | None:
    """How many requests a schedule has of itself: `offline(n)`, `replay(file)`. None: as many as are asked for.

    Raises `PlanError`.
    """
    kind, given = _call(text)
    if kind == "offline":
        return _whole(text, "n", given["n"])
    if kind == "replay":
        return len(_trace(text, given["file"], size, folder))
    return None


def parse_schedule(text: str, requests: int, seed: int, size: str = "", folder: Path | None = None) -> Schedule:
    """One of `FORMS`; rates per second. Raises `PlanError`.

    The same seed gives the same instants, so that targets are asked alike. `size`: the class of the photographs, for
    traces that have several. `folder`: where files are that are named without one.
    """
    kind, given = _call(text)
    if requests < 1:
        raise PlanError(f"schedule '{text}' needs at least 1 request, not {requests}")
    if kind == "single_stream":
        return Schedule(text, requests, 1, ())
    if kind == "closed":
        senders = _whole(text, "n", given["n"], "the number of senders")
        if senders > _MOST_SENDERS:
            raise PlanError(f"schedule '{text}': at most {_MOST_SENDERS} senders; an open schedule has no such limit")
        return Schedule(text, requests, senders, ())
    if kind == "offline":
        count = _whole(text, "n", given["n"])
        if requests > count:
            raise PlanError(f"schedule '{text}' has {count} requests, not {requests}; ask for as many, or fewer")
        return Schedule(text, requests, 0, (0,) * requests)
    if kind == "replay":
        return _replay(text, requests, given, size, folder)
    if kind == "cameras":
        return _cameras(text, requests, given, seed)
    if kind == "bursts":
        low = _positive(text, "low", given["low"], zero=True)
        high, low_s, high_s = (_positive(text, name, given[name]) for name in ("high", "low_s", "high_s"))
        if high <= low:
            raise PlanError(f"schedule '{text}': 'high' must be above 'low'")
        if low * low_s + high * high_s < _LEAST_PER_CYCLE:
            raise PlanError(
                f"schedule '{text}': both states together have {low * low_s + high * high_s:g} requests on average; "
                f"the least is {_LEAST_PER_CYCLE:g}: make them longer, or the rates higher"
            )
        due = arrivals.bursts(low, high, low_s, high_s, requests, seed)
        return Schedule(text, requests, 0, tuple(due), peak_rps=high)
    rate = _positive(text, "rate", given["rate"])
    due = arrivals.constant(rate, requests) if kind == "constant" else arrivals.poisson(rate, requests, seed)
    return Schedule(text, requests, 0, tuple(due), peak_rps=rate)


def _replay(text: str, requests: int, given: Mapping[str, str], size: str, folder: Path | None) -> Schedule:
    speed = _positive(text, "speed", given["speed"])
    rows = _trace(text, given["file"], size, folder)
    if requests > len(rows):
        raise PlanError(f"schedule '{text}' has {len(rows)} requests, not {requests}; ask for as many, or fewer")
    rows = rows[:requests]
    due = [round(row.arrival_s / speed * 1e9) for row in rows]
    samples: tuple[int, ...] = ()
    if any(row.sample is not None for row in rows):
        samples = tuple(i if row.sample is None else row.sample for i, row in enumerate(rows))
    return Schedule(text, requests, 0, tuple(due), samples=samples, peak_rps=float(arrivals.busiest_second(due)))


def _trace(text: str, file: str, size: str, folder: Path | None) -> list[arrivals.Row]:
    path = (folder or Path()) / file  # an absolute path stays
    rows = arrivals.read_trace(path, size)
    if not rows:
        raise PlanError(f"schedule '{text}': the trace {path} has no row for '{size}'")
    return rows


def _cameras(text: str, requests: int, given: Mapping[str, str], seed: int) -> Schedule:
    streams = _whole(text, "n", given["n"])
    fps = _positive(text, "fps", given["fps"])
    if streams > _MOST_CAMERAS:
        raise PlanError(f"schedule '{text}': at most {_MOST_CAMERAS} cameras")
    jitter_ms = _positive(text, "jitter_ms", given["jitter_ms"], zero=True)
    if jitter_ms >= 1e3 / fps:
        raise PlanError(
            f"schedule '{text}': 'jitter_ms' must be below the time of a frame, {1e3 / fps:g} ms: frames stay in order"
        )
    due, stream_of = arrivals.cameras(streams, fps, jitter_ms, requests, seed)
    return Schedule(text, requests, 0, tuple(due), streams=tuple(stream_of), peak_rps=streams * fps)


def _call(text: str) -> tuple[str, dict[str, str]]:
    """The name, and the arguments by the name of their parameter. Raises `PlanError`."""
    match = _CALL.match(text)
    if match is None or match[1] not in _PARAMETERS:
        raise PlanError(f"schedule '{text}' is none of {', '.join(FORMS)}")
    kind, inside = match[1], (match[2] or "").strip()
    parameters = _PARAMETERS[kind]
    form = next(form for form in FORMS if form.partition("(")[0] == kind)
    given: dict[str, str] = {}
    for position, argument in enumerate(inside.split(",") if inside else []):
        name, named, value = (part.strip() for part in argument.rpartition("="))
        if not named:
            if position >= len(parameters) or len(given) < position:
                raise PlanError(f"schedule '{text}' has '{value}' where nothing belongs; the form is {form}")
            name = list(parameters)[position]
        if name not in parameters or name in given or not value:
            raise PlanError(f"schedule '{text}': '{argument.strip()}' is not right; the form is {form}")
        given[name] = value
    missing = [name for name, default in parameters.items() if default is None and name not in given]
    if missing:
        raise PlanError(f"schedule '{text}' lacks '{missing[0]}'; the form is {form}")
    return kind, {**{name: default for name, default in parameters.items() if default is not None}, **given}


# Of any number: beyond them there is no load, and instants would not be numbers any more.
_LEAST, _MOST = 1e-6, 1e9


def _positive(text: str, name: str, given: str, *, zero: bool = False) -> float:
    try:
        value = float(given)
    except ValueError:
        raise PlanError(f"schedule '{text}': '{given}' is no number") from None
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise PlanError(f"schedule '{text}': '{name}' must be {'0 or positive' if zero else 'positive'}")
    if value and not _LEAST <= value <= _MOST:
        raise PlanError(f"schedule '{text}': '{name}' must be between {_LEAST:g} and {_MOST:g}, not {given}")
    return value


def _whole(text: str, name: str, given: str, words: str = "") -> int:
    value = _positive(text, name, given)
    if value != int(value):
        raise PlanError(f"schedule '{text}': {words or f'{name!r}'} must be whole")
    return int(value)
