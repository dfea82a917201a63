"""What an answer says in a line."""

from __future__ import annotations

import numpy as np
import pytest

from loadgen.words import in_words


def words(*texts: str) -> np.ndarray:
    array = np.empty((1, len(texts)), dtype=object)
    array[0] = [text.encode() for text in texts]
    return array


def floats(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def boxes(n: int) -> np.ndarray:
    return np.zeros((1, n, 4), np.float32)


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ({"scores": floats(0.96, 0.1), "labels": words("espresso", "cup")}, "espresso (0.96)"),
        ({"boxes": boxes(0), "scores": floats(), "labels": words()}, "no thing"),
        ({"boxes": boxes(1), "scores": floats(0.9), "labels": words("cat")}, "1 thing: cat (0.90)"),
        (
            {"boxes": boxes(7), "scores": floats(*[0.5] * 7), "labels": words(*"abcdefg")},
            "7 things: a (0.50), b (0.50), c (0.50), d (0.50), e (0.50), ...",
        ),
        (
            {
                "boxes": boxes(2),
                "scores": floats(1, 1),
                "identities": words("Ada", ""),
                "similarities": floats(0.875, 0.1),
            },
            "2 faces: Ada (0.88), somebody",
        ),
        (
            {"boxes": boxes(0), "scores": floats(), "identities": words(), "similarities": floats()},
            "no face",
        ),
        (
            {"mask": np.array([[[7, 7], [7, 2]]]), "classes": np.array([[7, 2]]), "labels": words("sofa", "dog")},
            "2 classes: sofa 75%, dog 25%",
        ),
        ({"depth": np.array([[[1.0, 2.0], [2.0, 4.0]]])}, "1.00 to 4.00 far, half of it within 2.00"),
        ({"identities": words("Ada")[0], "similarities": np.array([0.75])}, "Ada (0.75)"),
        ({"identities": words("")[0], "similarities": np.array([-1.0])}, "nobody who is enrolled"),
        ({"x": np.zeros((1, 3))}, "x [1, 3]"),
    ],
)
def test_an_answer_in_words(outputs: dict[str, np.ndarray], says: str) -> None:
    assert in_words(outputs) == says
