"""The contract of a task: which model, how its input is made, what its outputs mean."""

from __future__ import annotations

from typing import Protocol

from services.messages import Answer, Image, Recipe, Tensors, TensorSpec


class Task(Protocol):
    """Stateless; called from many threads."""

    name: str
    model: str
    recipe: Recipe
    outputs: tuple[TensorSpec, ...]  # of an answer, the leading dimension (-1) being the images of the request
    ragged: bool  # its answers differ in shape from image to image, so a request holds one image
    needs_pixels: bool  # `interpret` looks at the image again; else its pixels are let go when the tensor is made

    def interpret(self, outputs: Tensors, image: Image) -> Answer:
        """What the model's outputs (each [1, ...]) say about `image`. Raises `Internal` for outputs it cannot read."""
        ...
