"""What waits for an answer: done once, in its order, whatever else of it fails and however often it is told."""

from __future__ import annotations

import logging

import pytest

from services.transports.transport import Afterwards


def test_all_is_done_once_in_the_order_in_which_it_was_given() -> None:
    done: list[int] = []
    after = Afterwards()
    for number in range(3):
        after(lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == []
    after.run()
    after.run()
    assert done == [0, 1, 2]


def test_what_comes_when_the_answer_is_gone_is_done_at_once() -> None:
    done: list[str] = []
    after = Afterwards()
    after(lambda: after(lambda: done.append("given meanwhile")))
    after.run()
    assert done == ["given meanwhile"]
    after(lambda: done.append("given later"))
    # Nobody runs it again
    assert done == ["given meanwhile", "given later"]


def test_what_fails_is_logged_and_the_rest_is_done(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    after = Afterwards()
    after(lambda: int("no number"))  # type: ignore[arg-type, return-value]
    after(lambda: done.append("the rest"))
    with caplog.at_level(logging.ERROR):
        after.run()
    assert done == ["the rest"]
    assert "after an answer failed" in caplog.text
