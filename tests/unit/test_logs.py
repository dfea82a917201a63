"""Logs: one JSON object per line, with what belongs to the request."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from services.logs import Throttle, configure, trace_extra


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, which `configure` changes, as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_each_line_is_one_object(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure("preprocess", "INFO", "json")
    logging.getLogger("services.x").warning('a %s\nof two lines, with "quotes"', "message", extra={"model": "m"})
    logging.getLogger("services.x").debug("not this one")
    [line] = lines(capsys)
    entry = json.loads(line)
    assert entry["message"] == 'a message\nof two lines, with "quotes"'
    assert (entry["level"], entry["logger"], entry["service"], entry["model"]) == (
        "WARNING",
        "services.x",
        "preprocess",
        "m",
    )
    assert len(entry["time"]) == len("2026-01-02T03:04:05.678Z")
    assert entry["time"].endswith("Z")
    assert "taskName" not in entry  # what a record has by itself is no extra


def test_an_exception_stays_on_its_line(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure("inference", "INFO", "json")
    try:
        raise ValueError("the cause")
    except ValueError:
        logging.getLogger("x").exception("failed")
    [line] = lines(capsys)
    assert "ValueError: the cause" in json.loads(line)["exception"]


def test_what_json_has_no_form_for_is_written_as_text(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure("inference", "INFO", "json")
    logging.getLogger("x").info("m", extra={"payload": b"\xff", "where": {"a": object}})
    [line] = lines(capsys)
    assert json.loads(line)["payload"] == "b'\\xff'"


def test_text_for_people(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure("inference", "WARNING", "text")
    logging.getLogger("x").info("not this one")
    logging.getLogger("x").error("this one")
    [line] = lines(capsys)
    assert line.endswith("ERROR   inference x: this one")


def test_configured_twice_a_line_comes_once(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure("a", "INFO", "json")
    configure("b", "INFO", "json")
    logging.getLogger("x").info("m")
    [line] = lines(capsys)
    assert json.loads(line)["service"] == "b"


def test_a_traceparent_becomes_ids() -> None:
    assert trace_extra(b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01") == {
        "trace_id": "ab" * 16,
        "span_id": "cd" * 8,
    }
    for none in (None, b"", b"00-ab-cd", b"\xff\xfe"):
        assert trace_extra(none) == {}


# --- many alike ------------------------------------------------------------------------------------------------------


def line(created: float, message: str = "request failed: %s") -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "door", "levelno": logging.INFO, "msg": message, "args": ("x",)})
    made.created = created
    return made


def test_a_flood_of_alike_lines_is_thinned_and_counted() -> None:
    # Given 3 lines a second and kind
    throttle = Throttle(3)
    # When 100 come within a second, and one of another kind
    shown = [throttle.filter(line(7.0 + i / 1000)) for i in range(100)]
    other = throttle.filter(line(7.5, "another"))
    # Then three of them are shown, and the other one
    assert (sum(shown), shown[:3], other) == (3, [True] * 3, True)
    # And the next second's first says how many were not
    next_ = line(8.0)
    assert throttle.filter(next_)
    assert vars(next_)["left_out"] == 97
    after = line(8.1)
    assert throttle.filter(after)
    assert not hasattr(after, "left_out")
