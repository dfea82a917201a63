"""`merge`: one result of all parts of a plan."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loadgen.commands.options import command
from loadgen.commands.status import OF_A_RUN, finish
from loadgen.merge import merge
from loadgen.progress import Progress


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(
        commands,
        "merge",
        "make one result of all parts of a plan (run --part)",
        merge_parts,
        images=False,
        status=OF_A_RUN,
    )
    parser.add_argument("parts", type=Path, nargs="+", metavar="PART", help="a run.json, or its folder, of each part")
    parser.add_argument("--out", type=Path, help="folder of the results (default: results/NAME)")


def merge_parts(arguments: argparse.Namespace, progress: Progress) -> int:
    """`merge`."""
    finished = merge(arguments.parts)
    out = arguments.out or Path("results") / str(finished.run["name"])
    return finish(finished, out, progress)
