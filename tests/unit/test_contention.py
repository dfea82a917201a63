"""The contention account: what this process used and waited for, as the kernel says."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from loadgen import contention
from loadgen.contention import Reading, Snapshot, account, together

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_cpu_time_is_that_of_the_process_threads_that_ended_included() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            pids = {"own": threading.get_native_id(), "child": child.pid}
            before = contention.snapshot(pids)
            thread = threading.Thread(target=spin, args=(0.1,))
            thread.start()
            thread.join()
            spin(0.05)
            after = contention.snapshot(pids)
        finally:
            child.communicate(b"\n")
    own, other = account(before, after, 10, 1.0)["processes"]  # type: ignore[misc]
    assert (own["name"], other["name"]) == ("own", "child")
    assert 15 <= own["cpu_ms_per_request"] < 100  # 150 ms of work for 10 requests, and whatever else there was
    assert 0 <= other["cpu_ms_per_request"] < 15


def test_a_process_that_is_gone_is_left_out() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    pids = {"child": child.pid}
    before = contention.snapshot({})
    child.wait()
    after = contention.snapshot(pids)
    assert after.processes == {}
    assert account(before, after, 1, 1.0)["processes"] == []


def test_run_delay_counts_threads_that_live_and_those_that_told() -> None:
    # Given thread 1 that lived throughout, 2 that ended, 3 that began, and 4 whose number was used again
    before = Snapshot({"door": Reading(1_000_000, {1: 500_000, 2: 9_000_000, 4: 8_000_000})}, None)
    after = Snapshot({"door": Reading(5_000_000, {1: 1_500_000, 3: 2_000_000, 4: 1_000_000})}, None)
    # Then what ended takes nothing away
    (door,) = account(before, after, 2, 1.0)["processes"]  # type: ignore[misc]
    assert door == {"name": "door", "cpu_ms_per_request": 2.0, "run_delay_ms_per_request": 1.5}
    # And threads that ended may tell
    (door,) = account(before, after, 2, 1.0, {"door": 4_000_000})["processes"]  # type: ignore[misc]
    assert door["run_delay_ms_per_request"] == 3.5


def test_a_thread_knows_its_own_run_delay() -> None:
    seen: list[int] = []

    def compete() -> None:
        spin(0.05)
        seen.append(contention.own_run_delay_ns())

    # More threads than this process can run at once: each waits for its turn, or is at least measured.
    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    assert sum(seen) > 0


def test_pressure_is_a_share_of_the_time_and_unknown_where_the_system_does_not_tell() -> None:
    def share(before: int | None, after: int | None) -> object:
        return account(Snapshot({}, before), Snapshot({}, after), 1, 2.0)["cpu_pressure_share"]

    assert share(1_000_000, 1_500_000) == 0.25
    assert share(None, 1) is None
    assert share(1, None) is None


def test_accounts_of_several_rounds_add_up_by_their_requests() -> None:
    def one(cpu: float, delay: float, share: float | None, *names: str) -> dict[str, Any]:
        rows = [{"name": n, "cpu_ms_per_request": cpu, "run_delay_ms_per_request": delay} for n in names]
        return {"processes": rows, "cpu_pressure_share": share}

    # 30 requests at 2 ms and 10 at 6 ms are 40 at 3 ms; what was not there in a round took nothing in it.
    both = together([(one(2.0, 1.0, 0.5, "door"), 30, 2.0), (one(6.0, 5.0, 0.1, "door", "kafka"), 10, 6.0)])
    assert both == {
        "processes": [
            {"name": "door", "cpu_ms_per_request": 3.0, "run_delay_ms_per_request": 2.0},
            {"name": "kafka", "cpu_ms_per_request": 1.5, "run_delay_ms_per_request": 1.25},
        ],
        "cpu_pressure_share": pytest.approx(0.2),
    }
    assert together([(one(1, 1, None), 1, 1.0), (one(1, 1, 0.5), 1, 1.0)])["cpu_pressure_share"] is None
