"""Segmentation, detection and depth: what they make of a model's outputs, and of one that is not theirs."""

from __future__ import annotations

import numpy as np
import pytest

from services import tasks
from services.errors import ConfigurationError, Internal
from services.messages import Array, Image, Recipe, Tensors
from services.tasks.detection import MOST
from services.tasks.task import Setup, Task

RECIPE = Recipe(32, 32, (0, 0, 0), (1, 1, 1), fit="stretch")
IMAGE = Image(np.zeros((2, 4, 3), np.uint8), 64, 32)


def load(name: str, *labels: str, threshold: float | None = None) -> Task:
    return tasks.load(name, Setup("net", RECIPE, labels, threshold=threshold))


def found(*rows: tuple[float, ...]) -> Tensors:
    """Candidates: left, top, right, bottom, score, class."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return {
        "boxes": table[None, :, :4],
        "scores": table[None, :, 4],
        "classes": table[None, :, 5].astype(np.int64),
    }


def test_detections_are_sorted_named_and_in_the_originals_pixels() -> None:
    outputs = found((0, 0, 0.5, 0.5, 0.4, 1), (0.5, 0.5, 1, 1, 0.9, 2), (0.1, 0.1, 0.2, 0.2, 0.6, 7))
    tensors = load("detection", "nothing", "cat", "dog").interpret(outputs, IMAGE).tensors
    np.testing.assert_allclose(tensors["boxes"], [[32, 16, 64, 32], [6.4, 3.2, 12.8, 6.4], [0, 0, 32, 16]], rtol=1e-5)
    np.testing.assert_allclose(tensors["scores"], [0.9, 0.6, 0.4])
    assert tensors["classes"].tolist() == [2, 7, 1]
    assert tensors["labels"].tolist() == [b"dog", b"7", b"cat"]


def test_of_two_boxes_about_one_thing_the_likelier_stays_unless_they_are_of_two_classes() -> None:
    here, there = (0, 0, 0.5, 0.5), (0.02, 0, 0.52, 0.5)
    detection = load("detection")
    assert len(detection.interpret(found((*here, 0.9, 1), (*there, 0.8, 1)), IMAGE).tensors["boxes"]) == 1
    assert len(detection.interpret(found((*here, 0.9, 1), (*there, 0.8, 2)), IMAGE).tensors["boxes"]) == 2


@pytest.mark.parametrize(("threshold", "kept"), [(None, 1), (0.2, 2), (0.0, 2)])
def test_what_is_too_unlikely_or_no_box_is_not_reported(threshold: float | None, kept: int) -> None:
    outputs = found((0, 0, 0.2, 0.2, 0.5, 1), (0.5, 0.5, 1, 1, 0.25, 1), (0, 0, 0, 0, 0.9, 1), (0, 0, 1, 1, 0, 1))
    assert len(load("detection", threshold=threshold).interpret(outputs, IMAGE).tensors["boxes"]) == kept


def test_nothing_found_is_an_answer_and_very_much_has_an_end() -> None:
    nothing = load("detection").interpret(found((0, 0, 1, 1, 0, 0)), IMAGE).tensors
    assert {name: value.shape for name, value in nothing.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
        "classes": (0,),
    }
    crowd = found(*((x / 20, y / 20, (x + 1) / 20, (y + 1) / 20, 0.9, 1) for x in range(20) for y in range(20)))
    assert len(load("detection").interpret(crowd, IMAGE).tensors["boxes"]) == MOST


def test_a_mask_says_which_classes_are_there_most_pixels_first() -> None:
    plane = np.zeros((1, 32, 32), np.uint8)
    plane[0, :4] = 2
    plane[0, 4:8, :8] = 20
    tensors = load("segmentation", "nothing", "cat", "dog").interpret({"mask": plane}, IMAGE).tensors
    assert tensors["mask"].shape == (32, 64)
    assert tensors["classes"].tolist() == [0, 2, 20]
    assert tensors["labels"].tolist() == [b"nothing", b"dog", b"20"]
    assert (tensors["mask"][:4] == 2).all()
    assert (tensors["mask"][4:8, :16] == 20).all()


def test_depth_that_is_no_number_is_a_fault() -> None:
    depth = load("depth")
    assert depth.interpret({"depth": np.ones((1, 16, 16), np.float32)}, IMAGE).tensors["depth"].shape == (32, 64)
    with pytest.raises(Internal, match="not finite"):
        depth.interpret({"depth": np.full((1, 16, 16), np.nan, np.float32)}, IMAGE)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("segmentation", {"mask": np.zeros((1, 4, 4), np.float32)}),
        ("segmentation", {"mask": np.zeros((1, 21, 4, 4), np.uint8)}),
        ("depth", {"depth": np.zeros((1, 1, 4, 4), np.float32)}),
        ("depth", {"depth": np.zeros((2, 4, 4), np.float32)}),
        ("detection", {"boxes": np.zeros((1, 5, 5)), "scores": np.zeros((1, 5)), "classes": np.zeros((1, 5), int)}),
        ("detection", {"boxes": np.zeros((1, 5, 4)), "scores": np.zeros((1, 5))}),
        ("detection", {"boxes": np.zeros((1, 5, 4)), "scores": np.zeros((1, 5)), "classes": np.zeros((1, 5))}),
    ],
)
def test_outputs_of_another_kind_are_a_fault_that_names_what_is_read(name: str, outputs: dict[str, Array]) -> None:
    with pytest.raises(Internal, match=rf"model 'net' answered .*; {name} reads "):
        load(name).interpret(outputs, IMAGE)


@pytest.mark.parametrize("name", ["segmentation", "detection", "depth"])
def test_a_recipe_that_cuts_the_edges_off_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"model 'net'.*cuts the edges off; give the recipe fit = 'stretch'"):
        tasks.load(name, Setup("net", Recipe(224, 256, (0, 0, 0), (1, 1, 1))))
