"""A plan, carried out: for each size and load, every target with the same seeded schedule, in rounds.

Where a plan has several rounds, the schedule is cut into pieces and targets are asked in turn, A B A B: a machine that
becomes slower meanwhile does so for all of them.
"""

from __future__ import annotations

import csv
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from loadgen import atomic, contention
from loadgen.analysis import analyse, throughput
from loadgen.calibration import Floor, calibrate
from loadgen.errors import GeneratorError, PlanError
from loadgen.generator import ceiling_rps, refuse_saturated
from loadgen.live import Watched
from loadgen.plan import Load, Plan
from loadgen.progress import Display
from loadgen.rendezvous import Begin, Rendezvous
from loadgen.runner import GRACE_S, sent
from loadgen.samples import Sample
from loadgen.schedule import Schedule, is_closed
from loadgen.sender import Job
from loadgen.senders import Door, Result, default_count, open_senders
from loadgen.service_spans import Lost, ServiceSpans, of_target
from loadgen.statistics import quantile
from loadgen.stored import SCHEMA, cut_before_ns
from loadgen.streams import DROPPED
from loadgen.target import NULL, Exchange, NullTarget, OipTarget, Target, image_tensor
from loadgen.targets import open_target
from loadgen.thresholds import as_rows, check
from loadgen.verdict import judge
from loadgen.warmup import Warmth, warm_up
from services.accounting import UNKNOWN_CPU, monotonic_ns
from services.errors import ServiceError
from services.local.broker import Broker
from services.messages import Array, Tensors
from services.messages import Finished as FinishedRequest
from services.settings import cpu_limit
from services.tracing.context import parse
from services.tracing.tracer import Counts, Tracer

_PACKAGES = (
    "beyond-inference",
    "grpcio",
    "protobuf",
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "torch",
    "torchvision",
    "tensorrt",
    "nvidia-dali-cuda130",
    "confluent-kafka",
    "kafka-python",
    "redis",
    "crc32c",
)

_T = TypeVar("_T")
_SPANS_PATIENCE_S = 30.0  # for room in the queue of requests that get spans
# A broker's virtual machine compiles by counting calls, and rests in between: only numbers tell that it is done.
_FIRST_PROBES = 1500
# A load's own warm-up; a trace may begin with hours of silence.
_WARM_UP_AT_MOST_S = 10.0


class Deployment(NamedTuple):
    """What is known of a target beside its URL: process ids by name (for the contention account).

    `metrics`: where its services answer scrapes, http://host:port/metrics: they know what they lost of their spans.
    """

    url: str
    pids: Mapping[str, int]
    metrics: Sequence[str] = ()


class Finished(NamedTuple):
    """The results file's content, and every exchange with its cell's names."""

    run: dict[str, Any]
    exchanges: list[tuple[dict[str, str], Exchange]]


