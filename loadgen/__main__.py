"""`python -m loadgen run|merge|demo|knee|scale|compare|inspect|calibrate|ask|samples|report`: see `--help`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from loadgen import (
    atomic,
    compare,
    cuts,
    demo,
    knee,
    knee_run,
    report_html,
    report_knee,
    report_scale,
    samples,
    scale,
    table,
    thresholds,
    waterfall,
)
from loadgen.calibration import calibrate
from loadgen.errors import GeneratorError, PlanError
from loadgen.experiment import Deployment, Finished, ask, carry_out, save
from loadgen.merge import merge
from loadgen.parts import Part, agreement, check_divisible, parse_part
from loadgen.plan import OWN, Plan, load_plan
from loadgen.progress import Progress
from loadgen.rendezvous import Rendezvous, open_rendezvous
from loadgen.samples import Sample
from loadgen.scale_kubernetes import Cluster, helm
from loadgen.scale_local import Here
from loadgen.schedule import FORMS
from loadgen.scrape import check_url as check_metrics_url
from loadgen.stored import read_run
from loadgen.target import OipTarget
from loadgen.targets import open_target
from loadgen.words import in_words
from services.errors import ConfigurationError, ServiceError
from services.local.deployments import Options, engine_flags, names
from services.local.errors import LocalStackError
from services.tracing.destination import check, open_destination
from services.tracing.tracer import Tracer, sampler
from services.version import version

DONE, NOT_USABLE, WRONG, BROKEN = 0, 1, 2, 3
_STATUS = (
    "exit status: 0 every cell has numbers that can be used (VALID or CONTENDED), 1 some cell has not, 2 wrong input, "
    "3 a threshold of the plan is broken"
)
_USED = "exit status: 0 done, 1 a service could not do it, 2 wrong input"
_SHOWN = "exit status: 0 done, 1 what was compared has no usable numbers, or no rate was shown to hold, 2 wrong input"
_PROBES = 100
_FORCED_PER_S = 1000.0
_DOOR, _METRICS = "door=grpc://127.0.0.1:8001", "door=http://127.0.0.1:9464/metrics"
_MEET_S = 300.0  # a pod may have to wait for a machine, and for its image
_FORM = 28  # columns of a schedule's form in a help text


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m loadgen",
        description="Asks doors of the Open Inference Protocol about photographs, and says where the time went. "
        "Latency counts from the instant at which a request was due, never from when it was sent.",
        epilog=_STATUS,
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = _command(commands, "run", "carry out a plan against running doors", run_plan, status=_STATUS)
    run.add_argument("plan", type=Path, help="a TOML file; loadgen/plans/example.toml teaches the form")
    run.add_argument(
        "--target", action="append", default=[], metavar="NAME=URL", help="instead of the plan's [targets]; repeatable"
    )
    run.add_argument(
        "--metrics",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="instead of the plan's [metrics]: where a service of the target NAME answers scrapes "
        "(http://host:9464/metrics), which says what it lost of its spans; repeatable",
    )
    run.add_argument("--out", type=Path, help="folder of the results (default: results/NAME, with --part NAME-I-of-N)")
    _parts(run)
    _tracing(run)
    _live(run)
    run.formatter_class = argparse.RawDescriptionHelpFormatter
    run.epilog = f"{_schedules()}\n\n{textwrap.fill(_STATUS, 100)}"

    parts = _command(
        commands,
        "merge",
        "make one result of all parts of a plan (run --part)",
        merge_parts,
        images=False,
        status=_STATUS,
    )
    parts.add_argument("parts", type=Path, nargs="+", metavar="PART", help="a run.json, or its folder, of each part")
    parts.add_argument("--out", type=Path, help="folder of the results (default: results/NAME)")

    show = _command(
        commands,
        "demo",
        "start the suite here, load every transport, stop it, write the report",
        run_demo,
        status=_STATUS,
    )
    _live(show)
    show.add_argument("--plan", type=Path, help="default: loadgen/plans/demo.toml; its [targets] are not used")
    show.add_argument(
        "--transports",
        default=demo.TRANSPORTS,
        help="default: %(default)s; also grpc+jpeg, kafka+u8, ...: how images cross the hop",
    )
    show.add_argument(
        "--model",
        default=demo.MODEL,
        help="of the models file; emulated: no device; several: mtcnn,emulated-identifier (default: %(default)s)",
    )
    show.add_argument("--kafka", metavar="HOST:PORT", help="use this broker instead of starting one")
    show.add_argument("--redis", metavar="HOST:PORT", help="use this Redis instead of starting one")
    show.add_argument("--out", type=Path, default=Path("results/demo"), help="default: %(default)s")
    show.add_argument(
        "--fraction",
        type=float,
        default=1.0,
        help="of the plan's requests; to start and to warm up takes its time all the same",
    )
    _tracing(show)

    _knee(commands)
    _scale(commands)
    _compare(commands)
    _inspect(commands)

    floor = _command(
        commands, "calibrate", "measure the floor of each hop: the same bytes, idle, nothing computed", calibrate_url
    )
    _url(floor)
    floor.add_argument(
        "--size", default="medium", choices=samples.NAMES, help="of the photographs sent (default: medium)"
    )
    floor.add_argument("--probes", type=int, default=_PROBES, help="default: %(default)s")
    floor.add_argument("--pause-ms", type=float, default=10.0, help="between two probes (default: %(default)s)")
    floor.add_argument("--json", action="store_true", help="print JSON instead of a table")

    forms = _command(
        commands,
        "cuts",
        "compare the forms in which images can cross the hop: bytes, ms and answers of jpeg, u8, f16, f32",
        compare_cuts,
    )
    forms.add_argument("--transport", default="grpc", help="grpc, kafka or kafka-python (default: %(default)s)")
    forms.add_argument(
        "--size", default="medium", choices=samples.NAMES, help="of the photographs sent (default: medium)"
    )
    forms.add_argument("--count", type=int, default=100, help="photographs, at most 100 (default: %(default)s)")
    forms.add_argument("--rounds", type=int, default=2, help="times that each is asked about (default: %(default)s)")
    forms.add_argument("--model", default=demo.MODEL, help="a classifier of the models file (default: %(default)s)")
    forms.add_argument("--kafka", metavar="HOST:PORT", help="use this broker instead of starting one")
    forms.add_argument("--out", type=Path, default=Path("results/cuts"), help="default: %(default)s")

    drawn = _command(
        commands,
        "figures",
        "carry out the paper's experiments here, and write the page that answers them",
        draw_figures,
        images=False,
    )
    drawn.add_argument("--only", default="", metavar="E3,E5", help="these figures alone (default: all)")
    drawn.add_argument("--full", action="store_true", help="at full size: hours, and narrow intervals")
    drawn.add_argument(
        "--out", type=Path, default=Path("results/figures"), help="runs, JSON, SVG (default: %(default)s)"
    )
    drawn.add_argument(
        "--page",
        type=Path,
        default=Path("docs/results.md"),
        help="the page, once all figures have been carried out; before, it is in --out (default: %(default)s)",
    )

    words = _command(commands, "ask", "ask one door what photographs show, in words", ask_url)
    _url(words)

    make = _command(commands, "samples", "make the sample photographs, or list those of --images", make_samples)
    make.add_argument(
        "--size", action="append", choices=samples.NAMES, help="repeatable (default: small, medium and large)"
    )
    make.add_argument("--count", type=int, default=100, help="files per size, at most 100 (default: %(default)s)")

    page = _command(
        commands,
        "report",
        "write tables and the HTML page of a run.json anew",
        write_report,
        images=False,
        status=_STATUS,
    )
    page.add_argument("run", type=Path, help="a run.json, or its folder")
    page.add_argument("--out", type=Path, help="the HTML file (default: report.html beside it)")
    return root


def _knee(commands: Any) -> None:
    command = _command(
        commands, "knee", "search for the highest rate at which a door meets an objective", find_knee, status=_SHOWN
    )
    _url(command, timeout=False)
    _live(command)
    command.add_argument(
        "--slo",
        required=True,
        metavar="pQ<LIMIT",
        help="the objective, e.g. 'p90<50ms' (us, ms, s); a trial sends 128 requests for a p90, 1324 for a p99",
    )
    command.add_argument(
        "--size", default="medium", choices=samples.NAMES, help="of the photographs sent (default: medium)"
    )
    command.add_argument(
        "--from", type=float, default=10.0, dest="start", metavar="RATE", help="the first rate (default: %(default)s)"
    )
    command.add_argument("--arrivals", default="poisson", help="poisson or constant (default: %(default)s)")
    command.add_argument(
        "--budget-s", type=float, default=300.0, help="is not exceeded, warm-up included (default: %(default)s)"
    )
    command.add_argument(
        "--confidence", type=float, default=0.95, help="of each end of the bracket (default: %(default)s)"
    )
    command.add_argument(
        "--precision", type=float, default=0.1, help="how narrow the bracket is to be (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=1, help="of the arrivals (default: %(default)s)")
    command.add_argument("--senders", type=int, help="sender processes (default: by the CPUs)")
    command.add_argument("--out", type=Path, default=Path("results/knee"), help="folder (default: %(default)s)")


def _scale(commands: Any) -> None:
    command = _command(
        commands,
        "scale",
        "carry out a plan at every point of a grid of replicas: here, or in a cluster",
        run_scale,
        status=_STATUS,
    )
    command.add_argument("plan", type=Path, nargs="?", help="a TOML file, as for run; its [targets] are not used")
    command.add_argument("--preprocess", default="1,2", help="replicas of that service (default: %(default)s)")
    command.add_argument("--inference", default="1,2", help="replicas of that service (default: %(default)s)")
    command.add_argument("--out", type=Path, help="folder of the results (default: results/NAME-scale)")
    here = command.add_argument_group("on this machine (the default)")
    here.add_argument(
        "--transport", default="kafka", help="fused, grpc, kafka, kafka-python or redis (default: %(default)s)"
    )
    here.add_argument(
        "--model",
        default=demo.MODEL,
        help="of the models file; emulated: no device; several: mtcnn,emulated-identifier (default: %(default)s)",
    )
    here.add_argument(
        "--fused", default="", metavar="MODEL,...", help="of several, those in the door's process on every transport"
    )
    here.add_argument("--models-file", default="", help="default: the one of this project")
    here.add_argument("--kafka", metavar="HOST:PORT", help="use this broker instead of starting one")
    here.add_argument("--redis", metavar="HOST:PORT", help="use this Redis instead of starting one")
    here.add_argument(
        "--engine",
        action="append",
        default=[],
        help="further flags of the inference service, e.g. '--max-batch 4', or of one model's: 'mtcnn=--max-batch 1'; "
        "may be repeated",
    )
    here.add_argument("--door", default="", help="further flags of the preprocess service, e.g. '--instances 1'")
    there = command.add_argument_group("in a cluster, by kubectl and helm")
    there.add_argument("--release", help="an installed release of the chart; its replicas are patched, and set back")
    there.add_argument("--namespace", default="default", help="default: %(default)s")
    there.add_argument("--helm", default="helm", help="which one (default: that on the PATH)")
    there.add_argument(
        "--wait-s", type=float, default=3600.0, help="how long the Job of a point may take (default: %(default)s)"
    )
    there.add_argument(
        "--restore",
        action="store_true",
        help="only set back the replicas that an experiment which was killed has left; the next one does so, too",
    )
    there.add_argument(
        "--settle-s",
        type=float,
        default=20.0,
        help="wait so long when replicas are ready, for connections to be spread: above the chart's connectionAgeS "
        "(default: %(default)s)",
    )
    _live(command)


def _compare(commands: Any) -> None:
    command = _command(
        commands,
        "compare",
        "set two runs side by side: differences with intervals, pair by pair",
        compare_runs,
        images=False,
        status=_SHOWN,
    )
    command.add_argument("a", type=Path, help="a run.json, or its folder")
    command.add_argument("b", type=Path, help="another one; or the same, with --target-a and --target-b")
    command.add_argument("--target-a", help="compare this target of the first run ...")
    command.add_argument("--target-b", help="... with this one of the second")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _inspect(commands: Any) -> None:
    command = _command(
        commands, "inspect", "print one request as a waterfall, to the nanosecond", inspect_request, images=False
    )
    command.add_argument("trace", metavar="TRACE-ID", help="a trace id; of a run also a traceparent or a request's id")
    command.add_argument(
        "--run", type=Path, default=Path("results/demo"), help="folder of a run (default: %(default)s)"
    )
    command.add_argument("--jaeger", metavar="URL", help="instead: a Jaeger's query API, http://host:16686")


def _command(
    commands: Any,
    name: str,
    help_: str,
    action: Callable[[argparse.Namespace, Progress], int],
    *,
    images: bool = True,
    status: str = _USED,
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


def _parts(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("one plan, sent from several machines; `merge` makes one result of theirs")
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


def _tracing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--spans",
        default="",
        help="also send spans: otlp://host:port (gRPC; Jaeger's is 4317), http://host:port (OTLP over HTTP), or "
        "file:PATH for OTLP JSON lines",
    )
    command.add_argument(
        "--sample-ratio",
        type=float,
        default=0.01,
        help="share of requests with spans (default: %(default)s); slow and failed ones get them anyhow",
    )
    command.add_argument(
        "--slow-ms", type=float, default=0.0, help="slow is above this (default: above the running p99)"
    )


def _tracer(arguments: argparse.Namespace) -> Tracer | None:
    if not arguments.spans:
        return None
    if not 0 <= arguments.sample_ratio <= 1:
        raise PlanError(f"--sample-ratio is {arguments.sample_ratio}; give a share, 0 to 1")
    destination = open_destination(arguments.spans)
    check(destination)  # rather than to find out when all is measured
    # Written after the measurement: no rate has to be kept.
    chosen = sampler(arguments.sample_ratio, arguments.slow_ms, _FORCED_PER_S)
    return Tracer(destination, chosen, version(), "client")


def _live(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no-live",
        action="store_true",
        help="a line per step, as in a log, instead of a display that is drawn anew (which needs a terminal)",
    )


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


def _url(command: argparse.ArgumentParser, *, timeout: bool = True) -> None:
    command.add_argument("--url", required=True, help="a door, grpc://host:port")
    command.add_argument("--task", default="classification", help="default: %(default)s")
    if timeout:
        command.add_argument("--timeout-s", type=float, default=30.0, help="for each request (default: %(default)s)")


def main(argv: list[str]) -> int:
    """The exit status: see `_STATUS`."""
    arguments = parser().parse_args(argv)
    progress = Progress(live=not getattr(arguments, "no_live", False))
    terminated: list[int] = []

    def terminate(number: int, _: FrameType | None) -> None:
        terminated.append(number)
        raise KeyboardInterrupt  # as by Ctrl-C: what is finished is kept, what was started is stopped

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
    try:
        status = int(arguments.action(arguments, progress))
        return 128 + terminated[0] if terminated else status
    except (PlanError, ConfigurationError) as error:
        progress.clear()
        print(f"loadgen: {error}", file=sys.stderr)
        return WRONG
    except (LocalStackError, ServiceError, GeneratorError) as error:
        progress.clear()
        print(f"loadgen: {error}", file=sys.stderr)
        return NOT_USABLE
    except KeyboardInterrupt:
        progress.clear()
        print("loadgen: interrupted", file=sys.stderr)
        return 128 + terminated[0] if terminated else NOT_USABLE


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
    plan, chosen = _chosen(arguments, plan, progress)
    own = {"client": os.getpid()}
    deployments = {name: Deployment(url, own, plan.metrics.get(name, ())) for name, url in plan.targets.items()}
    part = _part(arguments, plan)
    if part is None:
        finished = carry_out(plan, deployments, chosen, progress, _tracer(arguments))
        return _finish(finished, arguments.out or Path("results") / plan.name, progress)
    progress(f"{part}: waiting for the others", 0, 0)
    together: Rendezvous = open_rendezvous(part, arguments.meet, agreement(plan, chosen), arguments.meet_s)
    with contextlib.closing(together):
        finished = carry_out(plan, deployments, chosen, progress, _tracer(arguments), together)
    out = arguments.out or Path("results") / f"{plan.name}-{part.number}-of-{part.of}"
    return _finish(finished, out, progress)


def merge_parts(arguments: argparse.Namespace, progress: Progress) -> int:
    """`merge`."""
    finished = merge(arguments.parts)
    out = arguments.out or Path("results") / str(finished.run["name"])
    return _finish(finished, out, progress)


def run_demo(arguments: argparse.Namespace, progress: Progress) -> int:
    """`demo`."""
    if not 0 < arguments.fraction <= 1:
        raise PlanError(f"--fraction is {arguments.fraction}; give a number above 0, at most 1")
    plan = demo.demo_plan(arguments.plan, arguments.fraction, own_images=arguments.images is not None)
    plan, chosen = _chosen(arguments, plan, progress)
    finished = demo.run(
        plan,
        arguments.transports.split(","),
        chosen,
        arguments.out.resolve() / "stack",
        progress,
        models=names(arguments.model),
        kafka=arguments.kafka,
        redis=arguments.redis,
        tracer=_tracer(arguments),
        spans=arguments.spans,
    )
    return _finish(finished, arguments.out, progress)


def compare_cuts(arguments: argparse.Namespace, progress: Progress) -> int:
    """`cuts`."""
    chosen = _of_one_size(arguments, arguments.count, progress)
    out = arguments.out
    result = cuts.compare(
        arguments.transport,
        chosen,
        arguments.rounds,
        out.resolve() / "stack",
        progress,
        model=arguments.model,
        kafka=arguments.kafka,
    )
    progress.clear()
    out.mkdir(parents=True, exist_ok=True)
    text = cuts.table(result)
    atomic.write(out / "cuts.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    atomic.write(out / "cuts.md", f"{text}\n")
    atomic.write(out / "cuts.svg", cuts.picture(result))
    print(text)
    print(f"\n{out / 'cuts.json'}, cuts.md and cuts.svg have it")
    return 0


def draw_figures(arguments: argparse.Namespace, progress: Progress) -> int:
    """`figures`: what is in --out already is not done again."""
    # matplotlib is no part of what a load needs.
    from loadgen.figures.figure import ids
    from loadgen.figures.make import make_figures

    chosen = [id_.strip().lower() for id_ in arguments.only.split(",") if id_.strip()] or ids()
    made = make_figures(chosen, arguments.out.resolve(), arguments.page.resolve(), progress, full=arguments.full)
    progress.clear()
    print("\n".join(made.said))
    print(f"\n{os.path.relpath(made.page)} is the page; {arguments.out} has its numbers and pictures")
    if made.page != arguments.page.resolve():
        print(f"{arguments.page} is written when all figures have been carried out here")
    return 0


def run_scale(arguments: argparse.Namespace, progress: Progress) -> int:
    """`scale`."""
    if arguments.restore:
        return _restore(arguments, progress)
    if arguments.plan is None:
        raise PlanError("scale needs a plan, e.g. loadgen/plans/example.toml")
    wanted = scale.points(
        scale.parse_counts(arguments.preprocess, "--preprocess"), scale.parse_counts(arguments.inference, "--inference")
    )
    plan = load_plan(arguments.plan, own_images=arguments.images is not None)
    out = arguments.out or Path("results") / f"{plan.name}-scale"
    site: scale.Site
    if arguments.release is None:
        plan, chosen = _chosen(arguments, plan, progress)
        engine, engine_of = engine_flags(arguments.engine)
        options = Options(
            names(arguments.model),
            arguments.models_file,
            engine,
            tuple(arguments.door.split()),
            engine_of,
            names(arguments.fused),
            log_level="WARNING",
        )
        stack = out.resolve() / "stack"
        site = Here(plan, chosen, arguments.transport, options, stack, progress, arguments.kafka, arguments.redis)
        where, transport = "this machine", arguments.transport
    else:
        if arguments.images is not None:
            raise PlanError("--images are on this machine, and the Job's pod is not; leave them out with --release")
        cluster = site = Cluster(
            arguments.plan,
            arguments.release,
            arguments.namespace,
            progress,
            helm=helm(arguments.helm),
            settle_s=arguments.settle_s,
            wait_s=arguments.wait_s,
        )
        if cluster.left():
            print(f"an experiment was killed before: in the end {_replicas(cluster.left())} are set back as of then")
        where, transport = f"release {arguments.release}, namespace {arguments.namespace}", "as the release links"

    def say(what: str) -> None:
        progress.clear()
        print(what, flush=True)

    about = {"name": plan.name, "site": where, "transport": transport}
    grid = scale.measure(wanted, site, out, say, about)
    progress.clear()
    report_scale.write(grid, out / "scale.html")
    print(f"\n{scale.table(grid)}")
    if not (out / "run.json").exists():
        return NOT_USABLE
    run = read_run(out)[1]
    report_html.write(run, out / "report.html")
    print(f"\n{out / 'scale.html'} is the page, report.html has all points side by side; run.json lies beside them")
    return _usable(run)


def _restore(arguments: argparse.Namespace, progress: Progress) -> int:
    if arguments.release is None:
        raise PlanError("--restore is of a release in a cluster; name it: --release NAME")
    site = Cluster(Path(), arguments.release, arguments.namespace, progress)
    left = site.left()
    if left:
        site.close()
    progress.clear()
    print(f"set back: {_replicas(left)}" if left else "no experiment has left anything to be set back")
    return DONE


def _replicas(left: Mapping[str, int]) -> str:
    return ", ".join(f"{name} to {count}" for name, count in left.items())


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
    chosen = _of_one_size(arguments, 20, progress)
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


def compare_runs(arguments: argparse.Namespace, _: Progress) -> int:
    """`compare`."""
    result = compare.compare(
        compare.load(arguments.a), compare.load(arguments.b), arguments.target_a, arguments.target_b
    )
    print(json.dumps(result, allow_nan=False) if arguments.json else compare.words(result))
    return DONE if compare.usable(result) else NOT_USABLE


def inspect_request(arguments: argparse.Namespace, _: Progress) -> int:
    """`inspect`."""
    if arguments.jaeger is None:
        found = waterfall.from_run(arguments.run, arguments.trace)
    else:
        found = waterfall.from_jaeger(arguments.jaeger, arguments.trace)
    print(waterfall.render(found, shutil.get_terminal_size((120, 24)).columns))
    return DONE


def calibrate_url(arguments: argparse.Namespace, progress: Progress) -> int:
    """`calibrate`."""
    if arguments.probes < 1:
        raise PlanError(f"--probes is {arguments.probes}; give at least 1")
    chosen = _of_one_size(arguments, 10, progress)
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


def ask_url(arguments: argparse.Namespace, _: Progress) -> int:
    """`ask`."""
    chosen = samples.photographs() if arguments.images is None else samples.from_folder(arguments.images)
    if not arguments.url.startswith("grpc://"):
        raise PlanError(f"--url '{arguments.url}' is not grpc://host:port")
    for sample, outputs in ask(arguments.url, arguments.task, chosen, arguments.timeout_s):
        print(f"{sample.name}: {in_words(outputs)}")
    return DONE


def make_samples(arguments: argparse.Namespace, progress: Progress) -> int:
    """`samples`."""
    if arguments.images is not None:
        chosen: Mapping[str, Sequence[Sample]] = {OWN: samples.from_folder(arguments.images)}
    else:
        chosen = _made(arguments, dict.fromkeys(arguments.size or samples.SIZES, arguments.count), progress)
    progress.clear()
    for size, files in chosen.items():
        widths, heights = {sample.width for sample in files}, {sample.height for sample in files}
        pixels = f"{_span(widths)} x {_span(heights)} pixels"
        print(f"{size}: {len(files)} files, {pixels}, {_span({len(s.data) / 1e3 for s in files})} kB")
    return DONE


def _span(values: set[int] | set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def write_report(arguments: argparse.Namespace, _: Progress) -> int:
    """`report`."""
    path, run = read_run(arguments.run)
    out = arguments.out or path.with_name("report.html")
    report_html.write(run, out)
    print(table.tables(run))
    print(f"\n{out}")
    return _usable(run)


def _chosen(arguments: argparse.Namespace, plan: Plan, progress: Progress) -> tuple[Plan, dict[str, Sequence[Sample]]]:
    """The plan and its files by size: with --images, the user's own in place of all sizes."""
    if arguments.images is None:
        return plan, _made(arguments, plan.samples, progress)
    own = samples.from_folder(arguments.images)
    return plan.for_own_images(len(own)), {OWN: own}


