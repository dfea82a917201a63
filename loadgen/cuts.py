"""The forms in which images can cross the hop, compared: bytes, milliseconds and answers, image by image.

Each image is asked of every form in turn, one request in flight, before the next image comes: so a slow minute of the
machine is a slow minute of all forms, and differences are taken within an image.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loadgen.errors import PlanError
from loadgen.progress import Progress
from loadgen.samples import Sample
from loadgen.statistics import Interval, mean_interval, proportion_interval
from loadgen.target import Exchange, OipTarget, image_tensor
from services.accounting import Breakdown, Fact, Group, monotonic_ns
from services.errors import ServiceError
from services.local.deployments import FORMS, TABLE, Options
from services.local.stack import Stack
from services.messages import Array

SCHEMA_VERSION = 2  # 2: agreement is counted by image, with its interval
OWN = "f32"  # the model's own input: what the others are compared with
HOP = "preprocess>inference"
_TASK = "classification"
_OUTPUTS = ("classes", "logits")
_TIMEOUT_S = 60.0
_WARM_UP_ROUNDS = 2
_SHOWN = tuple(
    group.value
    for group in (
        *(Group.PREPROCESSING, Group.SERIALIZATION, Group.MOVEMENT),
        *(Group.QUEUEING, Group.TRANSFER, Group.INFERENCE),
    )
)


class Asked(NamedTuple):
    """What one form made of one image."""

    exchange: Exchange
    hop_bytes: int
    top: int
    logits: Array


def compare(
    transport: str,
    samples: Sequence[Sample],
    rounds: int,
    folder: Path,
    report: Progress,
    *,
    model: str,
    kafka: str | None = None,
) -> dict[str, Any]:
    """Start the suite once per form over `transport`, ask, stop it. `rounds`: how often each image is asked about.

    Raises `PlanError` for a transport without a hop, `LocalStackError` where the suite does not start, `ServiceError`
    where an image is not answered.
    """
    if f"{transport}+{FORMS[0]}" not in TABLE:
        known = ", ".join(name for name in TABLE if f"{name}+{FORMS[0]}" in TABLE)
        raise PlanError(f"--transport '{transport}' has no hop for images to cross; use one of {known}")
    if rounds < 1:
        raise PlanError(f"--rounds is {rounds}; each image is asked about once at least")
    deployments = {OWN: transport} | {form: f"{transport}+{form}" for form in FORMS}
    with Stack(
        list(deployments.values()),
        Options((model,), log_level="WARNING"),
        folder,
        kafka=kafka,
        say=lambda what: report(what, 0, 0),
    ) as stack:
        doors = stack.doors()
        targets = {
            form: OipTarget(doors[name], _TASK, _TIMEOUT_S, outputs=_OUTPUTS) for form, name in deployments.items()
        }
        try:
            rows = _ask(targets, samples, rounds, report)
        finally:
            for target in targets.values():
                target.close()
    return {
        "schema_version": SCHEMA_VERSION,
        "transport": transport,
        "model": model,
        "images": len(samples),
        "rounds": rounds,
        "label": "MEASURED",
        "forms": [_summary(form, rows[form], rows[OWN]) for form in deployments],
    }


def _ask(
    targets: Mapping[str, OipTarget], samples: Sequence[Sample], rounds: int, report: Progress
) -> dict[str, list[Asked]]:
    rows: dict[str, list[Asked]] = {form: [] for form in targets}
    forms = list(targets)
    turns = itertools.count()
    for round_ in range(-_WARM_UP_ROUNDS, rounds):
        what = "warming up" if round_ < 0 else "asking about each image over every form"
        for index, sample in enumerate(samples):
            report(what, max(0, round_) * len(samples) + index, rounds * len(samples))
            first = next(turns) % len(forms)  # nobody is always the first to be asked
            for form in forms[first:] + forms[:first]:
                asked = _one(targets[form], form, sample)
                if round_ >= 0:
                    rows[form].append(asked)
    return rows


def _one(target: OipTarget, form: str, sample: Sample) -> Asked:
    exchange = target.send(image_tensor(sample.data), sample.name, monotonic_ns()).result(_TIMEOUT_S + 5)
    if exchange.error is not None:
        raise ServiceError(f"{sample.name} over {form}: {exchange.error}: {exchange.message}")
    crossed = [
        int(value)
        for tile in exchange.tiles
        if tile.where == HOP
        for fact, value in tile.facts
        if fact is Fact.REQUEST_BYTES
    ]
    return Asked(exchange, sum(crossed), int(exchange.outputs["classes"][0, 0]), exchange.outputs["logits"][0])


def _summary(form: str, rows: Sequence[Asked], own: Sequence[Asked]) -> dict[str, Any]:
    """Of one form, against the model's own input. Times in ms, means with 95 % intervals of paired differences."""
    breakdown = Breakdown.mean([Breakdown.of(row.exchange.tiles) for row in rows])
    differences = [
        (row.exchange.total_ns - other.exchange.total_ns) / 1e6 for row, other in zip(rows, own, strict=True)
    ]
    errors = [
        float(np.abs(row.logits - other.logits).max() / np.ptp(other.logits))
        for row, other in zip(rows, own, strict=True)
    ]
    slower = mean_interval(np.array(differences))
    return {
        "form": form,
        "hop_bytes": float(np.mean([row.hop_bytes for row in rows])),
        "total_ms": breakdown.total_ns / 1e6,
        "groups_ms": {group.value: breakdown.by_group.get(group, 0) / 1e6 for group in Group},
        "slower_ms": None if form == OWN else {"mean": float(np.mean(differences)), **_ends(slower)},
        "top1_agreement": _agreement(rows, own),
        "most_of_logit_range": max(errors),
    }