def carry_out(
    plan: Plan,
    deployments: Mapping[str, Deployment],
    samples: Mapping[str, Sequence[Sample]],
    report: Display,
    tracer: Tracer | None = None,
    together: Rendezvous | None = None,
) -> Finished:
    """Run all cells. What cannot be run is a cell labelled NOT RUN, with the reason; Ctrl-C keeps what is finished.

    `tracer` is closed: only then it is known whether all spans were delivered. `together`: this is one of several
    parts of the plan (`parts.check_divisible`); thresholds are for the whole of them, so a part has none. Raises
    `PlanError` for a rate that the generator itself cannot keep.
    """
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    begin = time.monotonic()
    # Nobody but a door has spans of its own to lose.
    doors = {name: deployment.metrics for name, deployment in deployments.items() if deployment.url != NULL}
    service_spans = ServiceSpans(doors)
    measuring = _Measuring(plan, deployments, samples, report, tracer, together)
    interrupted = False
    notes: list[str] = []
    try:
        measuring.run()
    except KeyboardInterrupt:
        interrupted = True
    except GeneratorError as error:
        # What was finished before is right; what was going on is lost.
        interrupted = True
        notes.append(f"the generator failed: {error}")
    finally:
        measuring.close()
        if tracer is not None:
            report("sending spans", 0, 0)
            tracer.close()
    if any(doors.values()):
        report("asking services what became of their spans", 0, 0)
    try:
        lost = service_spans.end(0.0) if interrupted else service_spans.end()
    except KeyboardInterrupt:  # everything is measured, but who asked has no time for the rest
        interrupted = True
        lost = service_spans.end(0.0)
    run = {
        "schema": SCHEMA,
        "name": plan.name,
        "started": started,
        "duration_s": time.monotonic() - begin,
        "interrupted": interrupted,
        "seed": plan.seed,
        "environment": environment(),
        "samples": {
            size: {"files": len(chosen), "mean_bytes": sum(len(s.data) for s in chosen) / len(chosen)}
            for size, chosen in samples.items()
        },
        "plan": {**plan.source, "targets": {name: d.url for name, d in deployments.items()}},
        "generator": measuring.generator,
        "cells": measuring.cells,
        "answers": [],
        "notes": notes,
    }
    if tracer is not None:
        run["spans"] = tracer.counts()._asdict()
    run["service_spans"] = [row._asdict() for row in lost]
    if together is not None:
        run["part"] = {**together.part._asdict(), "run": together.run}
    judge_spans(measuring.cells, None if tracer is None else tracer.counts(), lost)
    return Finished(run, measuring.kept)


def not_run(plan: Plan, samples: Mapping[str, Sequence[Sample]], target: str, reason: str) -> list[dict[str, Any]]:
    """The cells of a target that could not even be started."""
    return [
        _not_run(plan, {"target": target, "size": size, "load": load.name, "schedule": load.schedule[size]}, reason)
        for size in samples
        for load in plan.loads
        if size in load.schedule and size in load.requests
    ]


def _not_run(plan: Plan, names: Mapping[str, str], reason: str) -> dict[str, Any]:
    cell = {**names, "label": "NOT RUN", "reasons": [reason]}
    load = next(load for load in plan.loads if load.name == names["load"])
    return {**cell, "thresholds": as_rows(check(cell, plan.limits(load, names["size"])))}


@dataclass(frozen=True, slots=True)
class Round:
    """What came back from one piece of a schedule, in the order in which it was due; `due`: requests due in time.

    `begin`: where several parts sent it together.
    """

    exchanges: list[Exchange]
    due: int
    unsent: int
    offered_rps: float | None
    account: dict[str, Any]
    duration_s: float
    begin: Begin | None = None


@dataclass(slots=True)
class _Cell:
    """A target that is asked as a load says, while it goes on."""

    names: dict[str, str]
    warmth: Warmth | None
    floors: list[Floor]
    rounds: list[Round] = field(default_factory=list)


