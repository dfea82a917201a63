"""`samples`: the photographs of known content, made in sizes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from loadgen import samples
from loadgen.commands.options import command, made
from loadgen.commands.status import DONE
from loadgen.plan import OWN
from loadgen.progress import Progress
from loadgen.samples import Sample


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(commands, "samples", "make the sample photographs, or list those of --images", make_samples)
    parser.add_argument(
        "--size", action="append", choices=samples.NAMES, help="repeatable (default: small, medium and large)"
    )
    parser.add_argument("--count", type=int, default=100, help="files per size, at most 100 (default: %(default)s)")


def make_samples(arguments: argparse.Namespace, progress: Progress) -> int:
    """`samples`."""
    if arguments.images is not None:
        chosen: Mapping[str, Sequence[Sample]] = {OWN: samples.from_folder(arguments.images)}
    else:
        chosen = made(arguments, dict.fromkeys(arguments.size or samples.SIZES, arguments.count), progress)
    progress.clear()
    for size, files in chosen.items():
        widths, heights = {sample.width for sample in files}, {sample.height for sample in files}
        pixels = f"{_span(widths)} x {_span(heights)} pixels"
        print(f"{size}: {len(files)} files, {pixels}, {_span({len(s.data) / 1e3 for s in files})} kB")
    return DONE


def _span(values: set[int] | set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
