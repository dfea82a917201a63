"""E9: two networks, more faces per frame, and what is between them: nothing, Redis, Kafka with either client."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from loadgen.figures.cells import Cell, Value
from loadgen.figures.conclusion import Check, Conclusion, nothing
from loadgen.figures.plots import Axes, Line, groups, lines
from services.accounting import Group, Stage

_PLAIN = "plain"
_KAFKA = ("kafka", "kafka-python")
# Between the publishing of a face and its being taken: what prior work calls the broker's share.
_HOP = "preprocess>inference"
_BROKER = (Stage.SEND_QUEUE, Stage.TRANSIT, Stage.BROKER_WAIT, Stage.REDELIVERY)


def faces_of(size: str) -> int:
    """Per frame, of a size of samples: `faces-9` -> 9."""
    return int(size.rpartition("-")[2])


class Crossing(NamedTuple):
    """Where a quotient is 1, among points from `least` to `most`: `value` by its own numbers, None where nowhere.

    `low` to `high`: all of where its intervals have 1 within, so 95 % at each point; beyond the points where one of
    them is None; None both, and `somewhere` False, where that is nowhere.
    """

    value: float | None
    low: float | None
    high: float | None
    least: float
    most: float
    somewhere: bool

    def __str__(self) -> str:
        """In words."""
        low = f"{self.least:g} or fewer" if self.low is None else f"{self.low:.1f}"
        high = f"{self.most:g} or more" if self.high is None else f"{self.high:.1f}"
        if self.value is not None:
            return f"equal at {self.value:.1f} faces" + (f" [{low}, {high}]" if self.somewhere else "")
        return f"nowhere equal, but perhaps at [{low}, {high}] faces" if self.somewhere else "nowhere equal"


def crossing(ratios: Sequence[tuple[float, Value]]) -> Crossing:
    """Where a quotient is 1, of one point at least. Between points, on straight lines from logarithm to logarithm.

    Where any point has no interval, that has none either.

    The interval is the inversion of the points' own (Fieller's idea, "Some problems in interval estimation", 1954): it
    has an end only where the data give it one.
    """
    least, most = ratios[0][0], ratios[-1][0]
    roots = _roots([(x, value.value) for x, value in ratios])
    bounds = [(x, low, high) for x, (_, low, high) in ratios if low is not None and high is not None]
    if len(bounds) < len(ratios):
        return Crossing(roots[0] if roots else None, None, None, least, most, somewhere=False)
    within = [x for x, low, high in bounds if low <= 1 <= high]
    ends = _roots([(x, low) for x, low, _ in bounds]) + _roots([(x, high) for x, _, high in bounds])
    somewhere = bool(within or ends)
    low = min(ends) if somewhere and least not in within else None
    high = max(ends) if somewhere and most not in within else None
    return Crossing(roots[0] if roots else None, low, high, least, most, somewhere)


def _roots(points: Sequence[tuple[float, float]]) -> list[float]:
    """Where a line through them is 1, from the left; of a part that is 1 all along, where that begins."""
    found = [points[0][0]] if points[0][1] == 1 else []
    for (x, y), (further, other) in itertools.pairwise(points):
        if (y - 1) * (other - 1) > 0 or y == 1:
            continue
        part = math.log(y) / (math.log(y) - math.log(other))
        found.append(math.exp(math.log(x) + part * (math.log(further) - math.log(x))))
    return found


def conclude(cells: Sequence[Cell]) -> Conclusion:
    """See `experiments.TABLE`."""
    plain = [cell for cell in cells if cell.step.at["variant"] == _PLAIN]
    if not plain:
        return nothing("Nothing could be measured.")
    counts = sorted({faces_of(cell.size) for cell in plain})
    of = {(cell.target, faces_of(cell.size)): cell for cell in plain}
    targets = list(dict.fromkeys(cell.target for cell in plain))
    rates = [
        Line(target, [(float(n), of[target, n].throughput()) for n in counts if (target, n) in of])
        for target in targets
    ]
    said, checks, ratios = [], [], {}
    crossings: dict[str, Crossing] = {}
    for one, other in (("redis", "kafka"), ("redis", "kafka-python"), ("fused", "redis"), ("fused", "kafka")):
        both = [n for n in counts if (one, n) in of and (other, n) in of]
        if not both:
            continue
        points = [(float(n), of[one, n].throughput().over(of[other, n].throughput())) for n in both]
        name = f"{one} over {other}"
        ratios[name] = points
        said.append(f"{name} {points[0][1]:.2f} at {both[0]} and {points[-1][1]:.2f} at {both[-1]}")
        crossings[name] = crossing(points)
        said[-1] += f" ({crossings[name]})"
        if one == "redis":
            # Two quotients of four cells, which have nothing in common.
            rises = points[-1][1].over(points[0][1]).at_least(1) if len(points) > 1 else None
            checks.append(Check(f"{one} over {other} is above 1 at {both[-1]} faces", points[-1][1].at_least(1)))
            checks.append(Check(f"{one} over {other} rises from {both[0]} to {both[-1]} faces", rises))
    pictures = {"e9-throughput": lines("frames by faces", Axes("faces per frame", "frames/s", log_x=True), rates)}
    if ratios:
        pictures["e9-ratios"] = lines(
            "throughput, one over the other",
            Axes("faces per frame", "ratio", log_x=True, level=1.0),
            [Line(name, points) for name, points in ratios.items()],
        )
    said += _at_their_best(cells, targets)
    said += _variants(cells, of, pictures)
    rows = [
        [
            *(str(cell.step.at["variant"]), cell.target, str(faces_of(cell.size)), f"{cell.throughput():.1f}"),
            *(f"{cell.throughput().value * faces_of(cell.size):.0f}", _mean_ms(cell)),
            *(f"{cell.hop_share(_HOP, *_BROKER):.1%}", f"{cell.share(Group.MOVEMENT, Group.SERIALIZATION).value:.1%}"),
            *(cell.label, cell.verdict),
        ]
        for cell in cells
    ]
    head = ["setting", "between them", "faces", "frames/s", "faces/s", "mean ms", "published to taken"]
    head += ["movement and serialization", "label", "verdict"]
    data = {
        "throughput": {line.name: [[x, *value] for x, value in line.points] for line in rates},
        "ratios": {name: [[x, *value] for x, value in points] for name, points in ratios.items()},
        "crossings": {name: at._asdict() for name, at in crossings.items()},
    }
    return Conclusion(f"{'; '.join(said)}.", head, rows, pictures, data, checks)


def _at_their_best(cells: Sequence[Cell], targets: Sequence[str]) -> list[str]:
    """Redis over each Kafka in the setting in which that passes most, in words; empty where it has one setting only.

    Against a Kafka that sends every record at once, Redis would look better than it is.
    """
    said = []
    for other in (target for target in _KAFKA if target in targets):
        for faces in sorted({faces_of(cell.size) for cell in cells if cell.step.at["variant"] != _PLAIN}):
            mine, theirs = (
                [cell for cell in cells if (cell.target, faces_of(cell.size)) == (target, faces)]
                for target in ("redis", other)
            )
            if not mine or len(theirs) < 2:
                continue
            best, against = (max(own, key=lambda cell: cell.throughput().value) for own in (mine, theirs))
            ratio = best.throughput().over(against.throughput())
            settings = f"{best.step.at['variant']} over {against.step.at['variant']}"
            said.append(f"each at its best, redis over {other} {ratio:.2f} at {faces} ({settings})")
    return said


def _variants(cells: Sequence[Cell], of: dict[tuple[str, int], Cell], pictures: dict[str, str]) -> list[str]:
    """What settings keep of the plain one's throughput, in words, by what is between; and their picture."""
    kept_by: dict[str, list[tuple[float, str]]] = {}
    drawn: dict[str, dict[str, Value]] = {}
    for cell in cells:
        variant, faces = str(cell.step.at["variant"]), faces_of(cell.size)
        if variant == _PLAIN or (cell.target, faces) not in of:
            continue
        kept = cell.throughput().over(of[cell.target, faces].throughput())
        drawn.setdefault(f"{variant}, {faces}", {})[cell.target] = kept
        kept_by.setdefault(cell.target, []).append((kept.value, f"{kept:.2f} ({variant}, {faces} faces)"))
    if drawn:
        pictures["e9-settings"] = groups("of the plain setting's throughput", "ratio", drawn, tilted=True)
    return [
        f"of its plain throughput {target} keeps {min(kept)[1]} to {max(kept)[1]}" for target, kept in kept_by.items()
    ]


def _mean_ms(cell: Cell) -> str:
    latency = cell.latency()
    return "-" if latency is None else f"{latency:.1f}"