class _Measuring:
    """The cells of a run: per size and load, every target."""

    def __init__(
        self,
        plan: Plan,
        deployments: Mapping[str, Deployment],
        samples: Mapping[str, Sequence[Sample]],
        report: Display,
        tracer: Tracer | None,
        together: Rendezvous | None,
    ) -> None:
        self.cells: list[dict[str, Any]] = []
        self.kept: list[tuple[dict[str, str], Exchange]] = []
        self._plan = plan
        self._deployments = deployments
        self._samples = samples
        self._report = report
        self._tracer = tracer
        self._together = together
        self._targets: dict[str, Target] = {}
        self._emulated: dict[str, bool] = {}
        self._unusable: dict[str, str] = {}
        self._warmed: set[str] = set()
        self._ready: dict[tuple[str, str], tuple[Warmth | None, list[Floor]]] = {}
        self._ceilings: dict[str, float] = {}
        ratio = tracer.ratio if tracer is not None else 0.0
        for name, deployment in deployments.items():
            self._targets[name] = open_target(
                deployment.url,
                plan.task,
                plan.timeout_s,
                holds_ledger=tracer is not None,
                sample_ratio=ratio,
            )
        urls = {name: deployment.url for name, deployment in deployments.items()}
        self._senders = open_senders(
            plan.senders or default_count(),
            Door(urls, plan.task, plan.timeout_s, tracer is not None, ratio),
            self._targets,
        )

    @property
    def generator(self) -> dict[str, Any]:
        """What a results file has of the generator; the least ceiling stands for all."""
        return {
            "senders": self._senders.count,
            "ceiling_rps": min(self._ceilings.values(), default=None),
            "ceilings_rps": dict(self._ceilings),
        }

    def run(self) -> None:
        for size, chosen in self._samples.items():
            images = [sample.data for sample in chosen]
            self._senders.load(size, images)
            self._report(f"{size}: what the generator itself can send", 0, 0)
            self._ceilings[size] = ceiling_rps(self._senders, size)
        loads = [
            (size, load, self._plan.schedule(load, size))
            for size in self._samples
            for load in self._plan.loads
            if size in load.schedule and size in load.requests
        ]
        # Whoever asks nobody wants to see just that.
        if not self._plan.allow_saturated and any(d.url != NULL for d in self._deployments.values()):
            for size, _, schedule in loads:
                mine = self._mine(schedule)
                if schedule.peak_rps is not None:
                    mine = mine._replace(peak_rps=schedule.peak_rps * mine.requests / schedule.requests)
                refuse_saturated(mine, size, self._ceilings[size], self._senders.count)
        for name, target in self._targets.items():
            try:
                self._emulated[name] = target.emulated()
            except ServiceError as error:
                self._unusable[name] = f"{self._deployments[name].url} does not answer: {error.message}"
                self._refuse_alone(self._unusable[name])
        for size, load, schedule in loads:
            self._load(size, load, schedule)

    def _load(self, size: str, load: Load, schedule: Schedule) -> None:
        """One load, all targets in turn, round by round; a cell is told as soon as its last round is over."""
        going: dict[str, _Cell] = {}
        pieces = [self._mine(piece) for piece in schedule.rounds(self._plan.rounds)]
        for number, piece in enumerate(pieces):
            for name in self._targets:
                if number and name not in going:
                    continue  # it is given up, and said so
                names = {"target": name, "size": size, "load": load.name, "schedule": load.schedule[size]}
                try:
                    if name in self._unusable:
                        raise PlanError(self._unusable[name])
                    if name not in going:
                        going[name] = _Cell(names, *self._made_ready(name, size))
                    going[name].rounds.append(self._round(name, size, load, piece, number, len(pieces)))
                except (PlanError, TimeoutError) as error:
                    self._refuse_alone(str(error))
                    # Once is enough: it would cost as much patience again in every cell.
                    self._unusable.setdefault(name, str(error))
                    going.pop(name, None)
                    self.cells.append(_not_run(self._plan, names, str(error)))
                    continue
                if number == len(pieces) - 1:
                    self._tell(going[name], load)

    def _made_ready(self, name: str, size: str) -> tuple[Warmth | None, list[Floor]]:
        if (name, size) not in self._ready:
            # Another part has warmed it up before.
            warmed = name in self._warmed or (self._together is not None and self._together.part.number > 1)
            self._ready[name, size] = self._in_turn(
                lambda: _make_ready(
                    self._plan,
                    self._targets[name],
                    self._targets[name].tensors([sample.data for sample in self._samples[size]]),
                    self._deployments[name],
                    0 if warmed or not _may_compile(self._deployments[name]) else _FIRST_PROBES,
                    f"{size}, {name}",
                    self._report,
                ),
                f"{size}, {name}: ready",
            )
            self._warmed.add(name)
        return self._ready[name, size]

    def _mine(self, whole: Schedule) -> Schedule:
        return whole if self._together is None else self._together.part.schedule(whole)

    def _in_turn(self, what: Callable[[], _T], where: str) -> _T:
        """One part after the other: what is calibrated has to be idle."""
        if self._together is None:
            return what()
        part = self._together.part
        for number in range(1, part.number):
            self._together.meet(f"{where}, part {number}")
        done = what()
        for number in range(part.number, part.of + 1):
            self._together.meet(f"{where}, part {number}")
        return done

    def _refuse_alone(self, why: str) -> None:
        """A part that gives a target up alone would leave the others with another load than the plan's."""
        if self._together is not None:
            raise GeneratorError(f"{self._together.part} cannot go on, so none can: {why}")

    def _send(self, job: Job, what: str) -> tuple[Result, Begin | None]:
        """Where there are several parts, when all of them do."""
        if self._together is None:
            return self._senders.run(job), None
        together, begun = self._together, list[Begin]()

        def begins() -> int:
            begun.append(together.begin(what))
            return begun[-1].start_ns

        return self._senders.run(job, begins), begun[-1]

    def _round(self, name: str, size: str, load: Load, piece: Schedule, number: int, of: int) -> Round:
        prefix = f"{name}-{size}-{load.name.replace(' ', '_')}-"
        # A call ends at its deadline, by itself; who waits for it waits a little longer.
        patience_s = self._plan.timeout_s + GRACE_S
        # Of the same kind as what is measured: a warm-up with one sender leaves threads and batches cold.
        parts = 1 if self._together is None else self._together.part.of
        warmup = self._plan.warmup(load, size, self._senders.count * parts)
        what = f"{size}, {name}, {load.name}" + (f", round {number + 1} of {of}" if of > 1 else "")
        if warmup is not None:
            at_most_s = min(load.at_most_s, _WARM_UP_AT_MOST_S)
            job = Job(name, size, self._mine(warmup), f"{prefix}w", patience_s, at_most_s)
            self._send(job, f"{what}: warm-up")
        if self._together is not None:
            self._together.meet(f"{what}: warm")  # who waits here for a slower part is not in the account
        at_most_s = load.at_most_s / of
        job = Job(name, size, piece, prefix, patience_s, at_most_s)
        offered_rps = piece.offered_rps(at_most_s)
        pids = {**self._deployments[name].pids, **self._senders.pids()}
        with self._report.watching(Watched(what, piece.requests, offered_rps, self._senders.reading)):
            before = contention.snapshot(pids)
            begin = time.monotonic()
            done, started = self._send(job, what)
            duration_s = time.monotonic() - begin
            after = contention.snapshot(pids)
        asked = sent(done.exchanges)
        account = contention.account(before, after, len(asked), duration_s, done.run_delay_ns)
        due = piece.due_within(at_most_s)
        return Round(done.exchanges, due, done.unsent, offered_rps, account, duration_s, started)

    def _tell(self, cell: _Cell, load: Load) -> None:
        names, rounds = cell.names, cell.rounds
        if self._tracer is not None:
            _emit(self._tracer, self._plan.task, sent([e for round_ in rounds for e in round_.exchanges]))
        for number, round_ in enumerate(rounds):
            self.kept.extend(({**names, "round": str(number)}, exchange) for exchange in round_.exchanges)
        size = names["size"]
        planned, limits = load.requests[size], self._plan.limits(load, size)
        if self._together is not None:
            planned, limits = self._mine(self._plan.schedule(load, size)).requests, {}
        facts: dict[str, Any] = {
            "planned": planned,
            "ceiling_rps": None if self._deployments[names["target"]].url == NULL else self._ceilings[size],
        }
        if cell.warmth is not None:
            facts["warmup"] = cell.warmth._asdict()
        self.cells.append(cell_of(names, rounds, cell.floors, self._emulated[names["target"]], facts, limits))

    def close(self) -> None:
        self._senders.close()
        for target in self._targets.values():
            target.close()


