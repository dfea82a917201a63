"""`ask`: what photographs show, in words."""

from __future__ import annotations

import argparse
from typing import Any

from loadgen import samples
from loadgen.commands.options import command, url
from loadgen.commands.status import DONE
from loadgen.errors import PlanError
from loadgen.experiment import ask
from loadgen.progress import Progress
from loadgen.words import in_words


def add(commands: Any) -> None:
    """Its arguments."""
    parser = command(commands, "ask", "ask one door what photographs show, in words", ask_url)
    url(parser)


def ask_url(arguments: argparse.Namespace, _: Progress) -> int:
    """`ask`."""
    chosen = samples.photographs() if arguments.images is None else samples.from_folder(arguments.images)
    if not arguments.url.startswith("grpc://"):
        raise PlanError(f"--url '{arguments.url}' is not grpc://host:port")
    for sample, outputs in ask(arguments.url, arguments.task, chosen, arguments.timeout_s):
        print(f"{sample.name}: {in_words(outputs)}")
    return DONE
