"""Classification: the five likeliest, in order, with the right names; what it cannot read is a fault, not an answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from services.errors import Internal
from services.messages import Array, Image, Recipe
from services.tasks.classification import TOP, Classification, load
from services.tasks.task import Setup

RECIPE = Recipe(224, 256, (127, 127, 127), (128, 128, 128))
IMAGE = Image(np.zeros((2, 2, 3), np.uint8), 2, 2)
LABELS = tuple(f"class {i}" for i in range(10))


def classify(row: Array, labels: tuple[str, ...] = LABELS) -> dict[str, Array]:
    return load(Setup("net", RECIPE, labels)).interpret({"logits": row[None]}, IMAGE).tensors


def test_the_five_likeliest_in_order_with_their_names() -> None:
    row = np.array([0, 3, 1, 9, 2, -4, 8, 0, 5, 7], np.float32)
    answer = classify(row)
    assert answer["classes"].tolist() == [3, 6, 9, 8, 1]
    assert answer["labels"].tolist() == [b"class 3", b"class 6", b"class 9", b"class 8", b"class 1"]
    # The probabilities of all ten sum to one, not those of the five
    np.testing.assert_allclose(answer["scores"], np.exp([9, 8, 7, 5, 3]) / np.exp(row).sum(), rtol=1e-6)
    np.testing.assert_array_equal(answer["logits"], row)


def test_its_tensors_are_what_its_outputs_say() -> None:
    answer = classify(np.arange(10, dtype=np.float16))
    for name, dtype, shape in Classification.outputs:
        assert answer[name].dtype == np.dtype(dtype)
        assert answer[name].shape == shape[1:]
    assert answer["logits"].dtype == np.float32


@pytest.mark.parametrize(
    ("row", "classes"),
    [
        ([0] * 10, [0, 1, 2, 3, 4]),
        ([1, 2, 1, 1, 1, 1, 1, 1, 1, 2], [1, 9, 0, 2, 3]),
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [9, 0, 1, 2, 3]),
    ],
)
def test_ties_go_to_the_lower_class_also_where_the_five_end(row: list[float], classes: list[int]) -> None:
    assert classify(np.array(row, np.float32))["classes"].tolist() == classes


@given(numpy_st.arrays(np.float32, st.integers(TOP, 40), elements=st.floats(-100, 100, width=32)))
def test_any_logits_give_what_a_plain_sort_gives(row: Array) -> None:
    answer = classify(row, ())
    expected = sorted(range(len(row)), key=lambda i: (-float(row[i]), i))[:TOP]
    assert answer["classes"].tolist() == expected
    assert answer["labels"].tolist() == [str(i).encode() for i in expected]
    wide = np.exp(row.astype(np.float64) - float(row.max()))
    np.testing.assert_allclose(answer["scores"], (wide / wide.sum())[expected], rtol=1e-4, atol=1e-7)


def test_large_logits_do_not_overflow() -> None:
    answer = classify(np.array([1e38, -1e38, 0, 1, 2, 3, 4, 5, 6, 7], np.float32))
    assert answer["scores"].tolist() == [1, 0, 0, 0, 0]


def test_without_labels_or_beyond_them_a_class_is_its_number() -> None:
    row = np.arange(10, dtype=np.float32)
    assert classify(row, ())["labels"].tolist() == [b"9", b"8", b"7", b"6", b"5"]
    assert classify(row, LABELS[:9])["labels"].tolist() == [b"9", b"class 8", b"class 7", b"class 6", b"class 5"]
    assert classify(row, ("Käse",) * 10)["labels"][0].decode() == "Käse"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_a_fault_of_the_model(bad: float) -> None:
    row = np.zeros(10, np.float32)
    row[3] = bad
    with pytest.raises(Internal, match="model 'net' answered logits that are not finite"):
        classify(row)


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"boxes": np.zeros((1, 10), np.float32)},
        {"logits": np.zeros(10, np.float32)},
        {"logits": np.zeros((1, TOP - 1), np.float32)},
        {"logits": np.zeros((2, 10), np.float32)},
        {"logits": np.zeros((0, 10), np.float32)},
        {"logits": np.zeros((1, 10, 1), np.float32)},
    ],
)
def test_outputs_that_it_cannot_read_are_a_fault_of_the_model(outputs: dict[str, Array]) -> None:
    with pytest.raises(Internal, match=r"model 'net' answered \{.*\}; classification reads logits \[1, >=5\]"):
        load(Setup("net", RECIPE, LABELS)).interpret(outputs, IMAGE)