def cell_of(
    names: Mapping[str, str],
    rounds: Sequence[Round],
    floors: Sequence[Floor],
    emulated: bool,
    facts: Mapping[str, Any],
    limits: Mapping[str, float],
) -> dict[str, Any]:
    """What a results file has of a cell that was measured in `rounds`. `facts`: see `analyse`; `limits`: thresholds."""
    exchanges = [exchange for round_ in rounds for exchange in round_.exchanges]
    asked = sent(exchanges)
    accounts = [(round_.account, len(sent(round_.exchanges)), round_.duration_s) for round_ in rounds]
    analysed = analyse(
        asked,
        floors,
        accounts[0][0] if len(accounts) == 1 else contention.together(accounts),
        sum(round_.duration_s for round_ in rounds),
        emulated,
        closed=is_closed(names["schedule"]),
        facts={
            "sent": len(asked),
            "unsent": sum(round_.unsent for round_ in rounds),
            "dropped": len(exchanges) - len(asked),
            "offered_rps": _offered(rounds),
            "rounds": [_round_row(number, round_) for number, round_ in enumerate(rounds)],
            **facts,
        },
        rounds_ns=[round_.exchanges[0].due_ns for round_ in rounds] if len(rounds) > 1 else (),
    )
    told = {**names, **analysed}
    return {**told, "thresholds": as_rows(check(told, limits))}


