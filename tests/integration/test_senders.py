"""Several sender processes: together they send the plan's schedule, and none of them can be lost quietly."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import cast

import pytest

from loadgen.errors import GeneratorError
from loadgen.schedule import parse_schedule
from loadgen.sender import _PIECE, Came, Job, Sent, Start, _carry_out
from loadgen.senders import Door, OwnSender, SenderProcesses, _Child, default_count
from loadgen.target import NULL, image_tensor
from loadgen.targets import open_target
from services.serving import Service
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess
from tests.photographs import jpeg

ROOT = Path(__file__).parents[2]
MS = 1_000_000


@pytest.fixture(scope="module")
def door() -> Iterator[str]:
    service: Service = build_preprocess(parse(PreprocessSettings, "", ["--listen", "127.0.0.1:0"], {}))
    service.start()
    yield f"grpc://{service.host_port}"
    service.stop(5)


@pytest.fixture(scope="module")
def senders(door: str) -> Iterator[SenderProcesses]:
    processes = SenderProcesses(3, Door({"door": door, "gone": "grpc://127.0.0.1:9"}, "classification", 10.0))
    processes.load("medium", [jpeg("coffee"), jpeg("chelsea")])
    yield processes
    processes.close()


def job(text: str, requests: int, target: str = "door", timeout_s: float = 10.0, at_most_s: float = math.inf) -> Job:
    return Job(target, "medium", parse_schedule(text, requests, 5, "medium"), "p-", timeout_s, at_most_s)


@pytest.mark.parametrize("text", ["poisson(80)", "bursts(20, 200, 0.2, 0.1)", "cameras(4, 10, jitter_ms=5)"])
def test_together_they_send_the_schedule_of_the_plan_at_its_instants(senders: SenderProcesses, text: str) -> None:
    done = senders.run(job(text, 60))
    schedule = parse_schedule(text, 60, 5)
    # Every number once, due when the plan says, though each was sent by one of three processes
    assert sorted(int(e.id.removeprefix("p-")) for e in done.exchanges) == list(range(60))
    start = min(e.due_ns - schedule.due_ns[int(e.id.removeprefix("p-"))] for e in done.exchanges)
    for exchange in done.exchanges:
        assert exchange.due_ns - start == schedule.due_ns[int(exchange.id.removeprefix("p-"))]
        assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns
        assert exchange.error in (None, "dropped")
    assert [e.due_ns for e in done.exchanges] == sorted(e.due_ns for e in done.exchanges)
    assert done.unsent == 0
    assert set(done.run_delay_ns) == {"sender 0", "sender 1", "sender 2"}


def test_one_process_and_three_send_the_same(senders: SenderProcesses, door: str) -> None:
    target = open_target(door, "classification", 10.0)
    own = OwnSender({"door": target})
    own.load("medium", [jpeg("coffee"), jpeg("chelsea")])
    try:
        mine = own.run(job("poisson(100)", 40)).exchanges
    finally:
        target.close()
    theirs = senders.run(job("poisson(100)", 40)).exchanges
    assert [e.id for e in mine] == [e.id for e in theirs]
    assert [b.due_ns - a.due_ns for a, b in itertools.pairwise(mine)] == [
        b.due_ns - a.due_ns for a, b in itertools.pairwise(theirs)
    ]


def test_a_closed_schedule_has_its_senders_spread_over_the_processes(senders: SenderProcesses) -> None:
    done = senders.run(job("closed(4)", 40))
    assert sorted(int(e.id.removeprefix("p-")) for e in done.exchanges) == list(range(40))
    # Never more in flight than four, though nobody sees all of them.
    edges = sorted([(e.due_ns, 1) for e in done.exchanges] + [(e.done_ns, -1) for e in done.exchanges])
    in_flight = most = 0
    for _, step in edges:
        in_flight += step
        most = max(most, in_flight)
    assert most <= 4
    # Given fewer senders than processes, not all have something to do.
    assert set(senders.run(job("single_stream", 5)).run_delay_ns) == {"sender 0"}


def test_what_goes_on_can_be_seen_meanwhile(senders: SenderProcesses) -> None:
    seen = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            seen.append(senders.reading())

    thread = threading.Thread(target=look)
    thread.start()
    senders.run(job("constant(30)", 40))
    ended.set()
    thread.join()
    halfway = [reading for reading in seen if 5 < reading.answered < 40]
    assert halfway
    assert halfway[-1].latencies
    assert {"preprocessing", "inference"} <= set(dict(halfway[-1].groups))
    assert senders.reading().sent == 0, "what is over is not shown as if it were the next"


def test_a_target_that_is_not_there_gives_failures_and_afterwards_it_goes_on(senders: SenderProcesses) -> None:
    done = senders.run(job("constant(50)", 6, target="gone", timeout_s=5.0))
    assert {e.error for e in done.exchanges} <= {"unavailable", "deadline_exceeded"}
    assert len(senders.run(job("closed(3)", 9)).exchanges) == 9


def test_a_sender_that_dies_fails_the_run_loudly_and_soon(senders: SenderProcesses) -> None:
    # Given a run of minutes
    victim = senders.pids()["sender 1"]
    others = [pid for name, pid in senders.pids().items() if name != "sender 1"]
    timer = threading.Timer(1.0, os.kill, (victim, signal.SIGKILL))
    timer.start()
    begin = time.monotonic()
    # When one of its senders is killed
    with pytest.raises(GeneratorError, match=rf"sender 1 \(process {victim}\) ended by itself with status -9"):
        senders.run(job("constant(10)", 6000))
    # Then it ends at once, with all the others
    assert time.monotonic() - begin < 15
    assert not [pid for pid in others if Path(f"/proc/{pid}").exists()]
    # And the next run has new ones
    assert len(senders.run(job("closed(3)", 9)).exchanges) == 9


PATIENCE_S = 2.0


@pytest.fixture
def impatient(door: str) -> Iterator[SenderProcesses]:
    processes = SenderProcesses(2, Door({"door": door}, "classification", 10.0), PATIENCE_S)
    processes.load("medium", [jpeg("coffee")])
    yield processes
    processes.close()


def test_a_sender_that_is_stopped_while_it_sends_is_named_within_the_deadline(impatient: SenderProcesses) -> None:
    # Given a run of minutes, one of whose senders is stopped
    victim = impatient.pids()["sender 1"]
    timer = threading.Timer(1.0, os.kill, (victim, signal.SIGSTOP))
    timer.start()
    begin = time.monotonic()
    # Then the run ends soon, and says who it was; and the stopped process is gone
    with pytest.raises(GeneratorError, match=rf"sender 1 \(process {victim}\) said nothing within 2 s.*SIGSTOP"):
        impatient.run(job("constant(10)", 6000))
    assert time.monotonic() - begin < 15
    assert not Path(f"/proc/{victim}").exists()
    # And the next run has new ones
    assert len(impatient.run(job("closed(2)", 4)).exchanges) == 4


@pytest.mark.parametrize(
    "tell",
    [
        lambda senders: senders.load("large", [bytes(30_000_000)]),
        lambda senders: senders.run(job("constant(1000)", 400_000)),
    ],
)
def test_a_stopped_sender_does_not_hold_up_whoever_tells_it_something(
    impatient: SenderProcesses, tell: Callable[[SenderProcesses], object]
) -> None:
    # Given a sender that is stopped, and something to tell it that is larger than any buffer of a pipe
    victim = impatient.pids()["sender 0"]
    os.kill(victim, signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(
        GeneratorError, match=rf"sender 0 \(process {victim}\) did not take what it was told within 2 s"
    ):
        tell(impatient)
    assert PATIENCE_S <= time.monotonic() - begin < 30
    impatient.close()
    assert not Path(f"/proc/{victim}").exists()


class Long:
    """What takes a second to read."""

    def __reduce__(self) -> tuple[Callable[[float], None], tuple[float]]:
        return time.sleep, (1.0,)


def test_who_spoke_while_another_was_listened_to_is_not_taken_for_silent() -> None:
    # Given two senders that may be silent for half a second, one of which brings what takes longer to take in
    processes = SenderProcesses(2, Door({}, "classification", 1.0), 0.5)
    pipes = [multiprocessing.Pipe() for _ in range(2)]
    myself = cast("SpawnProcess", multiprocessing.current_process())
    processes._taking_part = [_Child(f"sender {n}", myself, ours, 0.5) for n, (ours, _) in enumerate(pipes)]
    (_, first), (_, second) = pipes
    first.send(Long())
    first.send(Sent(0, 1))
    # When the other one speaks meanwhile
    meanwhile = threading.Timer(0.3, second.send, (Sent(0, 2),))
    meanwhile.start()
    told = dict(processes._finished([]))
    # Then both were heard
    assert told == {"sender 0": Sent(0, 1), "sender 1": Sent(0, 2)}
    meanwhile.join(5)
    # and who says nothing is told
    processes._taking_part = [_Child("sender 2", myself, pipes[0][0], 0.5)]
    with pytest.raises(GeneratorError, match=r"sender 2 .* said nothing within 0\.5 s"):
        list(processes._finished([]))
    for pipe in pipes:
        for end in pipe:
            end.close()


def test_what_came_back_is_told_in_pieces_between_which_a_sender_is_heard() -> None:
    # Given a job of more requests than a piece holds
    said: list[object] = []
    count = 2 * _PIECE + 10
    target = open_target(NULL, "", 1.0)
    last = _carry_out(job("closed(1)", count, NULL), Start(0), target, [image_tensor(b"x")], said.append)
    # Then none is larger, and together they are all
    pieces = [len(message.exchanges) for message in said if isinstance(message, Came)]
    assert pieces == [_PIECE, _PIECE, 10]
    assert last.unsent == 0


def test_a_sender_that_is_stopped_halfway_through_its_message_does_not_hold_up_its_listener() -> None:
    # Given a process that says the length of a message and a part of it, and is stopped then
    ours, theirs = multiprocessing.Pipe()
    fd = theirs.fileno()
    program = (
        f"import os, signal, struct; os.write({fd}, struct.pack('!i', 1000) + bytes(10)); "
        "os.kill(os.getpid(), signal.SIGSTOP)"
    )
    stopped = subprocess.Popen(  # noqa: S603 # ourselves
        [sys.executable, "-c", program], pass_fds=[fd]
    )
    try:
        child = _Child("sender 0", cast("SpawnProcess", stopped), ours, 0.5)
        assert ours.poll(20)
        with pytest.raises(GeneratorError, match=r"said half of something, and no more within 0\.5 s"):
            child.receive()
    finally:
        stopped.kill()
        stopped.wait(10)
        ours.close()
        theirs.close()


def test_they_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from loadgen.senders import Door, SenderProcesses\n"
        "if __name__ == '__main__':\n"
        "    senders = SenderProcesses(2, Door({}, '', 1.0))\n"
        "    print(*senders.pids().values(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "program.py").write_text(program)
    parent = subprocess.Popen(  # noqa: S603 # ourselves
        [sys.executable, str(tmp_path / "program.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        pids = parent.stdout.readline().split()
        assert len(pids) == 2
    finally:
        parent.kill()
        parent.wait(10)
        parent.stdout.close()  # type: ignore[union-attr]
    deadline = time.monotonic() + 15
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_default_leaves_most_cores_to_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, count in ((1, 1), (2, 1), (7, 1), (8, 2), (64, 4)):
        monkeypatch.setattr("loadgen.senders.cpu_limit", lambda cpus=cpus: cpus)
        assert default_count() == count


def test_nobody_can_be_asked_by_several(senders: SenderProcesses) -> None:
    done = senders.run(job("offline(300)", 300, target=NULL))
    assert len(done.exchanges) == 300
