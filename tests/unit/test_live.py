"""The live display: what it says, that it fits, and that nobody waits for it."""

from __future__ import annotations

import io
import threading

import pytest

from loadgen.live import Live, Watched, cut, lines
from loadgen.progress import Progress
from loadgen.tally import Reading, Tally, merged
from services.accounting import Stage
from tests.exchanges import exchange, tile, walk
from tests.terminal import Screen

MS = 1_000_000
BUSY = Reading(
    sent=130,
    answered=120,
    failed=2,
    dropped=5,
    latencies=[(i, i * MS) for i in range(1, 121)],
    groups=(("preprocessing", 50 * MS), ("inference", 30 * MS), ("queueing", 20 * MS), ("movement", 0)),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watched(reading: Reading = BUSY, offered_rps: float | None = 50.0) -> Watched:
    return Watched("medium, grpc, under load", 500, offered_rps, lambda: reading)


def test_it_says_what_is_offered_and_answered_and_where_the_time_goes() -> None:
    block = lines(watched(), BUSY, 12.4, 35.25, 120)
    assert block == [
        "medium, grpc, under load, 12 s",
        "[######..................] 125/500  offered 50.0/s, answered 35.2/s, in flight 10, failed 2, dropped 5",
        "latency of the last 2 s: p50 60.5 ms, p99 118.8 ms, max 120.0 ms (120 answers)",
        "[PPPPPPPPPPPPIIIIIIIQQQQQ] P preprocessing 50%, I inference 30%, Q queueing 20%",
    ]


def test_what_is_not_known_yet_is_not_said() -> None:
    block = lines(watched(offered_rps=None), Reading(sent=1), 0.1, None, 120)
    assert block[1] == f"[{'.' * 24}] 0/500  answered -, in flight 1"
    assert block[2:] == ["latency of the last 2 s: no answer yet", ""]
    few = lines(watched(), BUSY._replace(latencies=[(1, MS)] * 99), 1, 1.0, 120)[2]
    assert "p99" not in few, "of fewer than a hundred answers the 99th percentile is the slowest one"


@pytest.mark.parametrize("width", [1, 2, 5, 20, 40, 79, 200])
def test_lines_are_cut_to_the_width(width: int) -> None:
    for line in lines(watched(), BUSY, 12.4, 35.25, width):
        assert len(line) <= max(0, width - 1)
    assert cut("abcdef", 7) == "abcdef"
    assert cut("abcdef", 6) == "ab..."


def test_it_is_drawn_over_what_was_drawn_and_gone_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.live.width_of", lambda _: 60)
    stream, now, readings = Terminal(), [0.0], [Reading(sent=3), BUSY]
    live = Live(stream, Watched("what", 500, 50.0, lambda: readings[min(int(now[0]), 1)]), lambda: now[0])
    screen = Screen(60)
    screen.write("before\n")
    live.draw()
    screen.write(stream.getvalue())
    assert screen.lines[0] == "before"
    assert screen.lines[1:4] == [
        "what, 0 s",
        f"[{'.' * 24}] 0/500  offered 50.0/s, answer...",
        "latency of the last 2 s: no answer yet",
    ]
    # When it is drawn again, it is at the same place; 120 answers have come within the second
    now[0] = 1.0
    written = len(stream.getvalue())
    live.draw()
    screen.write(stream.getvalue()[written:])
    assert len(screen.lines) == 5
    assert screen.lines[1] == "what, 1 s"
    assert screen.lines[2].startswith("[######..................] 125/500  offered 50.0/s")
    assert screen.wrapped == 0
    # When it ends, it has left nothing
    live.start()
    live.close()
    screen = Screen(60)
    screen.write("before\n" + stream.getvalue())
    assert screen.lines == ["before", ""]


def test_counts_that_were_put_aside_are_not_drawn() -> None:
    # Given a load that is over before the display is
    readings = iter([Reading(sent=0), Reading(sent=7, answered=5), Reading(), Reading(sent=9, answered=9)])
    stream = Terminal()
    live = Live(stream, Watched("what", 10, 50.0, lambda: next(readings)))
    drawn = []
    for _ in range(4):
        before = len(stream.getvalue())
        live.draw()
        drawn.append(len(stream.getvalue()) > before)
    # Then it does not jump back to nothing
    assert drawn == [True, True, False, True]


def test_the_rate_is_that_of_the_last_two_seconds() -> None:
    now, answered = [0.0], [0]
    live = Live(Terminal(), Watched("", 1, None, Reading), lambda: now[0])
    rates = []
    # Given 10 answers per second for 5 s, and then 40
    for step in range(40):
        now[0] = step / 4
        answered[0] += 10 if step > 20 else 2
        rates.append(live._rate(now[0], Reading(answered=answered[0])))
    assert rates[0] is None
    assert rates[20] == pytest.approx(8)
    assert rates[39] == pytest.approx(40)


def test_whoever_sends_does_not_wait_for_a_terminal_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.live._JOIN_S", 0.01)
    reached, goes_on = threading.Event(), threading.Event()

    class Stopped(Terminal):
        def write(self, text: str) -> int:
            reached.set()
            goes_on.wait(30)
            return len(text)

    done = False
    try:
        with Progress(Stopped()).watching(watched()):
            assert reached.wait(10)
            done = True
        assert done
    finally:
        goes_on.set()


def test_elsewhere_it_is_one_line() -> None:
    for stream, progress in ((s := io.StringIO(), Progress(s)), (s := Terminal(), Progress(s, live=False))):
        with progress.watching(watched()):
            pass
        assert stream.getvalue() == "medium, grpc, under load\n"


def test_a_tally_counts_and_knows_the_groups_of_what_came_lately() -> None:
    tally = Tally()
    for index in range(3):
        tally.sent()
        tally.answered(walk(index, due_ms=1e15))  # far in the future: recent
    tally.answered(exchange([tile(Stage.UNANSWERED, 1.0)], error="internal"))
    tally.answered(walk(9, due_ms=0))  # long ago
    tally.dropped()
    reading = tally.reading()
    assert (reading.sent, reading.answered, reading.failed, reading.dropped) == (3, 5, 1, 1)
    assert len(reading.latencies) == 3
    assert dict(reading.groups)["inference"] == 3 * 5 * MS
    assert "exceptional" not in dict(reading.groups)
    both = merged([reading, reading])
    assert (both.sent, both.dropped, len(both.latencies), dict(both.groups)["inference"]) == (6, 2, 6, 30 * MS)
    assert merged([]) == Reading(latencies=[])
