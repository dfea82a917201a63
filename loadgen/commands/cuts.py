"""`cuts`: the forms in which images can cross the hop."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from loadgen import atomic, cuts, demo, samples
from loadgen.commands.options import command, of_one_size
from loadgen.commands.status import DONE
from loadgen.progress import Progress


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(
        commands,
        "cuts",
        "compare the forms in which images can cross the hop: bytes, ms and answers of jpeg, u8, f16, f32",
        compare_cuts,
    )
    parser.add_argument("--transport", default="grpc", help="grpc, kafka or kafka-python (default: %(default)s)")
    parser.add_argument(
        "--size", default="medium", choices=samples.NAMES, help="of the photographs sent (default: medium)"
    )
    parser.add_argument("--count", type=int, default=100, help="photographs, at most 100 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="times that each is asked about (default: %(default)s)")
    parser.add_argument("--model", default=demo.MODEL, help="a classifier of the models file (default: %(default)s)")
    parser.add_argument("--kafka", metavar="HOST:PORT", help="use this broker instead of starting one")
    parser.add_argument("--out", type=Path, default=Path("results/cuts"), help="default: %(default)s")


def compare_cuts(arguments: argparse.Namespace, progress: Progress) -> int:
    """`cuts`."""
    chosen = of_one_size(arguments, arguments.count, progress)
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
    return DONE