def _of_one_size(arguments: argparse.Namespace, count: int, progress: Progress) -> Sequence[Sample]:
    """`count` photographs of --size, or the user's own."""
    if arguments.images is not None:
        return samples.from_folder(arguments.images)
    return _made(arguments, {arguments.size: count}, progress)[arguments.size]


def _made(arguments: argparse.Namespace, wanted: Mapping[str, int], progress: Progress) -> dict[str, Sequence[Sample]]:
    made: dict[str, Sequence[Sample]] = {}
    for size, count in wanted.items():
        made[size] = samples.make(
            size,
            count,
            folder=arguments.samples_folder,
            progress=lambda done, of, what=f"making {size} photographs": progress(what, done, of),  # type: ignore[misc]
        )
    return made


def _pair(text: str, flag: str, example: str) -> tuple[str, str]:
    name, separator, url = text.partition("=")
    if not separator or not name or not url:
        raise PlanError(f"{flag} '{text}' is not NAME=URL, e.g. {example}")
    return name, url


def _finish(finished: Finished, out: Path, progress: Progress) -> int:
    """Write the files, print the tables."""
    progress.clear()
    run = finished.run
    if run["interrupted"] and (out / "run.json").exists():
        out = out.with_name(f"{out.name}-interrupted")  # what is complete stays
    save(finished, out)
    report_html.write(run, out / "report.html")
    text = table.tables(run)
    words = table.answers(run)
    (out / "report.md").write_text(f"{text}\n\n{words}\n", encoding="utf-8")
    print(text)
    if words:
        print(f"\n{words}")
    print(f"\n{out / 'report.html'} is the page; run.json, requests.csv and report.md lie beside it")
    if "spans" in run:
        print(
            f"{run['spans']['requests']} requests have traces ({run['spans']['spans']} spans): those whose traceparent "
            "in requests.csv ends in 01, slow ones and failed ones; `inspect` draws one, `inspect --jaeger` as Jaeger "
            "has it"
        )
    for note in run["notes"]:
        print(note, file=sys.stderr)
    if run["interrupted"]:
        print("interrupted: what is missing was not measured", file=sys.stderr)
    return _usable(run)


def _usable(run: Mapping[str, Any]) -> int:
    """The exit status of a run. What makes it other than 0 is named last on stderr: in CI that is what is read."""
    broken = thresholds.broken(run)
    poor = [cell for cell in run["cells"] if cell.get("verdict") not in ("VALID", "CONTENDED")]
    for cell in poor:
        what = f"{cell['size']}, {cell['target']}, {cell['load']}"
        print(f"not usable: {what}: {cell.get('verdict') or 'not measured'}", file=sys.stderr)
    for line in broken:
        print(f"threshold broken: {line}", file=sys.stderr)
    if broken:
        return BROKEN
    return DONE if run["cells"] and not poor and not run.get("interrupted") else NOT_USABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
