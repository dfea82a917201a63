"""Pictures: the same numbers give the same bytes, and all that was drawn is named in them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from loadgen.figures.cells import Value
from loadgen.figures.plots import COLOURS, Axes, Bar, Line, bars, groups, lines

A, B = Value(1.0, 0.9, 1.2), Value(2.0)


def _lines(scale: float = 1.0) -> str:
    drawn = [
        Line("measured", [(1, A), (4, Value(2.0 * scale))]),
        Line("predicted", [(1, A), (4, B)], dashed=True, rule=("knee 2.0", 2.0)),
    ]
    return lines("a title", Axes("in flight", "images/s", log_x=True), drawn)


def _bars() -> str:
    return bars("shares", "share", [Bar("grpc", {"decode": 0.4, "infer": 0.6}, A)], percent=True)


def _groups() -> str:
    return groups("rates", "images/s", {"small": {"alone": A, "both": B}, "large": {"alone": B}})


@pytest.mark.parametrize("draw", [_lines, _bars, _groups])
def test_the_same_numbers_give_the_same_bytes(draw: object) -> None:
    assert callable(draw)
    first = draw()
    assert first == draw()
    ET.fromstring(first)  # noqa: S314 # written a line ago
    assert not any(line != line.rstrip() for line in first.splitlines())


def test_other_numbers_give_other_pictures() -> None:
    assert _lines() != _lines(1.5)


@pytest.mark.parametrize(
    ("svg", "named"),
    [
        (_lines, ["a title", "in flight", "images/s", "measured", "predicted", "knee 2.0"]),
        (_bars, ["shares", "grpc", "decode", "infer"]),
        (_groups, ["rates", "small", "large", "alone", "both"]),
    ],
)
def test_all_that_is_drawn_is_named(svg: object, named: list[str]) -> None:
    assert callable(svg)
    text = svg()
    for name in named:
        assert name in text, name


def test_a_name_has_one_colour_in_all_groups() -> None:
    text = _groups()
    # Two bars of `alone` and its field in the legend; one bar of `both`, and its.
    assert text.count(f"fill: {COLOURS[0]}") == 3
    assert text.count(f"fill: {COLOURS[1]}") == 2


def _top_of(high: float) -> float:
    """Of the axis' labels."""
    svg = lines("a title", Axes("x", "y"), [Line("one", [(1, Value(10.0, 9.0, high)), (2, Value(8.0))])])
    axis = svg[svg.index('id="matplotlib.axis_2"') :]
    return max(float(text) for text in re.findall(r">([\d.]+)</text>", axis))


def test_an_interval_that_is_far_longer_than_points_are_high_leaves_the_picture() -> None:
    # Given points up to 10; one that is known to 15, or to 2000, or not at all
    assert 12 <= _top_of(15) <= 20
    assert 10 <= _top_of(2000) <= 20


def test_a_quotient_has_a_rule_at_one() -> None:
    drawn = [Line("one", [(1, A), (2, B)])]
    with_rule, without = lines("t", Axes("x", "y", level=1.0), drawn), lines("t", Axes("x", "y"), drawn)
    assert len(with_rule) > len(without)
