"""What was measured, as figures want it: numbers with their intervals, and a cell's label."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loadgen.figures.conduct import Done
from loadgen.figures.figure import Step
from loadgen.statistics import mean_interval, student_quantile
from loadgen.stored import read_run
from loadgen.verdict import in_few_words
from services.accounting import GROUP_OF, Group, Stage

NOT_RUN = "NOT RUN"
_ROUNDS = 3  # fewer have no interval worth the name
_USABLE = ("VALID", "CONTENDED")
_LABELS = ("MEASURED", "EMULATED")
Values = npt.NDArray[np.float64]
Place = tuple[Stage, str]  # what a request did, and where: at a service, or on a hop


class Value(NamedTuple):
    """A number with its 95 % interval; an end is None where too little was measured to say."""

    value: float
    low: float | None = None
    high: float | None = None

    def __format__(self, spec: str) -> str:
        """The number, and its interval where there is one, each by `spec`."""
        if self.low is None or self.high is None:
            return format(self.value, spec)
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def over(self, other: Value) -> Value:
        """The quotient of two independent numbers above 0: relative errors add in squares (the delta method)."""
        return self._with_error_of(self.value / other.value, other)

    def times(self, other: Value) -> Value:
        """The product, likewise."""
        return self._with_error_of(self.value * other.value, other)

    def rest(self) -> Value:
        """1 less this one: of a share, what is left."""
        return Value(1 - self.value, *(None if end is None else 1 - end for end in (self.high, self.low)))

    def at_least(self, least: float) -> bool | None:
        """Whether it is; None where its interval has `least` within, or there is none: then the data do not say."""
        if self.low is None or self.high is None or self.low < least <= self.high:
            return None
        return self.low >= least

    def within(self, least: float, most: float) -> bool | None:
        """Whether it lies between them; None where the interval has one of them within, or there is none."""
        if self.low is None or self.high is None:
            return None
        if least <= self.low and self.high <= most:
            return True
        return False if self.high < least or most < self.low else None

    def _with_error_of(self, combined: float, other: Value) -> Value:
        ends = self._relative(), other._relative()
        if None in ends:
            return Value(combined)
        error = math.hypot(*(end for end in ends if end is not None))
        return Value(combined, combined * math.exp(-error), combined * math.exp(error))

    def _relative(self) -> float | None:
        """Half the interval, as a logarithm."""
        if self.low is None or self.high is None or self.low <= 0:
            return None
        return math.log(self.high / self.low) / 2


class Cell:
    """One cell of a run, and the step that it is of."""

    def __init__(self, step: Step, about: Mapping[str, Any], requests: Path, cpus: float) -> None:
        self.step = step
        self.cpus = cpus  # of the machine
        self.about = about
        self._requests = requests
        self._loaded: tuple[dict[Place, Values], Values] | None = None

    @property
    def target(self) -> str:
        """The transport, or its like."""
        return str(self.about["target"])

    @property
    def size(self) -> str:
        """Of its images."""
        return str(self.about["size"])

    @property
    def load(self) -> str:
        """How it was asked."""
        return str(self.about["load"])

    @property
    def label(self) -> str:
        """MEASURED, EMULATED or NOT RUN."""
        return str(self.about["label"])

    @property
    def verdict(self) -> str:
        """VALID, CONTENDED or INVALID; NOT RUN where there are no numbers."""
        return str(self.about.get("verdict", NOT_RUN))

    @property
    def usable(self) -> bool:
        """Whether its numbers can be used."""
        return self.verdict in _USABLE

    @property
    def in_flight(self) -> int:
        """Of a closed schedule."""
        return int(str(self.about["schedule"]).partition("(")[2].rstrip(")"))

    def throughput(self) -> Value:
        """Requests per second."""
        interval = self.about["intervals"]["throughput"]
        return Value(self.about["throughput_rps"], interval["low_rps"], interval["high_rps"])

    def latency(self, what: str = "mean") -> Value | None:
        """In ms; None where there were too few requests to say."""
        value = self.about["latency_ms"].get(what)
        interval = self.about["intervals"].get(what)
        if value is None:
            return None
        return Value(value, interval and interval["low_ms"], interval and interval["high_ms"])

    def group_ms(self, *groups: Group) -> Value:
        """The mean time that a request spent in these groups."""
        return _mean(self._spent(_stages(groups)) / 1e6)

    def share(self, *groups: Group) -> Value:
        """Of the mean request, 0 to 1: the quotient of two means, with its interval by linearization."""
        return self._share(_stages(groups))

    def hop_share(self, hop: str, *stages: Stage) -> Value:
        """As `share`, of stages on one hop; 0 where nothing took it."""
        return self._share(stages, hop)

    def _share(self, stages: Sequence[Stage], where: str = "") -> Value:
        part, totals = self._spent(stages, where), self._series()[1]
        ratio = float(part.sum() / totals.sum())
        # Cochran, "Sampling techniques" (1977), 6.3: the residuals carry the ratio's error.
        interval = mean_interval((part - ratio * totals) / totals.mean())
        if interval.low is None or interval.high is None:
            return Value(ratio)
        half = (interval.high - interval.low) / 2
        return Value(ratio, max(0.0, ratio - half), min(1.0, ratio + half))

    def cpu_ms(self) -> dict[str, float]:
        """CPU time per request of every process, in ms."""
        return cpu_ms_of(self.about["contention"])

    def per_request(self, what: Callable[[Mapping[str, Any]], float]) -> Value:
        """A number of the contention account, with the interval that its rounds give: Student's, for they are alike.

        `what` finds it in an account, that of the whole cell or of a round.
        """
        rounds = [what(row["contention"]) for row in self.about.get("rounds", ()) if row["ok"]]
        middle = what(self.about["contention"])
        if len(rounds) < _ROUNDS:
            return Value(middle)
        half = student_quantile(0.975, len(rounds) - 1) * float(np.std(rounds, ddof=1)) / math.sqrt(len(rounds))
        return Value(middle, max(0.0, middle - half), middle + half)

    def joules(self) -> dict[str, float]:
        """Energy per request by meter, gross, in J; empty where the machine has none."""
        return joules_of(self.about["contention"])

    def _spent(self, stages: Sequence[Stage], where: str = "") -> Values:
        by_place, totals = self._series()
        spent = np.zeros(len(totals))
        for (stage, place), series in by_place.items():
            if stage in stages and where in ("", place):
                spent += series
        return spent

    def _series(self) -> tuple[dict[Place, Values], Values]:
        """By place, and in total, ns per request that counts, in the order in which they were due."""
        if self._loaded is None:
            self._loaded = _read(self._requests, self.target, self.size, self.load)
        return self._loaded


def worst(*cells: Cell) -> tuple[str, str]:
    """(label, verdict) of a number that is made of all these: as good as the least good of them."""
    labels, verdicts = [cell.label for cell in cells], [cell.verdict for cell in cells]
    return max(labels, key=_LABELS.index), max(verdicts, key=_USABLE.index)


def _stages(groups: Iterable[Group]) -> list[Stage]:
    wanted = set(groups)
    return [stage for stage, group in GROUP_OF.items() if group in wanted]


def _mean(series: Values) -> Value:
    interval = mean_interval(series)
    return Value(float(series.mean()), interval.low, interval.high)


def _read(path: Path, target: str, size: str, load: str) -> tuple[dict[Place, Values], Values]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = {
            column: (Stage(column.partition("@")[0]), column.removesuffix("_ns").partition("@")[2])
            for column in reader.fieldnames or ()
            if "@" in column and column.endswith("_ns") and not column.endswith("_cpu_ns")
        }
        rows = sorted(_counted(reader, target, size, load), key=lambda row: int(row["due_ns"]))
    by_place = {place: np.array([float(row[column] or 0) for row in rows]) for column, place in columns.items()}
    return by_place, np.array([float(row["total_ns"]) for row in rows])


def _counted(rows: Iterable[dict[str, str]], target: str, size: str, load: str) -> Iterator[dict[str, str]]:
    for row in rows:
        if (
            (row["target"], row["size"], row["load"]) == (target, size, load)
            and not row["error"]
            and row["warmup"] == "0"
        ):
            yield row


def cells_of(done: Sequence[Done]) -> list[Cell]:
    """All cells with numbers that can be used, in the order of the steps."""
    cells = []
    for entry in done:
        if entry.folder is None:
            continue
        run = read_run(entry.folder)[1]
        requests, cpus = entry.folder / "requests.csv", float(run["environment"]["cpus"])
        cells += [Cell(entry.step, about, requests, cpus) for about in run["cells"]]
    return [cell for cell in cells if cell.usable]


def cpu_ms_of(account: Mapping[str, Any]) -> dict[str, float]:
    """CPU time per request of every process of a contention account, in ms."""
    return {row["name"]: row["cpu_ms_per_request"] for row in account["processes"]}


def joules_of(account: Mapping[str, Any]) -> dict[str, float]:
    """Energy per request by meter, gross, in J; empty where the machine has none."""
    return {row["meter"]: row["j_per_request"] for row in account.get("energy", ())}


def unusable_of(done: Sequence[Done]) -> list[tuple[str, str, str]]:
    """(step, cell, why) of what has no numbers that can be used."""
    found = []
    for entry in done:
        if entry.folder is None:
            found.append((entry.step.name, "", entry.reason))
            continue
        for about in read_run(entry.folder)[1]["cells"]:
            if about.get("verdict") not in _USABLE:
                what = f"{about['target']}, {about['size']}, {about['load']}"
                found.append((entry.step.name, what, about["reasons"][0]))
    return found


def contended_of(done: Sequence[Done]) -> str:
    """How many cells are CONTENDED, and the heaviest reason of each, in few words; empty where none is."""
    cells = [about for entry in done if entry.folder for about in read_run(entry.folder)[1]["cells"]]
    reasons = Counter(in_few_words(about["reasons"][0]) for about in cells if about.get("verdict") == "CONTENDED")
    if not reasons:
        return ""
    words = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    return f"{reasons.total()} of {len(cells)}: {words}"