def _agreement(rows: Sequence[Asked], own: Sequence[Asked]) -> dict[str, Any]:
    """By image, not by request: asking again about the same image says nothing new."""
    agrees: dict[str, bool] = {}
    for row, other in zip(rows, own, strict=True):
        agrees[row.exchange.id] = agrees.get(row.exchange.id, True) and row.top == other.top
    images, same = len(agrees), sum(agrees.values())
    return {"images": images, "same": same, "share": same / images, **_ends(proportion_interval(same, images))}


def _ends(interval: Interval) -> dict[str, float | None]:
    return {"low": interval.low, "high": interval.high}


def table(result: Mapping[str, Any]) -> str:
    """For a terminal, and for Markdown."""
    head = ["", *(row["form"] for row in result["forms"])]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]

    def row(name: str, cell: Any) -> None:
        rows.append([name, *(cell(form) for form in result["forms"])])

    row("bytes over the hop", lambda form: f"{form['hop_bytes']:,.0f}")
    row("total, mean ms", lambda form: f"{form['total_ms']:.2f}")
    row("slower than f32, ms [95 %]", lambda form: _slower(form["slower_ms"]))
    for group in _SHOWN:
        row(f"{group}, mean ms", lambda form, group=group: f"{form['groups_ms'][group]:.2f}")
    row("same class as f32, images [95 %]", _agrees)
    row("logits off by, of their range", lambda form: f"{form['most_of_logit_range']:.1e}")
    widths = [max(len(line[column]) for line in rows) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in rows
    ]
    asked = f"{result['images']} images, {result['rounds']} times each, 1 in flight, over {result['transport']}"
    return f"{asked}\n\n" + "\n".join(lines)


def _agrees(form: Mapping[str, Any]) -> str:
    if form["form"] == OWN:
        return "-"
    found = form["top1_agreement"]
    return f"{found['same']} of {found['images']} [{found['low']:.1%}, {found['high']:.1%}]"


def picture(result: Mapping[str, Any]) -> str:
    """SVG: where the time of a request goes, form by form."""
    from loadgen.figures.plots import Bar, bars  # matplotlib is no part of what a load needs

    drawn = [Bar(form["form"], {group: form["groups_ms"][group] for group in _SHOWN}) for form in result["forms"]]
    return bars(f"what crosses the hop, over {result['transport']}: a request alone", "mean ms", drawn)


def _slower(difference: Mapping[str, float | None] | None) -> str:
    if difference is None:
        return "-"
    if difference["low"] is None or difference["high"] is None:
        return f"{difference['mean']:+.2f} [-, -]"
    return f"{difference['mean']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"
