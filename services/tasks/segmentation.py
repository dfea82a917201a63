"""Semantic segmentation: which class each pixel of the image belongs to."""

from __future__ import annotations

import numpy as np

from services.messages import Answer, Image, Tensors, TensorSpec
from services.tasks.geometry import nearest
from services.tasks.task import Setup, Task, read, whole_image


def load(setup: Setup) -> Segmentation:
    """Raises `ConfigurationError`."""
    whole_image(setup, "segmentation")
    return Segmentation(setup)


class Segmentation(Task):
    """Answers `mask` [height, width] of the original: classes by number; `classes` that are there, and their `labels`.

    Those with most pixels come first. The network answers classes, not scores: 1 byte a pixel crosses the hop in place
    of 4 for each class (84 for the 21 of VOC).
    """

    name = "segmentation"
    ragged = True
    needs_pixels = False
    outputs = (
        TensorSpec("mask", "uint8", (-1, -1, -1)),
        TensorSpec("classes", "int64", (-1, -1)),
        TensorSpec("labels", "object", (-1, -1)),
    )

    def __init__(self, setup: Setup) -> None:
        self.model = setup.model
        self.recipe = setup.recipe
        self._labels = tuple(label.encode() for label in setup.labels)

    def interpret(self, outputs: Tensors, image: Image) -> Answer:
        """See `Task.interpret`; `outputs["mask"]`: uint8 [1, h, w] over the square input, at any resolution."""
        (plane,) = read(outputs, self.model, self.name, {"mask": (1, -1, -1)}, {"mask": "u"})
        mask = nearest(plane, image, self.recipe).astype(np.uint8, copy=False)
        pixels = np.bincount(mask.ravel())
        classes = np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)].astype(np.int64)
        names = np.empty(len(classes), dtype=np.object_)
        for rank, index in enumerate(classes):
            names[rank] = self._labels[index] if index < len(self._labels) else str(index).encode()
        return Answer({"mask": mask, "classes": classes, "labels": names})
