"""What the processes cost and what they waited for: without it, a number from a busy machine says nothing.

From /proc (Linux): CPU time of a process, run delay of its threads (time in which they could have run but had no CPU;
Documentation/scheduler/sched-stats.rst), and the machine's CPU pressure (Documentation/accounting/psi.rst).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loadgen import energy


class Reading(NamedTuple):
    """Nanoseconds since the process began, and per living thread since that began."""

    cpu_ns: int
    run_delay_ns: dict[int, int]


class Snapshot(NamedTuple):
    """All processes, by name, and the machine's CPU pressure in microseconds since boot (None where unknown).

    `meters`: its energy meters, none where it has none, or tells only others.
    """

    processes: dict[str, Reading]
    pressure_us: int | None
    meters: Mapping[str, energy.Meter] = {}


def snapshot(pids: Mapping[str, int]) -> Snapshot:
    """Read now; processes that are gone or not readable are left out."""
    processes = {}
    for name, pid in pids.items():
        reading = _read(pid)
        if reading is not None:
            processes[name] = reading
    return Snapshot(processes, _pressure(), energy.read())


def own_run_delay_ns() -> int:
    """The run delay of the calling thread so far; 0 where the system does not tell."""
    try:
        return _delay(Path("/proc/thread-self/schedstat"))
    except (OSError, ValueError, IndexError):
        return 0


def _read(pid: int) -> Reading | None:
    delays: dict[int, int] = {}
    try:
        # The kernel's clock id of another process's CPU time (clock_getcpuclockid(3)): exact, ended threads included.
        cpu = time.clock_gettime_ns(~pid << 3 | 2)
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                delays[int(task.name)] = _delay(task / "schedstat")
            except (OSError, ValueError, IndexError):
                continue  # the thread ended meanwhile
    except OSError:
        return None
    return Reading(cpu, delays)


def _delay(path: Path) -> int:
    return int(path.read_text().split()[1])


def _pressure() -> int | None:
    try:
        line = Path("/proc/pressure/cpu").read_text().splitlines()[0]
        return int(line.rsplit("total=", 1)[1])
    except (OSError, ValueError, IndexError):
        return None


def account(
    before: Snapshot,
    after: Snapshot,
    requests: int,
    duration_s: float,
    ended: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Per process: CPU and run delay per request in ms; the share of the time with CPU pressure (None: unknown).

    `ended`: by process, the run delay of threads that began and ended in between, as they said themselves: the system
    forgets a thread that ends. Of a thread that ended otherwise nothing is known, and nothing is counted.
    """
    processes = []
    for name, reading in after.processes.items():
        if name not in before.processes:
            continue
        earlier = before.processes[name]
        delay = sum(max(0, ns - earlier.run_delay_ns.get(thread, 0)) for thread, ns in reading.run_delay_ns.items())
        delay += (ended or {}).get(name, 0)
        processes.append(
            {
                "name": name,
                "cpu_ms_per_request": (reading.cpu_ns - earlier.cpu_ns) / 1e6 / max(1, requests),
                "run_delay_ms_per_request": delay / 1e6 / max(1, requests),
            }
        )
    share = None
    if before.pressure_us is not None and after.pressure_us is not None and duration_s > 0:
        share = (after.pressure_us - before.pressure_us) / 1e6 / duration_s
    found: dict[str, Any] = {"processes": processes, "cpu_pressure_share": share}
    spent = energy.spent_j(before.meters, after.meters)
    if spent:
        found["energy"] = [{"meter": name, "j_per_request": j / max(1, requests)} for name, j in spent.items()]
    return found


def together(accounts: Sequence[tuple[dict[str, Any], int, float]]) -> dict[str, object]:
    """One account of several, each with its number of requests and its seconds; what one does not know is unknown."""
    requests = sum(max(1, count) for _, count, _ in accounts)
    seconds = sum(duration_s for _, _, duration_s in accounts)
    names = dict.fromkeys(process["name"] for account, _, _ in accounts for process in account["processes"])
    processes: list[dict[str, object]] = []
    for name in names:
        sums = dict.fromkeys(("cpu_ms_per_request", "run_delay_ms_per_request"), 0.0)
        for account, count, _ in accounts:
            for process in account["processes"]:
                if process["name"] == name:
                    for key in sums:
                        sums[key] += process[key] * max(1, count)
        processes.append({"name": name, **{key: value / requests for key, value in sums.items()}})
    shares = [(account["cpu_pressure_share"], duration_s) for account, _, duration_s in accounts]
    share = None
    if seconds > 0 and all(known is not None for known, _ in shares):
        share = sum(known * duration_s for known, duration_s in shares) / seconds
    found: dict[str, object] = {"processes": processes, "cpu_pressure_share": share}
    meters = dict.fromkeys(row["meter"] for account, _, _ in accounts for row in account.get("energy", ()))
    if meters:
        found["energy"] = [
            {
                "meter": meter,
                "j_per_request": sum(
                    row["j_per_request"] * max(1, count)
                    for account, count, _ in accounts
                    for row in account.get("energy", ())
                    if row["meter"] == meter
                )
                / requests,
            }
            for meter in meters
        ]
    return found
