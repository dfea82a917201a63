"""`python -m services.local up|down|status|preflight|jaeger`: see `--help`."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from services.local import state
from services.local.deployments import CONSUMED, TABLE, Options, engine_flags, names
from services.local.errors import LocalStackError
from services.local.health import serving
from services.local.jaeger import Jaeger
from services.local.preflight import missing, preflight, table
from services.local.redis_server import FSYNC, RedisServerSettings
from services.local.stack import Stack, take_down

DEFAULT_TRANSPORTS = "fused,grpc,kafka"
DEFAULT_MODEL = "efficientnet-lite0"
DOOR = 8001  # where a door listens by itself, and where examples look for one
# With the first download of Kafka's jars, and of Jaeger's source, which is built.
_UP_S = 300
_JAEGER_UP_S = 3600


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m services.local",
        description="The suite on this machine, without a cluster and without root: real brokers and the "
        "services as child processes on free loopback ports.",
    )
    root.add_argument("--folder", type=Path, default=state.DEFAULT, help="record, logs, broker data (default: .local)")
    commands = root.add_subparsers(dest="command", required=True)
    up = commands.add_parser(
        "up",
        help="start it; Ctrl-C stops it",
        description="Start the suite in the foreground. Its broker's data go when it stops.",
    )
    up.add_argument("--detach", action="store_true", help="return when all is healthy; `down` stops it")
    up.add_argument("--model", default=DEFAULT_MODEL, help="of the models file; several: mtcnn,emulated-identifier")
    up.add_argument(
        "--fused",
        default="",
        metavar="MODEL,...",
        help="of several, those that are in the door's process on every transport: only the others cross it",
    )
    up.add_argument("--models-file", default="", help="default: the one that comes with the project")
    up.add_argument(
        "--engine",
        action="append",
        default=[],
        help="further flags for all engines, e.g. '--max-batch 8 --max-delay-ms 2', or for one model's, which win: "
        "'mtcnn=--max-batch 1'; may be repeated",
    )
    up.add_argument("--preprocess", default="", help="further flags for the preprocess service")
    up.add_argument(
        "--inference-cpus",
        type=int,
        default=0,
        metavar="N",
        help="CPUs that engines with a process of their own have to themselves, as on nodes of their own; all else has "
        "the others (default: 0, all share all)",
    )
    up.add_argument(
        "--consume",
        default="",
        choices=tuple(CONSUMED),
        help="doors take frames from topics of Kafka, too, by this client (docs/publish.md)",
    )
    check = commands.add_parser(
        "preflight",
        help="list what is missing here, with remedies; starts nothing",
        description="List what the suite needs here, what of it is missing, its remedy, and what will be downloaded. "
        "Starts nothing; exit status 2 when something is missing.",
    )
    for command in (up, check):
        command.add_argument(
            "--transports",
            default=DEFAULT_TRANSPORTS,
            help=f"one deployment each, of {','.join(TABLE)} (default: %(default)s)",
        )
        command.add_argument("--kafka", metavar="HOST:PORT", help="use this broker instead of starting one")
        command.add_argument("--redis", metavar="HOST:PORT", help="use this Redis instead of starting one")
    up.add_argument(
        "--redis-appendfsync",
        default="",
        choices=FSYNC,
        help="a Redis that is started here writes to a file, too, flushed to the disk so often (default: no file)",
    )
    check.add_argument(
        "--optional", default="", help="transports that the rest does without: what they lack is NOT RUN, not missing"
    )
    traces = commands.add_parser(
        "jaeger",
        help="start a real Jaeger, for spans",
        description="Start Jaeger (v2), in memory: from the official image where docker or podman runs, else "
        "built once by Go. Spans go to its port 4317; its query API (and, of the image, its page) is on 16686. "
        "Its record and log are in jaeger/ below --folder.",
    )
    traces.add_argument("--detach", action="store_true", help="return when it answers; `down` stops it, too")
    commands.add_parser(
        "down",
        help="stop everything that was started here, Jaeger too, also after a crash",
        description="Stop every process that `up` and `jaeger` recorded in --folder, by its id and start time, also "
        "after a crash. Logs stay; the broker's data, dead letters included, and Jaeger's traces, which it has in "
        "memory, go.",
    )
    commands.add_parser(
        "status",
        help="list its processes, and Jaeger",
        description="List its processes, and whether each lives and serves, and Jaeger; exit status 0 only when all of "
        "the suite do.",
    )
    return root


def main(argv: list[str]) -> int:
    """The exit status: 0 well, 1 something is not well, 2 something is missing."""
    arguments = parser().parse_args(argv)
    try:
        match arguments.command:
            case "up":
                return detach(arguments, argv) if arguments.detach else up(arguments)
            case "down":
                suite = take_down(arguments.folder, 40)
                jaegers = state.take_down(_jaegers(arguments.folder), 20)
                said = [f"{suite} process{'es' * (suite > 1)}"] * bool(suite) + ["Jaeger"] * bool(jaegers)
                print(f"stopped {' and '.join(said)}" if said else "nothing was running")
                return 0
            case "jaeger":
                return detach(arguments, argv, _JAEGER_UP_S) if arguments.detach else jaeger(arguments)
            case "status":
                return status(arguments.folder)
            case _:
                return check(arguments)
    except LocalStackError as error:
        print(error, file=sys.stderr)
        return 1


def check(arguments: argparse.Namespace) -> int:
    """Print the preflight."""
    transports = arguments.transports.split(",")
    unknown = [name for name in transports if name not in TABLE]
    if unknown:
        print(f"unknown transport {', '.join(map(repr, unknown))}; there is {', '.join(TABLE)}", file=sys.stderr)
        return 2
    models = names(getattr(arguments, "model", "efficientnet-lite0"))
    consumed = getattr(arguments, "consume", "")
    checks = preflight(
        [*transports, *[consumed] * bool(consumed)],
        external_broker=bool(arguments.kafka),
        external_redis=bool(arguments.redis),
        optional=getattr(arguments, "optional", "").split(","),
        models=models,
        folder=arguments.folder,
    )
    print(table(checks))
    return 2 if missing(checks) else 0


def up(arguments: argparse.Namespace) -> int:
    """Run in the foreground until Ctrl-C, SIGTERM, or until a process ends by itself."""
    if check(arguments):
        return 2
    engine, engine_of = engine_flags(arguments.engine)
    options = Options(
        names(arguments.model),
        arguments.models_file,
        engine,
        tuple(arguments.preprocess.split()),
        engine_of,
        names(arguments.fused),
        consume=arguments.consume,
        inference_cpus=arguments.inference_cpus,
        redis=RedisServerSettings(arguments.redis_appendfsync),
    )
    if options.inference_cpus and not any(TABLE[name].remote(options) for name in arguments.transports.split(",")):
        raise LocalStackError(
            f"nothing would run on CPUs of inference's own: of {arguments.transports} every engine is in the door's "
            "process; leave --inference-cpus out, or name another transport"
        )
    stopping: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stopping.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    transports = arguments.transports.split(",")
    stack = Stack(
        transports,
        options,
        arguments.folder,
        kafka=arguments.kafka,
        redis=arguments.redis,
        say=print,
        port=DOOR,
    )
    try:
        with stack:
            for name, door in stack.doors().items():
                print(f"{name:<14} grpc://{door}")
                if stack.frames(name):
                    print(f"{'':<14} frames: {stack.frames(name)}")
                for url in stack.metrics(name):
                    print(f"{'':<14} metrics: {url}")
            print(f"logs: {stack.logs}")
            # Its task is classification, unless other models were named.
            task = "" if arguments.model == DEFAULT_MODEL else " --task TASK"
            door = next(iter(stack.doors().values()))
            print(f"try: {state.python()} -m loadgen ask --url grpc://{door}{task}", flush=True)
            return until_ended(stack.ended)
    except KeyboardInterrupt:
        print("stopped")
        return 0


def until_ended(ended: Callable[[], str | None]) -> int:
    """Until something ends by itself; the exit status, its report printed."""
    while (report := ended()) is None:
        time.sleep(0.5)
    print(report, file=sys.stderr)
    return 1


def _jaegers(folder: Path) -> Path:
    return folder / "jaeger"


def jaeger(arguments: argparse.Namespace) -> int:
    """Run Jaeger in the foreground until Ctrl-C, SIGTERM, or until it ends by itself."""
    folder = _jaegers(arguments.folder).resolve()
    recorded = state.read(folder)
    if recorded is not None and state.supervisor_alive(recorded):
        raise LocalStackError(f"a Jaeger runs already; stop it with: {state.how_to_stop(arguments.folder)}")
    state.take_down(folder, 15)  # what a crash left behind

    def stop(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    server = Jaeger(folder, usual_ports=True)
    try:
        server.start(say=lambda what: print(what, flush=True))
        pid = server.pid or 0
        state.write(
            folder,
            os.getpid(),
            [state.Running("", "jaeger", pid, state.start_time(pid), server.url.removeprefix("http://"))],
            "",
            folder,
        )
        print(f"spans:     {server.otlp} or {server.otlp_http}")
        print(f"query API: {server.url}" + ("/search is the page" if server.has_page else "; there is no page"))
        print(f"try: make demo JAEGER={server.otlp}", flush=True)
        return until_ended(server.ended)
    except KeyboardInterrupt:
        print("stopped")
        return 0
    finally:
        server.stop()
        state.clear(folder)


def detach(arguments: argparse.Namespace, argv: list[str], up_s: float = _UP_S) -> int:
    """Start a supervisor of its own, and return when it is up."""
    log = arguments.folder / ("jaeger.supervisor.log" if arguments.command == "jaeger" else "supervisor.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        child = subprocess.Popen(  # noqa: S603 # this very command
            [sys.executable, "-m", "services.local", *(a for a in argv if a != "--detach")],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + up_s
        while time.monotonic() < deadline:
            text = log.read_text()
            if child.poll() is not None:
                print(text, file=sys.stderr)
                return child.returncode or 1
            if "\ntry: " in text:
                print(text.rstrip())
                print(f"stop it with: {state.how_to_stop(arguments.folder)}")
                return 0
            time.sleep(0.1)
    except BaseException:  # Ctrl-C while it starts, say
        child.terminate()
        raise
    child.terminate()
    raise LocalStackError(f"it was not up within {up_s:.0f} s; see {log}")


def status(folder: Path) -> int:
    """Print the processes of `up`, and `jaeger`'s; the exit status is the suite's."""
    content = state.read(folder)
    jaegers = state.read(_jaegers(folder))
    for process in jaegers["processes"] if jaegers else ():
        print(f"Jaeger: http://{process.host_port}, pid {process.pid}, {'running' if process.alive else 'ended'}")
    if content is None:
        print("nothing of the suite is running" if jaegers else "nothing is running")
        return 1
    well = bool(content["processes"])  # none yet: it is starting
    wide = max([len("preprocess"), *(len(process.name) for process in content["processes"])])
    print(f"{'deployment':<14} {'process':<{wide}} {'pid':>8}  {'address':<22} {'state':<12} metrics")
    for process in content["processes"]:
        healthy = process.alive and (not process.deployment or serving(process.host_port))
        well &= healthy
        word = "healthy" if healthy else "not healthy" if process.alive else "ended"
        print(
            f"{process.deployment or '-':<14} {process.name:<{wide}} {process.pid:>8}  {process.host_port:<22} "
            f"{word:<12} {process.metrics and f'http://{process.metrics}/metrics'}".rstrip()
        )
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
