"""`knee`: the highest rate that meets an objective."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from loadgen import atomic, knee, knee_run, report_knee, samples
from loadgen.commands.options import command, live, of_one_size, url
from loadgen.commands.status import DONE, NOT_USABLE, SHOWN
from loadgen.progress import Progress


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(
        commands, "knee", "search for the highest rate at which a door meets an objective", find_knee, status=SHOWN
    )
    url(parser, timeout=False)
    live(parser)
    parser.add_argument(
        "--slo",
        required=True,
        metavar="pQ<LIMIT",
        help="the objective, e.g. 'p90<50ms' (us, ms, s); a trial sends 128 requests for a p90, 1324 for a p99",
    )
    parser.add_argument(
        "--size", default="medium", choices=samples.NAMES, help="of the photographs sent (default: medium)"
    )
    parser.add_argument(
        "--from", type=float, default=10.0, dest="start", metavar="RATE", help="the first rate (default: %(default)s)"
    )
    parser.add_argument("--arrivals", default="poisson", help="poisson or constant (default: %(default)s)")
    parser.add_argument(
        "--budget-s", type=float, default=300.0, help="is not exceeded, warm-up included (default: %(default)s)"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="of each end of the bracket (default: %(default)s)"
    )
    parser.add_argument(
        "--precision", type=float, default=0.1, help="how narrow the bracket is to be (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals (default: %(default)s)")
    parser.add_argument("--senders", type=int, help="sender processes (default: by the CPUs)")
    parser.add_argument("--out", type=Path, default=Path("results/knee"), help="folder (default: %(default)s)")


def find_knee(arguments: argparse.Namespace, progress: Progress) -> int:
    """`knee`."""
    objective = knee.parse_objective(arguments.slo)
    wanted = knee_run.Wanted(
        arguments.url,
        arguments.task,
        objective,
        arguments.arrivals,
        arguments.start,
        arguments.precision,
        arguments.confidence,
        arguments.budget_s,
        arguments.seed,
        arguments.senders,
    )
    knee_run.check(wanted)
    chosen = of_one_size(arguments, 20, progress)
    progress.clear()
    print(
        f"the highest rate that meets {objective.text}, within {wanted.budget_s:g} s; a trial sends "
        f"{knee.requests_for(objective, wanted.start_rps)} requests or more, first at {wanted.start_rps:g}/s"
    )

    def say(trial: knee.Trial) -> None:
        progress.clear()
        print(knee.line(trial), flush=True)

    found, result = knee_run.find(wanted, [sample.data for sample in chosen], progress, say)
    progress.clear()
    atomic.write(arguments.out / "knee.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    report_knee.write(result, arguments.out / "knee.html")
    print(f"\n{knee.answer(found, objective, wanted.confidence)}")
    print(f"\n{arguments.out / 'knee.html'} is the page; knee.json lies beside it")
    return DONE if found.held_rps is not None else NOT_USABLE
