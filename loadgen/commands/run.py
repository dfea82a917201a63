"""`run`: a plan against running doors."""

from __future__ import annotations

import argparse
import contextlib
import os
import textwrap
from pathlib import Path
from typing import Any

from loadgen.commands.options import chosen_for, command, live, tracer, tracing
from loadgen.commands.status import OF_A_RUN, finish
from loadgen.errors import PlanError
from loadgen.experiment import Deployment, carry_out
from loadgen.parts import Part, agreement, check_divisible, parse_part
from loadgen.plan import Plan, load_plan
from loadgen.progress import Progress
from loadgen.rendezvous import Rendezvous, open_rendezvous
from loadgen.schedule import FORMS
from loadgen.scrape import check_url as check_metrics_url

_DOOR, _METRICS = "door=grpc://127.0.0.1:8001", "door=http://127.0.0.1:9464/metrics"
_MEET_S = 300.0  # a pod may have to wait for a machine, and for its image
_FORM = 28  # columns of a schedule's form in a help text


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(commands, "run", "carry out a plan against running doors", run_plan, status=OF_A_RUN)
    parser.add_argument("plan", type=Path, help="a TOML file; loadgen/plans/example.toml teaches the form")
    parser.add_argument(
        "--target", action="append", default=[], metavar="NAME=URL", help="instead of the plan's [targets]; repeatable"
    )
    parser.add_argument(
        "--metrics",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="instead of the plan's [metrics]: where a service of the target NAME answers scrapes "
        "(http://host:9464/metrics), which says what it lost of its spans; repeatable",
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the results (default: results/NAME, with --part NAME-I-of-N)"
    )
    _parts(parser)
    tracing(parser)
    live(parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"{_schedules()}\n\n{textwrap.fill(OF_A_RUN, 100)}"


def _parts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("one plan, sent from several machines; `merge` makes one result of theirs")
    group.add_argument(
        "--part", metavar="I/N", help="send this part, e.g. 2/3: every third request; all parts begin each load at once"
    )
    group.add_argument("--meet", metavar="HOST:PORT", help="where part 1 listens, and the others come to")
    group.add_argument(
        "--meet-s",
        type=float,
        default=_MEET_S,
        help="parts may wait so long for each other to come, and to come to each load (default: %(default)s)",
    )


def _part(arguments: argparse.Namespace, plan: Plan) -> Part | None:
    if arguments.part is None:
        if arguments.meet is not None:
            raise PlanError("--meet is where the parts of a plan meet; say which one this is: --part I/N")
        return None
    part = parse_part(arguments.part)
    if arguments.meet is None:
        raise PlanError("--part needs to know where the parts meet: --meet HOST:PORT, of the machine of part 1")
    check_divisible(plan, part.of)
    return part


def _schedules() -> str:
    """The forms of schedules, for people."""
    # As argparse does: a form that is too long for its column has a line of its own.
    rows = [
        ("" if len(form) < _FORM else f"  {form}\n")
        + textwrap.fill(
            words,
            100,
            initial_indent=f"  {form:<{_FORM}}" if len(form) < _FORM else " " * (_FORM + 2),
            subsequent_indent=" " * (_FORM + 2),
        )
        for form, words in FORMS.items()
    ]
    return "\n".join(["schedules (a load's 'schedule'; rates per second):", *rows])


def run_plan(arguments: argparse.Namespace, progress: Progress) -> int:
    """`run`."""
    plan = load_plan(arguments.plan, own_images=arguments.images is not None)
    if arguments.target:
        plan = plan.with_targets(dict(_pair(text, "--target", _DOOR) for text in arguments.target))
    if arguments.metrics:
        named: dict[str, list[str]] = {}
        for target, url in (_pair(text, "--metrics", _METRICS) for text in arguments.metrics):
            check_metrics_url(url)
            named.setdefault(target, []).append(url)
        plan = plan.with_metrics(named)
    if not plan.targets:
        raise PlanError(f"{arguments.plan} names no targets; add [targets], or --target NAME=grpc://host:port")
    for target in plan.metrics:
        if target not in plan.targets:
            raise PlanError(f"metrics are named for '{target}', which is no target; there is {', '.join(plan.targets)}")
    plan, chosen = chosen_for(arguments, plan, progress)
    own = {"client": os.getpid()}
    deployments = {name: Deployment(url, own, plan.metrics.get(name, ())) for name, url in plan.targets.items()}
    part = _part(arguments, plan)
    if part is None:
        finished = carry_out(plan, deployments, chosen, progress, tracer(arguments))
        return finish(finished, arguments.out or Path("results") / plan.name, progress)
    progress(f"{part}: waiting for the others", 0, 0)
    together: Rendezvous = open_rendezvous(part, arguments.meet, agreement(plan, chosen), arguments.meet_s)
    with contextlib.closing(together):
        finished = carry_out(plan, deployments, chosen, progress, tracer(arguments), together)
    out = arguments.out or Path("results") / f"{plan.name}-{part.number}-of-{part.of}"
    return finish(finished, out, progress)


def _pair(text: str, flag: str, example: str) -> tuple[str, str]:
    name, separator, url = text.partition("=")
    if not separator or not name or not url:
        raise PlanError(f"{flag} '{text}' is not NAME=URL, e.g. {example}")
    return name, url
