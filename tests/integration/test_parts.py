"""Several load generators, one plan: where they meet, and three real ones against a real door."""

from __future__ import annotations

import csv
import functools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from loadgen.__main__ import main
from loadgen.errors import GeneratorError, PlanError
from loadgen.parts import Part
from loadgen.plan import load_plan
from loadgen.rendezvous import Begin, Rendezvous, open_rendezvous
from services.accounting import monotonic_ns
from services.local.ports import free_ports

ROOT = Path(__file__).parents[2]
T = TypeVar("T")
WITHIN_S = 20.0

PLAN = """
name = "parts"
seed = 3
rounds = 2
warmup_s = 0.1
calibration_probes = 5
[targets]
door = "grpc://{door}"
[samples]
medium = 4
[thresholds]
error_rate = 0.0
throughput_rps = 1
[[load]]
name = "closed"
schedule = "closed(3)"
requests = 36
warmup = 3
[[load]]
name = "open"
schedule = "poisson(40)"
requests = 120
warmup = 6
"""


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture
def parts(address: str) -> Iterator[list[Rendezvous]]:
    opened = at_once([lambda i=i: open_rendezvous(Part(i, 3), address, "same", WITHIN_S) for i in (1, 2, 3)])  # type: ignore[misc]
    yield opened
    for part in opened:
        part.close()


def started(what: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(what())
        except BaseException as error:  # noqa: BLE001 # whoever asks gets it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def at_once(whats: list[Callable[[], T]]) -> list[T]:
    with ThreadPoolExecutor(len(whats)) as pool:
        return [future.result(WITHIN_S) for future in [pool.submit(what) for what in whats]]


def test_nobody_goes_on_before_all_are_there(parts: list[Rendezvous]) -> None:
    order: list[str] = []

    def come(part: Rendezvous) -> None:
        part.meet("here")
        order.append(f"{part.part.number} goes")

    waiting = [started(lambda part=part: come(part)) for part in parts[:2]]  # type: ignore[misc]
    order.append("3 comes")
    come(parts[2])
    for future in waiting:
        future.result(WITHIN_S)
    assert order[0] == "3 comes"
    assert sorted(order[1:]) == ["1 goes", "2 goes", "3 goes"]
    assert len({part.run for part in parts}) == 1


def test_all_begin_at_one_instant_within_the_bound(parts: list[Rendezvous]) -> None:
    """Here all have the same clock, so it is known how wrong a begin is."""
    for where in ("first", "second"):
        now = monotonic_ns()
        begins: list[Begin] = at_once([functools.partial(part.begin, where) for part in parts])
        assert begins[0].skew_ns == 0
        for begin in begins[1:]:
            assert 0 < begin.skew_ns < 1_000_000_000
            assert abs(begin.start_ns - begins[0].start_ns) <= begin.skew_ns
        assert begins[0].start_ns > now


@pytest.mark.parametrize("leaves", [1, 2, 3])
def test_a_part_that_leaves_ends_the_run_of_all(parts: list[Rendezvous], leaves: int) -> None:
    stay = [part for part in parts if part.part.number != leaves]
    waiting = [started(lambda part=part: part.begin("here")) for part in stay]  # type: ignore[misc]
    begin = time.monotonic()
    parts[leaves - 1].close()
    for future in waiting:
        with pytest.raises(GeneratorError, match=f"part {leaves} left the run; without it"):
            future.result(WITHIN_S)
    assert time.monotonic() - begin < WITHIN_S / 2  # it is known of at once


def test_parts_at_different_places_do_not_go_on(parts: list[Rendezvous]) -> None:
    waiting = [
        started(lambda part=part, where=where: part.meet(where)) for part, where in zip(parts, "aab", strict=True)
    ]  # type: ignore[misc]
    for future in waiting:
        with pytest.raises(GeneratorError, match="part 3 is at 'b', and part 1 at 'a'"):
            future.result(WITHIN_S)


def test_who_stays_away_is_waited_for_no_longer_than_said(address: str) -> None:
    one, two = at_once([lambda i=i: open_rendezvous(Part(i, 2), address, "same", 0.5) for i in (1, 2)])  # type: ignore[misc]
    with pytest.raises(GeneratorError, match="part 2 did not come to 'here' within its time"):
        one.meet("here")
    with pytest.raises(GeneratorError, match=r"part 2 did not come to 'here'|part 1 left the run"):
        two.meet("here")


def test_parts_that_never_come_are_named(address: str) -> None:
    with pytest.raises(GeneratorError, match=r"of 3 parts, 2, 3 did not come within 0\.3 s"):
        open_rendezvous(Part(1, 3), address, "same", 0.3)
    with pytest.raises(GeneratorError, match=r"part 1 was not to be reached at 127\.0\.0\.1:\d+ within 0\.3 s"):
        open_rendezvous(Part(2, 3), address, "same", 0.3)


def test_who_has_another_plan_is_sent_away_and_strangers_are_no_matter(address: str) -> None:
    first = started(lambda: open_rendezvous(Part(1, 2), address, "same", WITHIN_S))
    for part, agreed, words in [
        (Part(2, 2), "other", "part 1 has another plan, seed, trace, or other files"),
        (Part(2, 3), "same", "part 1 is one of 2 parts, and not of 3"),
    ]:
        with pytest.raises(PlanError, match=words):
            open_rendezvous(part, address, agreed, WITHIN_S)
    host, _, port = address.rpartition(":")
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"part": "x"}\n', b"x" * 10_000):
        with socket.create_connection((host, int(port)), 5) as stranger:
            stranger.sendall(said)
    second = open_rendezvous(Part(2, 2), address, "same", WITHIN_S)
    first.result(WITHIN_S).close()
    second.close()


