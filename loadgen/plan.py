"""A plan: what a run asks of whom, how often. A TOML file; unknown keys are errors: a slip must not be a result.

name = "demo"
seed = 1
task = "classification"
timeout_s = 30.0
warmup_s = 15.0                 # at most, per target and size: probes until it becomes no faster
calibration_probes = 40         # per target and size; 0: no calibration, transit stays whole
rounds = 1                      # pieces of each schedule; targets are asked in turn, A B A B: drift hits all alike
senders = 0                     # processes that send; 0: as many as the CPUs allow, 1 on a small machine
allow_saturated = false         # true: also rates that are near to what the generator itself can do
[thresholds]                    # optional: a broken one sets exit status 3; here for all loads, or in a [[load]]
p99_ms = 50                     # also mean_ms, p50_ms, p90_ms, p95_ms, max_ms, error_rate, drop_rate: at most
throughput_rps = { medium = 100 }   # at least; by size, as everywhere
[targets]                       # name -> URL; `null:` is the generator's own ceiling
grpc = "grpc://127.0.0.1:8001"
[metrics]                       # optional: target -> where its services answer scrapes: what they lost of their spans
grpc = ["http://127.0.0.1:9464/metrics"]    # or one string
[samples]                       # size -> how many distinct files; may be left out with --images DIR
medium = 20
[[load]]
name = "1 in flight"
schedule = { medium = "closed(1)" }     # or one string for all sizes; loadgen/schedule.py has them all
requests = { medium = 100 }     # may be left out where a schedule has its own number: offline(n), replay(file)
warmup = 10
at_most_s = 30.0                # optional: no request is due later than this; so slow machines finish, too
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loadgen.errors import PlanError
from loadgen.samples import MOST, NAMES
from loadgen.schedule import Schedule, own_count, parse_schedule
from loadgen.scrape import check_url as check_metrics_url
from loadgen.targets import check_url
from loadgen.thresholds import KINDS

OWN = "own"  # the size class of images that the user brings


@dataclass(frozen=True, slots=True)
class Load:
    """One way of asking. `schedule` and `requests` by size, for the same sizes; `thresholds` by name, then size."""

    name: str
    schedule: Mapping[str, str]
    requests: Mapping[str, int]
    warmup: int
    at_most_s: float
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def with_requests(self, requests: Mapping[str, int]) -> Load:
        """The same load with other numbers of requests."""
        return replace(self, requests=requests)


@dataclass(frozen=True, slots=True)
class Plan:
    """See the module."""

    name: str
    seed: int
    task: str
    timeout_s: float
    warmup_s: float
    calibration_probes: int
    targets: Mapping[str, str]
    samples: Mapping[str, int]
    loads: tuple[Load, ...]
    rounds: int = 1
    senders: int = 0
    allow_saturated: bool = False
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metrics: Mapping[str, Sequence[str]] = field(default_factory=dict)
    folder: Path = field(default=Path(), compare=False)  # of the plan's file: where its traces are

    def schedule(self, load: Load, size: str) -> Schedule:
        """The whole schedule of a load. Raises `PlanError` where its trace has changed since the plan was read."""
        return parse_schedule(load.schedule[size], load.requests[size], self.seed, size, self.folder)

    def warmup(self, load: Load, size: str, least: int) -> Schedule | None:
        """Of the same kind as what is measured, other instants; at least `least` requests. None: no warm-up."""
        if not load.warmup:
            return None
        text = load.schedule[size]
        own = own_count(text, size, self.folder)
        count = max(load.warmup, least)
        return parse_schedule(text, count if own is None else min(count, own), self.seed + 1, size, self.folder)

    def limits(self, load: Load, size: str) -> dict[str, float]:
        """The thresholds of a cell: the load's own stand for the plan's of the same name."""
        chosen = {**self.thresholds, **load.thresholds}
        return {name: by_size[size] for name, by_size in chosen.items() if size in by_size}

    @property
    def source(self) -> dict[str, Any]:
        """As a plan's file would have it: what a result says of its plan."""
        return {
            "name": self.name,
            "seed": self.seed,
            "task": self.task,
            "timeout_s": self.timeout_s,
            "warmup_s": self.warmup_s,
            "calibration_probes": self.calibration_probes,
            "rounds": self.rounds,
            "senders": self.senders,
            "allow_saturated": self.allow_saturated,
            **({"thresholds": _plain(self.thresholds)} if self.thresholds else {}),
            "targets": dict(self.targets),
            **({"metrics": {target: list(urls) for target, urls in self.metrics.items()}} if self.metrics else {}),
            "samples": dict(self.samples),
            "load": [
                {
                    "name": load.name,
                    "schedule": dict(load.schedule),
                    "requests": dict(load.requests),
                    "warmup": load.warmup,
                    **({} if load.at_most_s == math.inf else {"at_most_s": load.at_most_s}),
                    **({"thresholds": _plain(load.thresholds)} if load.thresholds else {}),
                }
                for load in self.loads
            ],
        }

    def with_targets(self, targets: Mapping[str, str]) -> Plan:
        """The same plan for other targets."""
        return replace(self, targets=targets)

    def with_metrics(self, metrics: Mapping[str, Sequence[str]]) -> Plan:
        """The same plan with other addresses of metrics."""
        return replace(self, metrics=metrics)

    def for_own_images(self, count: int) -> Plan:
        """The same plan for one size, `own`, of `count` files: loads as for the first size that each has."""
        loads = tuple(
            replace(
                load,
                schedule={OWN: next(iter(load.schedule.values()))},
                requests={OWN: next(iter(load.requests.values()))},
                thresholds=_own(load.thresholds),
            )
            for load in self.loads
        )
        return replace(self, samples={OWN: count}, loads=loads, thresholds=_own(self.thresholds))

    def with_loads(self, loads: tuple[Load, ...]) -> Plan:
        """The same plan with other loads."""
        return replace(self, loads=loads)


