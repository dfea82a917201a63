"""All figures on one page, in Markdown; its pictures beside it. Written anew after each figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loadgen import atomic
from loadgen.figures.cells import NOT_RUN
from loadgen.figures.conclusion import Conclusion
from loadgen.figures.figure import Figure

_SOURCE = {"abstract": "its abstract", "secondary": "a secondary source"}


class Concluded(NamedTuple):
    """A figure, what it says, and what of it has no numbers that can be used: (step, cell, why).

    `days`: on which its runs began, as 2024-03-02. `by_other_code`: steps with numbers of another state of the code.
    `contended`: how many cells are, and why.
    """

    figure: Figure
    conclusion: Conclusion
    unusable: Sequence[tuple[str, str, str]]
    days: Sequence[str] = ()
    by_other_code: Sequence[str] = ()
    contended: str = ""


def save(done: Concluded, folder: Path) -> None:
    """`<id>.json` and a file per picture."""
    figure, conclusion = done.figure, done.conclusion
    for name, svg in conclusion.pictures.items():
        atomic.write(folder / f"{name}.svg", svg)
    content: dict[str, Any] = {
        "schema": "beyond-inference/figure/1",
        "id": figure.id,
        "title": figure.title,
        "question": figure.question,
        "paper": figure.paper or None,
        "source": figure.source or None,
        "ours": conclusion.says,
        "table": [dict(zip(conclusion.head, row, strict=True)) for row in conclusion.rows],
        "checks": [check._asdict() for check in conclusion.checks],
        "not_usable": [{"step": step, "cell": cell, "why": why} for step, cell, why in done.unusable],
        "data": conclusion.data,
        "fingerprints": {step.name: step.fingerprint for step in figure.steps},
        "by_other_code": list(done.by_other_code),
        "contended": done.contended,
    }
    atomic.write(folder / f"{figure.id}.json", json.dumps(content, indent=1) + "\n")


def render(done: Sequence[Concluded], pictures: str, about: Mapping[str, Any], *, full: bool) -> str:
    """The page. `pictures`: their folder, as seen from the page. `about`: the environment of the runs."""
    size = (
        "at full size"
        if full
        else "at a reduced size: intervals are wide, and percentiles of few requests are left out"
    )
    days = sorted({day for entry in done for day in entry.days})
    when = f", measured {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    lines = [
        "# The paper's questions, answered here",
        "",
        (
            "Written by `make figures`, from `results/figures/`. The paper is *Beyond Inference: Performance Analysis "
            "of DNN Server Overheads for Computer Vision* (arXiv 2403.12981); of its figures only those are printed "
            "that its abstract has, and others with where they come from."
        ),
        "",
        f"This run: {about['cpu']}, {about['cpus']:g} CPUs, Python {about['python']}{when}, {size}.",
        "",
        (
            "MEASURED is measured on this machine. EMULATED: a device k times as fast as this CPU (`-k32`: 32 times), "
            "which replays the network's own answers and takes at least the time of looking them up, about 0.5 ms; or "
            "a fixed time per image. Moving data to a device is not in it: `transfer` is what the host itself does for "
            f"a batch. {NOT_RUN}: no numbers, and why. A network that is `-seeded` has random weights: for timing only."
        ),
        "",
        (
            "Verdicts: VALID; CONTENDED, where the numbers hold for this run, but the machine was busy with something "
            "else, or not in a steady state; INVALID ones are in no table, and named below it. Numbers in brackets are "
            "95 % intervals; where one has the bound within that something is held against, too little was measured to "
            "say."
        ),
        "",
    ]
    for entry in done:
        lines += _section(entry, pictures)
    return "\n".join(lines).rstrip() + "\n"


def _section(entry: Concluded, pictures: str) -> list[str]:
    figure, conclusion = entry.figure, entry.conclusion
    paper = f"{figure.paper} ({_SOURCE[figure.source]})" if figure.paper else "no number is known"
    lines = [
        f"## {figure.id.upper()}: {figure.title}",
        "",
        f"**Question.** {figure.question}",
        "",
        f"**{'Said of the paper' if figure.source == 'secondary' else 'The paper'}.** {paper[0].upper()}{paper[1:]}.",
        "",
        f"**Ours.** {conclusion.says}",
        "",
        *_measured_with(entry),
        f"**Why they differ.** {figure.differs}",
        "",
    ]
    lines += [line for name in conclusion.pictures for line in (f"![{figure.title}]({pictures}/{name}.svg)", "")]
    if conclusion.rows:
        lines += [_row(conclusion.head), _row(["---"] * len(conclusion.head)), *map(_row, conclusion.rows), ""]
    for check in conclusion.checks:
        held = {True: "holds", False: "DOES NOT HOLD", None: "too little was measured to say"}[check.held]
        lines.append(f"- {check.what}: {held}")
    lines += [
        f"- {step}{f' ({cell})' if cell else ''}: {'not usable' if cell else NOT_RUN}: {why}"
        for step, cell, why in entry.unusable
    ]
    if entry.contended:
        lines.append(f"- CONTENDED cells: {entry.contended}")
    overlays = ", ".join(f"`charts/beyond-inference/experiments/{name}`" for name in figure.overlays)
    return [*lines, "", f"On a cluster: {overlays}.", ""]


def _measured_with(entry: Concluded) -> list[str]:
    """Networks and loads of the steps that have numbers."""
    absent = {step for step, cell, _ in entry.unusable if not cell}
    steps = [step for step in entry.figure.steps if step.name not in absent]
    if not steps:
        return []
    models = dict.fromkeys(model for step in steps for model in step.models)
    sizes_of: dict[str, list[str]] = {}
    plan = entry.figure.plan
    for size in plan.samples:
        schedules = dict.fromkeys(load.schedule[size] for load in plan.loads if size in load.schedule)
        sizes_of.setdefault(_in_words(list(schedules)), []).append(size)
    loads = "; ".join(f"{words} ({', '.join(sizes)})" for words, sizes in sizes_of.items())
    older = (
        f" By another state of this project's code: {', '.join(entry.by_other_code)}." if entry.by_other_code else ""
    )
    return [f"**Measured with.** {', '.join(models)}; {loads}.{older}", ""]


def _in_words(schedules: Sequence[str]) -> str:
    """closed(1), closed(4) -> 1, 4 in flight; others as a plan has them."""
    counts = [text.removeprefix("closed(").removesuffix(")") for text in schedules]
    closed = all(count.isdigit() for count in counts)
    return f"{', '.join(counts)} in flight" if closed else ", ".join(schedules)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
