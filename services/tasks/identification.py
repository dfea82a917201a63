"""Identification: whose face an image of one face shows. What task `faces` asks about every face that it finds."""

from __future__ import annotations

import numpy as np

from services.errors import ConfigurationError, Internal
from services.messages import Answer, Image, Tensors, TensorSpec
from services.tasks.gallery import Gallery, read_gallery
from services.tasks.task import Setup, Task, read

THRESHOLD = 0.5  # least cosine of two pictures of one person


def load(setup: Setup) -> Identification:
    """Raises `ConfigurationError` for a gallery that cannot be read, or that another network's embeddings are in."""
    (length,) = [spec.shape[1] for spec in setup.outputs if spec.name == "embeddings" and len(spec.shape) == 2] or [-1]
    gallery = Gallery(setup.model)
    if setup.gallery is not None:
        gallery = read_gallery(setup.gallery)
        if gallery.model != setup.model:
            raise ConfigurationError(
                f"the gallery {setup.gallery} holds embeddings of model '{gallery.model}', not of '{setup.model}', and "
                "the two have nothing in common; link that model, or enroll with this one"
            )
        if gallery.names and length not in (-1, gallery.embeddings.shape[1]):
            raise ConfigurationError(
                f"the gallery {setup.gallery} holds embeddings of {gallery.embeddings.shape[1]} numbers, model "
                f"'{setup.model}' answers {length}; enroll anew"
            )
    return Identification(setup, gallery, length)


class Identification(Task):
    """Answers `embeddings` [d], of length 1; `identities`, "" for nobody who is enrolled; and `similarities`.

    That is the cosine with the most alike of those enrolled, -1 where nobody is. Also `model`, for who asks for it.
    """

    name = "identification"
    ragged = False
    needs_pixels = False

    def __init__(self, setup: Setup, gallery: Gallery, length: int) -> None:
        """`length`: of an embedding, -1 where it is not known."""
        self.model = setup.model
        self.recipe = setup.recipe
        self.outputs = (
            TensorSpec("embeddings", "float32", (-1, length)),
            TensorSpec("identities", "object", (-1,)),
            TensorSpec("similarities", "float32", (-1,)),
        )
        self._gallery = gallery
        self._length = length
        self._threshold = THRESHOLD if setup.threshold is None else setup.threshold

    def interpret(self, outputs: Tensors, image: Image) -> Answer:  # noqa: ARG002 # a face has no place in itself
        """See `Task.interpret`; `outputs["embeddings"]`: float [1, d]."""
        (found,) = read(outputs, self.model, self.name, {"embeddings": (1, self._length)}, {"embeddings": "f"})
        length = float(np.linalg.norm(found.astype(np.float64)))
        if not np.isfinite(length):
            raise Internal(f"model '{self.model}' answered an embedding that is not finite; is its precision too low?")
        embedding = (found / length if length > 0 else found).astype(np.float32)
        match = self._gallery.match(embedding)
        name = match.name if match.similarity >= self._threshold else ""
        return Answer(
            {
                "embeddings": embedding,
                "identities": _word(name),
                "similarities": np.array(match.similarity, np.float32),
                "model": _word(self.model),
            }
        )


def _word(text: str) -> np.ndarray[tuple[()], np.dtype[np.object_]]:
    array = np.empty((), dtype=np.object_)
    array[()] = text.encode()
    return array