def _plain(thresholds: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {name: dict(by_size) for name, by_size in thresholds.items()}


def _own(thresholds: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {name: {OWN: next(iter(by_size.values()))} for name, by_size in thresholds.items()}


_KEYS = {
    "name",
    "seed",
    "task",
    "timeout_s",
    "warmup_s",
    "calibration_probes",
    "rounds",
    "senders",
    "allow_saturated",
    "thresholds",
    "targets",
    "metrics",
    "samples",
    "load",
}
_LOAD_KEYS = {"name", "schedule", "requests", "warmup", "at_most_s", "thresholds"}
_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
}
_MOST_PROCESSES = 64


def load_plan(path: Path, *, own_images: bool = False) -> Plan:
    """Read and check `path`. Raises `PlanError` that names the file, the key, the cause and the remedy.

    `own_images`: the user brings files (`Plan.for_own_images`), so that [samples] may be left out.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"plan {path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"plan {path} is not TOML: {error}") from None
    if own_images and not raw.get("samples"):
        raw = {**raw, "samples": {OWN: 1}}  # until they are counted
    return parse_plan(raw, f"plan {path}", path.parent, {*NAMES, OWN} if own_images else NAMES)


def parse_plan(raw: dict[str, Any], where: str, folder: Path, sizes: Collection[str] = NAMES) -> Plan:
    """The plan that a TOML file has; `where`: for errors, `folder`: of its traces. Raises `PlanError`."""
    _refuse_unknown(raw, _KEYS, where)
    name = _value(raw, "name", str, "run", where)
    if not name.strip() or "/" in name or name.startswith("."):
        raise PlanError(f"{where}: 'name' is '{name}'; it names a folder too: give a word, without / and leading dot")
    timeout_s = _value(raw, "timeout_s", float, 30.0, where)
    if not 0 < timeout_s < math.inf:
        raise PlanError(f"{where}: 'timeout_s' is {timeout_s:g}; give the seconds that an answer may take")
    warmup_s = _value(raw, "warmup_s", float, 15.0, where)
    if not 0 <= warmup_s < math.inf:
        raise PlanError(f"{where}: 'warmup_s' is {warmup_s:g}; give the seconds that warming up may take, 0 or more")
    targets = _table(raw, "targets", str, where)
    for target, url in targets.items():
        try:
            check_url(url)
        except PlanError as error:
            raise PlanError(f"{where}: [targets] '{target}': {error}") from None
    samples = _samples(raw, where, sizes)
    seed = _value(raw, "seed", int, 1, where)
    entries = _value(raw, "load", list, [], where)
    if not entries:
        raise PlanError(f"{where}: there is no [[load]]; give at least one, with name, schedule and requests")
    loads: list[Load] = []
    for index, entry in enumerate(entries, 1):
        load = _load(entry, index, seed, samples, f"{where}: [[load]] {index}", folder)
        if load.name in [other.name for other in loads]:
            raise PlanError(f"{where}: [[load]] {index}: 'name' is '{load.name}', as of one before; give each its own")
        loads.append(load)
    for size in samples:
        if not any(size in load.requests for load in loads):
            raise PlanError(
                f"{where}: [samples] has '{size}', which no [[load]] sends; add it there, or remove it here"
            )
    senders = _at_least(0, raw, "senders", 0, where)
    if senders > _MOST_PROCESSES:
        raise PlanError(f"{where}: 'senders' is {senders}; that are processes: give at most {_MOST_PROCESSES}")
    return Plan(
        name,
        seed,
        _value(raw, "task", str, "classification", where),
        timeout_s,
        warmup_s,
        _at_least(0, raw, "calibration_probes", 40, where),
        targets,
        samples,
        tuple(loads),
        _at_least(1, raw, "rounds", 1, where),
        senders,
        _value(raw, "allow_saturated", bool, False, where),
        _thresholds(raw, samples, where),
        _metrics(raw, where),
        folder,
    )


def _metrics(raw: dict[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for target, given in _value(raw, "metrics", dict, {}, where).items():
        urls = given if isinstance(given, list) else [given]
        for url in urls:
            if not isinstance(url, str):
                raise PlanError(
                    f"{where}: [metrics] '{target}' has {url!r}; give an address as text, or a list of them"
                )
            try:
                check_metrics_url(url)
            except PlanError as error:
                raise PlanError(f"{where}: [metrics] '{target}': {error}") from None
        found[target] = tuple(urls)
    return found


def _samples(raw: dict[str, Any], where: str, sizes: Collection[str]) -> dict[str, int]:
    samples: dict[str, int] = _table(raw, "samples", int, where)
    if not samples:
        raise PlanError(
            f"{where}: [samples] is empty; give a size and a count, e.g. medium = 20, or your own files: --images DIR"
        )
    _refuse_unknown(samples, sizes, f"{where}: [samples]")
    for size, count in samples.items():
        if not 1 <= count <= MOST:
            raise PlanError(f"{where}: [samples] '{size}' is {count}; give from 1 to {MOST} distinct files")
    return samples


def _load(raw: Any, index: int, seed: int, sizes: Collection[str], where: str, folder: Path) -> Load:
    if not isinstance(raw, dict):
        raise PlanError(f"{where}: {raw!r} is not a table; write [[load]] and its keys below it")
    _refuse_unknown(raw, _LOAD_KEYS, where)
    schedule = _by_size(raw, "schedule", str, sizes, where)
    own: dict[str, int | None] = {}
    for size, text in schedule.items():
        try:
            parse_schedule(text, 1, seed, size, folder)
            own[size] = own_count(text, size, folder)
        except PlanError as error:
            raise PlanError(f"{where}: 'schedule' for {size}: {error}") from None
    if "requests" not in raw and all(own.values()):
        requests: dict[str, Any] = dict(own)
    else:
        requests = _by_size(raw, "requests", int, sizes, where)
    if (
        isinstance(raw["schedule"], dict)
        and isinstance(raw.get("requests"), dict)
        and schedule.keys() != requests.keys()
    ):
        odd = sorted(schedule.keys() ^ requests.keys())
        raise PlanError(f"{where}: 'schedule' and 'requests' differ in {', '.join(odd)}; name the same sizes in both")
    for size, count in requests.items():
        if count < 1:
            raise PlanError(f"{where}: 'requests' for {size} is {count}; the least is 1")
        most = own.get(size)
        if most is not None and count > most:
            raise PlanError(
                f"{where}: 'requests' for {size} is {count}, and '{schedule[size]}' has {most}; leave 'requests' out"
            )
    at_most_s = _value(raw, "at_most_s", float, math.inf, where)
    if not at_most_s > 0:
        raise PlanError(f"{where}: 'at_most_s' is {at_most_s:g}; give the seconds in which requests may be due")
    return Load(
        _value(raw, "name", str, "", where).strip() or f"load {index}",
        {size: text for size, text in schedule.items() if size in requests},
        {size: count for size, count in requests.items() if size in schedule},
        _at_least(0, raw, "warmup", 5, where),
        at_most_s,
        _thresholds(raw, sizes, where),
    )


def _thresholds(raw: dict[str, Any], sizes: Collection[str], where: str) -> dict[str, dict[str, float]]:
    """By name, then by size."""
    table = _value(raw, "thresholds", dict, {}, where)
    where = f"{where}: [thresholds]"
    _refuse_unknown(table, KINDS, where)
    limits: dict[str, dict[str, float]] = {}
    for name in table:
        limits[name] = _by_size(table, name, float, sizes, where)
        for size, limit in limits[name].items():
            if not 0 <= limit < math.inf:
                raise PlanError(f"{where}: '{name}' for {size} is {limit:g}; give a number, 0 or more")
    return limits


def _by_size(raw: dict[str, Any], key: str, type_: type, sizes: Collection[str], where: str) -> dict[str, Any]:
    """A value per size: `raw[key]` is a table, or one value for all sizes."""
    if key not in raw:
        raise PlanError(f"{where}: '{key}' is missing")
    value = raw[key]
    if not isinstance(value, dict):
        return {size: _value(raw, key, type_, None, where) for size in sizes}
    if not value:
        raise PlanError(f"{where}: '{key}' is empty; give at least one size of [samples], or one value for all")
    _refuse_unknown(value, sizes, f"{where}: '{key}'")
    return {size: _value(value, size, type_, None, f"{where}: '{key}'") for size in value}


def _table(raw: dict[str, Any], key: str, type_: type, where: str) -> dict[str, Any]:
    table = _value(raw, key, dict, {}, where)
    return {name: _value(table, name, type_, None, f"{where}: [{key}]") for name in table}


def _at_least(least: int, raw: dict[str, Any], key: str, default: int, where: str) -> int:
    value: int = _value(raw, key, int, default, where)
    if value < least:
        raise PlanError(f"{where}: '{key}' is {value}; the least is {least}")
    return value


def _value(raw: Mapping[str, Any], key: str, type_: type, default: Any, where: str) -> Any:
    value = raw.get(key, default)
    if type_ is float and type(value) is int:
        return float(value)
    if type(value) is not type_:  # TOML has no subtypes, and Python's True is an int
        raise PlanError(f"{where}: '{key}' is {value!r}, not {_WORDS[type_]}")
    return value


def _refuse_unknown(raw: Mapping[str, Any], known: Collection[str], where: str) -> None:
    unknown = sorted(set(raw) - set(known))
    if unknown:
        raise PlanError(f"{where}: unknown key '{unknown[0]}'; known: {', '.join(sorted(known))}")
