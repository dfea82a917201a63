"""Classification: the five likeliest classes, with names."""

from __future__ import annotations

import numpy as np

from services.errors import Internal
from services.messages import Answer, Image, Tensors, TensorSpec
from services.tasks.task import Setup, Task

TOP = 5


def load(setup: Setup) -> Classification:
    """Where there are no labels, a class is named by its number."""
    return Classification(setup)


class Classification(Task):
    """Answers `scores` (probabilities, descending), `labels`, `classes`, and `logits` for who asks for them."""

    name = "classification"
    ragged = False
    needs_pixels = False
    outputs = (
        TensorSpec("scores", "float32", (-1, TOP)),
        TensorSpec("labels", "object", (-1, TOP)),
        TensorSpec("classes", "int64", (-1, TOP)),
    )

    def __init__(self, setup: Setup) -> None:
        self.model = setup.model
        self.recipe = setup.recipe
        self._labels = tuple(label.encode() for label in setup.labels)

    def interpret(self, outputs: Tensors, image: Image) -> Answer:  # noqa: ARG002 # classes have no place in the image
        """See `Task.interpret`; `outputs["logits"]`: float [1, classes], at least `TOP` of them, all finite."""
        logits = outputs.get("logits")
        if logits is None or logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] < TOP:
            found = {name: list(value.shape) for name, value in outputs.items()}
            raise Internal(f"model '{self.model}' answered {found}; classification reads logits [1, >={TOP}]")
        row = logits[0].astype(np.float32, copy=False)
        if not np.isfinite(row).all():
            raise Internal(f"model '{self.model}' answered logits that are not finite; is its precision too low?")
        likely = np.flatnonzero(row >= np.partition(row, -TOP)[-TOP])
        best = likely[np.argsort(-row[likely], kind="stable")][:TOP]  # ties go to the lower class
        powers = np.exp(row - row[best[0]])
        scores = (powers[best] / powers.sum()).astype(np.float32)
        names = np.empty(TOP, dtype=np.object_)
        for rank, index in enumerate(best):
            names[rank] = self._labels[index] if index < len(self._labels) else str(index).encode()
        return Answer({"scores": scores, "labels": names, "classes": best.astype(np.int64), "logits": row})
