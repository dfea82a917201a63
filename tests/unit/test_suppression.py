"""Non-maximum suppression against its definition, written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tasks.suppression import suppress


def overlap(a: np.ndarray, b: np.ndarray, *, of_smaller: bool) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    common = width * height
    return common / min(areas) if of_smaller else common / (sum(areas) - common)


def by_definition(
    boxes: np.ndarray, scores: np.ndarray, limit: float, most: int, groups: np.ndarray, *, of_smaller: bool
) -> list[int]:
    """Of what is left, the highest stays, and takes with it what overlaps it."""
    left = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept: list[int] = []
    while left and len(kept) < most:
        first = left.pop(0)
        kept.append(first)
        left = [
            i
            for i in left
            if groups[i] != groups[first] or overlap(boxes[first], boxes[i], of_smaller=of_smaller) <= limit
        ]
    return kept


@given(
    st.integers(0, 40),
    st.integers(0, 2**31),
    st.sampled_from([0.2, 0.5, 0.7]),
    st.sampled_from([1, 3, 100]),
    st.booleans(),
)
def test_it_is_what_its_definition_says(n: int, seed: int, limit: float, most: int, of_smaller: bool) -> None:
    generator = np.random.default_rng(seed)
    corner = generator.integers(0, 20, (n, 2))
    boxes = np.concatenate([corner, corner + generator.integers(1, 12, (n, 2))], axis=1).astype(np.float32)
    scores = (generator.integers(1, 9, n) / 8).astype(np.float32)  # with ties
    groups = generator.integers(0, 3, n)
    kept = suppress(boxes, scores, limit, most, groups, of_smaller=of_smaller)
    assert kept.tolist() == by_definition(boxes, scores, limit, most, groups, of_smaller=of_smaller)


def test_without_groups_all_are_of_one() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], np.float32)
    assert suppress(boxes, np.array([0.5, 0.9, 0.1]), 0.5, 10).tolist() == [1, 2]


@pytest.mark.parametrize(("of_smaller", "kept"), [(False, [0, 1]), (True, [0])])
def test_a_box_within_another_goes_only_by_the_smaller_area(of_smaller: bool, kept: list[int]) -> None:
    boxes = np.array([[0, 0, 10, 10], [2, 2, 5, 5]], np.float32)
    assert suppress(boxes, np.array([0.9, 0.8]), 0.7, 10, of_smaller=of_smaller).tolist() == kept
