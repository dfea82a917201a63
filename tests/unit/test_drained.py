"""Whether what comes out of a queue can have waited there."""

from __future__ import annotations

from services.transports.drained import Drained

MS = 1_000_000


def test_what_comes_right_after_all_was_taken_is_fresh() -> None:
    drained = Drained()
    drained.took(100 * MS, everything=True)
    assert drained.fresh(101 * MS)
    # But not when nobody looked for a while: it may have waited
    assert not drained.fresh(200 * MS)
    drained.took(300 * MS, everything=True)
    drained.left()
    assert not drained.fresh(300 * MS)


def test_of_a_queue_that_had_more_nothing_is_fresh() -> None:
    drained = Drained()
    # Nothing is known at the start
    assert not drained.fresh(0)
    drained.took(MS, everything=True)
    drained.took(2 * MS, everything=False)
    assert not drained.fresh(2 * MS)
    drained.took(3 * MS, everything=True)
    assert drained.fresh(3 * MS)
