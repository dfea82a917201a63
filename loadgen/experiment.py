"""A plan, carried out: for each size and load, every target with the same seeded schedule."""

from __future__ import annotations

import csv
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from loadgen import contention
from loadgen.analysis import analyse
from loadgen.calibration import Floor, calibrate
from loadgen.errors import PlanError
from loadgen.plan import Load, Plan
from loadgen.runner import Run
from loadgen.samples import Sample
from loadgen.schedule import is_closed, parse_schedule
from loadgen.target import Exchange, OipTarget, Target, image_tensor, open_target
from loadgen.warmup import Warmth, warm_up
from services.accounting import UNKNOWN_CPU, monotonic_ns
from services.errors import ServiceError
from services.messages import Array
from services.messages import Finished as FinishedRequest
from services.settings import cpu_limit
from services.tracing.context import parse
from services.tracing.tracer import Tracer

SCHEMA = "beyond-inference/run/1"
_PACKAGES = (
    "beyond-inference",
    "grpcio",
    "protobuf",
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "confluent-kafka",
    "kafka-python",
    "crc32c",
)

# A broker's virtual machine compiles by counting calls, and rests in between: only numbers tell that it is done.
_SPANS_PATIENCE_S = 30.0  # for room in the queue of requests that get spans
_FIRST_PROBES = 1500
# A target ends a request at its deadline; this is how much later we stop to believe that.
_GRACE_S = 5.0

Report = Callable[[str, int, int], None]  # (what, done, of)


class Deployment(NamedTuple):
    """What is known of a target beside its URL: process ids by name (for the contention account)."""

    url: str
    pids: Mapping[str, int]


class Finished(NamedTuple):
    """The results file's content, and every exchange with its cell's names."""

    run: dict[str, Any]
    exchanges: list[tuple[dict[str, str], Exchange]]


def carry_out(
    plan: Plan,
    deployments: Mapping[str, Deployment],
    samples: Mapping[str, Sequence[Sample]],
    report: Report,
    tracer: Tracer | None = None,
) -> Finished:
    """Run all cells. What cannot be run is a cell labelled NOT RUN, with the reason; Ctrl-C keeps what is finished.

    `tracer` is closed: only then it is known whether all spans were delivered.
    """
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    begin = time.monotonic()
    measuring = _Measuring(plan, deployments, samples, report, tracer)
    interrupted = False
    try:
        measuring.run()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        measuring.close()
        if tracer is not None:
            report("sending spans", 0, 0)
            tracer.close()
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
        "cells": measuring.cells,
        "answers": [],
        "notes": [],
    }
    if tracer is not None:
        run["spans"] = tracer.counts()._asdict()
        _judge_spans(measuring.cells, tracer)
    return Finished(run, measuring.kept)


