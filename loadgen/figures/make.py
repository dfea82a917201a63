"""All figures, or some: carried out, concluded, written."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from loadgen import atomic
from loadgen.experiment import environment
from loadgen.figures import page
from loadgen.figures.cells import cells_of, contended_of, unusable_of
from loadgen.figures.conduct import Done, complete, conduct, done_already, kept
from loadgen.figures.experiments import TABLE
from loadgen.figures.figure import Figure, load_figure
from loadgen.figures.figure import ids as figure_ids
from loadgen.progress import Display
from loadgen.samples import Sample, make
from loadgen.stored import read_run


class Made(NamedTuple):
    """What to tell, a line per figure, and where the page is."""

    said: list[str]
    page: Path


def make_figures(ids: Sequence[str], out: Path, where: Path, display: Display, *, full: bool) -> Made:
    """Carry out what is not in `out` yet, and write the page anew after each figure. Ctrl-C goes through.

    Others that are in `out` already stay on the page. It is `where`, once it has all figures; before, it is in `out`,
    so that a few figures of this machine do not replace the whole of another's. Raises `PlanError`.
    """
    runs = out / "runs"
    all_ids = figure_ids()
    figures = {id_: load_figure(id_, full=full) for id_ in (*all_ids, *ids)}

    @cache
    def samples(size: str, count: int) -> Sequence[Sample]:
        return make(size, count, progress=lambda done, of: display(f"making {size} images", done, of))

    concluded = {
        id_: _conclude(figure, done_already(figure, runs)) for id_, figure in figures.items() if kept(figure, runs)
    }
    said: list[str] = []
    page_is = out / "results.md"
    for id_ in ids:
        begin = time.monotonic()
        entry = _conclude(figures[id_], conduct(figures[id_], runs, samples, display))
        concluded[id_] = entry
        whole = all(known in concluded and complete(figures[known], runs) for known in all_ids)
        page_is = where if whole else out / "results.md"
        _write([concluded[known] for known in all_ids if known in concluded], out, page_is, full=full)
        said.append(f"{id_} {entry.figure.title} ({time.monotonic() - begin:.0f} s): {entry.conclusion.says}")
    return Made(said, page_is)


def _conclude(figure: Figure, done: Sequence[Done]) -> page.Concluded:
    days = [str(read_run(entry.folder)[1]["started"])[:10] for entry in done if entry.folder is not None]
    older = [entry.step.name for entry in done if entry.by_other_code]
    return page.Concluded(figure, TABLE[figure.id](cells_of(done)), unusable_of(done), days, older, contended_of(done))


def _write(concluded: Sequence[page.Concluded], out: Path, where: Path, *, full: bool) -> None:
    pictures = out if where.parent == out else where.parent / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    for entry in concluded:
        page.save(entry, out)
        if pictures != out:
            for name in entry.conclusion.pictures:
                shutil.copyfile(out / f"{name}.svg", pictures / f"{name}.svg")
    text = page.render(concluded, os.path.relpath(pictures, where.parent), environment(), full=full)
    atomic.write(where, text)
