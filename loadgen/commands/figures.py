"""`figures`: the paper's experiments."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from loadgen.commands.options import command
from loadgen.commands.status import DONE
from loadgen.progress import Progress


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(
        commands,
        "figures",
        "carry out the paper's experiments here, and write the page that answers them",
        draw_figures,
        images=False,
    )
    parser.add_argument("--only", default="", metavar="E3,E5", help="these figures alone (default: all)")
    parser.add_argument("--full", action="store_true", help="at full size: hours, and narrow intervals")
    parser.add_argument(
        "--out", type=Path, default=Path("results/figures"), help="runs, JSON, SVG (default: %(default)s)"
    )
    parser.add_argument(
        "--page",
        type=Path,
        default=Path("docs/results.md"),
        help="the page, once all figures have been carried out; before, it is in --out (default: %(default)s)",
    )


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
    return DONE
