"""`python -m loadgen COMMAND`: see `--help`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from types import FrameType

from loadgen.commands import (
    ask,
    calibrate,
    compare,
    cuts,
    demo,
    figures,
    inspect,
    knee,
    merge,
    report,
    run,
    samples,
    scale,
)
from loadgen.commands.status import NOT_USABLE, OF_A_RUN, WRONG
from loadgen.errors import GeneratorError, PlanError
from loadgen.progress import Progress
from services.errors import ConfigurationError, ServiceError
from services.local.errors import LocalStackError

_COMMANDS = (run, merge, demo, knee, scale, compare, inspect, calibrate, cuts, figures, ask, samples, report)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m loadgen",
        description="Asks doors of the Open Inference Protocol about photographs, and says where the time went. "
        "Latency counts from the instant at which a request was due, never from when it was sent.",
        epilog=OF_A_RUN,
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return root


def main(argv: list[str]) -> int:
    """The exit status: see `loadgen/commands/status.py`."""
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
