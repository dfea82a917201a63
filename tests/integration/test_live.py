"""The live display on a real pseudo-terminal: it draws, it fits, and it is off where nobody looks."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.terminal import Screen

ROOT = Path(__file__).parents[2]
PLAN = """
name = "live"
warmup_s = 0.1
calibration_probes = 0
[targets]
a-target-with-a-name-that-is-longer-than-a-narrow-terminal-is-wide = "grpc://{door}"
[samples]
medium = 2
[[load]]
name = "forty"
schedule = "constant(40)"
requests = 80
warmup = 2
"""


@pytest.fixture
def plan(tmp_path: Path, door: str) -> Path:
    path = tmp_path / "live.toml"
    path.write_text(PLAN.format(door=door), encoding="utf-8")
    return path


def on_a_terminal(plan: Path, columns: int, *options: str) -> str:
    """What `loadgen run` writes to a terminal of that many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen(  # noqa: S603 # ourselves
        [sys.executable, "-m", "loadgen", "run", str(plan), "--out", "out", *options],
        cwd=plan.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    deadline = time.monotonic() + 90
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            written += data
        assert child.wait(10) in (0, 1)
    finally:
        child.kill()
        child.wait(10)
        os.close(ours)
    # What follows the display are words, as long as they are: that a busy machine's run is not usable, say.
    return written.decode().partition("not usable: ")[0]


def test_on_a_terminal_it_draws_and_leaves_nothing_behind(plan: Path) -> None:
    written = on_a_terminal(plan, 100)
    frames = re.findall(r"\[[#.]{24}\] (\d+)/80  offered 40\.0/s, answered", written)
    # It is drawn a few times a second for two seconds, and what it says goes on
    assert 3 <= len(frames) <= 20  # fewer of them where the machine is busy
    assert [int(done) for done in frames] == sorted(int(done) for done in frames)
    assert int(frames[-1]) > 40
    assert int(frames[0]) < 40, "it begins with this load, not with the warm-up before it"
    assert "answered -." not in written
    assert not re.search(r"answered -\d", written)
    assert "in flight" in written
    assert re.search(r"latency of the last 2 s: p50 \d+\.\d ms", written)
    assert re.search(r"\] [PI] (preprocessing|inference) \d+%", written)
    screen = Screen(100)
    screen.write(written)
    assert screen.wrapped == 0
    assert not any("offered" in line or "latency" in line for line in screen.lines)


def test_on_a_narrow_terminal_no_line_wraps(plan: Path) -> None:
    written = on_a_terminal(plan, 40)
    assert written.count("\x1b[3F") >= 4
    screen = Screen(40)
    screen.write(written)
    assert screen.wrapped == 0
    assert not any("latency" in line for line in screen.lines)


def test_it_is_off_when_it_is_not_wanted_and_in_a_pipe(plan: Path) -> None:
    unwanted = on_a_terminal(plan, 100, "--no-live")
    piped = subprocess.run(  # noqa: S603 # ourselves
        [sys.executable, "-m", "loadgen", "run", str(plan), "--out", "out"],
        cwd=plan.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    ).stderr
    for text in (unwanted.replace("\r\n", "\n"), piped):
        assert "\x1b" not in text
        assert "\r" not in text
        assert text.count(", forty\n") == 1, "one line per step"
        assert "offered" not in text
