"""One suite over the table of tasks: what they say of themselves, and that they keep it, from many threads at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest

from services import tasks
from services.errors import ConfigurationError, Internal
from services.messages import Answer, Image, Recipe, Tensors
from services.tasks.task import Setup, Task
from services.wire import DATATYPE_OF, decode_response, encode_response

RECIPE = Recipe(224, 224, (127, 127, 127), (128, 128, 128), fit="letterbox")


class Case(NamedTuple):
    """A row, with what its model may answer."""

    outputs: Callable[[int], Tensors]  # of the model, for the i-th image
    labels: tuple[str, ...]


def logits(i: int) -> Tensors:
    return {"logits": np.random.default_rng(i).normal(size=(1, 1000)).astype(np.float32)}


def mask(i: int) -> Tensors:
    return {"mask": np.random.default_rng(i).integers(0, 21, (1, 56, 56)).astype(np.uint8)}


def depth(i: int) -> Tensors:
    return {"depth": np.random.default_rng(i).uniform(1, 9, (1, 56, 56)).astype(np.float32)}


def candidates(i: int) -> Tensors:
    generator = np.random.default_rng(i)
    corners = generator.uniform(0, 0.5, (1, 50, 2))
    return {
        "boxes": np.concatenate([corners, corners + generator.uniform(0.05, 0.5, (1, 50, 2))], axis=2).astype(
            np.float32
        ),
        "scores": generator.uniform(0, 1, (1, 50)).astype(np.float32),
        "classes": generator.integers(1, 91, (1, 50)),
    }


def faces(i: int) -> Tensors:
    return {name: candidates(i)[name] for name in ("boxes", "scores")}


def embeddings(i: int) -> Tensors:
    return {"embeddings": np.random.default_rng(i).normal(size=(1, 16)).astype(np.float32)}


WORDS = tuple(f"word {i}" for i in range(1000))
CASES: dict[str, Case] = {
    "classification": Case(logits, WORDS),
    "segmentation": Case(mask, WORDS),
    "detection": Case(candidates, WORDS),
    "depth": Case(depth, ()),
    "faces": Case(faces, ()),
    "identification": Case(embeddings, ()),
}
# Every row of the table is here, by construction: a new one without a case fails the collection.
ROWS = [pytest.param(name, CASES[name], id=name) for name in tasks.TABLE]


def image(i: int) -> Image:
    return Image(np.full((20 + i, 30, 3), i, np.uint8), 300, 200 + i)


def load(name: str, case: Case) -> Task:
    return tasks.load(name, Setup("net", RECIPE, case.labels, threshold=0.1))


def conclude(task: Task, answer: Answer, of: Image) -> Answer:
    """The whole answer, were every part of the image answered by who is asked about it."""
    follow_up = task.follow_up(of, answer)
    if follow_up is None:
        return answer
    assert follow_up.task in task.asks
    asked = load(follow_up.task, CASES[follow_up.task])
    answers = [asked.interpret(CASES[follow_up.task].outputs(i), crop) for i, crop in enumerate(follow_up.crops)]
    return follow_up.conclude(answers, asked.outputs)


def same(a: Answer, b: Answer) -> bool:
    return list(a.tensors) == list(b.tensors) and all(
        np.array_equal(value, b.tensors[key]) for key, value in a.tensors.items()
    )


@pytest.mark.parametrize(("name", "case"), ROWS)
def test_it_says_who_it_is(name: str, case: Case) -> None:
    task = load(name, case)
    assert (task.name, task.model, task.recipe) == (name, "net", RECIPE)
    assert task.outputs
    for _, dtype, shape in task.outputs:
        assert np.dtype(dtype) in DATATYPE_OF  # a wire can carry it
        assert shape[0] == -1  # the images of the request


@pytest.mark.parametrize(("name", "case"), ROWS)
def test_an_answer_has_the_outputs_that_the_task_promises(name: str, case: Case) -> None:
    task = load(name, case)
    answer = conclude(task, task.interpret(case.outputs(1), image(1)), image(1))
    for output, dtype, shape in task.outputs:
        value = answer.tensors[output]
        assert value.dtype == np.dtype(dtype)
        assert value.size  # else nothing was tried
        assert len(value.shape) == len(shape) - 1
        assert all(promised in (-1, found) for promised, found in zip(shape[1:], value.shape, strict=True))


@pytest.mark.parametrize(("name", "case"), ROWS)
def test_answers_of_several_images_are_stacked_and_cross_a_wire_unless_ragged(name: str, case: Case) -> None:
    task = load(name, case)
    answers = [
        conclude(task, task.interpret(case.outputs(i), image(i)), image(i)) for i in range(1 if task.ragged else 3)
    ]
    stacked = {key: np.stack([answer.tensors[key] for answer in answers]) for key in answers[0].tensors}
    crossed = decode_response(encode_response(name, "1", stacked)).outputs
    for key, value in stacked.items():
        assert crossed[key].shape == value.shape
        assert [bytes(x) if value.dtype == object else x for x in crossed[key].ravel()] == value.ravel().tolist()


@pytest.mark.parametrize(("name", "case"), ROWS)
def test_what_the_model_answers_stays_as_it_is(name: str, case: Case) -> None:
    task = load(name, case)
    outputs = case.outputs(1)
    for value in outputs.values():
        value.flags.writeable = False  # a view of a message is read-only, too
    task.interpret(outputs, image(1))
    for key, value in case.outputs(1).items():
        np.testing.assert_array_equal(outputs[key], value)


@pytest.mark.parametrize(("name", "case"), ROWS)
def test_it_is_stateless_and_may_be_called_from_many_threads(name: str, case: Case) -> None:
    task = load(name, case)
    alone = [task.interpret(case.outputs(i), image(i)) for i in range(8)]
    assert not same(alone[0], alone[1])
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: task.interpret(case.outputs(i % 8), image(i % 8)), range(64)))
    assert all(same(answer, alone[i % 8]) for i, answer in enumerate(together))


@pytest.mark.parametrize(("name", "case"), ROWS)
def test_outputs_of_another_model_are_a_fault_that_says_what_it_reads(name: str, case: Case) -> None:
    with pytest.raises(Internal, match=rf"model 'net' answered .*elsewhere.*; {name} reads "):
        load(name, case).interpret({"elsewhere": np.zeros((1, 2), np.float32)}, image(1))


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"model 'net' is for unknown task 'smell'; known: classification"):
        tasks.load("smell", Setup("net", RECIPE))
