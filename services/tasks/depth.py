"""Monocular depth: how far each pixel is."""

from __future__ import annotations

import numpy as np

from services.errors import Internal
from services.messages import Answer, Image, Tensors, TensorSpec
from services.tasks.geometry import linear
from services.tasks.task import Setup, Task, read, whole_image


def load(setup: Setup) -> Depth:
    """Raises `ConfigurationError`."""
    whole_image(setup, "depth")
    return Depth(setup)


class Depth(Task):
    """Answers `depth` [height, width] of the original, in the unit that the network was trained in."""

    name = "depth"
    ragged = True
    needs_pixels = False
    outputs = (TensorSpec("depth", "float32", (-1, -1, -1)),)

    def __init__(self, setup: Setup) -> None:
        self.model = setup.model
        self.recipe = setup.recipe

    def interpret(self, outputs: Tensors, image: Image) -> Answer:
        """See `Task.interpret`; `outputs["depth"]`: float [1, h, w] over the square input, at any resolution."""
        (plane,) = read(outputs, self.model, self.name, {"depth": (1, -1, -1)}, {"depth": "f"})
        if not np.isfinite(plane).all():
            raise Internal(f"model '{self.model}' answered depths that are not finite; is its precision too low?")
        return Answer({"depth": linear(plane, image, self.recipe)})
