"""How a command ends: what it has measured is written and shown, and its exit status says whether it can be used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadgen import report_html, table, thresholds
from loadgen.experiment import Finished, save
from loadgen.progress import Progress

DONE, NOT_USABLE, WRONG, BROKEN = 0, 1, 2, 3
OF_A_RUN = (
    "exit status: 0 every cell has numbers that can be used (VALID or CONTENDED), 1 some cell has not, 2 wrong input, "
    "3 a threshold of the plan is broken"
)
USED = "exit status: 0 done, 1 a service could not do it, 2 wrong input"
SHOWN = "exit status: 0 done, 1 what was compared has no usable numbers, or no rate was shown to hold, 2 wrong input"


def finish(finished: Finished, out: Path, progress: Progress) -> int:
    """Write the files, print the tables."""
    progress.clear()
    run = finished.run
    if run["interrupted"] and (out / "run.json").exists():
        out = out.with_name(f"{out.name}-interrupted")  # what is complete stays
    save(finished, out)
    report_html.write(run, out / "report.html")
    text = table.tables(run)
    words = table.answers(run)
    (out / "report.md").write_text(f"{text}\n\n{words}\n", encoding="utf-8")
    print(text)
    if words:
        print(f"\n{words}")
    print(f"\n{out / 'report.html'} is the page; run.json, requests.csv and report.md lie beside it")
    if "spans" in run:
        print(
            f"{run['spans']['requests']} requests have traces ({run['spans']['spans']} spans): those whose traceparent "
            "in requests.csv ends in 01, slow ones and failed ones; `inspect` draws one, `inspect --jaeger` as Jaeger "
            "has it"
        )
    for note in run["notes"]:
        print(note, file=sys.stderr)
    if run["interrupted"]:
        print("interrupted: what is missing was not measured", file=sys.stderr)
    return usable(run)


def usable(run: Mapping[str, Any]) -> int:
    """The exit status of a run. What makes it other than 0 is named last on stderr: in CI that is what is read."""
    broken = thresholds.broken(run)
    poor = [cell for cell in run["cells"] if cell.get("verdict") not in ("VALID", "CONTENDED")]
    for cell in poor:
        what = f"{cell['size']}, {cell['target']}, {cell['load']}"
        print(f"not usable: {what}: {cell.get('verdict') or 'not measured'}", file=sys.stderr)
    for line in broken:
        print(f"threshold broken: {line}", file=sys.stderr)
    if broken:
        return BROKEN
    return DONE if run["cells"] and not poor and not run.get("interrupted") else NOT_USABLE
