"""`report`: the page of a run, anew."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loadgen import report_html, table
from loadgen.commands.options import command
from loadgen.commands.status import OF_A_RUN, usable
from loadgen.progress import Progress
from loadgen.stored import read_run


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(
        commands,
        "report",
        "write tables and the HTML page of a run.json anew",
        write_report,
        images=False,
        status=OF_A_RUN,
    )
    parser.add_argument("run", type=Path, help="a run.json, or its folder")
    parser.add_argument("--out", type=Path, help="the HTML file (default: report.html beside it)")


def write_report(arguments: argparse.Namespace, _: Progress) -> int:
    """`report`."""
    path, run = read_run(arguments.run)
    out = arguments.out or path.with_name("report.html")
    report_html.write(run, out)
    print(table.tables(run))
    print(f"\n{out}")
    return usable(run)
