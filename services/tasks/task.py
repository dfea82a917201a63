"""The contract of a task: which model, how its input is made, what its outputs mean, and what is asked then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from services.errors import ConfigurationError, Internal
from services.messages import Answer, Array, Image, Recipe, Tensors, TensorSpec


@dataclass(frozen=True, slots=True)
class Setup:
    """What a task is made of: its model, as the models file has it, and what the door's settings add.

    `labels[i]` names class i. `threshold`: the least score that is reported, 0 to 1 (None: the task's own). `gallery`:
    the file of enrolled identities.
    """

    model: str
    recipe: Recipe
    labels: tuple[str, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()  # of the model
    threshold: float | None = None
    gallery: Path | None = None


class FollowUp(NamedTuple):
    """What is asked about parts of an image once it is known what is on it: one more round, all crops at once.

    `task`: its name, one of `Task.asks`. `conclude`: makes the whole answer of the answers about the crops, in their
    order (none, where there is no crop), and of the outputs that the asked task promises.
    """

    task: str
    crops: tuple[Image, ...]
    conclude: Callable[[Sequence[Answer], tuple[TensorSpec, ...]], Answer]


class Task(Protocol):
    """Stateless; called from many threads."""

    name: str
    model: str
    recipe: Recipe
    outputs: tuple[TensorSpec, ...]  # of an answer, the leading dimension (-1) being the images of the request
    ragged: bool  # its answers differ in shape from image to image, so a request holds one image
    needs_pixels: bool  # the image is looked at again: all its pixels are kept; else they are let go with the tensor
    asks: tuple[str, ...] = ()  # the tasks that `follow_up` may name

    def interpret(self, outputs: Tensors, image: Image) -> Answer:
        """What the model's outputs (each [1, ...]) say about `image`. Raises `Internal` for outputs it cannot read."""
        ...

    def follow_up(self, image: Image, answer: Answer) -> FollowUp | None:  # noqa: ARG002 # most tasks ask nothing more
        """What is to be asked about parts of `image`, given what `interpret` answered; None: the answer is whole."""
        return None


def whole_image(setup: Setup, task: str) -> None:
    """Raise `ConfigurationError` for a recipe that cuts the image's edges off: what is there would not be seen."""
    if setup.recipe.fit == "centre":
        raise ConfigurationError(
            f"model '{setup.model}': task {task} speaks of places in the whole image, but its recipe cuts the edges "
            "off; give the recipe fit = 'stretch' or fit = 'letterbox'"
        )


def read(
    outputs: Tensors, model: str, task: str, wanted: dict[str, tuple[int, ...]], kinds: dict[str, str]
) -> list[Array]:
    """The outputs of these names, without the batch dimension.

    `wanted`: shapes with the batch dimension, -1 for any length; `kinds`: of numpy's dtypes ("f", "iu"). Raises
    `Internal` that says what was found and what is read: the model is not the one that the models file says.
    """
    arrays = []
    for name, shape in wanted.items():
        array = outputs.get(name)
        if (
            array is None
            or array.ndim != len(shape)
            or any(w not in (-1, found) for w, found in zip(shape, array.shape, strict=True))
            or array.dtype.kind not in kinds[name]
        ):
            found = {key: f"{value.dtype} {list(value.shape)}" for key, value in outputs.items()}
            right = ", ".join(f"{key} {list(value)}" for key, value in wanted.items())
            raise Internal(f"model '{model}' answered {found}; {task} reads {right}")
        arrays.append(array[0])
    return arrays
