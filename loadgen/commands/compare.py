"""`compare`: two runs side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from loadgen import compare
from loadgen.commands.options import command
from loadgen.commands.status import DONE, NOT_USABLE, SHOWN
from loadgen.progress import Progress


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(
        commands,
        "compare",
        "set two runs side by side: differences with intervals, pair by pair",
        compare_runs,
        images=False,
        status=SHOWN,
    )
    parser.add_argument("a", type=Path, help="a run.json, or its folder")
    parser.add_argument("b", type=Path, help="another one; or the same, with --target-a and --target-b")
    parser.add_argument("--target-a", help="compare this target of the first run ...")
    parser.add_argument("--target-b", help="... with this one of the second")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def compare_runs(arguments: argparse.Namespace, _: Progress) -> int:
    """`compare`."""
    result = compare.compare(
        compare.load(arguments.a), compare.load(arguments.b), arguments.target_a, arguments.target_b
    )
    print(json.dumps(result, allow_nan=False) if arguments.json else compare.words(result))
    return DONE if compare.usable(result) else NOT_USABLE
