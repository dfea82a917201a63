"""`demo`: the suite, started here, over every transport."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loadgen import demo
from loadgen.commands.options import chosen_for, command, live, tracer, tracing
from loadgen.commands.status import OF_A_RUN, finish
from loadgen.errors import PlanError
from loadgen.progress import Progress
from services.local.deployments import names


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(
        commands,
        "demo",
        "start the suite here, load every transport, stop it, write the report",
        run_demo,
        status=OF_A_RUN,
    )
    live(parser)
    parser.add_argument("--plan", type=Path, help="default: loadgen/plans/demo.toml; its [targets] are not used")
    parser.add_argument(
        "--transports",
        default=demo.TRANSPORTS,
        help="default: %(default)s; also grpc+jpeg, kafka+u8, ...: how images cross the hop",
    )
    parser.add_argument(
        "--model",
        default=demo.MODEL,
        help="of the models file; emulated: no device; several: mtcnn,emulated-identifier (default: %(default)s)",
    )
    parser.add_argument("--kafka", metavar="HOST:PORT", help="use this broker instead of starting one")
    parser.add_argument("--redis", metavar="HOST:PORT", help="use this Redis instead of starting one")
    parser.add_argument("--out", type=Path, default=Path("results/demo"), help="default: %(default)s")
    parser.add_argument(
        "--fraction",
        type=float,
        default=1.0,
        help="of the plan's requests; to start and to warm up takes its time all the same",
    )
    tracing(parser)


def run_demo(arguments: argparse.Namespace, progress: Progress) -> int:
    """`demo`."""
    if not 0 < arguments.fraction <= 1:
        raise PlanError(f"--fraction is {arguments.fraction}; give a number above 0, at most 1")
    plan = demo.demo_plan(arguments.plan, arguments.fraction, own_images=arguments.images is not None)
    plan, chosen = chosen_for(arguments, plan, progress)
    finished = demo.run(
        plan,
        arguments.transports.split(","),
        chosen,
        arguments.out.resolve() / "stack",
        progress,
        models=names(arguments.model),
        kafka=arguments.kafka,
        redis=arguments.redis,
        tracer=tracer(arguments),
        spans=arguments.spans,
    )
    return finish(finished, arguments.out, progress)
