"""The laws of arrival: instants in nanoseconds from the start, ascending, decided by a seed and by nothing else.

The same seed gives the same instants in every version of Python: of `random`, only `random()` is promised to.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from loadgen.errors import PlanError

_S = 1e9
_MOST_S = 1e10  # three centuries; also seconds since 1970
_MOST_DIGITS = 9


class Row(NamedTuple):
    """A line of a trace: its arrival in seconds after the first, and which file it asks about (None: in turn)."""

    arrival_s: float
    sample: int | None


def constant(rate: float, count: int) -> list[int]:
    """Equally far apart, without drift. `rate` per second."""
    return [round(i * _S / rate) for i in range(count)]


def poisson(rate: float, count: int, seed: int) -> list[int]:
    """Exponential gaps: many users who know nothing of each other."""
    generator = _generator(seed)
    due, now = [], 0.0
    for _ in range(count):
        now += _exponential(generator) * _S / rate
        due.append(round(now))
    return due


def bursts(low: float, high: float, low_s: float, high_s: float, count: int, seed: int) -> list[int]:
    """A two-state Markov-modulated Poisson process: `low` and `high` per second, for `low_s` and `high_s` on average.

    Dwell times are exponential; the first state is drawn from the stationary law, so that no instant is special.
    `low` may be 0: an interrupted Poisson process. Fischer and Meier-Hellstern, The Markov-modulated Poisson process
    (MMPP) cookbook, Performance Evaluation 18 (1993).
    """
    generator = _generator(seed)
    busy = generator.random() < high_s / (low_s + high_s)
    due: list[int] = []
    now = 0.0
    until = _exponential(generator) * (high_s if busy else low_s)
    due_work = _exponential(generator)  # the next arrival comes when the rate's integral reaches it
    while len(due) < count:
        rate = high if busy else low
        left = (until - now) * rate
        if left >= due_work:
            now += due_work / rate
            due.append(round(now * _S))
            due_work = _exponential(generator)
        else:
            due_work -= left
            now, busy = until, not busy
            until = now + _exponential(generator) * (high_s if busy else low_s)
    return due


def cameras(streams: int, fps: float, jitter_ms: float, count: int, seed: int) -> tuple[list[int], list[int]]:
    """The instants of the first `count` frames of all cameras together, and the camera of each.

    Every camera has a phase of its own, uniform within a frame's time, and each of its frames is up to `jitter_ms`
    late, uniform too. A camera's frames stay in order, where `jitter_ms` is below a frame's time.
    """
    frames = math.ceil(count / streams) + 2  # whoever is first, the first `count` are among these
    merged: list[tuple[int, int]] = []
    for stream in range(streams):
        # A generator per camera: more frames, or more cameras, change nothing of those that were there.
        generator = random.Random(f"{seed}/{stream}")  # noqa: S311 # arrivals, not secrets
        phase = generator.random() / fps
        merged += [
            (round((phase + k / fps + generator.random() * jitter_ms / 1e3) * _S), stream) for k in range(frames)
        ]
    merged.sort()
    return [due for due, _ in merged[:count]], [stream for _, stream in merged[:count]]


def read_trace(path: Path, size: str) -> list[Row]:
    """The rows of a CSV file with a header: `arrival_s` (seconds, ascending), and perhaps `size` and `sample`.

    Of a file with a column `size`, the rows of the class `size`, at their instants in the whole. `sample`: the number
    of the file within its class, from 0. Raises `PlanError` that names the file and the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(_rows(file, path, size))
    except OSError as error:
        raise PlanError(f"the trace {path} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise PlanError(f"the trace {path} is not CSV in UTF-8: {error}") from None


_COLUMNS = ("arrival_s", "size", "sample")


def _rows(file: TextIO, path: Path, size: str) -> Iterator[Row]:
    lines = csv.reader(file)
    header = [name.strip() for name in next(lines, [])]
    if "arrival_s" not in header or len(set(header)) < len(header):
        raise PlanError(
            f"the trace {path}, line 1: the header must name each column once, with 'arrival_s' (seconds) among them; "
            f"it is '{','.join(header)}'"
        )
    at = {name: header.index(name) for name in _COLUMNS if name in header}
    first, last = math.nan, -math.inf
    for line in lines:
        if not line:
            continue
        where = f"the trace {path}, line {lines.line_num}"
        if len(line) != len(header):
            raise PlanError(f"{where}: {len(line)} fields, and the header has {len(header)}")
        arrival = _number(line[at["arrival_s"]], where)
        if arrival < last:
            raise PlanError(f"{where}: it arrives at {arrival:g} s, before the line above ({last:g} s); sort the file")
        last = arrival
        first = arrival if math.isnan(first) else first
        if "size" in at and line[at["size"]].strip() != size:
            continue
        yield Row(arrival - first, _sample(line[at["sample"]], where) if "sample" in at else None)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= _MOST_S:  # what is no number is not, either
        raise PlanError(f"{where}: '{text.strip()[:40]}' is no time; give arrival_s in seconds, at most {_MOST_S:g}")
    return value


def _sample(text: str, where: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise PlanError(f"{where}: sample '{text[:40]}' is no whole number from 0; leave it empty for files in turn")
    return int(text)


def busiest_second(due_ns: list[int]) -> int:
    """The most arrivals within any one second."""
    most, begin = 0, 0
    for end, due in enumerate(due_ns):
        while due - due_ns[begin] >= _S:
            begin += 1
        most = max(most, end - begin + 1)
    return most


def _generator(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 # arrivals, not secrets


def _exponential(generator: random.Random) -> float:
    return -math.log(1.0 - generator.random())
