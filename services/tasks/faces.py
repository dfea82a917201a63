"""Faces: where they are, and whose. Two networks: a detector, and for every face that it finds an identifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.messages import Answer, Array, Image, Tensors, TensorSpec
from services.tasks.detection import candidates
from services.tasks.geometry import to_image
from services.tasks.suppression import suppress
from services.tasks.task import FollowUp, Setup, Task, read, whole_image

ASKED = "identification"
OVERLAP = 0.7  # of the smaller box: the part of a face that looks like a face itself
MOST = 128
THRESHOLD = 0.9
MARGIN = 0.1  # of a face's longer side, on each side of it, that the identifier sees as well


def load(setup: Setup) -> Faces:
    """Raises `ConfigurationError`."""
    whole_image(setup, "faces")
    return Faces(setup)


class Faces(Task):
    """Answers `boxes` (left, top, right, bottom, in pixels of the original), likeliest first, with their `scores`.

    And for each box `embeddings`, `identities` and `similarities`, as `Identification` has them. A frame without a face
    is answered with none.
    """

    name = "faces"
    ragged = True
    needs_pixels = True
    asks = (ASKED,)
    outputs = (
        TensorSpec("boxes", "float32", (-1, -1, 4)),
        TensorSpec("scores", "float32", (-1, -1)),
        TensorSpec("embeddings", "float32", (-1, -1, -1)),
        TensorSpec("identities", "object", (-1, -1)),
        TensorSpec("similarities", "float32", (-1, -1)),
    )

    def __init__(self, setup: Setup) -> None:
        self.model = setup.model
        self.recipe = setup.recipe
        self._threshold = THRESHOLD if setup.threshold is None else setup.threshold

    def interpret(self, outputs: Tensors, image: Image) -> Answer:
        """See `Task.interpret`: where faces are.

        `outputs`: of K candidates `boxes` float [1, K, 4] in shares of the input's side and `scores` float [1, K].
        """
        boxes, scores = read(
            outputs,
            self.model,
            self.name,
            {"boxes": (1, -1, 4), "scores": (1, -1)},
            {"boxes": "f", "scores": "f"},
        )
        boxes, scores = candidates(to_image(boxes, image, self.recipe), scores, self._threshold)
        kept = suppress(boxes, scores, OVERLAP, MOST, of_smaller=True)
        return Answer({"boxes": boxes[kept], "scores": scores[kept].astype(np.float32)})

    def follow_up(self, image: Image, answer: Answer) -> FollowUp:
        """See `Task.follow_up`: whose each face is."""

        def conclude(answers: Sequence[Answer], outputs: tuple[TensorSpec, ...]) -> Answer:
            tensors = dict(answer.tensors)
            for name, dtype, shape in (*outputs, TensorSpec("model", "object", (-1,))):
                if answers:
                    tensors[name] = np.stack([one.tensors[name] for one in answers])
                else:
                    tensors[name] = np.empty((0, *(max(0, n) for n in shape[1:])), dtype)
            return Answer(tensors)

        return FollowUp(ASKED, tuple(crop(image, box) for box in answer.tensors["boxes"]), conclude)


def crop(image: Image, box: Array) -> Image:
    """The square about `box`, with its margin, as far as it is within the image."""
    left, top, right, bottom = (float(x) for x in box)
    half = max(right - left, bottom - top) * (0.5 + MARGIN)
    x, y = (left + right) / 2, (top + bottom) / 2
    rows, columns = image.pixels.shape[:2]
    # A decoder may have shrunk the image: places are in pixels of the original.
    across, down = columns / image.width, rows / image.height
    x0, x1 = _within((x - half) * across, (x + half) * across, columns)
    y0, y1 = _within((y - half) * down, (y + half) * down, rows)
    pixels = image.pixels[y0:y1, x0:x1]
    return Image(pixels, x1 - x0, y1 - y0)


def _within(begin: float, end: float, size: int) -> tuple[int, int]:
    """Whole pixels, at least one."""
    first = min(max(0, round(begin)), size - 1)
    return first, max(first + 1, min(size, round(end)))
