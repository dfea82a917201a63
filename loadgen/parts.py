"""A plan in parts: what each of several load generators, on several machines, sends of it.

The parts are disjoint, and together they are the plan: of an open schedule every N-th arrival at its own instant, of
`closed(n)` a share of the n in flight, of cameras a share of them (`Schedule.part`). Requests keep the ids that they
have in the whole plan.
"""

from __future__ import annotations

import array
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loadgen.errors import PlanError
from loadgen.plan import Plan
from loadgen.samples import Sample
from loadgen.schedule import Schedule

MOST = 64


class Part(NamedTuple):
    """The `number`-th, from 1, `of` so many."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"part {self.number} of {self.of}"

    def schedule(self, whole: Schedule) -> Schedule:
        """What this part sends of a schedule."""
        return whole.part(self.number - 1, self.of)


def parse_part(text: str) -> Part:
    """`2/3`. Raises `PlanError`."""
    found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text.strip())
    if found is None:
        raise PlanError(f"--part '{text}' is not I/N, e.g. 2/3 for the second of three")
    part = Part(int(found[1]), int(found[2]))
    if not 2 <= part.of <= MOST:
        raise PlanError(f"--part '{text}': a plan can be sent in 2 to {MOST} parts; leave --part out for one")
    if not 1 <= part.number <= part.of:
        raise PlanError(f"--part '{text}': parts are counted from 1 to {part.of}")
    return part


def check_divisible(plan: Plan, of: int) -> None:
    """Raises `PlanError` for a load that leaves one of `of` parts without work in time.

    A part sends its first request in any case, so it must be one that the whole plan sends, too.
    """
    for load in plan.loads:
        for size, text in load.schedule.items():
            pieces = plan.schedule(load, size).rounds(plan.rounds)
            for piece in pieces:
                in_time = piece.due_within(load.at_most_s / len(pieces))
                if piece.concurrency:
                    units, words = min(piece.concurrency, piece.requests), "in flight"
                elif piece.streams:
                    units, words = len(set(piece.streams[:in_time])), "cameras"
                else:
                    units, words = in_time, "requests"
                if units < of:
                    where = ("" if len(pieces) == 1 else " in a round") + (
                        " in time" if in_time < piece.requests else ""
                    )
                    raise PlanError(
                        f"load '{load.name}' ('{text}') has {units} {words}{where}, too few for {of} parts: give it "
                        f"{of} or more, or send it in fewer parts"
                    )


def agreement(plan: Plan, samples: Mapping[str, Sequence[Sample]]) -> str:
    """A digest of all that parts of one plan have to have in common: the plan, its instants, and the files.

    Without the addresses of targets and metrics: each part may have its own way to the same door.
    """
    same = {key: value for key, value in plan.source.items() if key not in ("targets", "metrics")}
    digest = hashlib.sha256(json.dumps([same, list(plan.targets)], sort_keys=True).encode())
    for load in plan.loads:
        for size in load.schedule:
            schedule = plan.schedule(load, size)  # a trace may be another one under the same name
            for numbers in (schedule.due_ns, schedule.streams, schedule.samples):
                digest.update(array.array("q", numbers).tobytes())
    for size, files in samples.items():
        digest.update(size.encode())
        for sample in files:
            digest.update(hashlib.sha256(sample.data).digest())
    return digest.hexdigest()
