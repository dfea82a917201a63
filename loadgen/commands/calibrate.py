"""`calibrate`: the floor of each hop."""

from __future__ import annotations

import argparse
import json
from typing import Any

from loadgen import samples
from loadgen.calibration import calibrate
from loadgen.commands.options import command, of_one_size, url
from loadgen.commands.status import DONE
from loadgen.errors import PlanError
from loadgen.progress import Progress
from loadgen.target import OipTarget
from loadgen.targets import open_target

_PROBES = 100


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(
        commands, "calibrate", "measure the floor of each hop: the same bytes, idle, nothing computed", calibrate_url
    )
    url(parser)
    parser.add_argument(
        "--size", default="medium", choices=samples.NAMES, help="of the photographs sent (default: medium)"
    )
    parser.add_argument("--probes", type=int, default=_PROBES, help="default: %(default)s")
    parser.add_argument("--pause-ms", type=float, default=10.0, help="between two probes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def calibrate_url(arguments: argparse.Namespace, progress: Progress) -> int:
    """`calibrate`."""
    if arguments.probes < 1:
        raise PlanError(f"--probes is {arguments.probes}; give at least 1")
    chosen = of_one_size(arguments, 10, progress)
    target = open_target(arguments.url, arguments.task, arguments.timeout_s)
    if not isinstance(target, OipTarget):
        raise PlanError(f"'{arguments.url}' has no hop to calibrate")
    try:
        progress(f"calibrating {arguments.url}", 0, 0)
        tensors = target.tensors([sample.data for sample in chosen])
        floors = calibrate(target, tensors, arguments.probes, arguments.pause_ms / 1e3, arguments.timeout_s)
    finally:
        target.close()
        progress.clear()
    if arguments.json:
        print(json.dumps([floor._asdict() for floor in floors]))
        return DONE
    print(f"{'hop':<24} {'floor p50':>12}   95 % interval       probes")
    for floor in floors:
        ends = (
            "none: a minimum over a broker"
            if floor.low_ns is None or floor.high_ns is None
            else f"{floor.low_ns / 1e6:.3f} to {floor.high_ns / 1e6:.3f} ms"
        )
        print(f"{floor.hop:<24} {floor.p50_ns / 1e6:9.3f} ms   {ends}   {floor.n}")
    return DONE
