"""On which CPUs something runs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

import pytest

from services.local import affinity
from services.local.errors import LocalStackError

EVERY = os.sched_getaffinity(0)
_SAY = "import os; print(sorted(os.sched_getaffinity(0)))"

several = pytest.mark.skipif(len(EVERY) < 2, reason="takes two CPUs")


def _child() -> str:
    said = subprocess.run([sys.executable, "-c", _SAY], capture_output=True, text=True, check=True)  # noqa: S603 # ours
    return said.stdout.strip()


def test_without_a_wish_all_share_all() -> None:
    assert affinity.shares(0) is None
    with affinity.starting_on(None), affinity.confined(None):
        assert _child() == str(sorted(EVERY))


@several
def test_engines_have_the_last_cpus_and_everything_else_the_others() -> None:
    shares = affinity.shares(1)
    assert shares is not None
    assert shares.inference == {max(EVERY)}
    assert shares.rest == EVERY - {max(EVERY)}


@pytest.mark.parametrize("wanted", [len(EVERY), -1])
def test_who_would_leave_none_is_told(wanted: int) -> None:
    with pytest.raises(LocalStackError, match=f"there are {len(EVERY)}, .*--inference-cpus"):
        affinity.shares(wanted)


def test_where_nothing_can_be_bound_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    assert "Linux" in affinity.lacking(1)


@several
def test_what_is_started_meanwhile_is_bound_and_the_starter_only_meanwhile() -> None:
    one = {min(EVERY)}
    with contextlib.suppress(KeyError), affinity.starting_on(one):
        assert _child() == str(sorted(one))
        raise KeyError
    assert os.sched_getaffinity(0) == EVERY


@several
def test_all_threads_of_a_process_are_confined_and_freed() -> None:
    # Given a thread that was there before
    ask, answered = threading.Event(), threading.Event()
    seen: list[set[int]] = []

    def watch() -> None:
        for _ in range(2):
            ask.wait(10)
            ask.clear()
            seen.append(os.sched_getaffinity(0))
            answered.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    one = {min(EVERY)}
    with contextlib.suppress(KeyError), affinity.confined(one):
        # When it is looked at meanwhile, and after; then it was bound like the rest, and is free again
        ask.set()
        answered.wait(10)
        answered.clear()
        assert os.sched_getaffinity(0) == one
        raise KeyError
    ask.set()
    answered.wait(10)
    assert seen == [one, EVERY]
    assert os.sched_getaffinity(0) == EVERY
