"""Whether the disks have room for what is about to be written, before it is: half of it helps nobody.

    python -m services.local.disk --need 3.5 /tmp "TMPDIR moves it" --need 6.5 .venv-torch "TORCH_VENV moves it"

Pure standard library: the Makefile asks before there is an environment.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

GB = 10**9


class Need(NamedTuple):
    """So many bytes will be written below `place`, which need not exist yet. `remedy`: how to have it elsewhere."""

    nbytes: int
    place: Path
    remedy: str


def _free_bytes(place: Path) -> int:
    return shutil.disk_usage(place).free


def _filesystem(place: Path) -> int:
    return place.stat().st_dev


def shortage(
    needs: Sequence[Need],
    free_bytes: Callable[[Path], int] = _free_bytes,
    filesystem: Callable[[Path], int] = _filesystem,
) -> str:
    """What is short, with the numbers and the remedies; empty where there is room for all.

    Places on one file system share its room. `free_bytes` and `filesystem` (which tells them apart) are asked of
    folders that exist. Raises `OSError` for a place that cannot be looked at.
    """
    together: dict[int, list[tuple[Need, Path]]] = {}
    for need in needs:
        there = _existing(need.place)
        together.setdefault(filesystem(there), []).append((need, there))
    lines = []
    for group in together.values():
        wanted = sum(need.nbytes for need, _ in group)
        free = free_bytes(group[0][1])
        if free < wanted:
            places = ", ".join(f"{need.nbytes / GB:.1f} GB in {need.place} ({need.remedy})" for need, _ in group)
            lines.append(
                f"not enough room on the disk of {group[0][1]}: {free / GB:.1f} GB are free, "
                f"{wanted / GB:.1f} GB are needed: {places}; free some, or move it"
            )
    return "\n".join(lines)


def _existing(place: Path) -> Path:
    """The nearest folder above that is there."""
    place = place.resolve()
    return next(folder for folder in (place, *place.parents) if folder.exists())


def main(argv: Sequence[str]) -> int:
    """The exit status: 0 enough room, 1 not, with the reason on stderr, 2 a wrong question."""
    parser = argparse.ArgumentParser(
        prog="python -m services.local.disk", description="Is there room on disk? Exit status 1, and why, if not."
    )
    parser.add_argument(
        "--need",
        nargs=3,
        metavar=("GB", "PLACE", "REMEDY"),
        action="append",
        required=True,
        help="so many GB (10^9 bytes) will be written below PLACE; REMEDY says how to have them elsewhere",
    )
    needs = []
    for size, place, remedy in parser.parse_args(argv).need:
        try:
            needs.append(Need(int(float(size) * GB), Path(place), remedy))
        except (ValueError, OverflowError):
            parser.error(f"--need {size}: not a number of GB")
    short = shortage(needs)
    if short:
        sys.stderr.write(f"{short}\n")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
