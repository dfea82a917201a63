"""A plan: what a run asks of whom, how often. A TOML file; unknown keys are errors: a slip must not be a result.

name = "demo"
seed = 1
task = "classification"
timeout_s = 30.0
calibration_probes = 40         # per target and size; 0: no calibration, transit stays whole
[targets]                       # name -> URL; `null:` is the generator's own ceiling
grpc = "grpc://127.0.0.1:8001"
[samples]                       # size -> how many distinct files
medium = 20
[[load]]
name = "1 in flight"
schedule = { medium = "closed(1)" }     # or one string for all sizes
requests = { medium = 100 }
warmup = 10
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadgen.errors import PlanError

OWN = "own"  # the size class of images that the user brings


@dataclass(frozen=True, slots=True)
class Load:
    """One way of asking. `schedule` and `requests` by size."""

    name: str
    schedule: Mapping[str, str]
    requests: Mapping[str, int]
    warmup: int

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
    calibration_probes: int
    targets: Mapping[str, str]
    samples: Mapping[str, int]
    loads: tuple[Load, ...]
    source: Mapping[str, Any]

    def with_targets(self, targets: Mapping[str, str]) -> Plan:
        """The same plan for other targets."""
        return replace(self, targets=targets, source={**self.source, "targets": dict(targets)})

    def for_own_images(self, count: int) -> Plan:
        """The same plan for one size, `own`, of `count` files: loads as for the first size that each has."""
        loads = tuple(
            replace(
                load,
                schedule={OWN: next(iter(load.schedule.values()))},
                requests={OWN: next(iter(load.requests.values()))},
            )
            for load in self.loads
        )
        return replace(self, samples={OWN: count}, loads=loads, source={**self.source, "samples": {OWN: count}})

    def with_loads(self, loads: tuple[Load, ...]) -> Plan:
        """The same plan with other loads."""
        return replace(self, loads=loads)


_KEYS = {"name", "seed", "task", "timeout_s", "calibration_probes", "targets", "samples", "load"}
_LOAD_KEYS = {"name", "schedule", "requests", "warmup"}


def load_plan(path: Path) -> Plan:
    """Read and check `path`. Raises `PlanError` that names the file, the key, the cause and the remedy."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"plan {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"plan {path} is not TOML: {error}") from None
    return _plan(raw, str(path))


def _plan(raw: dict[str, Any], where: str) -> Plan:
    _refuse_unknown(raw, _KEYS, where)
    samples = _table(raw, "samples", int, where)
    if not samples:
        raise PlanError(f"{where}: [samples] is empty; give a size and a count, e.g. medium = 20")
    loads = raw.get("load", [])
    if not isinstance(loads, list) or not loads:
        raise PlanError(f"{where}: there is no [[load]]; give at least one, with name, schedule and requests")
    return Plan(
        _value(raw, "name", str, "run", where),
        _value(raw, "seed", int, 1, where),
        _value(raw, "task", str, "classification", where),
        float(_value(raw, "timeout_s", (int, float), 30.0, where)),
        _value(raw, "calibration_probes", int, 40, where),
        _table(raw, "targets", str, where),
        samples,
        tuple(_load(entry, tuple(samples), f"{where}: [[load]] {i + 1}") for i, entry in enumerate(loads)),
        raw,
    )


def _load(raw: dict[str, Any], sizes: tuple[str, ...], where: str) -> Load:
    _refuse_unknown(raw, _LOAD_KEYS, where)
    schedule = _by_size(raw, "schedule", str, sizes, where)
    requests = _by_size(raw, "requests", int, sizes, where)
    for size, count in requests.items():
        if count < 1:
            raise PlanError(f"{where}: requests for {size} is {count}; the least is 1")
    warmup = _value(raw, "warmup", int, 5, where)
    if warmup < 0:
        raise PlanError(f"{where}: warmup is {warmup}; the least is 0")
    return Load(_value(raw, "name", str, "", where) or "load", schedule, requests, warmup)


def _by_size(raw: dict[str, Any], key: str, type_: type, sizes: tuple[str, ...], where: str) -> Any:
    if key not in raw:
        raise PlanError(f"{where}: '{key}' is missing")
    value = raw[key]
    if isinstance(value, dict):
        _refuse_unknown(value, set(sizes), f"{where}: {key}")
        return {size: _value(value, size, type_, None, f"{where}: {key}") for size in value}
    return {size: _value(raw, key, type_, None, where) for size in sizes}


def _table(raw: dict[str, Any], key: str, type_: type, where: str) -> dict[str, Any]:
    table = raw.get(key, {})
    if not isinstance(table, dict):
        raise PlanError(f"{where}: [{key}] is not a table")
    return {name: _value(table, name, type_, None, f"{where}: [{key}]") for name in table}


def _value(raw: dict[str, Any], key: str, type_: Any, default: Any, where: str) -> Any:
    value = raw.get(key, default)
    if not isinstance(value, type_) or (isinstance(value, bool) and type_ is not bool):
        wanted = getattr(type_, "__name__", "number")
        raise PlanError(f"{where}: '{key}' is {value!r}, not of type {wanted}")
    return value


def _refuse_unknown(raw: Any, known: set[str], where: str) -> None:
    if not isinstance(raw, dict):
        raise PlanError(f"{where}: {raw!r} is not a table")
    unknown = sorted(set(raw) - known)
    if unknown:
        raise PlanError(f"{where}: unknown key '{unknown[0]}'; known: {', '.join(sorted(known))}")