def _offered(rounds: Sequence[Round]) -> float | None:
    """Requests per second that were asked for while they were: over the rounds, without the time between them."""
    asked = seconds = 0.0
    for round_ in rounds:
        if round_.offered_rps is not None:
            asked += round_.due - 1
            seconds += (round_.due - 1) / round_.offered_rps
    return asked / seconds if seconds else None


def _round_row(number: int, round_: Round) -> dict[str, Any]:
    asked = sent(round_.exchanges)
    totals = sorted(exchange.total_ns / 1e6 for exchange in asked if exchange.error is None)
    row: dict[str, Any] = {"round": number}
    if round_.begin is not None:
        # What it takes to put the parts of a round together.
        row["part"] = {
            **round_.begin._asdict(),
            "due": round_.due,
            "unsent": round_.unsent,
            "offered_rps": round_.offered_rps,
        }
    return {
        **row,
        "requests": len(asked),
        "ok": len(totals),
        "dropped": sum(1 for exchange in round_.exchanges if exchange.error == DROPPED),
        "duration_s": round_.duration_s,
        "throughput_rps": throughput([asked]) if totals else None,
        "mean_ms": sum(totals) / len(totals) if totals else None,
        "p50_ms": quantile(totals, 0.5) if totals else None,
        "contention": round_.account,
    }


def _may_compile(deployment: Deployment) -> bool:
    """Whether a virtual machine may be among its processes: unless they are known, and none is Kafka's."""
    known = [name for name in deployment.pids if name != "client"]
    return not known or any(name.startswith(Broker.name) for name in known)


def _make_ready(
    plan: Plan,
    target: Target,
    tensors: Sequence[Array],
    deployment: Deployment,
    least: int,
    what: str,
    report: Display,
) -> tuple[Warmth | None, list[Floor]]:
    """Warm it up and calibrate it. A few real requests say how far apart the probes of the calibration should be."""
    if isinstance(target, NullTarget):
        return None, []
    report(f"{what}: first requests", 0, 0)
    durations = []
    for index in range(5):
        first = target.send(tensors[index % len(tensors)], f"first-{index}", monotonic_ns())
        try:
            exchange = first.result(plan.timeout_s + GRACE_S)
        except TimeoutError:
            raise PlanError(f"the first request had no answer within {plan.timeout_s:g} s") from None
        if exchange.error is not None:
            raise PlanError(f"the first requests were not answered: {exchange.error}: {exchange.message}")
        durations.append(exchange.total_ns / 1e9)
    report(f"{what}: warming up", 0, 0)

    def cpu_ns() -> int:
        return sum(reading.cpu_ns for reading in contention.snapshot(deployment.pids).processes.values())

    warmth = warm_up(target, tensors, plan.warmup_s, plan.timeout_s + GRACE_S, cpu_ns, least)
    if plan.calibration_probes < 1:
        return warmth, []
    report(f"{what}: calibrating", 0, 0)
    pause = min(*durations, 0.1)
    return warmth, calibrate(target, tensors, plan.calibration_probes, pause, plan.timeout_s + GRACE_S)


def _emit(tracer: Tracer, task: str, exchanges: Sequence[Exchange]) -> None:
    """After the cell: nothing of it is on the measured path."""
    for e in exchanges:
        own = parse({"traceparent": e.traceparent.encode()})
        # Where they are lost already, waiting for the rest would only take long.
        patience_s = 0.0 if tracer.counts().lost else _SPANS_PATIENCE_S
        tracer.offer(FinishedRequest(e.id, task, e.due_ns, e.tiles, {}, e.error), own, patience_s)