@pytest.mark.parametrize(
    ("address_", "patience_s", "words"),
    [("here", 1.0, "is not HOST:PORT"), ("h:0", 1.0, "is not HOST:PORT"), ("h:1", 0.0, "--meet-s is 0")],
)
def test_what_cannot_be_is_refused(address_: str, patience_s: float, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        open_rendezvous(Part(2, 2), address_, "same", patience_s)


def test_a_port_that_is_taken_is_named(address: str) -> None:
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port))), pytest.raises(PlanError, match=f"cannot listen at port {port}"):
        open_rendezvous(Part(1, 2), address, "same", 1.0)


def other_clock(ahead_s: int) -> list[str]:
    """What runs a command whose monotonic clock is that of another machine: time_namespaces(7)."""
    return ["unshare", "--time", "--monotonic", str(ahead_s), "--fork", "--kill-child"]


@functools.cache
def clocks_can_differ() -> bool:
    try:
        return subprocess.run([*other_clock(1), "true"], capture_output=True, check=False, timeout=10).returncode == 0  # noqa: S603
    except FileNotFoundError:
        return False


def generator(plan: Path, part: str, address: str, out: Path, ahead_s: int = 0) -> subprocess.Popen[str]:
    command = other_clock(ahead_s) if ahead_s else []
    command += [sys.executable, "-m", "loadgen", "run", str(plan), "--part", part, "--meet", address, "--no-live"]
    return subprocess.Popen(  # noqa: S603 # our own
        [*command, "--out", str(out)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        out, err = process.communicate(timeout=150)
    finally:
        process.kill()
    return process.returncode, out + err


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "requests.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ahead_s", [(0, 0, 0), (0, 100_000, 7)], ids=["one clock", "three clocks"])
def test_three_generators_send_one_plan_and_their_results_are_merged(
    door: str, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], ahead_s: tuple[int, ...]
) -> None:
    if any(ahead_s) and not clocks_can_differ():
        pytest.skip("no time namespaces here: they need Linux, unshare, and root")
    # Given one plan, and three generators, of which the first comes last; on one machine, or as if on three
    (tmp_path / "plan.toml").write_text(PLAN.format(door=door))
    plan = load_plan(tmp_path / "plan.toml")
    folders = [tmp_path / str(i) for i in (1, 2, 3)]
    running = [generator(tmp_path / "plan.toml", f"{i}/3", address, folders[i - 1], ahead_s[i - 1]) for i in (3, 2, 1)]
    for process in running:
        status, said = ended(process)
        assert status in (0, 1), said  # what a busy machine makes of its verdict is not the matter here
    # When they are merged
    assert main(["merge", *map(str, folders), "--out", str(tmp_path / "all")]) in (0, 1)
    merged: dict[str, Any] = json.loads((tmp_path / "all" / "run.json").read_text())
    sent = rows(tmp_path / "all")
    # Then all requests of the plan were sent, each once, and every ledger is as its part had it
    for load in plan.loads:
        ids = [row["id"] for row in sent if row["load"] == load.name]
        assert sorted(int(id_.rpartition("-")[2]) for id_ in ids) == list(range(load.requests["medium"]))
    of_parts = {row["id"]: row for folder in folders for row in rows(folder)}
    assert len(of_parts) == len(sent) == 156
    for row in sent:
        parts = {name: int(value) for name, value in row.items() if name.endswith("_ns") and "@" in name and value}
        wall = {name: value for name, value in parts.items() if not name.endswith("_cpu_ns")}
        assert sum(wall.values()) == int(row["total_ns"]) == int(of_parts[row["id"]]["total_ns"])
        assert all(int(of_parts[row["id"]].get(name) or 0) == value for name, value in parts.items())
    # at the instants of the plan, from one begin in each round, but for what the clocks may be apart
    [load] = [load for load in plan.loads if load.name == "open"]
    [cell] = [cell for cell in merged["cells"] if cell["load"] == "open"]
    skew_ns = max(row["skew_ms"] for row in cell["parts"]) * 1e6
    for number, piece in enumerate(plan.schedule(load, "medium").rounds(2)):
        begin = cell["rounds"][number]["part"]["start_ns"]
        due = {
            int(r["id"].rpartition("-")[2]): int(r["due_ns"])
            for r in sent
            if (r["load"], r["round"]) == ("open", str(number))
        }
        assert due == {piece.number(i): begin + offset for i, offset in enumerate(piece.due_ns)}
    # Here it is known by how much clocks differ: so the parts' own instants say how far apart they really began
    for folder, ahead in zip(folders, ahead_s, strict=True):
        own = {row["id"]: int(row["due_ns"]) - ahead * 1_000_000_000 for row in rows(folder)}
        for row in sent:
            if row["load"] == "open" and row["id"] in own:
                assert abs(int(row["due_ns"]) - own[row["id"]]) <= skew_ns
    assert (cell["planned"], cell["sent"], cell["unsent"], cell["errors"]) == (120, 120, 0, {})
    assert cell["offered_rps"] == pytest.approx(40, rel=0.5)
    assert cell["ledger"] == {"complete": 120, "mismatched": 0}
    assert [row["name"] for row in cell["thresholds"]] == ["error_rate", "throughput_rps"]
    # They are held against the whole, not against what a part sends by itself
    assert all(not other["thresholds"] for other in json.loads((folders[0] / "run.json").read_text())["cells"])
    assert {row["name"] for row in cell["contention"]["processes"]} == {f"part {i}, client" for i in (1, 2, 3)}
    out = capsys.readouterr()
    assert "merged from 3 parts, which began each load within" in out.err
    assert (tmp_path / "all" / "report.html").exists()