class _Measuring:
    """The cells of a run, one after the other: per size and load, every target."""

    def __init__(
        self,
        plan: Plan,
        deployments: Mapping[str, Deployment],
        samples: Mapping[str, Sequence[Sample]],
        report: Report,
        tracer: Tracer | None,
    ) -> None:
        self.cells: list[dict[str, Any]] = []
        self.kept: list[tuple[dict[str, str], Exchange]] = []
        self._plan = plan
        self._deployments = deployments
        self._samples = samples
        self._report = report
        self._tracer = tracer
        self._targets: dict[str, Target] = {}
        self._emulated: dict[str, bool] = {}
        self._unusable: dict[str, str] = {}
        self._warmed: set[str] = set()
        for name, deployment in deployments.items():
            self._targets[name] = open_target(
                deployment.url,
                plan.task,
                plan.timeout_s,
                holds_ledger=tracer is not None,
                sample_ratio=tracer.ratio if tracer is not None else 0.0,
            )

    def run(self) -> None:
        for name, target in self._targets.items():
            try:
                self._emulated[name] = target.emulated()
            except ServiceError as error:
                self._unusable[name] = f"{self._deployments[name].url} does not answer: {error.message}"
        for size, chosen in self._samples.items():
            tensors = [image_tensor(sample.data) for sample in chosen]
            ready: dict[str, tuple[Warmth | None, list[Floor]]] = {}
            for load in self._plan.loads:
                if size in load.schedule and size in load.requests:
                    for name in self._targets:
                        self._cell(name, size, load, tensors, ready)

    def _cell(
        self,
        name: str,
        size: str,
        load: Load,
        tensors: Sequence[Array],
        ready: dict[str, tuple[Warmth | None, list[Floor]]],
    ) -> None:
        names = {"target": name, "size": size, "load": load.name, "schedule": load.schedule[size]}
        target = self._targets[name]
        try:
            if name in self._unusable:
                raise PlanError(self._unusable[name])
            if name not in ready:
                least = 0 if name in self._warmed else _FIRST_PROBES
                ready[name] = _make_ready(
                    self._plan, target, tensors, self._deployments[name], least, f"{size}, {name}", self._report
                )
                self._warmed.add(name)
            warmth, floors = ready[name]
            exchanges, account, duration_s = _measure(
                self._plan, load, names, target, tensors, self._deployments[name], self._report
            )
        except (PlanError, TimeoutError) as error:
            # Once is enough: it would cost as much patience again in every cell.
            self._unusable.setdefault(name, str(error))
            self.cells.append({**names, "label": "NOT RUN", "reasons": [str(error)]})
            return
        if self._tracer is not None:
            _emit(self._tracer, self._plan.task, exchanges)
        self.kept.extend((names, exchange) for exchange in exchanges)
        analysed = analyse(
            exchanges, floors, account, duration_s, self._emulated[name], closed=is_closed(names["schedule"])
        )
        analysed["planned"] = load.requests[size]
        if warmth is not None:
            analysed["warmup"] = warmth._asdict()
            if not warmth.stable:
                if analysed["verdict"] == "VALID":  # the numbers hold, but others were given CPU meanwhile
                    analysed["verdict"] = "CONTENDED"
                analysed["reasons"].append(
                    f"not warm: it still became faster after {warmth.seconds:.0f} s and {warmth.probes} probes; "
                    "give it more time (warmup_s), or a quieter machine"
                )
        self.cells.append({**names, **analysed})

    def close(self) -> None:
        for target in self._targets.values():
            target.close()


def _make_ready(
    plan: Plan,
    target: Target,
    tensors: Sequence[Array],
    deployment: Deployment,
    least: int,
    what: str,
    report: Report,
) -> tuple[Warmth | None, list[Floor]]:
    """Warm it up and calibrate it. A few real requests say how far apart the probes of the calibration should be."""
    if not isinstance(target, OipTarget):
        return None, []
    report(f"{what}: first requests", 0, 0)
    durations = []
    for index in range(5):
        first = target.send(tensors[index % len(tensors)], f"first-{index}", monotonic_ns())
        try:
            exchange = first.result(plan.timeout_s + _GRACE_S)
        except TimeoutError:
            raise PlanError(f"the first request had no answer within {plan.timeout_s:g} s") from None
        if exchange.error is not None:
            raise PlanError(f"the first requests were not answered: {exchange.error}: {exchange.message}")
        durations.append(exchange.total_ns / 1e9)
    report(f"{what}: warming up", 0, 0)

    def cpu_ns() -> int:
        return sum(reading.cpu_ns for reading in contention.snapshot(deployment.pids).processes.values())

    warmth = warm_up(target, tensors, plan.warmup_s, plan.timeout_s, cpu_ns, least)
    if plan.calibration_probes < 1:
        return warmth, []
    report(f"{what}: calibrating", 0, 0)
    pause = min(*durations, 0.1)
    return warmth, calibrate(target, tensors, plan.calibration_probes, pause, plan.timeout_s)


