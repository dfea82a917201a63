"""`inspect`: one request as a waterfall."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from loadgen import waterfall
from loadgen.commands.options import command
from loadgen.commands.status import DONE
from loadgen.progress import Progress


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(
        commands, "inspect", "print one request as a waterfall, to the nanosecond", inspect_request, images=False
    )
    parser.add_argument("trace", metavar="TRACE-ID", help="a trace id; of a run also a traceparent or a request's id")
    parser.add_argument("--run", type=Path, default=Path("results/demo"), help="folder of a run (default: %(default)s)")
    parser.add_argument("--jaeger", metavar="URL", help="instead: a Jaeger's query API, http://host:16686")


def inspect_request(arguments: argparse.Namespace, _: Progress) -> int:
    """`inspect`."""
    if arguments.jaeger is None:
        found = waterfall.from_run(arguments.run, arguments.trace)
    else:
        found = waterfall.from_jaeger(arguments.jaeger, arguments.trace)
    print(waterfall.render(found, shutil.get_terminal_size((120, 24)).columns))
    return DONE