def test_a_generator_that_is_killed_ends_the_run_of_the_others(door: str, address: str, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.format(door=door).replace("requests = 120", "requests = 4000"))
    one, two = (generator(tmp_path / "plan.toml", f"{i}/2", address, tmp_path / str(i)) for i in (1, 2))
    assert two.stderr is not None
    said = ""
    try:
        while "open" not in said:  # a line per step; `ended` bounds the rest, and the plan ends by itself
            line = two.stderr.readline()
            assert line, said
            said += line
        two.send_signal(signal.SIGKILL)
        status, words = ended(one)
    finally:
        for process in (one, two):
            process.kill()
            process.communicate()
    assert status == 1, words
    assert "the generator failed: part 2 left the run" in words
    # What both had finished is kept, and no more
    kept = json.loads((tmp_path / "1" / "run.json").read_text())
    assert kept["interrupted"] is True
    assert [cell["load"] for cell in kept["cells"]] == ["closed"]


def test_a_part_says_where_it_meets_the_others(door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.format(door=door))
    for flags, words in [
        (["--part", "1/3"], "--part needs to know where the parts meet"),
        (["--meet", "localhost:9"], "say which one this is"),
        (
            ["--part", "1/4", "--meet", "localhost:9"],
            "load 'closed' ('closed(3)') has 3 in flight in a round, too few for 4 parts",
        ),
    ]:
        assert main(["run", str(tmp_path / "plan.toml"), *flags]) == 2
        assert words in capsys.readouterr().err
