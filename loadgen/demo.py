"""The demo: every transport on this machine, asked the same questions, with what each costs beside no hop at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadgen.experiment import Deployment, Finished, ask, carry_out, not_run
from loadgen.plan import Plan, load_plan
from loadgen.progress import Display
from loadgen.samples import Sample, photographs
from services.errors import ServiceError
from services.local.deployments import Options
from services.local.preflight import absent
from services.local.stack import Stack
from services.tracing.tracer import Tracer

PLAN = Path(__file__).with_name("plans") / "demo.toml"
TRANSPORTS = "fused,grpc,kafka,kafka-python,redis"
MODEL = "efficientnet-lite0"


def demo_plan(path: Path | None, fraction: float, *, own_images: bool = False) -> Plan:
    """The plan in `path` (the demo's own, if None), with its numbers of requests times `fraction`, at least 1.

    `own_images`: see `load_plan`. Raises `PlanError`.
    """
    plan = load_plan(path or PLAN, own_images=own_images)
    return plan.with_loads(
        tuple(
            load.with_requests({size: max(1, round(count * fraction)) for size, count in load.requests.items()})
            for load in plan.loads
        )
    )


def run(
    plan: Plan,
    transports: Sequence[str],
    samples: Mapping[str, Sequence[Sample]],
    folder: Path,
    report: Display,
    *,
    models: tuple[str, ...] = (MODEL,),
    kafka: str | None = None,
    redis: str | None = None,
    tracer: Tracer | None = None,
    spans: str = "",
) -> Finished:
    """Start the suite, carry out the plan, stop the suite. `folder`: its record, logs and broker data.

    A transport whose broker cannot be had here is NOT RUN, unless nothing else is asked for.

    `tracer` makes the requests' spans, the services send those of batches to `spans`.

    Raises `LocalStackError` where the suite does not start.
    """
    without = absent(transports, external_redis=redis is not None)
    there = [name for name in transports if name not in without]
    with Stack(
        there or transports,
        Options(models, log_level="WARNING", spans=spans),
        folder,
        kafka=kafka,
        redis=redis,
        say=lambda what: report(what, 0, 0),
    ) as stack:
        finished = _measure(plan, stack, samples, report, {"client": os.getpid()}, tracer)
    for name, why in without.items():
        finished.run["cells"] += not_run(plan, samples, name, why)
    return finished


def _measure(
    plan: Plan,
    stack: Stack,
    samples: Mapping[str, Sequence[Sample]],
    report: Display,
    own: Mapping[str, int],
    tracer: Tracer | None,
) -> Finished:
    deployments = {
        name: Deployment(f"grpc://{door}", {**own, **stack.pids(name)}, stack.metrics(name))
        for name, door in stack.doors().items()
    }
    finished = carry_out(plan, deployments, samples, report, tracer)
    run = finished.run
    if any(cell["label"] == "NOT RUN" for cell in run["cells"]):
        run["notes"].append(f"not all could be run; the services' logs are in {stack.logs}")
    for name, deployment in () if run["interrupted"] else deployments.items():
        if any(cell["target"] == name and cell["label"] != "MEASURED" for cell in run["cells"]):
            continue  # what an emulated model answers means nothing
        report(f"asking {name} what four photographs show", 0, 0)
        try:
            said = [
                {
                    "sample": sample.name,
                    "label": bytes(outputs["labels"][0, 0]).decode(),
                    "score": float(outputs["scores"][0, 0]),
                }
                for sample, outputs in ask(deployment.url, plan.task, photographs(), plan.timeout_s)
            ]
        except ServiceError as error:
            run["notes"].append(f"{name} did not say what the photographs show: {error.message}")
        else:
            run["answers"] += [{"target": name, **answer} for answer in said]
    return finished
