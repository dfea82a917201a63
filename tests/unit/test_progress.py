"""Progress: one line on a terminal, a line per step elsewhere."""

from __future__ import annotations

import io

from loadgen.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_a_step_is_one_line() -> None:
    stream = io.StringIO()
    progress = Progress(stream, lambda: 0.0)
    for done in range(100):
        progress("medium, grpc", done, 100)
    progress("medium, kafka", 0, 0)
    progress.clear()
    assert stream.getvalue() == "medium, grpc\nmedium, kafka\n"


def test_on_a_terminal_the_line_renews_itself_at_most_ten_times_a_second() -> None:
    stream = Terminal()
    now = [0.0]
    progress = Progress(stream, lambda: now[0])
    for done in range(1001):
        now[0] = done / 1000
        progress("medium, grpc", done, 1000)
    shown = stream.getvalue().split("\r")[1:]
    assert len(shown) in (11, 12)
    assert shown[-1].startswith(f"[{'#' * 24}] 1000/1000  medium, grpc, 1000/s")
    assert "\n" not in stream.getvalue()


def test_a_shorter_line_leaves_nothing_of_the_longer_one() -> None:
    stream = Terminal()
    progress = Progress(stream, lambda: 0.0)
    progress("a long description of what is done", 0, 0)
    progress("short", 0, 0)
    progress.clear()
    lines = stream.getvalue().split("\r")
    assert lines[2].rstrip() == "short ..."
    assert len(lines[2]) >= len(lines[1])
    assert set(lines[3]) == {" "}