def judge_spans(cells: Sequence[dict[str, Any]], own: Counts | None, services: Sequence[Lost]) -> None:
    """Judge cells again by what was lost: the generator's own in any cell, a service's in those of its target."""
    mine = [] if own is None or not own.lost else [_lost(own)]
    for cell in cells:
        lost = [*mine, *of_target(services, cell["target"])]
        if lost and "verdict" in cell:
            cell["spans_lost"] = lost
            cell["verdict"], cell["reasons"] = judge(cell, closed=is_closed(cell["schedule"]))


def _lost(own: Counts) -> dict[str, Any]:
    return {"by": "the load generator", "requests": own.requests_lost, "spans": own.spans_lost}


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": cpu_limit(),
        "gpus": _gpus(),
        "versions": versions,
    }


def _gpus() -> list[str]:
    """NVIDIA's, by the driver's own words: model, and firmware."""
    found = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        told = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        found.append(", ".join(told[key].strip() for key in ("Model", "GPU Firmware") if key in told))
    return found


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def save(finished: Finished, folder: Path) -> None:
    """`run.json`, and `requests.csv` with a row per request and a column per (stage, where), in ns."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write(folder / "run.json", json.dumps(finished.run, indent=1) + "\n")
    columns = _columns(exchange for _, exchange in finished.exchanges)
    with (folder / "requests.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["target", "size", "load", "round", "id", "traceparent", "due_ns", "total_ns", "error", "warmup", *columns]
        )
        cuts = {(cell["target"], cell["size"], cell["load"]): cell.get("warmup_cut") for cell in finished.run["cells"]}
        for names, e in finished.exchanges:
            cut = cuts.get((names["target"], names["size"], names["load"]))
            # A stage that did not occur took no time; CPU time that is not known is not 0, but empty.
            sums: dict[str, int | None] = {name: None if name.endswith("_cpu_ns") else 0 for name in columns}
            for tile in e.tiles:
                name = f"{tile.stage.value}@{tile.where}"
                sums[f"{name}_ns"] = (sums[f"{name}_ns"] or 0) + tile.duration_ns
                if tile.cpu_ns != UNKNOWN_CPU:
                    sums[f"{name}_cpu_ns"] = (sums[f"{name}_cpu_ns"] or 0) + tile.cpu_ns
            writer.writerow(
                [
                    names["target"],
                    names["size"],
                    names["load"],
                    names["round"],
                    e.id,
                    e.traceparent,
                    e.due_ns,
                    e.total_ns,
                    e.error or "",
                    int(e.due_ns < cut_before_ns(cut, int(names["round"]))),
                    *(sums[c] for c in columns),
                ]
            )


def _columns(exchanges: Iterable[Exchange]) -> list[str]:
    """A column per (stage, where), in the order of a request's way.

    What a later target has beyond the earlier ones stands behind what came before it there, not at the end: `inspect`
    draws requests in this order.
    """
    columns: list[str] = []
    known: set[str] = set()
    for exchange in exchanges:
        before = None
        for tile in exchange.tiles:
            part = f"{tile.stage.value}@{tile.where}"
            for name in [f"{part}_ns"] + [f"{part}_cpu_ns"] * (tile.cpu_ns != UNKNOWN_CPU):
                if name not in known:
                    columns.insert(columns.index(before) + 1 if before else 0, name)
                    known.add(name)
                before = name
    return columns


def ask(url: str, task: str, samples: Sequence[Sample], timeout_s: float) -> Iterator[tuple[Sample, Tensors]]:
    """The answer to each sample, one after the other. Raises `ServiceError`.

    Each is sent as sampled: a door that sends spans makes a trace of it.
    """
    target = OipTarget(url.removeprefix("grpc://"), task, timeout_s)
    try:
        for sample in samples:
            exchange = target.send(image_tensor(sample.data), sample.name, monotonic_ns(), sampled=True).result(
                timeout_s + 1
            )
            if exchange.error is not None:
                raise ServiceError(f"{sample.name}: {exchange.error}: {exchange.message}")
            yield sample, exchange.outputs
    finally:
        target.close()
