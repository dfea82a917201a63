"""Arguments that several commands have, and what they stand for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadgen import samples
from loadgen.commands.status import USED
from loadgen.errors import PlanError
from loadgen.plan import OWN, Plan
from loadgen.progress import Progress
from loadgen.samples import Sample
from services.tracing.destination import check, open_destination
from services.tracing.tracer import Tracer, sampler
from services.version import version

_FORCED_PER_S = 1000.0


def command(
    commands: Any,
    name: str,
    help_: str,
    action: Callable[[argparse.Namespace, Progress], int],
    *,
    images: bool = True,
    status: str = USED,
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_,
        description=f"{help_[0].upper()}{help_[1:]}.",
        epilog=status,
    )
    command.set_defaults(action=action)
    if images:
        command.add_argument(
            "--images", type=Path, metavar="DIR", help="your own JPEG, PNG or WebP files instead of the made samples"
        )
        command.add_argument(
            "--samples-folder",
            type=Path,
            default=Path("samples"),
            help="where made samples are kept (default: %(default)s)",
        )
    return command


def url(parser: argparse.ArgumentParser, *, timeout: bool = True) -> None:
    parser.add_argument("--url", required=True, help="a door, grpc://host:port")
    parser.add_argument("--task", default="classification", help="default: %(default)s")
    if timeout:
        parser.add_argument("--timeout-s", type=float, default=30.0, help="for each request (default: %(default)s)")


def live(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-live",
        action="store_true",
        help="a line per step, as in a log, instead of a display that is drawn anew (which needs a terminal)",
    )


def tracing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spans",
        default="",
        help="also send spans: otlp://host:port (gRPC; Jaeger's is 4317), http://host:port (OTLP over HTTP), or "
        "file:PATH for OTLP JSON lines",
    )
    parser.add_argument(
        "--sample-ratio",
        type=float,
        default=0.01,
        help="share of requests with spans (default: %(default)s); slow and failed ones get them anyhow",
    )
    parser.add_argument(
        "--slow-ms", type=float, default=0.0, help="slow is above this (default: above the running p99)"
    )


def tracer(arguments: argparse.Namespace) -> Tracer | None:
    if not arguments.spans:
        return None
    if not 0 <= arguments.sample_ratio <= 1:
        raise PlanError(f"--sample-ratio is {arguments.sample_ratio}; give a share, 0 to 1")
    destination = open_destination(arguments.spans)
    check(destination)  # rather than to find out when all is measured
    # Written after the measurement: no rate has to be kept.
    chosen = sampler(arguments.sample_ratio, arguments.slow_ms, _FORCED_PER_S)
    return Tracer(destination, chosen, version(), "client")


def chosen_for(
    arguments: argparse.Namespace, plan: Plan, progress: Progress
) -> tuple[Plan, dict[str, Sequence[Sample]]]:
    """The plan and its files by size: with --images, the user's own in place of all sizes."""
    if arguments.images is None:
        return plan, made(arguments, plan.samples, progress)
    own = samples.from_folder(arguments.images)
    return plan.for_own_images(len(own)), {OWN: own}


def of_one_size(arguments: argparse.Namespace, count: int, progress: Progress) -> Sequence[Sample]:
    """`count` photographs of --size, or the user's own."""
    if arguments.images is not None:
        return samples.from_folder(arguments.images)
    return made(arguments, {arguments.size: count}, progress)[arguments.size]


def made(arguments: argparse.Namespace, wanted: Mapping[str, int], progress: Progress) -> dict[str, Sequence[Sample]]:
    made: dict[str, Sequence[Sample]] = {}
    for size, count in wanted.items():
        made[size] = samples.make(
            size,
            count,
            folder=arguments.samples_folder,
            progress=lambda done, of, what=f"making {size} photographs": progress(what, done, of),  # type: ignore[misc]
        )
    return made