def _measure(
    plan: Plan,
    load: Load,
    names: Mapping[str, str],
    target: Target,
    tensors: Sequence[Array],
    deployment: Deployment,
    report: Report,
) -> tuple[list[Exchange], dict[str, object], float]:
    size, text = names["size"], names["schedule"]
    prefix = f"{names['target']}-{size}-{load.name.replace(' ', '_')}-"
    if load.warmup:
        # Of the same kind as what is measured: a warm-up with one sender leaves threads and batches cold.
        schedule = parse_schedule(text, load.warmup, plan.seed + 1)
        Run(target, tensors, schedule, prefix=f"{prefix}w", timeout_s=plan.timeout_s).run()
    schedule = parse_schedule(text, load.requests[size], plan.seed)
    what = f"{size}, {names['target']}, {load.name}"
    run = Run(
        target,
        tensors,
        schedule,
        prefix=prefix,
        timeout_s=plan.timeout_s,
        at_most_s=load.at_most_s,
    )
    report(what, 0, 0)
    before = contention.snapshot(deployment.pids)
    begin = time.monotonic()
    exchanges = run.run()
    duration_s = time.monotonic() - begin
    after = contention.snapshot(deployment.pids)
    account = contention.account(before, after, len(exchanges), duration_s, {"client": run.senders_run_delay_ns})
    return exchanges, account, duration_s


def _emit(tracer: Tracer, task: str, exchanges: Sequence[Exchange]) -> None:
    """After the cell: nothing of it is on the measured path."""
    for e in exchanges:
        own = parse({"traceparent": e.traceparent.encode()})
        # Where they are lost already, waiting for the rest would only take long.
        patience_s = 0.0 if tracer.counts().lost else _SPANS_PATIENCE_S
        tracer.offer(FinishedRequest(e.id, task, e.due_ns, e.tiles, {}, e.error), own, patience_s)


def _judge_spans(cells: Sequence[dict[str, Any]], tracer: Tracer) -> None:
    """Traces that lack requests would be taken for the whole."""
    counts = tracer.counts()
    if counts.lost:
        why = f"spans were lost: {counts.requests_lost} requests have none, {counts.spans_lost} were not delivered"
        for cell in cells:
            if "verdict" in cell:
                cell["verdict"] = "INVALID"
                cell["reasons"].append(why)


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
        "versions": versions,
    }


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
    (folder / "run.json").write_text(json.dumps(finished.run, indent=1) + "\n", encoding="utf-8")
    columns: dict[str, None] = {}
    for _, exchange in finished.exchanges:
        for tile in exchange.tiles:
            columns.setdefault(f"{tile.stage.value}@{tile.where}_ns")
            if tile.cpu_ns != UNKNOWN_CPU:
                columns.setdefault(f"{tile.stage.value}@{tile.where}_cpu_ns")
    with (folder / "requests.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["target", "size", "load", "id", "traceparent", "due_ns", "total_ns", "error", *columns])
        for names, e in finished.exchanges:
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
                    e.id,
                    e.traceparent,
                    e.due_ns,
                    e.total_ns,
                    e.error or "",
                    *(sums[c] for c in columns),
                ]
            )


def ask(url: str, task: str, samples: Sequence[Sample], timeout_s: float) -> list[dict[str, Any]]:
    """The answer to each sample in words: its likeliest label and score. Raises `ServiceError`."""
    target = OipTarget(url.removeprefix("grpc://"), task, timeout_s)
    answers = []
    try:
        for sample in samples:
            exchange = target.send(image_tensor(sample.data), sample.name, monotonic_ns()).result(timeout_s + 1)
            if exchange.error is not None:
                raise ServiceError(f"{sample.name}: {exchange.error}: {exchange.message}")
            answers.append(
                {
                    "sample": sample.name,
                    "label": bytes(exchange.outputs["labels"][0, 0]).decode(),
                    "score": float(exchange.outputs["scores"][0, 0]),
                }
            )
    finally:
        target.close()
    return answers
