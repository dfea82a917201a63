"""E9: two networks, more faces per frame, and what is between them: nothing, Redis, Kafka with either client."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

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


def crossing(ratios: Sequence[tuple[float, Value]]) -> Value | None:
    """Where a quotient becomes 1, between two of its points; None where it does not.

    On a straight line from logarithm to logarithm. The ends of its interval are where the ends of the points' become 1;
    None where they do not within the points.
    """

    def at(ends: Sequence[tuple[float, float | None]]) -> float | None:
        for (x, y), (further, other) in itertools.pairwise(ends):
            if y is None or other is None or (y - 1) * (other - 1) > 0 or y == other:
                continue
            part = math.log(y) / (math.log(y) - math.log(other))
            return math.exp(math.log(x) + part * (math.log(further) - math.log(x)))
        return None

    middle = at([(x, value.value) for x, value in ratios])
    if middle is None:
        return None
    ends = [at([(x, value.low) for x, value in ratios]), at([(x, value.high) for x, value in ratios])]
    known = sorted(end for end in ends if end is not None)
    return Value(middle, known[0], known[1]) if len(known) == len(ends) else Value(middle)


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
    for one, other in (("redis", "kafka"), ("redis", "kafka-python"), ("fused", "redis"), ("fused", "kafka")):
        both = [n for n in counts if (one, n) in of and (other, n) in of]
        if not both:
            continue
        points = [(float(n), of[one, n].throughput().over(of[other, n].throughput())) for n in both]
        ratios[f"{one} over {other}"] = points
        said.append(f"{one} over {other} {points[0][1]:.2f} at {both[0]} and {points[-1][1]:.2f} at {both[-1]}")
        at = crossing(points)
        unsure = any(value.at_least(1) is None for _, value in points)
        said[-1] += (
            f" (equal at {at:.1f} faces)"
            if at
            else " (whether they are equal somewhere, these intervals do not say)"
            if unsure
            else " (nowhere equal)"
        )
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
