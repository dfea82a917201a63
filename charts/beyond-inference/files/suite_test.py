"""What `helm test` runs in a pod: real photographs over the enabled link, and whether all that comes back adds up.

Asks the door through the load generator's own commands, as a user would, and reads what they leave behind. Prints what
it finds; exit status 0 when all is right, 1 when something is not, with the reason.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

REQUESTS = 8
# Spans are sent in batches, by the collector again.
TRACE_WAIT_S = 60.0
LOADGEN_S = 240.0

PLAN = f"""\
name = "helm-test"
calibration_probes = 10
warmup_s = 5.0
senders = 1
[samples]
medium = 4
[[load]]
name = "1 in flight"
schedule = "closed(1)"
requests = {REQUESTS}
warmup = 4
"""


class Wrong(Exception):
    """What is not as it should be."""


def loadgen(*arguments: str) -> str:
    """A command of the load generator; what it printed. Raises `Wrong`."""
    try:
        done = subprocess.run(  # noqa: S603 # our own command
            [sys.executable, "-m", "loadgen", *arguments],
            capture_output=True,
            text=True,
            timeout=LOADGEN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Wrong(f"loadgen {arguments[0]} did not end within {LOADGEN_S:.0f} s") from None
    print(done.stdout, done.stderr, sep="", end="", flush=True)
    if done.returncode:
        raise Wrong(f"loadgen {arguments[0]} ended with status {done.returncode}")
    return done.stdout


def check_answers(door: str, task: str, samples: Path, words: list[str]) -> None:
    """Photographs show what they show. Raises `Wrong`."""
    said = loadgen("ask", "--url", door, "--task", task, "--samples-folder", str(samples))
    for word in words:
        if word not in said:
            raise Wrong(f"no photograph shows '{word}'")


def check_ledgers(folder: Path, hop: str) -> None:
    """Every answer has a ledger, whose parts are the whole, and that went over the hop. Raises `Wrong`."""
    cells = json.loads((folder / "run.json").read_text(encoding="utf-8"))["cells"]
    if len(cells) != 1 or "ledger" not in cells[0]:
        raise Wrong(f"the load was not measured: {[cell.get('reasons') or cell.get('label') for cell in cells]}")
    [cell] = cells
    if (cell["ok"], cell["ledger"]["complete"], cell["ledger"]["mismatched"]) != (REQUESTS, REQUESTS, 0):
        raise Wrong(f"{cell['ok']} of {REQUESTS} answered, ledgers: {cell['ledger']}, errors: {cell['errors']}")
    with (folder / "requests.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        parts = {
            name: int(ns) for name, ns in row.items() if "@" in name and name.endswith("_ns") and "_cpu_" not in name
        }
        if sum(parts.values()) != int(row["total_ns"]):
            raise Wrong(f"request {row['id']}: parts sum to {sum(parts.values())} ns, the total is {row['total_ns']}")
        if hop and not parts.get(f"transit@{hop}_ns"):
            raise Wrong(f"request {row['id']} did not go over {hop}: {sorted(parts)}")
        if hop and parts.get("infer@preprocess_ns"):
            raise Wrong(f"request {row['id']} was computed at the door")
    print(f"{len(rows)} ledgers sum to their totals, to the nanosecond")


def check_trace(folder: Path, jaeger: str, services: set[str]) -> None:
    """One of the requests is one tree in Jaeger, over all services. Raises `Wrong`."""
    with (folder / "requests.csv").open(encoding="utf-8", newline="") as file:
        trace = next(csv.DictReader(file))["traceparent"].split("-")[1]
    deadline = time.monotonic() + TRACE_WAIT_S
    while True:
        wrong = _wrong_with(trace, jaeger, services)
        if wrong is None:
            print(f"trace {trace} is one tree over {', '.join(sorted(services))}")
            return
        if time.monotonic() > deadline:
            raise Wrong(f"trace {trace} in Jaeger: {wrong}")
        time.sleep(1)


def _wrong_with(trace: str, jaeger: str, services: set[str]) -> str | None:
    try:
        with urllib.request.urlopen(f"{jaeger}/api/traces/{trace}", timeout=5) as answer:  # noqa: S310 # the chart's
            [found] = json.load(answer)["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{jaeger} has not answered with it: {error}"
    return wrong_with_tree(found, services)


def wrong_with_tree(trace: dict[str, Any], services: set[str]) -> str | None:
    """Why a trace, as Jaeger's query API has it, is not one tree over `services`; None if it is."""
    spans = {span["spanID"]: span for span in trace["spans"]}
    parents = {
        name: [reference["spanID"] for reference in span["references"] if reference["refType"] == "CHILD_OF"]
        for name, span in spans.items()
    }
    roots = [name for name, above in parents.items() if not above]
    orphans = [name for name, above in parents.items() if any(parent not in spans for parent in above)]
    if len(roots) != 1 or orphans:
        return f"{len(roots)} roots and {len(orphans)} orphans of {len(spans)} spans"
    there = {trace["processes"][span["processID"]]["serviceName"] for span in spans.values()}
    return None if services <= there else f"no span of {', '.join(sorted(services - there))}"


def main(argv: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--door", required=True, help="grpc://host:port")
    parser.add_argument("--task", required=True)
    parser.add_argument("--hop", default="", help="caller>callee that requests must take; empty: none")
    parser.add_argument("--word", action="append", default=[], help="what some photograph must show")
    parser.add_argument("--spans", default="", help="where spans go; empty: no trace is looked for")
    parser.add_argument("--jaeger", default="", help="http://host:port of the query API")
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="may be written to")  # noqa: S108 # the pod's own
    given = parser.parse_args(argv)
    samples, results, plan = given.folder / "samples", given.folder / "results", given.folder / "plan.toml"
    try:
        check_answers(given.door, given.task, samples, given.word)
        plan.write_text(f'task = "{given.task}"\n{PLAN}', encoding="utf-8")
        spans = ["--spans", given.spans, "--sample-ratio", "1"] if given.spans else []
        flags = ["--target", f"door={given.door}", "--samples-folder", str(samples), "--out", str(results), "--no-live"]
        loadgen("run", str(plan), *flags, *spans)
        check_ledgers(results, given.hop)
        if given.jaeger:
            check_trace(
                results, given.jaeger, {"loadgen", "preprocess", *([given.hop.split(">")[1]] if given.hop else [])}
            )
    except Wrong as wrong:
        print(f"WRONG: {wrong}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError, StopIteration) as error:  # results that cannot be written, or are no results
        print(f"WRONG: what the load generator left cannot be read: {error!r}", file=sys.stderr)
        return 1
    print("all is right")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
