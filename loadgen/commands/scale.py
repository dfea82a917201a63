"""`scale`: a plan at every point of a grid of replicas."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadgen import demo, report_html, report_scale, scale
from loadgen.commands.options import chosen_for, command, live
from loadgen.commands.status import DONE, NOT_USABLE, OF_A_RUN, usable
from loadgen.errors import PlanError
from loadgen.plan import load_plan
from loadgen.progress import Progress
from loadgen.scale_kubernetes import Cluster, helm
from loadgen.scale_local import Here
from loadgen.stored import read_run
from services.local.deployments import Options, engine_flags, names


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(
        commands,
        "scale",
        "carry out a plan at every point of a grid of replicas: here, or in a cluster",
        run_scale,
        status=OF_A_RUN,
    )
    parser.add_argument("plan", type=Path, nargs="?", help="a TOML file, as for run; its [targets] are not used")
    parser.add_argument("--preprocess", default="1,2", help="replicas of that service (default: %(default)s)")
    parser.add_argument("--inference", default="1,2", help="replicas of that service (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: results/NAME-scale)")
    here = parser.add_argument_group("on this machine (the default)")
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
    there = parser.add_argument_group("in a cluster, by kubectl and helm")
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
    live(parser)


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
        plan, chosen = chosen_for(arguments, plan, progress)
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
    return usable(run)


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
