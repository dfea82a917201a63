"""Detection: what is where."""

from __future__ import annotations

import numpy as np

from services.messages import Answer, Array, Image, Tensors, TensorSpec
from services.tasks.geometry import to_image
from services.tasks.suppression import suppress
from services.tasks.task import Setup, Task, read, whole_image

OVERLAP = 0.55  # intersection over union of two boxes about one thing, as torchvision's SSDlite has it
MOST = 100
THRESHOLD = 0.3


def load(setup: Setup) -> Detection:
    """Raises `ConfigurationError`."""
    whole_image(setup, "detection")
    return Detection(setup)


class Detection(Task):
    """Answers `boxes` (left, top, right, bottom, in pixels of the original), `scores`, `labels` and `classes`.

    Likeliest first, at most `MOST`. The network answers its best candidates, decoded; which of them are about the same
    thing is decided here.
    """

    name = "detection"
    ragged = True
    needs_pixels = False
    outputs = (
        TensorSpec("boxes", "float32", (-1, -1, 4)),
        TensorSpec("scores", "float32", (-1, -1)),
        TensorSpec("labels", "object", (-1, -1)),
        TensorSpec("classes", "int64", (-1, -1)),
    )

    def __init__(self, setup: Setup) -> None:
        self.model = setup.model
        self.recipe = setup.recipe
        self._threshold = THRESHOLD if setup.threshold is None else setup.threshold
        self._labels = tuple(label.encode() for label in setup.labels)

    def interpret(self, outputs: Tensors, image: Image) -> Answer:
        """See `Task.interpret`.

        `outputs`: of K candidates `boxes` float [1, K, 4] in shares of the input's side, `scores` float [1, K] and
        `classes` int [1, K].
        """
        boxes, scores, classes = read(
            outputs,
            self.model,
            self.name,
            {"boxes": (1, -1, 4), "scores": (1, -1), "classes": (1, -1)},
            {"boxes": "f", "scores": "f", "classes": "iu"},
        )
        boxes, scores, classes = candidates(to_image(boxes, image, self.recipe), scores, self._threshold, classes)
        kept = suppress(boxes, scores, OVERLAP, MOST, classes)
        names = np.empty(len(kept), dtype=np.object_)
        for rank, index in enumerate(classes[kept]):
            names[rank] = self._labels[index] if index < len(self._labels) else str(index).encode()
        return Answer(
            {
                "boxes": boxes[kept],
                "scores": scores[kept].astype(np.float32),
                "labels": names,
                "classes": classes[kept].astype(np.int64),
            }
        )


def candidates(boxes: Array, scores: Array, threshold: float, *others: Array) -> tuple[Array, ...]:
    """Those that have an extent, and a finite score from `threshold` on and above 0, which is no candidate's."""
    sides = boxes[:, 2:] - boxes[:, :2]
    good = (scores >= threshold) & (scores > 0) & np.isfinite(scores) & (sides > 0.01).all(axis=1)
    return tuple(array[good] for array in (boxes, scores, *others))
